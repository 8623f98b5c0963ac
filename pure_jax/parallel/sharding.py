"""Mesh, logical-to-mesh rules and named shardings: the one place for layout.

A weight is declared with *logical* axes ("width", "heads", ...), and models
name those of a few activations ("rows", "tokens", ...); a rule table says
which *mesh* axes, if any, each logical axis is split over. Four mesh axes
exist, and a rule set uses some of them:

* ``data``: rows are split, parameters are copies;
* ``fsdp``: rows are split **and** parameters with their optimizer state are
  split along ``width``; XLA gathers a layer's weights where it needs them;
* ``tensor``: heads, MLP and vocabulary are split, of weights and activations
  alike (Megatron-LM, https://arxiv.org/abs/1909.08053);
* ``sequence``: the tokens of a row are split; keys and values are gathered.

Nothing is replicated by accident: a logical axis without a rule, two logical
axes of one array on the same mesh axis, a dimension that the mesh axes do not
divide, and a mesh axis that no rule uses all raise.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pure_jax.models.activation_sharding import (
  LOCAL,
  ActivationSharding,
  LogicalAxes,
  unconstrained,
)
from pure_jax.parallel.kernel_calls import XLA, Kernels

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

Rules = Mapping[str, str | tuple[str, ...] | None]

# Every logical axis there is: of weights, then of activations alone.
_WHOLE: Rules = {
  "layers": None,
  "vocab": None,
  "width": None,
  "heads": None,
  "kv_heads": None,
  "head_dim": None,
  "mlp": None,
  "classes": None,
  "rows": ("data", "fsdp"),
  "tokens": None,
  "slots": None,
  "residual": None,
}
# Every weight but the per-head biases has a width axis, so splitting it
# divides the memory evenly and needs no padding of heads or vocabulary.
_SPLIT_WIDTH: Rules = {"width": "fsdp"}
_SPLIT_HEADS: Rules = {
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
}

RULE_SETS: Mapping[str, Rules] = {
  "fsdp": {**_WHOLE, **_SPLIT_WIDTH},
  "tensor": {**_WHOLE, **_SPLIT_HEADS},
  "fsdp+tensor": {**_WHOLE, **_SPLIT_WIDTH, **_SPLIT_HEADS},
  # Devices that share a row share its parameters' memory as well.
  "fsdp+sequence": {
    **_WHOLE,
    "width": ("fsdp", "sequence"),
    "tokens": "sequence",
  },
}

# Where these are fewer than the shards, each shard keeps all of them: a model
# with 2 key heads runs on 4 tensor shards, its keys and values as copies.
COPIED_WHERE_FEWER = ("kv_heads",)


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh and what is split over it. Hashable, for a static argument.

  Attributes:
    mesh: the devices, with the axes of `MESH_AXES`.
    rules: name of a rule set in `RULE_SETS`.
    kernels: what models call in place of XLA's operations.
  """

  mesh: Mesh
  rules: str = "fsdp"
  kernels: Kernels = XLA

  def __post_init__(self):
    """Refuses a mesh axis without a use, and kernels that cannot run on it."""
    if self.rules not in RULE_SETS:
      raise ValueError(
        f"rules must be one of {sorted(RULE_SETS)}, got {self.rules!r}."
      )
    used = {axis for rule in self.table.values() for axis in _axes_of(rule)}
    for axis, size in self.mesh.shape.items():
      if size > 1 and axis not in used:
        raise ValueError(
          f"The rules {self.rules!r} split nothing over the mesh axis "
          f"{axis!r} of {size}: its devices would repeat each other's work. "
          f"Set it to 1, or choose other rules of {sorted(RULE_SETS)}."
        )
    self.kernels.check(self.mesh)

  @property
  def table(self) -> Rules:
    """Logical axis -> mesh axes."""
    return RULE_SETS[self.rules]

  @property
  def row_shards(self) -> int:
    """Parts into which the rows of a batch are split."""
    return _shards(self.mesh, self.table["rows"])

  @property
  def act_sharding(self) -> ActivationSharding:
    """What models take for whole texts; the identity on one device."""
    return self._placement(_shards(self.mesh, self.table["tokens"]))

  @property
  def decoding_placement(self) -> ActivationSharding:
    """The same for texts that grow by one token at a time.

    One token cannot be split: devices of a `sequence` group repeat each
    other's work. Sample in a layout without it.
    """
    return self._placement(1, whole=("tokens",))

  def _placement(self, token_shards: int, whole: tuple[str, ...] = ()):
    """Where activations live and what reads them."""
    if self.mesh.size == 1:
      if self.kernels == XLA:
        return LOCAL
      return ActivationSharding(unconstrained, 1, **self.kernels.calls(None))
    constrain = Constrainer(self.mesh, self.rules, whole)
    return ActivationSharding(
      constrain, token_shards, **self.kernels.calls(constrain)
    )

  def __str__(self) -> str:
    sizes = " x ".join(f"{k}={v}" for k, v in self.mesh.shape.items() if v > 1)
    return f"{self.rules} on {sizes or 'one device'}"


@dataclasses.dataclass(frozen=True)
class Constrainer:
  """Puts an activation where the rules want it, inside a jitted function.

  Attributes:
    mesh: the devices.
    rules: name of a rule set.
    whole: logical axes that are not split, whatever the rules say.
  """

  mesh: Mesh
  rules: str
  whole: tuple[str, ...] = ()

  def __call__(self, x: jax.Array, logical_axes: LogicalAxes) -> jax.Array:
    """Returns the array; see `partition_spec` for what raises."""
    place = NamedSharding(self.mesh, self.spec(x, logical_axes))
    return jax.lax.with_sharding_constraint(x, place)

  def spec(self, x: jax.Array, logical_axes: LogicalAxes) -> PartitionSpec:
    """Where an activation lives.

    Args:
      x: the array.
      logical_axes: one name, or None, per dimension.

    Returns:
      Its partition spec; see `partition_spec` for what raises.
    """
    axes = [None if axis in self.whole else axis for axis in logical_axes]
    name = f"an activation {tuple(logical_axes)}"
    return partition_spec(name, x.shape, axes, self.mesh, RULE_SETS[self.rules])


def make_layout(
  data: int = 1,
  fsdp: int = 1,
  tensor: int = 1,
  sequence: int = 1,
  rules: str = "fsdp",
  devices: Sequence[jax.Device] | None = None,
  kernels: Kernels = XLA,
) -> Layout:
  """The first `data * fsdp * tensor * sequence` devices and their rules.

  The last axes are those of neighbours: devices of one `tensor` or `sequence`
  group follow each other in `devices`.

  Args:
    data: row shards with copied parameters, at least 1.
    fsdp: row shards over which parameters are split too.
    tensor: shards of heads, MLP and vocabulary.
    sequence: shards of the tokens of a row.
    rules: name of a rule set in `RULE_SETS`.
    devices: devices to use; None takes those of the default backend.
    kernels: what models call in place of XLA's operations.

  Returns:
    The layout, with automatic axes: the compiler places what is between the
    shardings given at the jit boundary and those that models name.

  Raises:
    ValueError: for a size below 1, more shards than devices, an unknown rule
      set, one that does not use an axis of more than one shard, or a kernel
      that cannot run on the devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  shape = (data, fsdp, tensor, sequence)
  sizes = " x ".join(
    f"{name}={size}" for name, size in zip(MESH_AXES, shape, strict=True)
  )
  if min(shape) < 1:
    raise ValueError(f"Mesh sizes must be at least 1, got {sizes}.")
  count = math.prod(shape)
  if count > len(devices):
    raise ValueError(
      f"A mesh of {sizes} needs {count} devices, but only {len(devices)} are "
      "here: lower mesh.data, mesh.fsdp, mesh.tensor or mesh.sequence."
    )
  grid = np.asarray(devices[:count]).reshape(shape)
  mesh = Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))
  return Layout(mesh, rules, kernels)


def partition_spec(
  name: str,
  shape: Sequence[int],
  logical_axes: Sequence[str | None],
  mesh: Mesh,
  rules: Rules,
) -> PartitionSpec:
  """Applies the rules to one array, and raises where they do not fit.

  Args:
    name: what the array is called, for the error messages.
    shape: its shape.
    logical_axes: one logical axis (or None, not split) per dimension.
    mesh: the device mesh.
    rules: logical axis -> mesh axis or axes, or None for not split.

  Returns:
    The partition spec, one entry per dimension; mesh axes of one device are
    left out of it.

  Raises:
    ValueError: if the ranks differ, a logical axis has no rule, a rule names
      an axis the mesh lacks, two dimensions share a mesh axis, or the mesh
      axes do not divide the dimension.
  """
  where = f"{name} with shape {tuple(shape)}"
  if len(shape) != len(logical_axes):
    raise ValueError(
      f"{where} has {len(shape)} dimensions but {len(logical_axes)} logical "
      f"axes {tuple(logical_axes)}."
    )
  spec: list[str | tuple[str, ...] | None] = []
  taken: set[str] = set()
  for size, logical in zip(shape, logical_axes, strict=True):
    axes = _mesh_axes(where, size, logical, mesh, rules)
    shared = taken.intersection(axes)
    if shared:
      raise ValueError(
        f"{where}: two of its dimensions would be split over the mesh axis "
        f"{min(shared)!r}; change the rule of {logical!r}."
      )
    taken.update(axes)
    spec.append(axes if len(axes) > 1 else axes[0] if axes else None)
  return PartitionSpec(*spec)


def _mesh_axes(
  where: str, size: int, logical: str | None, mesh: Mesh, rules: Rules
) -> tuple[str, ...]:
  """The mesh axes of more than one device that a dimension is split over."""
  if logical is None:
    return ()
  if logical not in rules:
    raise ValueError(
      f"{where}: no sharding rule for its logical axis {logical!r}; the "
      f"rules know {sorted(rules)}."
    )
  rule = rules[logical]
  for axis in _axes_of(rule):
    if axis not in mesh.shape:
      raise ValueError(
        f"{where}: the rule {logical!r} -> {axis!r} names an axis that the "
        f"mesh {dict(mesh.shape)} does not have."
      )
  shards = _shards(mesh, rule)
  if logical in COPIED_WHERE_FEWER and size < shards and shards % size == 0:
    return ()
  axes = tuple(axis for axis in _axes_of(rule) if mesh.shape[axis] > 1)
  if size % shards:
    raise ValueError(
      f"{where}: its {logical!r} dimension of {size} is not divisible by "
      f"the {shards} shards of the mesh axis {'+'.join(axes)!r}."
    )
  return axes


def _axes_of(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """A rule as a tuple of mesh axes."""
  if rule is None:
    return ()
  return (rule,) if isinstance(rule, str) else rule


def _shards(mesh: Mesh, rule: str | tuple[str, ...] | None) -> int:
  """Parts that a rule makes of a dimension."""
  return math.prod(mesh.shape[axis] for axis in _axes_of(rule))


def weight_shardings(declared: Any, layout: Layout) -> Any:
  """Named shardings of a tree of declared weights.

  Args:
    declared: pytree of `pure_jax.models.params.Weight`.
    layout: mesh and rules.

  Returns:
    The same tree with a `NamedSharding` for each weight.

  Raises:
    ValueError: as `partition_spec`, naming the weight by its tree path.
  """
  mesh, rules = layout.mesh, layout.table

  def sharding(path, weight):
    name = jax.tree_util.keystr(path)
    spec = partition_spec(name, weight.shape, weight.logical_axes, mesh, rules)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(
    sharding, declared, is_leaf=lambda leaf: hasattr(leaf, "logical_axes")
  )


def batch_sharding(layout: Layout) -> NamedSharding:
  """Rows split as the rules say, trailing dimensions whole.

  Samples of one prompt are contiguous, so with a number of prompts that the
  row shards divide, a group never crosses devices.

  Args:
    layout: mesh and rules.

  Returns:
    A sharding for arrays [B, ...] with B a multiple of `layout.row_shards`.
  """
  return NamedSharding(layout.mesh, PartitionSpec(layout.table["rows"]))


def replicated(layout: Layout) -> NamedSharding:
  """A copy on every device.

  Args:
    layout: mesh and rules.

  Returns:
    The sharding, for arrays of any rank.
  """
  return NamedSharding(layout.mesh, PartitionSpec())
