"""The jit boundary: three compiled functions make one PURE training step.

1. ``generate``: prompts -> rollout (`pure_jax.training.rollouts`);
2. ``score``: rollout -> steps, PRM step rewards, old and reference log-probs;
3. ``update``: experience -> credit, baselines, clipped loss, gradient, AdamW;
   or several gradients, of mini-batches (`pure_jax.training.mini_batches`).

Between 2 and 3 the host grades answers. Arrays cross the boundary with named
shardings, and the state of ``update`` is donated. The two earlier stages, in
`pure_jax.training.supervised`, have the same `TrainState`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from pure_jax import steps
from pure_jax.advantages import Metrics, pure_advantages
from pure_jax.models import lora, policy
from pure_jax.models import params as weights
from pure_jax.parallel import sharding
from pure_jax.training.mini_batches import (
  check_mini_batches,
  join_updates,
  rows_of_updates,
  take_rows,
)
from pure_jax.training.packing import RowShape
from pure_jax.training.passes import policy_gradients
from pure_jax.training.score import ScoredBatch
from pure_jax.training.step_spec import StepSpec
from pure_jax.types import Experience, SeparatorTable


@struct.dataclass
class TrainState:
  """The state that an update changes.

  Attributes:
    step: [] int32, updates attempted, skipped ones included.
    params: trainable weights, sharded as declared.
    opt_state: optax state, sharded as the weights it belongs to.
    skipped: [] int32, updates not applied because the loss or a gradient was
      not finite.
    skipped_in_a_row: [] int32, how many of the latest were skipped.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  skipped: jax.Array
  skipped_in_a_row: jax.Array


def new_state(
  params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
  """Makes a state at step 0 with a fresh optimizer.

  Args:
    params: trainable weights; the state holds these very arrays.
    optimizer: the optax transformation.

  Returns:
    The state; traceable, so `jax.eval_shape` gives its abstract form.
  """
  zero = jnp.zeros((), jnp.int32)
  return TrainState(zero, params, optimizer.init(params), zero, zero)


def state_shardings(
  declared: Any,
  optimizer: optax.GradientTransformation,
  layout: sharding.Layout,
) -> TrainState:
  """The shardings of a `TrainState`.

  Args:
    declared: pytree of declared weights, those that are trained.
    optimizer: the optax transformation.
    layout: mesh and rules.

  Returns:
    A `TrainState` of shardings; moments follow their weight.
  """
  of_weights = sharding.weight_shardings(declared, layout)
  everywhere = sharding.replicated(layout)
  opt_state = optax.tree.map_params(
    optimizer,
    lambda _, weight_sharding: weight_sharding,
    jax.eval_shape(optimizer.init, weights.abstract_params(declared)),
    of_weights,
    transform_non_params=lambda _: everywhere,
  )
  return TrainState(everywhere, of_weights, opt_state, everywhere, everywhere)


def make_init(
  declared: Any,
  optimizer: optax.GradientTransformation,
  layout: sharding.Layout,
) -> Callable[[jax.Array], TrainState]:
  """Makes a function that initialises parameters and optimizer, sharded.

  Args:
    declared: pytree of declared weights.
    optimizer: the optax transformation.
    layout: mesh and rules.

  Returns:
    A jitted function from a key (consumed) to the state at step 0.
  """

  def init(key):
    return new_state(weights.init_params(key, declared), optimizer)

  return jax.jit(
    init, out_shardings=state_shardings(declared, optimizer, layout)
  )


def start_state(
  params: Any,
  declared: Any,
  optimizer: optax.GradientTransformation,
  layout: sharding.Layout,
) -> TrainState:
  """Makes a state at step 0 that owns copies of given weights.

  Args:
    params: weights to start from; they stay valid when the state is donated.
    declared: the same weights' declarations.
    optimizer: the optax transformation.
    layout: mesh and rules.

  Returns:
    The state, in its shardings.
  """
  start = jax.jit(
    new_state,
    static_argnums=1,
    out_shardings=state_shardings(declared, optimizer, layout),
  )
  return start(params, optimizer)


def apply_gradients(
  state: TrainState,
  grads: Any,
  loss: jax.Array,
  optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
  """Applies an optimizer update; skips it if loss or gradients are not finite.

  Args:
    state: the state before the update.
    grads: gradients, one per weight.
    loss: [] float, the loss they belong to.
    optimizer: the optax transformation.

  Returns:
    The next state and the metrics ``grad_norm`` (before clipping),
    ``skipped_updates`` (total so far) and ``skipped_in_a_row``. A skipped
    update changes the step and the two counters, nothing else.
  """
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)

  def where_finite(new, old):
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

  skip = 1 - finite.astype(jnp.int32)
  state = state.replace(
    step=state.step + 1,
    params=where_finite(params, state.params),
    opt_state=where_finite(opt_state, state.opt_state),
    skipped=state.skipped + skip,
    skipped_in_a_row=(state.skipped_in_a_row + 1) * skip,
  )
  return state, {
    "grad_norm": grad_norm,
    "skipped_updates": state.skipped,
    "skipped_in_a_row": state.skipped_in_a_row,
  }


def experience_from(batch: ScoredBatch, table: SeparatorTable) -> Experience:
  """Builds what credit and loss read.

  Args:
    batch: B responses.
    table: which token ids end a step.

  Returns:
    The experience.
  """
  rollout, scores = batch.rollout, batch.scores
  return Experience(
    completion_mask=rollout.completion_mask,
    steps=scores.steps,
    step_rewards=scores.step_rewards,
    correct=batch.correct,
    has_answer=batch.has_answer,
    old_logp=scores.old_logp,
    ref_logp=scores.ref_logp,
    terminal_mask=steps.terminal_mask(
      rollout.tokens, rollout.completion_mask, table
    ),
    sampled_logp=rollout.sampled_logp,
    truncated=rollout.truncated,
  )


def _update_once(spec, optimizer, rows, base, state, data):
  """One update, on rollout, experience and advantages of the same rows.

  Returns the next state and `MetricGroups`.
  """
  (loss, metrics), grads = policy_gradients(
    spec, state.params, base, *data, rows
  )
  state, applied = apply_gradients(state, grads, loss, optimizer)
  grad_norm = applied.pop("grad_norm")
  return state, metrics.replace(
    sums=metrics.sums | {"grad_norm": grad_norm},
    maxima=metrics.maxima | applied,
  )


def make_update(
  spec: StepSpec,
  optimizer: optax.GradientTransformation,
  rows: RowShape | None = None,
) -> Callable[[TrainState, ScoredBatch, Any], tuple[TrainState, Metrics]]:
  """Makes `update`: the gradient steps of the PURE loss on one rollout.

  Credit, baselines and whitening see the whole batch. Then every epoch makes an
  update for each of its mini-batches; old log-probs and advantages are those of
  the whole batch. A mini-batch has its own loss denominator, and its own skip
  if it is not finite. Within it, the loss is summed over micro-batches, each
  divided by the count of the mini-batch, so their number changes the memory
  used and not the result.

  Args:
    spec: the step's specification.
    optimizer: the optax transformation.
    rows: rows that texts are packed into, which replace
      `spec.micro_batch_rows`; None gives each text a row of its own. This
      changes the time, not the result.

  Returns:
    A jitted function (state, batch, base) -> (state, metrics); the state given
    is donated. With `spec.model.lora` the state has only the adapters, and
    the base gets no gradient and no optimizer state; without, the base is {}.
    The metrics of several updates are joined by `mini_batches.join_updates`.

  Raises:
    ValueError: when it is traced, if the rows of the batch cannot be divided.
  """
  model, layout = spec.model, spec.layouts.training

  def update(state, batch, base):
    experience = experience_from(batch, spec.table)
    advantages, credit_metrics = pure_advantages(experience, spec.credit)
    data = (batch.rollout, experience, advantages)
    if spec.mini_batches == spec.epochs == 1:
      state, groups = _update_once(spec, optimizer, rows, base, state, data)
      return state, credit_metrics | groups.to_dict()

    def update_on(state, taken):
      mini_batch = take_rows(data, taken, layout.act_sharding)
      return _update_once(spec, optimizer, rows, base, state, mini_batch)

    count = len(advantages)
    check_mini_batches(count, spec.mini_batches, layout.row_shards)
    updates = rows_of_updates(
      batch.order, count, spec.mini_batches, spec.epochs
    )
    state, groups = jax.lax.scan(update_on, state, updates)
    return state, credit_metrics | join_updates(groups)

  trained, frozen = lora.trained_and_frozen(policy.declare_policy(model), model)
  state = state_shardings(trained, optimizer, layout)
  base = sharding.weight_shardings(frozen, layout)
  return jax.jit(
    update,
    in_shardings=(state, sharding.batch_sharding(layout), base),
    out_shardings=(state, sharding.replicated(layout)),
    donate_argnums=0,
  )
