"""Loss and gradients of a batch, one text per row or in packed rows."""

from typing import Any

import jax

from pure_jax import losses
from pure_jax.models import lora
from pure_jax.training import packed
from pure_jax.training.micro_batches import (
  accumulate_gradients,
  count_micro_batches,
)
from pure_jax.training.packing import RowShape
from pure_jax.training.score import rollout_logp
from pure_jax.training.step_spec import StepSpec
from pure_jax.types import Experience, Rollout


def policy_gradients(
  spec: StepSpec,
  params: Any,
  base: Any,
  rollout: Rollout,
  experience: Experience,
  advantages: jax.Array,
  rows: RowShape | None = None,
) -> tuple[tuple[jax.Array, losses.Metrics], Any]:
  """Computes the policy objective of a batch and its gradients.

  The loss is summed over micro-batches, each divided by the count of the whole
  batch.

  Args:
    spec: the step's specification.
    params: policy weights to train.
    base: weights that get no gradient, joined with `params`; {} if all
      weights are trained.
    rollout: prompts and completions, [B, L] and [B, C].
    experience: the experience of the same responses.
    advantages: [B, C] float32, of the same responses.
    rows: rows that texts are packed into, see `packed.policy_gradients`; None
      gives each text a row of its own.

  Returns:
    ((loss [], metrics), gradients).
  """
  if rows is not None:
    return packed.policy_gradients(
      spec, params, base, rollout, experience, advantages, rows
    )
  act_sharding = spec.layouts.training.act_sharding
  denominator = losses.loss_denominator(experience.completion_mask, spec.loss)

  def objective(params, micro_batch):
    rollout, experience, advantages = micro_batch
    weights = lora.join_params(base, params)
    new_logp, entropy = rollout_logp(
      weights, spec.model, spec.sampler, rollout, act_sharding
    )
    return losses.policy_objective(
      new_logp, entropy, advantages, experience, spec.loss, denominator
    )

  micro_batches = count_micro_batches(
    len(rollout.tokens),
    spec.micro_batch_rows,
    spec.layouts.training.row_shards,
  )
  batch = (rollout, experience, advantages)
  return accumulate_gradients(objective, params, batch, micro_batches)
