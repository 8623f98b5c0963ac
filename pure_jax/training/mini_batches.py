"""Several updates of one rollout: mini-batches of its responses, and epochs.

Every epoch divides the responses into mini-batches, and the gradient of every
mini-batch makes one update. Micro-batches (`pure_jax.training.micro_batches`)
divide a mini-batch further, which saves memory and changes no result.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.training.step_spec import StepSpec
from pure_jax.types import MetricGroups

# (state, rows of a batch) -> (state, metrics) of one update.
Update = Callable[[Any, Any], tuple[Any, MetricGroups]]


def check_mini_batches(rows: int, mini_batches: int, shards: int = 1) -> None:
  """Validates that responses can be divided into equal mini-batches.

  Args:
    rows: B, responses of a rollout.
    mini_batches: number of mini-batches.
    shards: number of shards that the rows of each mini-batch are split over.

  Raises:
    ValueError: if they cannot.
  """
  if mini_batches < 1 or rows % (mini_batches * shards):
    raise ValueError(
      f"{rows} responses cannot be divided into {mini_batches} mini-batches "
      f"whose rows are split over {shards} shards: choose a number of "
      "mini-batches that leaves each shard equally many rows."
    )


def rows_of_updates(
  order: Array | None, rows: int, mini_batches: int, epochs: int
) -> Array:
  """Lists the responses of each update, epoch after epoch.

  >>> rows_of_updates(None, 4, mini_batches=2, epochs=2).tolist()
  [[0, 1], [2, 3], [0, 1], [2, 3]]

  Args:
    order: [B, epochs] int32, a permutation of 0..B-1 for each epoch, whose
      consecutive pieces are its mini-batches; None keeps the responses in the
      order of the rollout in every epoch.
    rows: B.
    mini_batches: mini-batches of an epoch; must divide B.
    epochs: number of epochs.

  Returns:
    [epochs * mini_batches, B / mini_batches] int32, 0..B-1.

  Raises:
    ValueError: if the order has another shape.
  """
  if order is None:
    order = jnp.tile(jnp.arange(rows, dtype=jnp.int32)[:, None], (1, epochs))
  if order.shape != (rows, epochs):
    raise ValueError(
      f"The order of {rows} responses in {epochs} epochs has shape "
      f"{order.shape}, not {(rows, epochs)}."
    )
  return order.T.reshape(epochs * mini_batches, -1)


def take_rows(
  tree: Any, rows: Array, act_sharding: ActivationSharding = LOCAL
) -> Any:
  """Takes responses of a batch; on several devices each gets its share.

  Args:
    tree: pytree of arrays [B, ...].
    rows: [b] int32, 0..B-1.
    act_sharding: sharding of the rows; every device first gets all B.

  Returns:
    The same tree of arrays [b, ...].
  """

  def take(x):
    others = (None,) * (x.ndim - 1)
    taken = act_sharding.constrain(x, (None, *others))[rows]
    return act_sharding.constrain(taken, ("rows", *others))

  return jax.tree.map(take, tree)


def join_updates(metrics: MetricGroups) -> dict[str, Array]:
  """Joins the metrics of several updates.

  Args:
    metrics: arrays [n], an entry for each update.

  Returns:
    By name: the mean of each of the sums, the maximum of each of the maxima,
    and the minimum of each of the minima, not finite if a value is not. By
    NAME_per_update: all [n] values.
  """
  joined = MetricGroups(
    sums=jax.tree.map(jnp.mean, metrics.sums),
    maxima=jax.tree.map(jnp.max, metrics.maxima),
    minima=jax.tree.map(jnp.min, metrics.minima),
  )
  each = {f"{name}_per_update": x for name, x in metrics.to_dict().items()}
  return joined.to_dict() | each


def run_updates(
  spec: StepSpec, update: Update, state: Any, data: Any, order: Array | None
) -> tuple[Any, dict[str, Array]]:
  """Runs the updates of a rollout, one for each mini-batch of each epoch.

  Args:
    spec: the step's specification: mini-batches, epochs, and the training
      layout are read.
    update: the update of one mini-batch.
    state: the state before the first update.
    data: pytree of arrays [B, ...].
    order: as for `rows_of_updates`.

  Returns:
    (the state after the last update, metrics by name). The metrics of several
    updates are joined by `join_updates`.

  Raises:
    ValueError: if the rows cannot be divided.
  """
  if spec.mini_batches == spec.epochs == 1:
    state, metrics = update(state, data)
    return state, metrics.to_dict()
  layout = spec.layouts.training
  count = jax.tree.leaves(data)[0].shape[0]
  check_mini_batches(count, spec.mini_batches, layout.row_shards)

  def update_on(state, rows):
    return update(state, take_rows(data, rows, layout.act_sharding))

  updates = rows_of_updates(order, count, spec.mini_batches, spec.epochs)
  state, metrics = jax.lax.scan(update_on, state, updates)
  return state, join_updates(metrics)
