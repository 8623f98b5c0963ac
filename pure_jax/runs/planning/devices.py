"""The devices that a plan is made for."""

import dataclasses
import importlib.metadata
import os
from collections.abc import Sequence

import jax

from pure_jax.runs.planning.hlo.costs import Costs
from pure_jax.runs.planning.roofline import CHIPS, Bound, Chip, bound
from pure_jax.runs.settings.conversion import ConfigError


@dataclasses.dataclass(frozen=True)
class Target:
  """The devices that a plan is made for, and the compiler.

  Attributes:
    topology: name of the TPU slice, or "local" for this machine.
    device_kind: jax's name of the devices.
    devices: number of devices.
    devices_per_chip: devices that share a chip.
    chip: peak rates and memory of a chip; None if they are unknown.
    versions: versions of the packages that compile.
  """

  topology: str
  device_kind: str
  devices: int
  devices_per_chip: int
  chip: Chip | None
  versions: dict[str, str]

  @property
  def chips(self) -> int:
    """Number of chips."""
    return self.devices // self.devices_per_chip

  @property
  def limit_bytes(self) -> float | None:
    """Memory of a device that programs may use; None if it is unknown."""
    return self.chip and self.chip.hbm_bytes / self.devices_per_chip

  def bound(self, costs: Costs | None) -> Bound | None:
    """Bounds the time of a program; None if costs or rates are unknown."""
    if costs is None or self.chip is None:
      return None
    return bound(costs, self.chip, self.devices_per_chip)


def find_devices(topology: str | None) -> tuple[jax.Device, ...]:
  """Finds the devices of a TPU slice, or of this machine.

  Call this before jax has looked for devices. libtpu describes a slice
  without a TPU and without asking the cloud which machine this is. Programs
  can be compiled for the devices of a slice but not run on them.

  Args:
    topology: name of a slice, such as "v5p:4x4x4"; None for this machine.

  Returns:
    The devices.

  Raises:
    ConfigError: if libtpu is missing or does not know the slice.
  """
  if topology is None:
    return tuple(jax.devices())
  if not topology:  # libtpu would take a slice of its own choice.
    raise ConfigError(
      "--topology= names nothing: name a slice, such as v5p:4x4x4, or leave "
      "the flag out to plan for the devices here."
    )
  try:
    libtpu = importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError as error:
    raise ConfigError(
      f"--topology={topology} needs the TPU compiler, the package libtpu: "
      "pip install -e '.[plan]'. Without --topology the devices of this "
      "machine are planned for."
    ) from error
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  # No chip is used, so several processes may compile at a time.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  jax.config.update("jax_platforms", "cpu")
  from jax.experimental import topologies

  try:
    description = topologies.get_topology_desc(
      platform="tpu", topology_name=topology
    )
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    raise ConfigError(
      f"--topology={topology} is none that libtpu {libtpu} knows, such as "
      f"v5e:4x4, v6e:4x4 or v5p:4x4x4: {str(error).splitlines()[0]}"
    ) from error
  return tuple(description.devices)


def describe_target(
  topology: str | None, devices: Sequence[jax.Device]
) -> Target:
  """Describes the devices of a plan.

  Args:
    topology: name of a slice; None for this machine.
    devices: the devices. Those of a TPU chip have the same coordinates.

  Returns:
    Their number and kind, and the compiler's version.
  """
  packages, chips = ["jax", "jaxlib"], len(devices)
  if devices[0].platform == "tpu":
    packages.append("libtpu")
    chips = len({tuple(device.coords) for device in devices})
  kind = devices[0].device_kind
  return Target(
    topology=topology or "local",
    device_kind=kind,
    devices=len(devices),
    devices_per_chip=len(devices) // chips,
    chip=CHIPS.get(kind),
    versions={name: importlib.metadata.version(name) for name in packages},
  )
