"""Processing a batch in micro-batches: less memory, the same result."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pure_jax.types import MetricGroups

# (loss [], metrics) of a micro-batch, divided by counts of the whole batch so
# that micro-batches add up.
Objective = Callable[..., tuple[jax.Array, MetricGroups]]
# ((loss [], metrics), gradients) of the whole batch.
LossAndGradients = tuple[tuple[jax.Array, MetricGroups], Any]


def split_rows(tree: Any, micro_batches: int) -> Any:
  """Splits arrays [B, ...] into [micro_batches, B / micro_batches, ...].

  Micro-batch m takes rows m, m + micro_batches, .... With rows split over
  devices in contiguous blocks, each device keeps its share of every one.

  Args:
    tree: pytree of arrays [B, ...].
    micro_batches: their number; must divide B.

  Returns:
    The same tree with a leading axis of micro-batches.
  """
  return jax.tree.map(
    lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), tree
  )


def join_rows(tree: Any) -> Any:
  """The inverse of `split_rows`.

  Args:
    tree: pytree of arrays [micro_batches, B / micro_batches, ...].

  Returns:
    The tree of arrays [B, ...], rows in their old order.
  """
  return jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree
  )


def count_micro_batches(rows: int, limit: int | None, shards: int = 1) -> int:
  """Finds the fewest equal micro-batches with no more rows than a limit.

  >>> count_micro_batches(480, 8), count_micro_batches(500, 8)
  (60, 100)
  >>> count_micro_batches(256, None)
  1

  Args:
    rows: B.
    limit: most rows of a micro-batch, at least `shards`; None for no limit.
    shards: over which each micro-batch is split; must divide B.

  Returns:
    A divisor of B that leaves micro-batches of a multiple of `shards` rows.

  Raises:
    ValueError: if a micro-batch within the limit cannot be split.
  """
  if limit is None:
    return 1
  if rows % shards or limit < shards:
    raise ValueError(
      f"{rows} rows in micro-batches of at most {limit} cannot be split over "
      f"{shards} shards: take fewer, larger micro-batches, or fewer devices."
    )
  candidates = range(-(-rows // limit), rows // shards + 1)
  return next(n for n in candidates if rows % (n * shards) == 0)


def map_rows(
  function: Callable[[Any], Any], batch: Any, limit: int | None, shards: int = 1
) -> Any:
  """Applies a function that treats rows independently, in micro-batches.

  Args:
    function: pytree of arrays [b, ...] -> pytree of arrays [b, ...].
    batch: pytree of arrays [B, ...].
    limit: most rows of a micro-batch, see `count_micro_batches`.
    shards: over which rows are split.

  Returns:
    The results of all B rows.
  """
  rows = jax.tree.leaves(batch)[0].shape[0]
  count = count_micro_batches(rows, limit, shards)
  if count == 1:
    return function(batch)
  return join_rows(jax.lax.map(function, split_rows(batch, count)))


def accumulate_gradients(
  objective: Objective, params: Any, batch: Any, micro_batches: int
) -> LossAndGradients:
  """Sums an objective and its gradients over micro-batches.

  Args:
    objective: (params, micro-batch) -> (loss, metrics).
    params: the parameters of the gradient.
    batch: pytree of arrays [B, ...].
    micro_batches: their number; must divide B.

  Returns:
    ((loss, metrics), gradients) of the whole batch.
  """
  value_and_grad = jax.value_and_grad(objective, has_aux=True)
  if micro_batches == 1:
    return value_and_grad(params, batch)

  def add(total, micro_batch):
    return _combine(total, value_and_grad(params, micro_batch)), None

  split = split_rows(batch, micro_batches)
  first = jax.tree.map(lambda x: x[0], split)
  start = _empty(jax.eval_shape(value_and_grad, params, first))
  return jax.lax.scan(add, start, split)[0]


def accumulate_packs(
  objective: Objective, params: Any, packs: jax.Array
) -> LossAndGradients:
  """Sums like `accumulate_gradients`, over packs counted at run time.

  Args:
    objective: (params, index of a pack []) -> (loss, metrics).
    params: the parameters of the gradient.
    packs: [] int32, number of packs, at least 1.

  Returns:
    ((loss, metrics), gradients) of all packs.
  """
  value_and_grad = jax.value_and_grad(objective, has_aux=True)
  return jax.lax.fori_loop(
    0,
    packs,
    lambda pack, total: _combine(total, value_and_grad(params, pack)),
    _empty(jax.eval_shape(value_and_grad, params, jnp.int32(0))),
  )


def _empty(shapes):
  """The loss, metrics and gradients of no micro-batch.

  Starting from the first micro-batch would compile a second copy of the
  model's forward and backward pass in front of the loop.
  """

  def fill(tree, value):
    return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), tree)

  (loss, metrics), grads = shapes
  metrics = MetricGroups(
    sums=fill(metrics.sums, 0),
    maxima=fill(metrics.maxima, -jnp.inf),
    minima=fill(metrics.minima, jnp.inf),
  )
  return (fill(loss, 0), metrics), fill(grads, 0)


def _combine(total, new):
  """Adds the loss, metrics and gradients of another micro-batch."""
  (loss, metrics), grads = total
  (new_loss, new_metrics), new_grads = new
  metrics = MetricGroups(
    sums=jax.tree.map(jnp.add, metrics.sums, new_metrics.sums),
    maxima=jax.tree.map(jnp.maximum, metrics.maxima, new_metrics.maxima),
    minima=jax.tree.map(jnp.minimum, metrics.minima, new_metrics.minima),
  )
  return (loss + new_loss, metrics), jax.tree.map(jnp.add, grads, new_grads)
