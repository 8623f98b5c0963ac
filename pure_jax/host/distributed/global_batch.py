"""A global batch whose rows are made and read by several processes.

The rows of a batch [B, ...] are sharded over the devices of all processes.
Each process makes the rows that its own devices hold. Each row has exactly one
owner, the process that reads it back, grades it and logs it, even if several
processes hold a copy. Small per-row results (verdicts, metrics) are gathered
to all processes. Everything depends only on row numbers, so the batch is the
same for any number of processes, and one process is not a special case.
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


def _blocks(
  sharding: NamedSharding, num_rows: int
) -> dict[tuple[int, int], set[int]]:
  """Maps each row block (start, stop) to the processes whose devices hold it.

  Blocks are ascending.
  """
  holders: dict[tuple[int, int], set[int]] = {}
  for device, index in sharding.devices_indices_map((num_rows,)).items():
    start, stop, _ = index[0].indices(num_rows)
    holders.setdefault((start, stop), set()).add(device.process_index)
  return dict(sorted(holders.items()))


def owned_rows(sharding: NamedSharding, num_rows: int) -> list[np.ndarray]:
  """Assigns each row to one process that holds it.

  Rows that several processes hold are divided evenly among them.

  Args:
    sharding: sharding of the batch; shards rows.
    num_rows: B, divisible by the number of row shards.

  Returns:
    For each process, ascending row numbers, int64: disjoint and complete.
  """
  owned: list[list[np.ndarray]] = [
    [np.zeros(0, int)] for _ in range(jax.process_count())
  ]
  for (start, stop), holders in _blocks(sharding, num_rows).items():
    shares = np.array_split(np.arange(start, stop), len(holders))
    for process, share in zip(sorted(holders), shares, strict=True):
      owned[process].append(share)
  return [np.concatenate(shares) for shares in owned]


def make_rows(
  sharding: NamedSharding, num_rows: int, make: Callable[[np.ndarray], Any]
) -> Any:
  """Makes a batch on the devices; each process makes the rows it holds.

  `jax.make_array_from_process_local_data` would not say which rows to make.

  Args:
    sharding: sharding of the batch; shards rows.
    num_rows: B, divisible by the number of row shards.
    make: [b] ascending row numbers -> pytree of host arrays [b, ...]. It must
      give a row the same values in every process.

  Returns:
    The same pytree of arrays [B, ...].
  """
  local_rows = np.concatenate(
    [
      np.arange(start, stop)
      for (start, stop), holders in _blocks(sharding, num_rows).items()
      if jax.process_index() in holders
    ]
  )

  def put(values: np.ndarray) -> jax.Array:
    values = np.asarray(values)

    def shard(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(num_rows)
      first = int(np.searchsorted(local_rows, start))
      return values[first : first + stop - start]

    shape = (num_rows, *values.shape[1:])
    return jax.make_array_from_callback(shape, sharding, shard)

  return jax.tree.map(put, make(local_rows))


def read_rows(tree: Any, rows: np.ndarray) -> Any:
  """Copies rows of a batch from the devices of this process to the host.

  Args:
    tree: pytree of arrays [B, ...], on the devices or on the host.
    rows: [b] row numbers; if there are several processes, rows that this one
      holds, such as its `owned_rows`.

  Returns:
    The same pytree of numpy arrays [b, ...].

  Raises:
    ValueError: if no device of this process holds one of the rows.
  """

  def read(array: jax.Array | np.ndarray) -> np.ndarray:
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
      whole = np.asarray(array)
      is_whole = np.array_equal(rows, np.arange(len(whole)))
      return whole if is_whole else whole[rows]
    values = np.empty((len(rows), *array.shape[1:]), array.dtype)
    missing = np.ones(len(rows), bool)
    for shard in array.addressable_shards:
      start, stop, _ = shard.index[0].indices(array.shape[0])
      inside = missing & (rows >= start) & (rows < stop)
      if inside.any():
        values[inside] = np.asarray(shard.data)[rows[inside] - start]
        missing &= ~inside
    if missing.any():
      raise ValueError(
        f"Row {rows[missing][0]} is on no device of process "
        f"{jax.process_index()}."
      )
    return values

  return jax.tree.map(read, tree)


def gather_rows(sharding: NamedSharding, num_rows: int, tree: Any) -> Any:
  """Gathers host values of owned rows from all processes to all processes.

  Every process must call it. `multihost_utils.process_allgather` needs equal
  shapes in every process and returns float64 as float32, so rows travel as
  padded bytes.

  Args:
    sharding: sharding of the batch; shards rows.
    num_rows: B.
    tree: pytree of numpy arrays [b, ...] for this process's `owned_rows`, of
      the same structure, dtypes and trailing shapes in every process.

  Returns:
    The same pytree of arrays [B, ...], bit for bit.
  """
  if jax.process_count() == 1:
    return tree
  owned = owned_rows(sharding, num_rows)
  leaves, structure = jax.tree.flatten(tree)
  num_owned = len(owned[jax.process_index()])
  widths = [leaf.dtype.itemsize * math.prod(leaf.shape[1:]) for leaf in leaves]
  as_bytes = [
    np.frombuffer(leaf.tobytes(), np.uint8).reshape(num_owned, width)
    for leaf, width in zip(leaves, widths, strict=True)
  ]
  sent = np.zeros((max(map(len, owned)), sum(widths)), np.uint8)
  sent[:num_owned] = np.concatenate(as_bytes, axis=1)
  received = multihost_utils.process_allgather(sent)
  whole = np.empty((num_rows, sum(widths)), np.uint8)
  for process, rows in enumerate(owned):
    whole[rows] = received[process, : len(rows)]
  columns = np.split(whole, np.cumsum(widths)[:-1], axis=1)
  gathered = [
    np.ascontiguousarray(column)
    .view(leaf.dtype)
    .reshape(num_rows, *leaf.shape[1:])
    for leaf, column in zip(leaves, columns, strict=True)
  ]
  return jax.tree.unflatten(structure, gathered)


def read_everywhere(tree: Any) -> Any:
  """Copies whole arrays to the host of every process, which must all call it.

  Args:
    tree: pytree of arrays on the devices.
  """

  def replicated(array: jax.Array) -> jax.Array:
    is_local = not isinstance(array, jax.Array) or array.is_fully_addressable
    if is_local or array.is_fully_replicated:
      return array
    return _replicate(array.sharding.mesh)(array)

  # One `device_get` of all leaves: process_allgather would wait for each.
  return jax.device_get(jax.tree.map(replicated, tree))


@functools.cache
def _replicate(mesh: jax.sharding.Mesh) -> Callable[[Any], Any]:
  return jax.jit(
    lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec())
  )


def replicate(sharding: NamedSharding, tree: Any) -> Any:
  """Copies values that every process has to every device.

  `jax.device_put` would also compare the values of all processes, with a
  collective for each leaf.

  Args:
    sharding: over all devices, fully replicated.
    tree: pytree of host arrays, or of jax PRNG keys of this process.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)

  def put(leaf: Any) -> jax.Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      data = put(np.asarray(jax.random.key_data(leaf)))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(
      values.shape, sharding, lambda index: values[index]
    )

  return jax.tree.map(put, tree)


def warm_up_collectives(meshes: Iterable[jax.sharding.Mesh]) -> None:
  """Connects the devices of several processes, group by group.

  Every process must call it at about the same time. On CPUs, gloo gives up if
  a process is half a minute late for the first collective of a group, and
  during training one of them may still be compiling. Other backends wait.

  Args:
    meshes: over whose axes arrays will be sharded.
  """
  if jax.process_count() == 1 or jax.default_backend() != "cpu":
    return
  multihost_utils.sync_global_devices("warm_up_collectives")
  for mesh in meshes:
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    for size in range(1, len(axes) + 1):
      for group in itertools.combinations(axes, size):
        psum = jax.shard_map(
          functools.partial(jax.lax.psum, axis_name=group),
          mesh=mesh,
          in_specs=PartitionSpec(group),
          out_specs=PartitionSpec(),
        )
        sharding = NamedSharding(mesh, PartitionSpec(group))
        num_rows = math.prod(mesh.shape[axis] for axis in group)
        ones = make_rows(sharding, num_rows, np.ones_like)
        jax.jit(psum)(ones).block_until_ready()
