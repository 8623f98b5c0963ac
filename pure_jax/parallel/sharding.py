"""Layouts of a mesh, and named shardings of weights and batches.

The rules that a layout names are in `pure_jax.parallel.rules`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pure_jax.models import params
from pure_jax.models.activation_sharding import (
  LOCAL,
  ActivationSharding,
)
from pure_jax.parallel.kernel_calls import XLA, Kernels
from pure_jax.parallel.rules import (
  MESH_AXES,
  RULE_SETS,
  Constrainer,
  Rules,
  partition_spec,
)


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh, rules and kernels. Hashable, so it can be a static argument.

  Attributes:
    mesh: the devices, with the axes of `MESH_AXES`.
    rules: name of a rule set in `RULE_SETS`.
    kernels: kernels that models call in place of XLA's operations.
  """

  mesh: Mesh
  rules: str = "fsdp"
  kernels: Kernels = XLA

  def __post_init__(self):
    """Validates that rules use the mesh and that kernels run on it."""
    if self.rules not in RULE_SETS:
      raise ValueError(
        f"rules must be one of {sorted(RULE_SETS)}, got {self.rules!r}."
      )
    used = {axis for axes in self.table.values() for axis in axes}
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

  def _count_shards(self, logical: str) -> int:
    """Number of shards of a logical axis."""
    return math.prod(self.mesh.shape[axis] for axis in self.table[logical])

  @property
  def row_shards(self) -> int:
    """Number of shards of the rows of a batch."""
    return self._count_shards("rows")

  @property
  def act_sharding(self) -> ActivationSharding:
    """Sharding of activations for whole texts; the identity on one device."""
    return self._act_sharding(self._count_shards("tokens"))

  @property
  def decoding_act_sharding(self) -> ActivationSharding:
    """Sharding of activations for decoding one token at a time.

    One token cannot be split, so the devices of a `sequence` group repeat each
    other's work: sample in a layout without it.
    """
    return self._act_sharding(1, unsplit=("tokens",))

  def _act_sharding(self, token_shards: int, unsplit: tuple[str, ...] = ()):
    """Constraints and kernels of activations."""
    if self.mesh.size == 1:
      return self.kernels.add_to(LOCAL, None)
    constrainer = Constrainer(self.mesh, self.rules, unsplit)
    return self.kernels.add_to(
      ActivationSharding(constrainer, token_shards), constrainer
    )

  def __str__(self) -> str:
    sizes = " x ".join(f"{k}={v}" for k, v in self.mesh.shape.items() if v > 1)
    return f"{self.rules} on {sizes or 'one device'}"


def make_layout(
  data: int = 1,
  fsdp: int = 1,
  tensor: int = 1,
  sequence: int = 1,
  rules: str = "fsdp",
  devices: Sequence[jax.Device] | None = None,
  kernels: Kernels = XLA,
) -> Layout:
  """Makes a layout of the first `data * fsdp * tensor * sequence` devices.

  Devices of one `tensor` or `sequence` group follow each other in `devices`.

  Args:
    data: row shards with copied parameters, at least 1.
    fsdp: row shards over which parameters are split too.
    tensor: shards of heads, MLP and vocabulary.
    sequence: shards of the tokens of a row.
    rules: name of a rule set in `RULE_SETS`.
    devices: devices to use; None takes those of the default backend.
    kernels: kernels that models call in place of XLA's operations.

  Returns:
    The layout, with automatic axes: the compiler chooses shardings between
    those given at the jit boundary and those that models name.

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


def weight_shardings(declared: Any, layout: Layout) -> Any:
  """Finds the shardings of declared weights.

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
    sharding, declared, is_leaf=params.is_weight
  )


def batch_sharding(layout: Layout) -> NamedSharding:
  """Finds the sharding of arrays [B, ...]: rows are split, other axes are not.

  Samples of one prompt are contiguous. If the row shards divide the number of
  prompts, a group never crosses devices.

  Args:
    layout: mesh and rules.

  Returns:
    A sharding for arrays [B, ...] with B a multiple of `layout.row_shards`.
  """
  return NamedSharding(layout.mesh, PartitionSpec(layout.table["rows"]))


def replicated(layout: Layout) -> NamedSharding:
  """Finds the sharding of arrays that every device has a copy of.

  Args:
    layout: mesh and rules.

  Returns:
    The sharding, for arrays of any rank.
  """
  return NamedSharding(layout.mesh, PartitionSpec())
