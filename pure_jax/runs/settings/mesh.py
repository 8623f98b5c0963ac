"""The devices of a run as settings. See `pure_jax.parallel.sharding`."""

import dataclasses

import jax

from pure_jax.parallel import sharding
from pure_jax.parallel.kernel_calls import XLA, Kernels
from pure_jax.runs.settings.checks import ConfigError, one_of


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """`data` x `fsdp` x `tensor` x `sequence` devices, and a rule set."""

  data: int = 1
  fsdp: int = 1
  tensor: int = 1
  sequence: int = 1
  rules: str = "fsdp"

  def __post_init__(self):
    """Validates sizes and rules, before any device is looked at."""
    if min(self.data, self.fsdp, self.tensor, self.sequence) < 1:
      raise ValueError(f"mesh sizes must be at least 1, got {self.sizes()}.")
    one_of(self, "rules", sorted(sharding.RULE_SETS))

  @property
  def devices(self) -> int:
    """The number of devices."""
    return self.data * self.fsdp * self.tensor * self.sequence

  def sizes(self) -> str:
    """The sizes, for an error message."""
    sizes = {axis: getattr(self, axis) for axis in sharding.MESH_AXES}
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items())

  def layout(self, kernels: Kernels = XLA) -> sharding.Layout:
    """Lays the devices out in this mesh; models call `kernels` on it.

    Raises:
      ConfigError: if the devices are too few, no rule uses an axis, a kernel
        cannot run on them, or the mesh has no device of one of the processes.
    """
    sizes = (self.data, self.fsdp, self.tensor, self.sequence)
    try:
      layout = sharding.make_layout(*sizes, self.rules, kernels=kernels)
    except ValueError as error:
      raise ConfigError(str(error)) from error
    if jax.process_count() > 1 and layout.mesh.size < jax.device_count():
      raise ConfigError(
        f"A mesh of {self.sizes()} leaves out some of the "
        f"{jax.device_count()} devices of {jax.process_count()} processes: "
        "use all of them, or start fewer processes."
      )
    return layout

  def check_rows(self, name: str, rows: int) -> None:
    """Raises ValueError unless data x fsdp divides the rows of a field."""
    shards = self.data * self.fsdp
    if rows % shards:
      raise ValueError(
        f"{name}={rows} is not divisible by the {shards} row shards of the "
        f"mesh ({self.sizes()}): data x fsdp must divide it."
      )

  def check_shares_devices(self, name: str, main: "MeshSettings") -> None:
    """Raises ValueError unless both meshes have the same number of devices."""
    if self.devices != main.devices:
      raise ValueError(
        f"{name} ({self.sizes()}) has {self.devices} devices, but mesh "
        f"({main.sizes()}) has {main.devices}: both must hold the same."
      )
