"""The jit boundary: three compiled functions make one PURE training step.

1. ``generate``: prompts -> rollout (`pure_jax.training.rollouts`);
2. ``score``: rollout -> steps, PRM step rewards, old and reference log-probs;
3. ``update``: experience -> credit, baselines, clipped loss, gradient, AdamW;
   the last three may be repeated for mini-batches
   (`pure_jax.training.mini_batches`).

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
from pure_jax.training.adaptive_kl import adapt_kl_coef
from pure_jax.training.mini_batches import run_updates
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
    skipped: [] int32, updates not applied because the loss, a gradient, or the
      state after them was not finite.
    skipped_in_a_row: [] int32, how many of the latest were skipped.
    kl_coef: [] float32, the KL coefficient of the next rollout's updates, per
      nat; None if it is a constant of the configs.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  skipped: jax.Array
  skipped_in_a_row: jax.Array
  kl_coef: jax.Array | None = None


def new_state(
  params: Any,
  optimizer: optax.GradientTransformation,
  kl_coef: float | None = None,
) -> TrainState:
  """Makes a state at step 0 with a fresh optimizer.

  Args:
    params: trainable weights; the state holds these very arrays.
    optimizer: the optax transformation.
    kl_coef: the first KL coefficient if it is adapted; None if it is not.

  Returns:
    The state; traceable, so `jax.eval_shape` gives its abstract form.
  """
  zero = jnp.zeros((), jnp.int32)
  if kl_coef is not None:
    kl_coef = jnp.asarray(kl_coef, jnp.float32)
  return TrainState(zero, params, optimizer.init(params), zero, zero, kl_coef)


def state_shardings(
  declared: Any,
  optimizer: optax.GradientTransformation,
  layout: sharding.Layout,
  has_kl_coef: bool = False,
) -> TrainState:
  """The shardings of a `TrainState`.

  Args:
    declared: pytree of declared weights, those that are trained.
    optimizer: the optax transformation.
    layout: mesh and rules.
    has_kl_coef: whether the state has a KL coefficient.

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
  return TrainState(
    *(everywhere, of_weights, opt_state, everywhere, everywhere),
    everywhere if has_kl_coef else None,
  )


def make_init(
  declared: Any,
  optimizer: optax.GradientTransformation,
  layout: sharding.Layout,
  kl_coef: float | None = None,
) -> Callable[[jax.Array], TrainState]:
  """Makes a function that initialises parameters and optimizer, sharded.

  Args:
    declared: pytree of declared weights.
    optimizer: the optax transformation.
    layout: mesh and rules.
    kl_coef: as for `new_state`.

  Returns:
    A jitted function from a key (consumed) to the state at step 0.
  """

  def init(key):
    return new_state(weights.init_params(key, declared), optimizer, kl_coef)

  shardings = state_shardings(declared, optimizer, layout, kl_coef is not None)
  return jax.jit(init, out_shardings=shardings)


def start_state(
  params: Any,
  declared: Any,
  optimizer: optax.GradientTransformation,
  layout: sharding.Layout,
  kl_coef: float | None = None,
) -> TrainState:
  """Makes a state at step 0 that owns copies of given weights.

  Args:
    params: weights to start from; they stay valid when the state is donated.
    declared: the same weights' declarations.
    optimizer: the optax transformation.
    layout: mesh and rules.
    kl_coef: as for `new_state`.

  Returns:
    The state, in its shardings.
  """
  shardings = state_shardings(declared, optimizer, layout, kl_coef is not None)
  start = jax.jit(new_state, static_argnums=(1, 2), out_shardings=shardings)
  return start(params, optimizer, kl_coef)


def apply_gradients(
  state: TrainState,
  grads: Any,
  loss: jax.Array,
  optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
  """Applies an optimizer update; skips it if anything is not finite.

  Loss and gradients are not enough: a finite gradient times a high learning
  rate may overflow a weight, its square a moment, and a cast a bfloat16 weight.
  So the next weights and the next optimizer state are checked too.

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

  def updated():
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return optax.apply_updates(state.params, updates), opt_state

  # The check only reduces what it computes, and the branch computes it again:
  # the states before and after never take memory at the same time.
  finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss) & _finite(updated())
  params, opt_state = jax.lax.cond(
    finite, updated, lambda: (state.params, state.opt_state)
  )
  skip = 1 - finite.astype(jnp.int32)
  state = state.replace(
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
    skipped=state.skipped + skip,
    skipped_in_a_row=(state.skipped_in_a_row + 1) * skip,
  )
  return state, {
    "grad_norm": grad_norm,
    "skipped_updates": state.skipped,
    "skipped_in_a_row": state.skipped_in_a_row,
  }


def _finite(tree: Any) -> jax.Array:
  """Whether all floats of a pytree are finite; counters always are."""
  floats = [
    leaf
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  ]
  return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]))


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
    values=batch.values,
  )


def _update(spec, optimizer, rows, state, batch, base):
  """The updates of one rollout, see `make_update`: (state, metrics)."""
  experience = experience_from(batch, spec.table)
  if spec.own_old_logp:
    experience = experience.replace(old_logp=None)
  advantages, credit_metrics = pure_advantages(
    experience, spec.credit, state.kl_coef
  )
  data = (batch.rollout, experience, advantages)

  def update_once(state, data):
    (loss, groups), grads = policy_gradients(
      spec, state.params, base, *data, rows, state.kl_coef
    )
    state, applied = apply_gradients(state, grads, loss, optimizer)
    grad_norm = {"grad_norm": applied.pop("grad_norm")}
    return state, groups.replace(
      sums=groups.sums | grad_norm, maxima=groups.maxima | applied
    )

  state, metrics = run_updates(spec, update_once, state, data, batch.order)
  metrics |= credit_metrics
  if spec.adaptive_kl is not None:
    kl_coef, kl_metrics = adapt_kl_coef(state.kl_coef, experience, spec)
    state, metrics = state.replace(kl_coef=kl_coef), metrics | kl_metrics
  return state, metrics


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
  used and not the result. All updates of a rollout have one KL coefficient;
  with `spec.adaptive_kl` the next rollout has another.

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
    With `spec.adaptive_kl` there are ``kl_coef``, that of these updates, and
    ``kl_rollout``, the KL that changes it.

  Raises:
    ValueError: when it is traced, if the rows of the batch cannot be divided,
      or the KL coefficient is to be adapted and the state has none.
  """
  model, layout = spec.model, spec.layouts.training

  def update(state, batch, base):
    return _update(spec, optimizer, rows, state, batch, base)

  trained, frozen = lora.trained_and_frozen(policy.declare_policy(model), model)
  state = state_shardings(
    trained, optimizer, layout, spec.adaptive_kl is not None
  )
  base = sharding.weight_shardings(frozen, layout)
  return jax.jit(
    update,
    in_shardings=(state, sharding.batch_sharding(layout), base),
    out_shardings=(state, sharding.replicated(layout)),
    donate_argnums=0,
  )
