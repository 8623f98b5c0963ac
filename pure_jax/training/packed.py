"""Models run on packed rows: log-probs, PRM logits and policy gradients.

Each function gives the result of its counterpart with one text per row, up to
rounding: attention sums over the keys of a row in another order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pure_jax import losses
from pure_jax.models import lora, policy, prm
from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import packing
from pure_jax.training.micro_batches import accumulate_packs
from pure_jax.training.packing import PackedTexts, Packing, RowShape
from pure_jax.training.step_spec import StepSpec
from pure_jax.types import Experience, PackedExperience, PRMInputs, Rollout


def make_measure(layout: sharding.Layout) -> Callable[[Rollout], jax.Array]:
  """Makes a function that measures the longest text of a rollout.

  `pure_jax.training.packing.choose` takes the narrowest rows that hold it.

  Args:
    layout: the layout of the rows.

  Returns:
    A jitted function: rollout -> [1] int32, the most tokens of a prompt with
    its completion, the same on every process.
  """

  def measure(rollout):
    texts = rollout.prompt_mask.sum(1) + rollout.completion_mask.sum(1)
    return texts.max(keepdims=True)

  return jax.jit(measure, out_shardings=sharding.replicated(layout))


def pack_rollout(
  rollout: Rollout,
  shape: RowShape,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[Packing, jax.Array]:
  """Lays prompts with their completions into rows.

  Args:
    rollout: prompts and completions, [B, L] and [B, C].
    shape: the shape of the rows.
    act_sharding: sharding of the rows.

  Returns:
    (where the tokens lie, the tokens [B, L + C]).
  """
  mask = jnp.concatenate([rollout.prompt_mask, rollout.completion_mask], axis=1)
  tokens = jnp.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)
  return packing.pack(mask, shape, act_sharding), tokens


def packed_logp(
  params: Any,
  model: ModelConfig,
  sampler: SamplingConfig,
  texts: PackedTexts,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[jax.Array, jax.Array]:
  """Computes `score.rollout_logp` for packed rows.

  Args:
    params: policy weights.
    model: the policy's architecture.
    sampler: the sampling settings.
    texts: rows of prompts and completions.
    act_sharding: sharding of the activations.

  Returns:
    (logp, entropy), both [R, W] float32 in nats, 0 where no completion token
    lies; differentiable in `params`.
  """
  return policy.packed_logp(
    params,
    model,
    texts.tokens,
    texts.positions,
    texts.segment_ids,
    texts.completion >= 0,
    temperature=sampler.temperature or 1.0,
    banned_ids=sampler.banned_ids,
    act_sharding=act_sharding,
  )


def logp_of_each(
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
    One [B, C] float32 in nats for each policy, 0 where masked.
  """
  _, first_sharding = policies[0]
  rows, tokens = pack_rollout(rollout, shape, first_sharding)
  columns = rollout.tokens.shape[1]

  def read(index):
    logp = []
    for params, act_sharding in policies:
      texts = packing.read_micro_batch(
        rows, index, tokens, columns, act_sharding
      )
      logp.append(packed_logp(params, model, sampler, texts, act_sharding)[0])
    return logp

  return [
    packing.unpack(rows, logp, first_sharding)[:, -columns:]
    for logp in packing.map_micro_batches(read, rows)
  ]


def prm_logits(
  params: Any,
  model: ModelConfig,
  inputs: PRMInputs,
  shape: RowShape,
  act_sharding: ActivationSharding = LOCAL,
) -> jax.Array:
  """Computes `models.prm.prm_logits` in packed rows.

  Args:
    params: PRM weights.
    model: the PRM's architecture.
    inputs: the PRM's inputs, [B, T].
    shape: the shape of the rows.
    act_sharding: sharding of the activations.

  Returns:
    [B, T, 2] float32, 0 where the inputs are masked.
  """
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
  shape: RowShape,
) -> tuple[tuple[jax.Array, losses.Metrics], Any]:
  """Computes loss, metrics and gradients of a batch in packed rows.

  Args:
    spec: the step's specification. The row shape says how many rows are
      processed together, in place of `spec.micro_batch_rows`.
    params: policy weights to train.
    base: weights that get no gradient, joined with `params`; {} if all
      weights are trained.
    rollout: prompts and completions, [B, L] and [B, C].
    experience: the experience of the same responses.
    advantages: [B, C] float32, of the same responses.
    shape: the shape of the rows.

  Returns:
    ((loss [], NaN if a text did not fit; metrics, among them ``row_fill``, the
    share of the processed columns that have a token), gradients).
  """
  act_sharding = spec.layouts.training.act_sharding
  rows, tokens = pack_rollout(rollout, shape, act_sharding)
  mask = experience.completion_mask
  denominator = losses.loss_denominator(mask, spec.loss)
  lengths = jnp.broadcast_to(jnp.sum(mask, axis=1, keepdims=True), mask.shape)

  def objective(params, index):
    texts = packing.read_micro_batch(
      rows, index, tokens, mask.shape[1], act_sharding
    )
    weights = lora.join_params(base, params)

    def take(x):
      return packing.gather(x, texts.completion, act_sharding)

    sampled_logp = None
    if spec.loss.importance_cap is not None:
      sampled_logp = take(experience.sampled_logp)
    return losses.policy_objective(
      *packed_logp(weights, spec.model, spec.sampler, texts, act_sharding),
      take(advantages),
      PackedExperience(
        completion_mask=take(mask),
        old_logp=take(experience.old_logp),
        ref_logp=take(experience.ref_logp),
        response_tokens=take(lengths),
        sampled_logp=sampled_logp,
      ),
      spec.loss,
      denominator,
    )

  (loss, metrics), grads = accumulate_packs(
    objective, params, rows.micro_batches
  )
  loss = jnp.where(rows.fits, loss, jnp.nan)
  return (loss, metrics | {"row_fill": rows.fill}), grads
