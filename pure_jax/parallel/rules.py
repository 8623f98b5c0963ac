"""Rules from logical to mesh axes, applied to one array at a time.

A weight is declared with *logical* axes ("width", "heads", ...), and models
name the logical axes of a few activations ("rows", "tokens", ...). A rule set
says over which *mesh* axes, if any, each logical axis is split. There are four
mesh axes, and a rule set uses some of them:

* ``data``: rows are split, parameters are copied;
* ``fsdp``: rows are split **and** parameters with their optimizer state are
  split along ``width``; XLA gathers a layer's weights when it needs them;
* ``tensor``: heads, MLP and vocabulary of weights and activations are split
  (Megatron-LM, https://arxiv.org/abs/1909.08053);
* ``sequence``: the tokens of a row are split; keys and values are gathered.

Nothing is replicated by accident. A logical axis without a rule, two logical
axes of one array on the same mesh axis, and a dimension that the mesh axes do
not divide each raise an error.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pure_jax.models.activation_sharding import LogicalAxes

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

# Logical axis -> mesh axes that it is split over.
Rules = Mapping[str, tuple[str, ...]]

# All logical axes: first those of weights, then those of activations only.
_WHOLE: Rules = {
  "layers": (),
  "vocab": (),
  "width": (),
  "heads": (),
  "kv_heads": (),
  "head_dim": (),
  "mlp": (),
  "classes": (),
  "rows": ("data", "fsdp"),
  "tokens": (),
  "cache": (),
  "residual": (),
}
# Every weight except the per-head biases has a width axis. Splitting it divides
# the memory evenly and needs no padding of heads or vocabulary.
_SPLIT_WIDTH: Rules = {"width": ("fsdp",)}
_SPLIT_HEADS: Rules = dict.fromkeys(
  ("heads", "kv_heads", "mlp", "vocab"), ("tensor",)
)

RULE_SETS: Mapping[str, Rules] = {
  "fsdp": {**_WHOLE, **_SPLIT_WIDTH},
  "tensor": {**_WHOLE, **_SPLIT_HEADS},
  "fsdp+tensor": {**_WHOLE, **_SPLIT_WIDTH, **_SPLIT_HEADS},
  # Devices that share a row share its parameters' memory as well.
  "fsdp+sequence": {
    **_WHOLE,
    "width": ("fsdp", "sequence"),
    "tokens": ("sequence",),
  },
}

# If these are fewer than the shards, each shard keeps all of them: a model with
# 2 key heads runs on 4 tensor shards with copies of its keys and values.
COPIED_IF_FEWER = ("kv_heads",)


def partition_spec(
  name: str,
  shape: Sequence[int],
  logical_axes: Sequence[str | None],
  mesh: Mesh,
  rules: Rules,
) -> PartitionSpec:
  """Applies the rules to one array.

  Args:
    name: name of the array for error messages.
    shape: its shape.
    logical_axes: one logical axis (or None, not split) per dimension.
    mesh: the device mesh.
    rules: logical axis -> mesh axes.

  Returns:
    The partition spec, one entry per dimension. Mesh axes of one device are
    left out.

  Raises:
    ValueError: if the ranks differ, a logical axis has no rule, a rule names
      an axis the mesh lacks, two dimensions share a mesh axis, or the mesh
      axes do not divide the dimension.
  """
  label = f"{name} with shape {tuple(shape)}"
  if len(shape) != len(logical_axes):
    raise ValueError(
      f"{label} has {len(shape)} dimensions but {len(logical_axes)} logical "
      f"axes {tuple(logical_axes)}."
    )
  spec: list[str | tuple[str, ...] | None] = []
  used: set[str] = set()
  for size, logical in zip(shape, logical_axes, strict=True):
    axes = _mesh_axes(label, size, logical, mesh, rules)
    shared = used.intersection(axes)
    if shared:
      raise ValueError(
        f"{label}: two of its dimensions would be split over the mesh axis "
        f"{min(shared)!r}; change the rule of {logical!r}."
      )
    used.update(axes)
    spec.append(axes if len(axes) > 1 else axes[0] if axes else None)
  return PartitionSpec(*spec)


def _mesh_axes(
  label: str, size: int, logical: str | None, mesh: Mesh, rules: Rules
) -> tuple[str, ...]:
  """The mesh axes of more than one device that a dimension is split over."""
  if logical is None:
    return ()
  if logical not in rules:
    raise ValueError(
      f"{label}: no sharding rule for its logical axis {logical!r}; the "
      f"rules know {sorted(rules)}."
    )
  for axis in rules[logical]:
    if axis not in mesh.shape:
      raise ValueError(
        f"{label}: the rule {logical!r} -> {axis!r} names an axis that the "
        f"mesh {dict(mesh.shape)} does not have."
      )
  shards = math.prod(mesh.shape[axis] for axis in rules[logical])
  if logical in COPIED_IF_FEWER and size < shards and shards % size == 0:
    return ()
  axes = tuple(axis for axis in rules[logical] if mesh.shape[axis] > 1)
  if size % shards:
    raise ValueError(
      f"{label}: its {logical!r} dimension of {size} is not divisible by "
      f"the {shards} shards of the mesh axis {'+'.join(axes)!r}."
    )
  return axes


@dataclasses.dataclass(frozen=True)
class Constrainer:
  """Shards activations by the rules, inside a jitted function.

  Attributes:
    mesh: the devices.
    rules: name of a rule set.
    unsplit: logical axes that are not split, even if a rule splits them.
  """

  mesh: Mesh
  rules: str
  unsplit: tuple[str, ...] = ()

  def __call__(self, x: jax.Array, logical_axes: LogicalAxes) -> jax.Array:
    """Returns the sharded array; raises as `partition_spec` does."""
    sharding = NamedSharding(self.mesh, self.spec(x, logical_axes))
    return jax.lax.with_sharding_constraint(x, sharding)

  def spec(self, x: jax.Array, logical_axes: LogicalAxes) -> PartitionSpec:
    """Finds how an activation is split; raises as `partition_spec` does."""
    axes = [None if axis in self.unsplit else axis for axis in logical_axes]
    name = f"an activation {tuple(logical_axes)}"
    return partition_spec(name, x.shape, axes, self.mesh, RULE_SETS[self.rules])
