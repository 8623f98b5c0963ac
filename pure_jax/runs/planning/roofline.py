"""What chips can do at most, and the time a program's costs take at least.

A roofline (https://doi.org/10.1145/1498765.1498785) is a bound, not a
forecast: no program is faster than its products at the peak rate, its memory
traffic at the peak bandwidth and its network traffic over all links at once.
"""

import dataclasses

from pure_jax.runs.planning.hlo.costs import Costs

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak numbers of one chip.

  Attributes:
    flops_per_second: of bfloat16 products.
    hbm_bytes_per_second: of its main memory.
    link_bytes_per_second: that leave it over all its links to other chips of
      a slice together, in one direction.
    hbm_bytes: that programs may use; what is sold is a little more.
  """

  flops_per_second: float
  hbm_bytes_per_second: float
  link_bytes_per_second: float
  hbm_bytes: float


# By jax's `device_kind`. Rates are those of the pages "TPU v5e", "TPU v5p" and
# "TPU v6e" of the Cloud TPU documentation (docs.cloud.google.com/tpu/docs), as
# of November 2026. The interconnect is published for both directions together
# (v5e 400 GB/s, v6e 800 GB/s) or for one (v5p 4,800 Gbit/s); here it is one.
# Usable memory is what the compiler of libtpu 0.0.42.1 names when a program
# does not fit: 15.75, 95.74 and 31.25 GiB.
CHIPS = {
  "TPU v5 lite": Chip(197e12, 819e9, 200e9, 15.75 * GIB),
  "TPU v5": Chip(459e12, 2765e9, 600e9, 95.74 * GIB),
  "TPU v6 lite": Chip(918e12, 1638e9, 400e9, 31.25 * GIB),
}


@dataclasses.dataclass(frozen=True)
class Bound:
  """Least seconds of a program, by what it needs.

  Attributes:
    compute: of its products.
    memory: of its traffic to main memory.
    network: of its collectives.
  """

  compute: float
  memory: float
  network: float

  @property
  def seconds(self) -> float:
    """With everything else hidden behind the longest."""
    return max(self.compute, self.memory, self.network)

  @property
  def serial_seconds(self) -> float:
    """With nothing hidden behind anything."""
    return self.compute + self.memory + self.network

  @property
  def name(self) -> str:
    """Of the longest: "compute", "memory" or "network"."""
    parts = dataclasses.asdict(self)
    return max(parts, key=parts.get)


def bound(costs: Costs, chip: Chip, devices_per_chip: int = 1) -> Bound:
  """The least time of a program on one device.

  >>> from pure_jax.runs.planning.hlo.collectives import Collective
  >>> costs = Costs(197e12, 819e9 / 2, {"all-gather": Collective(1, 1, 5e10)},
  ...               ())
  >>> bound(costs, CHIPS["TPU v5 lite"])
  Bound(compute=1.0, memory=0.5, network=0.25)

  Args:
    costs: of the program, for one device.
    chip: that the device is on.
    devices_per_chip: jax devices that share it.

  Returns:
    The bound.
  """
  share = 1 / devices_per_chip
  return Bound(
    compute=costs.flops / (share * chip.flops_per_second),
    memory=costs.hbm_bytes / (share * chip.hbm_bytes_per_second),
    network=costs.sent_bytes / (share * chip.link_bytes_per_second),
  )
