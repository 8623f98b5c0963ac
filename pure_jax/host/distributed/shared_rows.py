"""Rows of a batch among several processes: who makes, reads and judges which.

A batch [B, ...] is split over the devices by row. A process makes the rows of
its own devices and reads the rows it answers for; each row has exactly one
process that answers for it, even where several hold copies. What belongs to
rows and has to be known everywhere (verdicts, metrics) is small and gathered.
All of it depends on the row numbers alone, so any number of processes has the
same batch, and one process is no special case.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec


def _spans(place: NamedSharding, rows: int) -> dict[tuple[int, int], set[int]]:
  """Each block of rows that some device holds, and whose devices do."""
  holders: dict[tuple[int, int], set[int]] = {}
  for device, index in place.devices_indices_map((rows,)).items():
    start, stop, _ = index[0].indices(rows)
    holders.setdefault((start, stop), set()).add(device.process_index)
  return dict(sorted(holders.items()))


def shares(place: NamedSharding, rows: int) -> list[np.ndarray]:
  """The rows that each process answers for.

  A process answers for rows of its own devices. Rows that several processes
  hold are divided evenly among them.

  Args:
    place: of the batch; splits rows.
    rows: B, divisible by the number of row shards.

  Returns:
    For each process, ascending row numbers, int64: disjoint and complete.
  """
  parts: list[list[np.ndarray]] = [[] for _ in range(jax.process_count())]
  for (start, stop), processes in _spans(place, rows).items():
    split = np.array_split(np.arange(start, stop), len(processes))
    for process, part in zip(sorted(processes), split, strict=True):
      parts[process].append(part)
  return [np.concatenate([*found, np.zeros(0, int)]) for found in parts]


def make_rows(
  place: NamedSharding, rows: int, make: Callable[[np.ndarray], Any]
) -> Any:
  """A batch on the devices, of which each process makes its own rows.

  Args:
    place: where it goes; splits rows.
    rows: B, divisible by the number of row shards.
    make: [b] ascending row numbers -> pytree of host arrays [b, ...]. It must
      give a row the same values in every process.

  Returns:
    The same pytree of arrays [B, ...].
  """
  spans = [
    np.arange(start, stop)
    for (start, stop), processes in _spans(place, rows).items()
    if jax.process_index() in processes
  ]
  mine = np.unique(np.concatenate(spans))

  def put(values: np.ndarray) -> jax.Array:
    values = np.asarray(values)

    def part(index):
      start, stop, _ = index[0].indices(rows)
      first = int(np.searchsorted(mine, start))
      return values[first : first + stop - start]

    return jax.make_array_from_callback((rows, *values.shape[1:]), place, part)

  return jax.tree.map(put, make(mine))


def read_rows(tree: Any, rows: np.ndarray) -> Any:
  """Rows of a batch on the devices that this process holds.

  Args:
    tree: pytree of arrays [B, ...], on the devices or on the host.
    rows: [b] row numbers, of its `shares` where others hold rows too.

  Returns:
    The same pytree of numpy arrays [b, ...].
  """

  def read(array: jax.Array | np.ndarray) -> np.ndarray:
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
      whole = np.asarray(array)
      everything = np.array_equal(rows, np.arange(len(whole)))
      return whole if everything else whole[rows]
    out = np.empty((len(rows), *array.shape[1:]), array.dtype)
    missing = np.ones(len(rows), bool)
    for shard in array.addressable_shards:
      start, stop, _ = shard.index[0].indices(array.shape[0])
      inside = missing & (rows >= start) & (rows < stop)
      if inside.any():
        out[inside] = np.asarray(shard.data)[rows[inside] - start]
        missing &= ~inside
    if missing.any():
      raise ValueError(
        f"Row {rows[missing][0]} is on no device of process "
        f"{jax.process_index()}."
      )
    return out

  return jax.tree.map(read, tree)


def gather_rows(place: NamedSharding, rows: int, tree: Any) -> Any:
  """What each process knows of the rows it answers for, in all of them.

  Every process must call it.

  Args:
    place: of the batch.
    rows: B.
    tree: pytree of numpy arrays [b, ...] of this process's rows, of the same
      structure, dtypes and trailing shapes everywhere.

  Returns:
    The same pytree of arrays [B, ...], exactly as they were.
  """
  if jax.process_count() == 1:
    return tree
  owned = shares(place, rows)
  leaves, structure = jax.tree.flatten(tree)
  mine = len(owned[jax.process_index()])
  widths = [leaf.dtype.itemsize * math.prod(leaf.shape[1:]) for leaf in leaves]
  packed = [  # As bytes: jax would round float64.
    np.frombuffer(leaf.tobytes(), np.uint8).reshape(mine, width)
    for leaf, width in zip(leaves, widths, strict=True)
  ]
  sent = np.zeros((max(map(len, owned)), sum(widths)), np.uint8)
  sent[:mine] = np.concatenate(packed, axis=1)
  received = multihost_utils.process_allgather(sent)
  whole = np.empty((rows, sum(widths)), np.uint8)
  for process, numbers in enumerate(owned):
    whole[numbers] = received[process, : len(numbers)]
  found, first = [], 0
  for leaf, width in zip(leaves, widths, strict=True):
    part = np.ascontiguousarray(whole[:, first : first + width])
    found.append(part.view(leaf.dtype).reshape(rows, *leaf.shape[1:]))
    first += width
  return jax.tree.unflatten(structure, found)


@functools.cache
def _replicate(mesh: jax.sharding.Mesh) -> Callable[[Any], Any]:
  return jax.jit(
    lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec())
  )


def read_everywhere(tree: Any) -> Any:
  """Whole arrays on the host, in every process.

  Every process must call it.

  Args:
    tree: pytree of arrays on the devices.

  Returns:
    The same pytree of numpy arrays.
  """

  def whole(array: jax.Array) -> jax.Array:
    if not isinstance(array, jax.Array) or (
      array.is_fully_addressable or array.is_fully_replicated
    ):
      return array
    return _replicate(array.sharding.mesh)(array)

  return jax.device_get(jax.tree.map(whole, tree))


def replicate(place: NamedSharding, tree: Any) -> Any:
  """Copies on every device of values that every process has.

  Args:
    place: on all devices, not split.
    tree: pytree of host arrays, or of jax PRNG keys of this process.

  Returns:
    The same pytree of arrays on the devices.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, place)

  def put(leaf: Any) -> jax.Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      data = put(np.asarray(jax.random.key_data(leaf)))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(
      values.shape, place, lambda index: values[index]
    )

  return jax.tree.map(put, tree)


def warm_up_collectives(meshes: Iterable[jax.sharding.Mesh]) -> None:
  """Lets the devices of several processes meet, group by group.

  Every process must call it, all at about the same time. On CPUs, gloo gives
  up on a partner that is half a minute late for the first sum of a group, and
  later one of them may still be compiling. Other backends wait.

  Args:
    meshes: over whose axes arrays will be split.
  """
  if jax.process_count() == 1 or jax.default_backend() != "cpu":
    return
  multihost_utils.sync_global_devices("meet")
  for mesh in meshes:
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    for size in range(1, len(axes) + 1):
      for group in itertools.combinations(axes, size):
        add = jax.shard_map(
          functools.partial(jax.lax.psum, axis_name=group),
          mesh=mesh,
          in_specs=PartitionSpec(group),
          out_specs=PartitionSpec(),
        )
        ones = NamedSharding(mesh, PartitionSpec(group))
        rows = math.prod(mesh.shape[axis] for axis in group)
        add_up = jax.jit(add)
        add_up(make_rows(ones, rows, np.ones_like)).block_until_ready()
