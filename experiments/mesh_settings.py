"""The devices of a run as settings. See `pure_jax.parallel.sharding`."""

import dataclasses

from pure_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """`data` x `fsdp` x `tensor` x `sequence` devices, and a rule set."""

  data: int
  fsdp: int
  tensor: int
  sequence: int
  rules: str

  def __post_init__(self):
    """Refuses sizes and names of nothing, before any device is looked at."""
    if min(self.data, self.fsdp, self.tensor, self.sequence) < 1:
      raise ValueError(f"mesh sizes must be at least 1, got {self.sizes()}.")
    if self.rules not in sharding.RULE_SETS:
      raise ValueError(
        f"rules must be one of {sorted(sharding.RULE_SETS)}, got "
        f"{self.rules!r}."
      )

  def sizes(self) -> str:
    """The sizes as an error message shows them."""
    sizes = {axis: getattr(self, axis) for axis in sharding.MESH_AXES}
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items())

  def layout(self) -> sharding.Layout:
    """The devices, in this layout.

    Returns:
      Mesh and rules.

    Raises:
      ValueError: if the devices are too few, or an axis has no use.
    """
    return sharding.make_layout(
      self.data, self.fsdp, self.tensor, self.sequence, self.rules
    )

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
