"""The jit boundary: three compiled functions make one PURE training step.

1. ``generate``: prompts -> rollout (`pure_jax.training.rollouts`);
2. ``score``: rollout -> steps, PRM step rewards, old and reference log-probs;
3. ``update``: experience -> credit, baselines, clipped loss, gradient, AdamW.

Between 2 and 3 the host grades answers. Every function is built once from
frozen configs, a declared weight tree and a layout; arrays cross the boundary
with named shardings, parameters are born in theirs, and the state of
``update`` is donated. `make_supervised_step` and `make_prm_step` are the two
earlier stages, with the same `TrainState`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from pure_jax.advantages import pure_advantages
from pure_jax.models import lora, policy
from pure_jax.models import params as weights
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout import sampling
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.training import packing
from pure_jax.training.gradients import policy_gradients
from pure_jax.training.score import Scores, experience_from
from pure_jax.types import SeparatorTable

Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
  """What an update changes.

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
  """A state at step 0 with a fresh optimizer.

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
  """Where each array of a `TrainState` lives.

  Args:
    declared: pytree of declared weights, those that are trained.
    optimizer: the optax transformation.
    layout: mesh and rules.

  Returns:
    A `TrainState` of shardings; moments follow their weight.
  """
  of_weights = sharding.weight_shardings(declared, layout)
  everywhere = sharding.replicated(layout)
  opt_state = jax.eval_shape(optimizer.init, weights.abstract_params(declared))
  opt_state = optax.tree.map_params(
    optimizer,
    lambda _, place: place,
    opt_state,
    of_weights,
    transform_non_params=lambda _: everywhere,
  )
  return TrainState(everywhere, of_weights, opt_state, everywhere, everywhere)


def make_init(
  declared: Any,
  optimizer: optax.GradientTransformation,
  layout: sharding.Layout,
) -> Callable[[jax.Array], TrainState]:
  """Parameters and optimizer state born in their shardings.

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
  """A state at step 0 that owns copies of given weights.

  Args:
    params: weights to start from; they stay valid when the state is donated.
    declared: the same weights' declarations.
    optimizer: the optax transformation.
    layout: mesh and rules.

  Returns:
    The state, in its shardings.
  """
  places = state_shardings(declared, optimizer, layout)
  return jax.jit(new_state, static_argnums=1, out_shardings=places)(
    params, optimizer
  )


def apply_gradients(
  state: TrainState,
  grads: Any,
  loss: jax.Array,
  optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
  """One optimizer update, skipped where loss or gradients are not finite.

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
  state = TrainState(
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


def make_update(
  model: ModelConfig,
  sampler: sampling.SamplingConfig,
  credit: CreditConfig,
  loss: LossConfig,
  optimizer: optax.GradientTransformation,
  table: SeparatorTable,
  layout: sharding.Layout,
  micro_batches: int = 1,
  row_shape: packing.RowShape | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Stage 3: one gradient step of the fused PURE loss.

  Credit, baselines and whitening see the whole batch; then the loss is
  summed over micro-batches, each divided by the count of the whole batch, so
  their number changes the memory used and not the result.

  Args:
    model: the policy's architecture.
    sampler: the sampling settings of the rollout.
    credit: from step rewards to advantages.
    loss: clipping, KL, entropy and aggregation.
    optimizer: the optax transformation.
    table: which token ids end a step.
    layout: mesh and rules.
    micro_batches: passes over parts of the batch; must divide B.
    row_shape: rows that texts are packed into, which say how many are read
      together, in place of micro_batches; None gives each text its own.
      Changes the time used and not the result.

  Returns:
    A jitted function (state, rollout, scores, correct [B], has_answer [B])
    -> (state, metrics); the state given is donated. With `model.lora` the
    state holds the adapters alone, and the base is a further argument, which
    gets no gradient and no optimizer state.
  """
  trained, frozen = lora.trained_and_frozen(policy.declare_policy(model), model)

  def update(state, rollout, scores, correct, has_answer, *base):
    experience = experience_from(rollout, scores, correct, has_answer, table)
    advantages, metrics = pure_advantages(experience, credit)
    (value, found), grads = policy_gradients(
      state.params,
      (rollout, experience, advantages),
      model,
      sampler,
      loss,
      micro_batches,
      row_shape,
      layout.act_sharding,
      *base,
    )
    state, applied = apply_gradients(state, grads, value, optimizer)
    return state, metrics | found | applied

  rows = sharding.batch_sharding(layout)
  places = state_shardings(trained, optimizer, layout)
  everywhere = sharding.replicated(layout)
  base = (sharding.weight_shardings(frozen, layout),) if frozen else ()
  return jax.jit(
    update,
    in_shardings=(
      places,
      rows,
      Scores(rows, rows, rows, rows, everywhere),
      rows,
      rows,
      *base,
    ),
    out_shardings=(places, everywhere),
    donate_argnums=0,
  )
