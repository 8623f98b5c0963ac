"""A batch in parts, one after the other: less memory, the same result."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def split_rows(tree: Any, parts: int) -> Any:
  """[B, ...] -> [parts, B / parts, ...] in every array.

  Part p takes rows p, p + parts, ...: with rows split over devices in
  contiguous blocks, each device keeps its share of every one.

  Args:
    tree: pytree of arrays [B, ...].
    parts: how many; must divide B.

  Returns:
    The same tree with a leading axis of parts.
  """

  def split(x):
    grouped = x.reshape(-1, parts, *x.shape[1:])
    return jnp.swapaxes(grouped, 0, 1)

  return jax.tree.map(split, tree)


def join_rows(tree: Any) -> Any:
  """[parts, B / parts, ...] -> [B, ...], the inverse of `split_rows`.

  Args:
    tree: pytree of arrays.

  Returns:
    The same tree, rows in their old order.
  """

  def join(x):
    grouped = jnp.swapaxes(x, 0, 1)
    return grouped.reshape(-1, *x.shape[2:])

  return jax.tree.map(join, tree)


def count_parts(rows: int, limit: int | None, shards: int = 1) -> int:
  """The fewest equal parts of a batch with no more rows than a limit.

  >>> count_parts(480, 8), count_parts(500, 8), count_parts(256, None)
  (60, 100, 1)

  Args:
    rows: B.
    limit: of rows in a part, at least `shards`; None has no limit.
    shards: over which each part is split; must divide B.

  Returns:
    A divisor of B that leaves parts of a multiple of `shards` rows.

  Raises:
    ValueError: if a part within the limit cannot be split.
  """
  if limit is None:
    return 1
  if rows % shards or limit < shards:
    raise ValueError(
      f"{rows} rows in parts of at most {limit} cannot be split over {shards} "
      "shards: take fewer, larger micro-batches, or fewer devices."
    )
  wanted = range(-(-rows // limit), rows // shards + 1)
  return next(n for n in wanted if rows % (n * shards) == 0)


def map_rows(
  function: Callable[[Any], Any],
  batch: Any,
  limit: int | None,
  shards: int = 1,
) -> Any:
  """Applies a function that treats every row by itself.

  Args:
    function: pytree of arrays [b, ...] -> pytree of arrays [b, ...].
    batch: pytree of arrays [B, ...].
    limit: of rows it gets at a time, see `count_parts`.
    shards: over which rows are split.

  Returns:
    What it gives for all B rows.
  """
  count = count_parts(jax.tree.leaves(batch)[0].shape[0], limit, shards)
  if count == 1:
    return function(batch)
  return join_rows(jax.lax.map(function, split_rows(batch, count)))


def accumulate_gradients(
  objective: Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]],
  params: Any,
  batch: Any,
  micro_batches: int,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Any]:
  """Sums an objective and its gradients over micro-batches.

  Args:
    objective: (params, part of the batch) -> (loss, metrics), each already
      divided by the whole batch's count so that parts add up. Metrics named
      ``*_max`` and ``*_min`` are combined as their name says.
    params: what to differentiate by.
    batch: pytree of arrays [B, ...].
    micro_batches: number of parts; must divide B.

  Returns:
    ((loss, metrics), gradients) of the whole batch.
  """
  value_and_grad = jax.value_and_grad(objective, has_aux=True)
  if micro_batches == 1:
    return value_and_grad(params, batch)

  def body(total, part):
    return _combine(total, value_and_grad(params, part)), None

  parts = split_rows(batch, micro_batches)
  part = jax.tree.map(lambda x: x[0], parts)
  start = _nothing(jax.eval_shape(value_and_grad, params, part))
  return jax.lax.scan(body, start, parts)[0]


def accumulate_parts(
  objective: Callable[[Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]],
  params: Any,
  parts: jax.Array,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Any]:
  """`accumulate_gradients` over parts whose number is not known beforehand.

  Args:
    objective: (params, number of a part []) -> (loss, metrics), as there.
    params: what to differentiate by.
    parts: [] int32, how many, at least 1.

  Returns:
    ((loss, metrics), gradients) of all parts.
  """
  value_and_grad = jax.value_and_grad(objective, has_aux=True)
  return jax.lax.fori_loop(
    0,
    parts,
    lambda part, total: _combine(total, value_and_grad(params, part)),
    _nothing(jax.eval_shape(value_and_grad, params, jnp.int32(0))),
  )


def _nothing(shapes: Any) -> Any:
  """What a combination starts from: of no part at all.

  To start from the first part would compile a second copy of the model, its
  forward and its backward pass, in front of the loop.
  """

  def start(path, x):
    name = jax.tree_util.keystr(path)
    ends = {"_max']": -jnp.inf, "_min']": jnp.inf}
    return jnp.full(x.shape, ends.get(name[-6:], 0), x.dtype)

  return jax.tree_util.tree_map_with_path(start, shapes)


def _combine(total: Any, new: Any) -> Any:
  """Sums, but for the metrics named after a maximum or a minimum."""

  def combine(path, total, new):
    name = jax.tree_util.keystr(path)
    if name.endswith("_max']"):
      return jnp.maximum(total, new)
    if name.endswith("_min']"):
      return jnp.minimum(total, new)
    return total + new

  return jax.tree_util.tree_map_with_path(combine, total, new)
