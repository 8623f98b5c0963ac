"""Models run on packed rows: log-probs, PRM logits and policy gradients.

Each function gives what its counterpart on one text a row gives, to rounding:
sums over the keys of a row have other addends equal to 0 and another order.
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
from pure_jax.settings import LossConfig
from pure_jax.training import packing
from pure_jax.training.micro_batches import accumulate_packs
from pure_jax.training.packing import PackedTexts, Packing, RowShape
from pure_jax.types import Experience, PackedExperience, PRMInputs, Rollout


def make_measure(layout: sharding.Layout) -> Callable[[Rollout], jax.Array]:
  """The longest text of a rollout, which decides what its rows have to hold.

  Args:
    layout: of the rows.

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
    shape: of the rows.
    act_sharding: of the rows.

  Returns:
    (where the tokens lie, the tokens [B, L + C]).
  """
  mask = jnp.concatenate([rollout.prompt_mask, rollout.completion_mask], axis=1)
  tokens = jnp.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)
  return packing.pack(mask, shape, act_sharding), tokens


def part_logp(
  params: Any,
  model: ModelConfig,
  sampler: SamplingConfig,
  texts: PackedTexts,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[jax.Array, jax.Array]:
  """`score.rollout_logp` of a part.

  Args:
    params: policy weights.
    model: the policy's architecture.
    sampler: the sampling settings.
    texts: rows of prompts and completions.
    act_sharding: of the activations.

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
  """Log-probs of a rollout's tokens under several policies.

  Args:
    policies: weights of each and the act_sharding of its activations.
    model: the architecture of all of them.
    sampler: the sampling settings.
    rollout: prompts and completions, [B, L] and [B, C].
    shape: of the rows.

  Returns:
    One [B, C] float32 in nats for each policy, 0 where masked.
  """
  _, act_sharding = policies[0]
  rows, tokens = pack_rollout(rollout, shape, act_sharding)
  columns = rollout.tokens.shape[1]

  def read(part):
    found = []
    for params, where in policies:
      texts = packing.read_part(rows, part, tokens, columns, where)
      found.append(part_logp(params, model, sampler, texts, where)[0])
    return found

  return [
    packing.unpack(rows, logp, act_sharding)[:, -columns:]
    for logp in packing.map_parts(read, rows)
  ]


def prm_logits(
  params: Any,
  model: ModelConfig,
  inputs: PRMInputs,
  shape: RowShape,
  act_sharding: ActivationSharding = LOCAL,
) -> jax.Array:
  """`models.prm.prm_logits`, computed in packed rows.

  Args:
    params: PRM weights.
    model: the PRM's architecture.
    inputs: what it reads, [B, T].
    shape: of the rows.
    act_sharding: of the activations.

  Returns:
    [B, T, 2] float32, 0 where the inputs are masked.
  """
  rows = packing.pack(inputs.mask, shape, act_sharding)

  def read(part):
    texts = packing.read_part(
      rows, part, inputs.tokens, act_sharding=act_sharding
    )
    return prm.token_scores(
      params,
      model,
      texts.tokens,
      texts.positions,
      texts.segment_ids,
      act_sharding,
    )

  return packing.unpack(rows, packing.map_parts(read, rows), act_sharding)


def policy_gradients(
  params: Any,
  model: ModelConfig,
  sampler: SamplingConfig,
  config: LossConfig,
  rollout: Rollout,
  experience: Experience,
  advantages: jax.Array,
  denominator: jax.Array,
  shape: RowShape,
  act_sharding: ActivationSharding = LOCAL,
  base: Any = None,
) -> tuple[tuple[jax.Array, losses.Metrics], Any]:
  """Loss, its metrics and gradients of a batch, packed part by packed part.

  Args:
    params: policy weights.
    model: the policy's architecture.
    sampler: the sampling settings.
    config: clipping, KL, entropy and aggregation.
    rollout: prompts and completions, [B, L] and [B, C].
    experience: of the same rows.
    advantages: [B, C] float32, of the same rows.
    denominator: [] float32, `losses.loss_denominator` of the batch.
    shape: of the rows.
    act_sharding: of the activations.
    base: weights beside which `params` are adapters, without gradient; None
      where `params` are all there are.

  Returns:
    ((loss [], NaN if a text did not fit; metrics, ``row_fill`` among them,
    the share of the columns read that held a token), gradients).
  """
  rows, tokens = pack_rollout(rollout, shape, act_sharding)
  mask = experience.completion_mask
  lengths = jnp.broadcast_to(jnp.sum(mask, axis=1, keepdims=True), mask.shape)

  def objective(params, part):
    texts = packing.read_part(rows, part, tokens, mask.shape[1], act_sharding)
    whole = lora.join_params(base or {}, params)

    def read(x):
      return packing.gather(x, texts.completion, act_sharding)

    weighs = config.importance_cap is not None

    return losses.policy_objective(
      *part_logp(whole, model, sampler, texts, act_sharding),
      read(advantages),
      PackedExperience(
        completion_mask=read(mask),
        old_logp=read(experience.old_logp),
        ref_logp=read(experience.ref_logp),
        response_tokens=read(lengths),
        sampled_logp=read(experience.sampled_logp) if weighs else None,
      ),
      config,
      denominator,
    )

  (loss, metrics), grads = accumulate_packs(objective, params, rows.parts)
  loss = jnp.where(rows.fits, loss, jnp.nan)
  return (loss, metrics | {"row_fill": rows.fill}), grads
