"""Peak rates of chips, and the least time that a program takes on them.

A roofline (https://doi.org/10.1145/1498765.1498785) is a bound, not a
forecast. A program cannot be faster than its matrix products at the peak rate,
its memory traffic at the peak bandwidth, or its network traffic over all links
at once.
"""

import dataclasses

from pure_jax.runs.planning.hlo.costs import Costs

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak rates and memory of one chip.

  Attributes:
    flops_per_second: peak rate of bfloat16 products.
    hbm_bytes_per_second: peak bandwidth of the main memory.
    link_bytes_per_second: peak bandwidth to other chips of the slice, over
      all links together, in one direction.
    hbm_bytes: memory that programs may use, a little less than is sold.
  """

  flops_per_second: float
  hbm_bytes_per_second: float
  link_bytes_per_second: float
  hbm_bytes: float


# By jax's `device_kind`. The rates come from the pages "TPU v5e", "TPU v5p" and
# "TPU v6e" of the Cloud TPU documentation (docs.cloud.google.com/tpu/docs), as
# of November 2026. It publishes the interconnect for both directions together
# (v5e 400 GB/s, v6e 800 GB/s) or for one (v5p 4,800 Gbit/s). The table has one
# direction. The usable memory comes from error messages of the compiler in
# libtpu 0.0.42.1 when a program does not fit: 15.75, 95.74 and 31.25 GiB.
CHIPS = {
  "TPU v5 lite": Chip(197e12, 819e9, 200e9, 15.75 * GIB),
  "TPU v5": Chip(459e12, 2765e9, 600e9, 95.74 * GIB),
  "TPU v6 lite": Chip(918e12, 1638e9, 400e9, 31.25 * GIB),
}


@dataclasses.dataclass(frozen=True)
class Bound:
  """Least seconds that a program takes, by resource.

  Attributes:
    compute: least seconds of its matrix products.
    memory: least seconds of its traffic to main memory.
    network: least seconds of its collectives.
  """

  compute: float
  memory: float
  network: float

  @property
  def seconds(self) -> float:
    """Least time if the three overlap perfectly: the longest of them."""
    return max(self.compute, self.memory, self.network)

  @property
  def serial_seconds(self) -> float:
    """Least time if nothing overlaps: the sum."""
    return self.compute + self.memory + self.network

  @property
  def name(self) -> str:
    """The resource that takes longest: "compute", "memory" or "network"."""
    seconds = dataclasses.asdict(self)
    return max(seconds, key=seconds.get)


def bound(costs: Costs, chip: Chip, devices_per_chip: int = 1) -> Bound:
  """Bounds the time of a program on one device.

  >>> from pure_jax.runs.planning.hlo.collectives import Collective
  >>> costs = Costs(197e12, 819e9 / 2, {"all-gather": Collective(1, 1, 5e10)},
  ...               ())
  >>> bound(costs, CHIPS["TPU v5 lite"])
  Bound(compute=1.0, memory=0.5, network=0.25)

  Args:
    costs: costs of the program on one device.
    chip: the chip of the device.
    devices_per_chip: devices that share the chip and its rates.

  Returns:
    The least seconds for each resource.
  """
  share = 1 / devices_per_chip
  return Bound(
    compute=costs.flops / (share * chip.flops_per_second),
    memory=costs.hbm_bytes / (share * chip.hbm_bytes_per_second),
    network=costs.sent_bytes / (share * chip.link_bytes_per_second),
  )
