"""The devices of a run as settings. See `pure_jax.parallel.sharding`."""

import dataclasses

import jax

from pure_jax.parallel import sharding
from pure_jax.parallel.kernel_calls import XLA, Kernels


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """`data` x `fsdp` x `tensor` x `sequence` devices, and a rule set."""

  data: int = 1
  fsdp: int = 1
  tensor: int = 1
  sequence: int = 1
  rules: str = "fsdp"

  def __post_init__(self):
    """Refuses sizes and names of nothing, before any device is looked at."""
    if min(self.data, self.fsdp, self.tensor, self.sequence) < 1:
      raise ValueError(f"mesh sizes must be at least 1, got {self.sizes()}.")
    if self.rules not in sharding.RULE_SETS:
      raise ValueError(
        f"rules must be one of {sorted(sharding.RULE_SETS)}, got "
        f"{self.rules!r}."
      )

  @property
  def devices(self) -> int:
    """How many it needs."""
    return self.data * self.fsdp * self.tensor * self.sequence

  def sizes(self) -> str:
    """The sizes as an error message shows them."""
    sizes = {axis: getattr(self, axis) for axis in sharding.MESH_AXES}
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items())

  def layout(self, kernels: Kernels = XLA) -> sharding.Layout:
    """The devices, in this layout.

    Args:
      kernels: what models call there in place of XLA's operations.

    Returns:
      Mesh and rules.

    Raises:
      ValueError: if the devices are too few, an axis has no use, a kernel
        cannot run on them, or one of several processes would have no part.
    """
    layout = sharding.make_layout(
      self.data,
      self.fsdp,
      self.tensor,
      self.sequence,
      self.rules,
      kernels=kernels,
    )
    if jax.process_count() > 1 and layout.mesh.size < jax.device_count():
      raise ValueError(
        f"A mesh of {self.sizes()} leaves out some of the "
        f"{jax.device_count()} devices of {jax.process_count()} processes: "
        "use all of them, or start fewer processes."
      )
    return layout

  def check_rows(self, name: str, rows: int) -> None:
    """Refuses a batch that cannot be split.

    Args:
      name: of the field that says how many rows there are.
      rows: how many.

    Raises:
      ValueError: naming the field.
    """
    shards = self.data * self.fsdp
    if rows % shards:
      raise ValueError(
        f"{name}={rows} is not divisible by the {shards} row shards of the "
        f"mesh ({self.sizes()}): data x fsdp must divide it."
      )

  def check_beside(self, name: str, main: "MeshSettings", rows: int) -> None:
    """Refuses a layout of another model that cannot stand beside the main one.

    Args:
      name: of this group of fields.
      main: the layout of the policy in training.
      rows: of an evaluation, whose rows this one splits too.

    Raises:
      ValueError: if the devices are not as many, or the rows do not fit.
    """
    if self.devices != main.devices:
      raise ValueError(
        f"{name} ({self.sizes()}) has {self.devices} devices, but mesh "
        f"({main.sizes()}) has {main.devices}: both must hold the same."
      )
    self.check_rows(f"rl.eval_prompts (in {name})", rows)
