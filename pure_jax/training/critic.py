"""The critic in an iteration of RL: its values of a rollout, and its updates.

The values are computed after the rollout, before any update. The policy's
advantages (`advantages.pure_advantages`) and the critic's targets
(`advantages.value_targets`) follow from them. Then both models are updated on
the same rollout.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pure_jax import losses, masked
from pure_jax.advantages import Metrics, pure_advantages, value_targets
from pure_jax.models import critic, lora
from pure_jax.parallel import sharding
from pure_jax.training import packing
from pure_jax.training.micro_batches import (
  accumulate_gradients,
  accumulate_packs,
  count_micro_batches,
  map_rows,
)
from pure_jax.training.mini_batches import run_updates
from pure_jax.training.packing import RowShape
from pure_jax.training.passes import pack_rollout
from pure_jax.training.step_spec import StepSpec
from pure_jax.training.train import (
  TrainState,
  apply_gradients,
  experience_from,
  state_shardings,
)
from pure_jax.types import MetricGroups, Rollout


def make_values(
  spec: StepSpec, rows: RowShape | None = None
) -> Callable[[Any, Any, Rollout], Array]:
  """Makes `values`: the value of the state before each token of a rollout.

  Args:
    spec: the step's specification.
    rows: rows that texts are packed into; None gives each text a row of its
      own. This changes the time, not the result.

  Returns:
    A jitted function (params, base, rollout) -> [B, C] float32, 0 where masked.
    Params and base are the trained and the frozen weights, as
    `critic.trained_and_frozen` separates them; without adapters the base is {}.
  """
  layout = spec.layouts.training

  def values(params, base, rollout):
    params = lora.join_params(base, params)
    if rows is not None:
      return _packed_values(spec, params, rollout, rows)
    return map_rows(
      lambda rollout: _token_values(spec, params, rollout),
      rollout,
      spec.micro_batch_rows,
      layout.row_shards,
    )

  trained, frozen = _declared(spec)
  batch = sharding.batch_sharding(layout)
  return jax.jit(
    values,
    in_shardings=(
      sharding.weight_shardings(trained, layout),
      sharding.weight_shardings(frozen, layout),
      batch,
    ),
    out_shardings=batch,
  )


def make_critic_update(
  spec: StepSpec,
  optimizer: optax.GradientTransformation,
  value_clip: float | None = None,
  rows: RowShape | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Makes the critic's updates: a regression of values on their targets.

  Targets are computed on the whole batch. Mini-batches and epochs are the
  policy's (`mini_batches.run_updates`), and the loss is aggregated as the
  policy's is.

  Args:
    spec: the step's specification; its credit has the baseline "gae".
    optimizer: the optax transformation.
    value_clip: > 0, see `losses.clipped_value_loss`; None clips nothing.
    rows: as for `make_values`.

  Returns:
    A jitted function (state, batch, base, kl_coef) -> (state, metrics); the
    state given is donated. The KL coefficient is that of the policy's state,
    None if it is a constant of `spec.credit`. The metrics are those of credit;
    ``explained_variance``, ``value_mean`` and ``value_target_mean`` of the
    values before the updates; and ``value_loss``, ``value_clip_fraction``,
    ``critic_grad_norm``, ``critic_skipped_updates`` and
    ``critic_skipped_in_a_row`` of the updates.

  Raises:
    ValueError: when it is traced, if the rows of the batch cannot be divided.
  """
  layout = spec.layouts.training

  def update(state, batch, base, kl_coef):
    experience = experience_from(batch, spec.table)
    _, credit_metrics = pure_advantages(experience, spec.credit, kl_coef)
    targets = value_targets(experience, spec.credit, kl_coef)
    metrics = credit_metrics | _fit(experience.values, targets, experience)
    data = (batch.rollout, experience.values, targets)
    state, update_metrics = run_updates(
      spec,
      functools.partial(
        _update_once, spec, (optimizer, value_clip, rows), base
      ),
      state,
      data,
      batch.order,
    )
    return state, metrics | update_metrics

  trained, frozen = _declared(spec)
  state = state_shardings(trained, optimizer, layout)
  return jax.jit(
    update,
    in_shardings=(
      state,
      sharding.batch_sharding(layout),
      sharding.weight_shardings(frozen, layout),
      sharding.replicated(layout),
    ),
    out_shardings=(state, sharding.replicated(layout)),
    donate_argnums=0,
  )


def _update_once(spec, settings, base, state, data):
  """One update, on rollout, old values and targets of the same rows.

  Returns the next state and `MetricGroups`.
  """
  optimizer, value_clip, rows = settings
  (loss, metrics), grads = _gradients(
    spec, value_clip, state.params, base, data, rows
  )
  state, applied = apply_gradients(state, grads, loss, optimizer)
  skipped = {
    "critic_skipped_updates": applied["skipped_updates"],
    "critic_skipped_in_a_row": applied["skipped_in_a_row"],
  }
  return state, metrics.replace(
    sums=metrics.sums | {"critic_grad_norm": applied["grad_norm"]},
    maxima=metrics.maxima | skipped,
  )


def _declared(spec):
  """The critic's declared weights: (trained, frozen)."""
  return critic.trained_and_frozen(
    critic.declare_critic(spec.model), spec.model
  )


def _fit(values, targets, experience):
  """How well values predict their targets, over the tokens of a batch."""
  mask = experience.completion_mask
  return {
    "explained_variance": masked.explained_variance(targets, values, mask),
    "value_mean": masked.masked_mean(values, mask),
    "value_target_mean": masked.masked_mean(targets, mask),
  }


def _token_values(spec, params, rollout):
  """Values of a rollout, one text per row."""
  return critic.token_values(
    params,
    spec.model,
    rollout.prompt_tokens,
    rollout.prompt_mask,
    rollout.tokens,
    rollout.completion_mask,
    spec.layouts.training.act_sharding,
  )


def _values_of_texts(spec, params, texts):
  """Values of one micro-batch of packed rows."""
  return critic.packed_values(
    params,
    spec.model,
    texts.tokens,
    texts.positions,
    texts.segment_ids,
    texts.completion >= 0,
    spec.layouts.training.act_sharding,
  )


def _packed_values(spec, params, rollout, shape):
  """Values of a rollout, computed in packed rows."""
  act_sharding = spec.layouts.training.act_sharding
  rows, tokens = pack_rollout(rollout, shape, act_sharding)
  columns = rollout.tokens.shape[1]

  def read(index):
    texts = packing.read_micro_batch(rows, index, tokens, columns, act_sharding)
    return _values_of_texts(spec, params, texts)

  values = packing.map_micro_batches(read, rows)
  return packing.unpack(rows, values, act_sharding)[:, -columns:]


def _objective(
  spec, value_clip, texts, mask, denominator, response_tokens=None
):
  """The value loss of a micro-batch, and its metrics.

  The texts are (new values, values before the update, targets), all in the
  shape of the mask.
  """
  texts = (masked.zero_masked(x, mask) for x in texts)
  per_token, clipped = losses.clipped_value_loss(*texts, value_clip)

  def mean(x):
    return losses.aggregate_loss(
      x, mask, spec.loss, denominator, response_tokens
    )

  loss = mean(per_token)
  clip_fraction = mean(clipped.astype(per_token.dtype))
  sums = {"value_loss": loss, "value_clip_fraction": clip_fraction}
  return loss, jax.lax.stop_gradient(MetricGroups(sums))


def _gradients(spec, value_clip, params, base, data, shape):
  """((loss, metrics), gradients) of the value loss of a batch.

  The data are (rollout, values before the update, targets). In packed rows,
  which have a shape, the loss is NaN if a text did not fit.
  """
  if shape is not None:
    return _packed_gradients(spec, value_clip, params, base, data, shape)
  layout, rollout = spec.layouts.training, data[0]
  denominator = losses.loss_denominator(rollout.completion_mask, spec.loss)

  def objective(params, micro_batch):
    rollout, *old_and_targets = micro_batch
    new = _token_values(spec, lora.join_params(base, params), rollout)
    return _objective(
      spec,
      value_clip,
      (new, *old_and_targets),
      rollout.completion_mask,
      denominator,
    )

  micro_batches = count_micro_batches(
    len(rollout.tokens), spec.micro_batch_rows, layout.row_shards
  )
  return accumulate_gradients(objective, params, data, micro_batches)


def _packed_gradients(spec, value_clip, params, base, data, shape):
  """`_gradients` in packed rows."""
  rollout, old_values, targets = data
  act_sharding = spec.layouts.training.act_sharding
  rows, tokens = pack_rollout(rollout, shape, act_sharding)
  mask = rollout.completion_mask
  denominator = losses.loss_denominator(mask, spec.loss)
  lengths = jnp.broadcast_to(jnp.sum(mask, axis=1, keepdims=True), mask.shape)

  def objective(params, index):
    texts = packing.read_micro_batch(
      rows, index, tokens, mask.shape[1], act_sharding
    )

    def take(x):
      return packing.gather(x, texts.completion, act_sharding)

    new = _values_of_texts(spec, lora.join_params(base, params), texts)
    return _objective(
      spec,
      value_clip,
      (new, take(old_values), take(targets)),
      take(mask),
      denominator,
      take(lengths),
    )

  (loss, metrics), grads = accumulate_packs(
    objective, params, rows.micro_batches
  )
  return (jnp.where(rows.fits, loss, jnp.nan), metrics), grads
