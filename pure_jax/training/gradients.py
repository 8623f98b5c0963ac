"""Loss and gradients of a batch, in rows of its own or in packed ones."""

from typing import Any

import jax

from pure_jax import losses
from pure_jax.models import lora
from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.config import ModelConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.settings import LossConfig
from pure_jax.training import packed
from pure_jax.training.micro_batches import accumulate_gradients
from pure_jax.training.packing import RowShape
from pure_jax.training.score import rollout_logp
from pure_jax.types import Experience, Rollout


def policy_gradients(
  params: Any,
  batch: tuple[Rollout, Experience, jax.Array],
  model: ModelConfig,
  sampler: SamplingConfig,
  loss: LossConfig,
  micro_batches: int = 1,
  row_shape: RowShape | None = None,
  act_sharding: ActivationSharding = LOCAL,
  base: Any = None,
) -> tuple[tuple[jax.Array, losses.Metrics], Any]:
  """The policy objective of a batch and its gradients, part by part.

  Every part is divided by the count of the whole batch.

  Args:
    params: policy weights to train.
    batch: rollout, experience and advantages [B, C] of the same rows.
    model: the policy's architecture.
    sampler: the sampling settings of the rollout.
    loss: clipping, KL, entropy and aggregation.
    micro_batches: number of parts; must divide B.
    row_shape: rows that texts are packed into, see `packed.policy_gradients`,
      in place of micro_batches; None gives each text a row of its own.
    act_sharding: of the activations.
    base: weights beside which `params` are adapters, without gradient; None
      where `params` are all there are.

  Returns:
    ((loss [], metrics), gradients).
  """
  _, experience, _ = batch
  denominator = losses.loss_denominator(experience.completion_mask, loss)
  if row_shape is not None:
    return packed.policy_gradients(
      params,
      model,
      sampler,
      loss,
      *batch,
      denominator,
      row_shape,
      act_sharding,
      base,
    )

  def objective(params, part):
    rollout, experience, advantages = part
    whole = lora.join_params(base or {}, params)
    new_logp, entropy = rollout_logp(
      whole, model, sampler, rollout, act_sharding
    )
    return losses.policy_objective(
      new_logp, entropy, advantages, experience, loss, denominator
    )

  return accumulate_gradients(objective, params, batch, micro_batches)
