"""Forward and backward passes of models over a batch of responses.

A batch has one text per row, in micro-batches, or packed rows of several texts.
The results are equal up to rounding: attention sums over the keys of a packed
row in another order.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pure_jax import losses, masked, ratios
from pure_jax.models import lora, policy, prm
from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.config import ModelConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import packing
from pure_jax.training.micro_batches import (
  accumulate_gradients,
  accumulate_packs,
  count_micro_batches,
)
from pure_jax.training.packing import RowShape
from pure_jax.training.step_spec import StepSpec
from pure_jax.types import (
  Experience,
  MetricGroups,
  PackedExperience,
  PRMInputs,
  Rollout,
)


def rollout_logp(
  params: Any,
  model: ModelConfig,
  sampler: SamplingConfig,
  rollout: Rollout,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[jax.Array, jax.Array]:
  """Computes log-probs and entropy of a rollout's tokens.

  The distribution is the sampler's before top-k, top-p and min-p: same
  temperature, same banned ids. Those filters belong to the behaviour policy
  only; their effect appears as drift between sampler and trainer.

  Args:
    params: policy weights.
    model: the policy's architecture.
    sampler: the sampling settings; greedy rollouts are read at temperature 1.
    rollout: prompts and completions, [B, L] and [B, C].
    act_sharding: sharding of the activations.

  Returns:
    (logp, entropy), both [B, C] float32 in nats, 0 where masked;
    differentiable in `params`.
  """
  return policy.token_logp(
    params,
    model,
    rollout.prompt_tokens,
    rollout.prompt_mask,
    rollout.tokens,
    rollout.completion_mask,
    temperature=sampler.temperature or 1.0,
    banned_ids=sampler.banned_ids,
    act_sharding=act_sharding,
  )


def _packed_logp(params, model, sampler, texts, act_sharding):
  """`rollout_logp` of packed rows, both [R, W]."""
  return policy.packed_logp(
    params,
    model,
    texts.tokens,
    texts.positions,
    texts.segment_ids,
    texts.completion >= 0,
    sharing=texts.sharing,
    temperature=sampler.temperature or 1.0,
    banned_ids=sampler.banned_ids,
    act_sharding=act_sharding,
  )


def pack_rollout(
  rollout: Rollout,
  shape: RowShape,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[packing.Packing, jax.Array]:
  """Packs prompts with their completions into rows.

  Args:
    rollout: prompts and completions, [B, L] and [B, C].
    shape: the shape of the rows.
    act_sharding: sharding of the batch.

  Returns:
    (where the tokens lie in rows, the tokens [B, L + C]).
  """
  mask = jnp.concatenate([rollout.prompt_mask, rollout.completion_mask], axis=1)
  tokens = jnp.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)
  columns = rollout.tokens.shape[1]
  return packing.pack(mask, shape, act_sharding, columns), tokens


def packed_logp_of_each(
  policies: Sequence[tuple[Any, ActivationSharding]],
  model: ModelConfig,
  sampler: SamplingConfig,
  rollout: Rollout,
  shape: RowShape,
) -> list[jax.Array]:
  """Computes log-probs of a rollout's tokens under several policies.

  Args:
    policies: weights of each policy and the sharding of its activations.
    model: the architecture of all policies.
    sampler: the sampling settings.
    rollout: prompts and completions, [B, L] and [B, C].
    shape: the shape of the rows.

  Returns:
    One [B, C] float32 in nats for each policy, 0 where masked; [] for none.
  """
  if not policies:
    return []
  _, first_sharding = policies[0]
  rows, tokens = pack_rollout(rollout, shape, first_sharding)
  columns = rollout.tokens.shape[1]

  def read(index):
    logp = []
    for params, act_sharding in policies:
      texts = packing.read_micro_batch(
        rows, index, tokens, columns, act_sharding
      )
      logp.append(_packed_logp(params, model, sampler, texts, act_sharding)[0])
    return logp

  return [
    packing.unpack(rows, logp, first_sharding)[:, -columns:]
    for logp in packing.map_micro_batches(read, rows)
  ]


def prm_logits(
  params: Any,
  model: ModelConfig,
  inputs: PRMInputs,
  act_sharding: ActivationSharding = LOCAL,
  shape: RowShape | None = None,
) -> jax.Array:
  """Computes `models.prm.prm_logits`, in packed rows if they have a shape.

  Args:
    params: PRM weights.
    model: the PRM's architecture.
    inputs: the PRM's inputs, [B, T].
    act_sharding: sharding of the activations.
    shape: the shape of the rows; None gives each text a row of its own.

  Returns:
    [B, T, 2] float32, meaningful where the inputs have a score.
  """
  if shape is None:
    return prm.prm_logits(params, model, inputs, act_sharding)
  rows = packing.pack(inputs.mask, shape, act_sharding)

  def read(index):
    texts = packing.read_micro_batch(
      rows, index, inputs.tokens, act_sharding=act_sharding
    )
    return prm.token_scores(
      params,
      model,
      texts.tokens,
      texts.positions,
      texts.segment_ids,
      act_sharding,
    )

  logits = packing.map_micro_batches(read, rows)
  return packing.unpack(rows, logits, act_sharding)


def policy_gradients(
  spec: StepSpec,
  params: Any,
  base: Any,
  rollout: Rollout,
  experience: Experience,
  advantages: jax.Array,
  shape: RowShape | None = None,
  kl_coef: jax.Array | None = None,
) -> tuple[tuple[jax.Array, MetricGroups], Any]:
  """Computes the policy objective of a batch and its gradients.

  The loss is summed over micro-batches, each divided by the count of the whole
  batch. `ratios.apply_guard` then sees the mean ratio of the whole batch.

  Args:
    spec: the step's specification.
    params: policy weights to train.
    base: weights that get no gradient, joined with `params`; {} if all
      weights are trained.
    rollout: prompts and completions, [B, L] and [B, C].
    experience: the experience of the same responses.
    advantages: [B, C] float32, of the same responses.
    shape: the shape of packed rows, which says how many are processed together
      in place of `spec.micro_batch_rows`; None gives each text its own row.
    kl_coef: [] float32, replaces `spec.loss.kl_coef`; None keeps it.

  Returns:
    ((loss [], metrics), gradients like `params`). In packed rows the
    loss is NaN if a text did not fit, and the metric ``row_fill`` is the share
    of the processed columns that have a token. If old log-probs are those of
    the update, ``logp_drift_max`` is their largest difference to those of the
    sampler, in nats, which otherwise `score` returns.
  """
  batch = (rollout, experience, advantages)
  if shape is None:
    (loss, metrics), grads = _row_gradients(spec, params, base, batch, kl_coef)
  else:
    (loss, metrics), grads = _packed_gradients(
      spec, params, base, batch, shape, kl_coef
    )
  (loss, grads), metrics = ratios.apply_guard(
    (loss, grads), metrics, spec.loss.ratio_guard
  )
  return (loss, metrics), grads


def _batch_counts(mask, config):
  """The counts of the whole batch that `policy_objective` reads."""
  token_count = None if config.ratio_guard is None else jnp.sum(mask)
  return losses.loss_denominator(mask, config), token_count


def _with_drift(loss_and_metrics, new_logp, sampled_logp, mask):
  """Adds the drift between sampler and update to the metrics."""
  loss, metrics = loss_and_metrics
  difference = jnp.abs(jax.lax.stop_gradient(new_logp) - sampled_logp)
  drift = masked.masked_max(difference, mask)
  return loss, metrics.replace(
    maxima=metrics.maxima | {"logp_drift_max": drift}
  )


def _row_gradients(spec, params, base, batch, kl_coef):
  """`policy_gradients` with a row for each text, unguarded."""
  layout, mask = spec.layouts.training, batch[1].completion_mask
  denominator, token_count = _batch_counts(mask, spec.loss)

  def objective(params, micro_batch):
    rollout, experience, advantages = micro_batch
    weights = lora.join_params(base, params)
    new_logp, entropy = rollout_logp(
      weights, spec.model, spec.sampler, rollout, layout.act_sharding
    )
    result = losses.policy_objective(
      *(new_logp, entropy, advantages, experience),
      *(spec.loss, denominator, kl_coef, token_count),
    )
    if not spec.own_old_logp:
      return result
    return _with_drift(
      result, new_logp, experience.sampled_logp, experience.completion_mask
    )

  micro_batches = count_micro_batches(
    len(mask), spec.micro_batch_rows, layout.row_shards
  )
  return accumulate_gradients(objective, params, batch, micro_batches)


def _packed_gradients(spec, params, base, batch, shape, kl_coef):
  """`policy_gradients` in packed rows, unguarded."""
  rollout, experience, advantages = batch
  act_sharding = spec.layouts.training.act_sharding
  rows, tokens = pack_rollout(rollout, shape, act_sharding)
  mask = experience.completion_mask
  denominator, token_count = _batch_counts(mask, spec.loss)
  lengths = jnp.broadcast_to(jnp.sum(mask, axis=1, keepdims=True), mask.shape)

  def objective(params, index):
    texts = packing.read_micro_batch(
      rows, index, tokens, mask.shape[1], act_sharding
    )
    weights = lora.join_params(base, params)

    def take(x):
      return packing.gather(x, texts.completion, act_sharding)

    def take_known(x):
      return None if x is None else take(x)

    sampled_logp = None
    if spec.loss.importance_cap is not None or spec.own_old_logp:
      sampled_logp = take(experience.sampled_logp)
    new_logp, entropy = _packed_logp(
      weights, spec.model, spec.sampler, texts, act_sharding
    )
    kept = take(mask)
    result = losses.policy_objective(
      *(new_logp, entropy, take(advantages)),
      PackedExperience(
        completion_mask=kept,
        old_logp=take_known(experience.old_logp),
        ref_logp=take_known(experience.ref_logp),
        response_tokens=take(lengths),
        sampled_logp=sampled_logp,
      ),
      *(spec.loss, denominator, kl_coef, token_count),
    )
    if not spec.own_old_logp:
      return result
    return _with_drift(result, new_logp, sampled_logp, kept)

  (loss, metrics), grads = accumulate_packs(
    objective, params, rows.micro_batches
  )
  # Without a fit no text is in the rows: no ratio can exceed the guard.
  loss = jnp.where(rows.fits, loss, jnp.nan)
  metrics = metrics.replace(sums=metrics.sums | {"row_fill": rows.fill})
  return (loss, metrics), grads
