"""Metrics of credit: what the PRM scored, and signs of reward hacking."""

import jax.numpy as jnp
from jax import Array

from pure_jax import masked, steps
from pure_jax.credit import following_returns, softmin_rewards
from pure_jax.settings import CreditConfig
from pure_jax.types import Experience

Metrics = dict[str, Array]


def credit_metrics(
  rewards: Array,
  step_mask: Array,
  returns: Array,
  experience: Experience,
  config: CreditConfig,
) -> Metrics:
  """Returns scalars that describe credit and show reward hacking.

  Args:
    rewards: [B, S] float, -1..1, process rewards; finite.
    step_mask: [B, S] bool, True on the steps that take part in credit.
    returns: [B, S] float, step returns.
    experience: the batch.
    config: CreditConfig; temperature is read.

  Returns:
    Scalars by name: ``return_mean`` over tokens, ``min_step_score``,
    ``step_score_mean``, ``process_outcome`` (the sum of Eq. 5) and its
    ``process_outcome_agreement`` with the verdicts, ``correct_mean``,
    ``steps_per_response``, ``empty_step_share``, ``no_step_share``,
    ``step_overflow_mean`` and ``nonfinite_step_rewards`` (a count). A mean
    over nothing is 0.
  """
  boundaries, dtype = experience.steps, rewards.dtype
  nonempty = jnp.any(step_mask, axis=1)
  outcome = softmin_rewards(
    rewards, step_mask, temperature=config.temperature
  ).sum(axis=1)
  agrees = (outcome > 0) == (experience.correct > 0.5)
  returns = steps.values_per_token(
    following_returns(returns, step_mask), boundaries
  )
  silent = jnp.all(boundaries.empty | ~boundaries.mask, axis=1)
  bad = boundaries.mask & ~jnp.isfinite(experience.step_rewards)
  answered = experience.has_answer
  rows = jnp.ones_like(answered)

  def share(event, among):
    return masked.masked_mean(event.astype(dtype), among)

  return {
    "return_mean": masked.masked_mean(returns, experience.completion_mask),
    "min_step_score": masked.masked_mean(
      masked.masked_min(rewards, step_mask, axis=1), nonempty
    ),
    "step_score_mean": masked.masked_mean(rewards, step_mask),
    "process_outcome": masked.masked_mean(outcome, nonempty),
    "process_outcome_agreement": share(agrees, answered),
    "correct_mean": masked.masked_mean(
      experience.correct.astype(dtype), answered
    ),
    "steps_per_response": share(boundaries.mask.sum(axis=1), rows),
    "empty_step_share": share(boundaries.empty, boundaries.mask),
    "no_step_share": share(silent, rows),
    "step_overflow_mean": share(boundaries.overflow, rows),
    "nonfinite_step_rewards": bad.sum().astype(dtype),
  }
