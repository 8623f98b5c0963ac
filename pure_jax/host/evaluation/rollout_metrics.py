"""Metrics of a training batch of responses, including those that show hacking.

Watch accuracy together with process reward: a policy that hacks its PRM raises
the second without the first. Repetition and truncation among *correct*
responses precede the collapse that the paper (arXiv 2504.15275) describes.
"""

import numpy as np

from pure_jax.host.evaluation import hacking_metrics
from pure_jax.host.evaluation.answer_metrics import pass_at_k
from pure_jax.host.evaluation.hacking_metrics import AGREEMENT_METRICS
from pure_jax.host.evaluation.repetition import HIGH_REPETITION
from pure_jax.host.evaluation.response_facts import ResponseFacts
from pure_jax.host.evaluation.response_scores import softmin_outcome

# Metrics of step rewards.
SCORE_METRICS = (
  *("process_outcome", "min_step_score", "hacked_given_wrong"),
  *AGREEMENT_METRICS,
)
# By name; None where the mean is over nothing.
Metrics = dict[str, float | None]


def rollout_metrics(
  facts: ResponseFacts, correct: np.ndarray, gradable: np.ndarray
) -> Metrics:
  """Averages the facts of a scored and graded rollout over its responses.

  `docs/metrics.md` defines every name.

  Args:
    facts: facts of B responses; without step rewards, metrics of step rewards
      are absent.
    correct: [B] float, 1 where the answer is right.
    gradable: [B] bool, whether the answer of the problem is known. The other
      responses are not right, and are not counted as wrong.

  Returns:
    Means over the batch by name. A mean over an empty set (say over the wrong
    responses if all are right) is None, and so are `SCORE_METRICS` if a step
    reward is not finite.
  """
  right = np.asarray(correct) > 0.5
  wrong = np.asarray(gradable) & ~right
  # One entry per step text of the batch, the vacuous ones first.
  vacuous = np.arange(facts.written_steps.sum()) < facts.vacuous_steps.sum()
  # The paper watches these apart for right and for wrong responses.
  watched = {
    "response_tokens": facts.tokens,
    "clip_ratio": facts.at_limit,
    "truncated": facts.truncated,
    "repetition": facts.repetition,
    "high_repetition": facts.repetition > HIGH_REPETITION,
  }
  values = {"accuracy": right, **_score_values(facts, right, wrong, gradable)}
  for name, value in watched.items():
    values[name] = value
    values[f"{name}_given_correct"] = value[right]
    values[f"{name}_given_wrong"] = value[wrong]
  values |= {
    "pseudo_positive_share": hacking_metrics.pseudo_positive(facts, right),
    **hacking_metrics.signs_of_hacking(facts),
    "steps_per_response": facts.step_mask.sum(1),
    "reflection_words": facts.reflection_words,
    "reflection_share": facts.reflection_words > 0,
    "vacuous_step_share": vacuous,
    "empty_step_share": facts.empty[facts.step_mask],
    "step_overflow": facts.overflow > 0,
  }
  return {
    name: float(np.mean(value)) if np.size(value) else None
    for name, value in values.items()
  }


def _score_values(
  facts: ResponseFacts,
  right: np.ndarray,
  wrong: np.ndarray,
  gradable: np.ndarray,
) -> hacking_metrics.Values:
  """The values of `SCORE_METRICS`: none without a PRM, no values if a step
  reward is not finite.
  """
  if facts.step_rewards is None:
    return {}
  rewards, mask = facts.step_rewards, facts.step_mask
  if not np.isfinite(rewards[mask]).all():
    return dict.fromkeys(SCORE_METRICS, np.zeros(0))
  worst = np.min(np.where(mask, rewards, np.inf), axis=1)
  has_steps, outcome = mask.any(1), softmin_outcome(rewards, mask)
  return {
    "process_outcome": outcome,
    "min_step_score": worst[has_steps],
    "hacked_given_wrong": worst[wrong & has_steps] > 0,
    **hacking_metrics.agreement(outcome, right, np.asarray(gradable)),
  }


def pass_at_n(
  correct: np.ndarray, gradable: np.ndarray, group_size: int
) -> float | None:
  """Computes the share of problems that one of their n samples solves.

  Args:
    correct: [B] float, 1 where the answer is right; samples of one problem are
      contiguous.
    gradable: [B] bool, whether the answer of the problem is known.
    group_size: n, samples of a problem; divides B.

  Returns:
    The share among problems whose answer is known; None if there are none.

  >>> pass_at_n(np.array([0.0, 1.0, 0.0, 0.0]), np.ones(4, bool), group_size=2)
  0.5
  """
  groups = (np.asarray(correct) > 0.5).reshape(-1, group_size)
  known = np.asarray(gradable).reshape(-1, group_size)[:, 0]
  solved = pass_at_k(groups[known], group_size)
  return float(solved.mean()) if solved.size else None
