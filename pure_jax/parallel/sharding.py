"""Mesh, logical-to-mesh rules and named shardings: the one place for layout.

A weight is declared with *logical* axes ("width", "heads", ...); a rule table
says which *mesh* axis, if any, each logical axis is split over. Two mesh axes
exist:

* ``data``: batch rows are split, parameters are copies;
* ``fsdp``: batch rows are split **and** parameters with their optimizer state
  are split along ``width``; XLA gathers a layer's weights where it needs them.

Nothing is replicated by accident: a logical axis without a rule, two logical
axes of one weight on the same mesh axis, and a dimension that the mesh axis
does not divide all raise, with the weight's name and shape.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Rules = Mapping[str, str | None]

MESH_AXES = ("data", "fsdp")

# Every weight but the per-head biases has a width axis, so splitting it
# divides the memory evenly and needs no padding of heads or vocabulary.
RULES: Rules = {
  "layers": None,
  "vocab": None,
  "width": "fsdp",
  "heads": None,
  "kv_heads": None,
  "head_dim": None,
  "mlp": None,
  "classes": None,
}


def make_mesh(
  data: int = 1,
  fsdp: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh of the first `data * fsdp` devices with axes (data, fsdp).

  Args:
    data: number of batch shards with copied parameters, at least 1.
    fsdp: number of batch shards over which parameters are split too.
    devices: devices to use; None takes those of the default backend.

  Returns:
    The mesh, with automatic axes: the compiler places what is between the
    shardings given at the jit boundary.

  Raises:
    ValueError: for a size below 1, or more shards than devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  if data < 1 or fsdp < 1:
    raise ValueError(
      f"Mesh sizes must be at least 1, got data={data}, fsdp={fsdp}."
    )
  if data * fsdp > len(devices):
    raise ValueError(
      f"A mesh of data={data} x fsdp={fsdp} needs {data * fsdp} devices, but "
      f"only {len(devices)} are here: lower mesh.data or mesh.fsdp."
    )
  grid = np.asarray(devices[: data * fsdp]).reshape(data, fsdp)
  return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 2)


def partition_spec(
  name: str,
  shape: Sequence[int],
  logical_axes: Sequence[str | None],
  mesh: Mesh,
  rules: Rules = RULES,
) -> PartitionSpec:
  """Applies the rules to one array, and raises where they do not fit.

  Args:
    name: what the array is called, for the error messages.
    shape: its shape.
    logical_axes: one logical axis (or None, not split) per dimension.
    mesh: the device mesh.
    rules: logical axis -> mesh axis, or None for not split.

  Returns:
    The partition spec, one entry per dimension.

  Raises:
    ValueError: if the ranks differ, a logical axis has no rule, a rule names
      an axis the mesh lacks, two dimensions share a mesh axis, or the mesh
      axis does not divide the dimension.
  """
  where = f"{name} with shape {tuple(shape)}"
  if len(shape) != len(logical_axes):
    raise ValueError(
      f"{where} has {len(shape)} dimensions but {len(logical_axes)} logical "
      f"axes {tuple(logical_axes)}."
    )
  spec: list[str | None] = []
  for size, logical in zip(shape, logical_axes, strict=True):
    if logical is not None and logical not in rules:
      raise ValueError(
        f"{where}: no sharding rule for its logical axis {logical!r}; the "
        f"rules know {sorted(rules)}."
      )
    axis = None if logical is None else rules[logical]
    if axis is not None:
      if axis not in mesh.shape:
        raise ValueError(
          f"{where}: the rule {logical!r} -> {axis!r} names an axis that the "
          f"mesh {dict(mesh.shape)} does not have."
        )
      if axis in spec:
        raise ValueError(
          f"{where}: two of its dimensions would be split over the mesh axis "
          f"{axis!r}; change the rule of {logical!r}."
        )
      if size % mesh.shape[axis]:
        raise ValueError(
          f"{where}: its {logical!r} dimension of {size} is not divisible by "
          f"the {mesh.shape[axis]} shards of the mesh axis {axis!r}."
        )
    spec.append(axis)
  return PartitionSpec(*spec)


def weight_shardings(declared: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
  """Named shardings of a tree of declared weights.

  Args:
    declared: pytree of `pure_jax.models.params.Weight`.
    mesh: the device mesh.
    rules: logical axis -> mesh axis.

  Returns:
    The same tree with a `NamedSharding` for each weight.

  Raises:
    ValueError: as `partition_spec`, naming the weight by its tree path.
  """

  def sharding(path, weight):
    name = jax.tree_util.keystr(path)
    spec = partition_spec(name, weight.shape, weight.logical_axes, mesh, rules)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(
    sharding, declared, is_leaf=lambda leaf: hasattr(leaf, "logical_axes")
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows split over every mesh axis, trailing dimensions whole.

  Samples of one prompt are contiguous, so with a number of prompts that the
  mesh divides, a group never crosses devices.

  Args:
    mesh: the device mesh.

  Returns:
    A sharding for arrays [B, ...] with B a multiple of the mesh size.
  """
  return NamedSharding(mesh, PartitionSpec(MESH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device.

  Args:
    mesh: the device mesh.

  Returns:
    The sharding, for arrays of any rank.
  """
  return NamedSharding(mesh, PartitionSpec())


def check_rows(what: str, rows: int, mesh: Mesh) -> None:
  """Raises where a batch cannot be split over the mesh.

  Args:
    what: the batch's name, for the message.
    rows: its number of rows.
    mesh: the device mesh.

  Raises:
    ValueError: if the mesh size does not divide `rows`.
  """
  if rows % mesh.size:
    raise ValueError(
      f"{what} has {rows} rows, which the mesh {dict(mesh.shape)} of "
      f"{mesh.size} devices does not divide: change the batch or the mesh."
    )
