"""Metrics of a training batch of responses, including those that show hacking.

Watch accuracy together with process reward: a policy that hacks its PRM raises
the second without the first. Repetition and truncation among *correct*
responses precede the collapse that the paper (arXiv 2504.15275) describes.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from pure_jax.host.evaluation.repetition import repetition_score
from pure_jax.host.evaluation.response_scores import softmin_outcome
from pure_jax.types import Rollout, StepBoundaries

HIGH_REPETITION = 0.2


@dataclasses.dataclass(frozen=True)
class ResponseFacts:
  """Per-response quantities from which the metrics are computed.

  Each process computes them for its own rows; they are small enough to be
  gathered for the whole batch.

  Attributes:
    tokens: [B] int64, number of tokens.
    truncated: [B] bool, cut by the length limit.
    repetition: [B] float64, see `repetition_score`.
    written_steps: [B] int64, number of step texts.
    vacuous_steps: [B] int64, how many of them claim and conclude nothing.
    step_mask: [B, S] bool, True where the step exists.
    empty: [B, S] bool, steps without content.
    overflow: [B] int32, steps merged into the last one.
    step_rewards: [B, S] float32, -1..1; None without a PRM.
  """

  tokens: np.ndarray
  truncated: np.ndarray
  repetition: np.ndarray
  written_steps: np.ndarray
  vacuous_steps: np.ndarray
  step_mask: np.ndarray
  empty: np.ndarray
  overflow: np.ndarray
  step_rewards: np.ndarray | None


def response_facts(
  rollout: Rollout,
  steps: StepBoundaries,
  step_rewards: np.ndarray | None,
  step_texts: Sequence[Sequence[str]],
  is_vacuous: Callable[[str], bool],
) -> ResponseFacts:
  """Computes the facts of each of B responses.

  Args:
    rollout: numpy arrays, [B, C].
    steps: numpy arrays, [B, C] and [B, S].
    step_rewards: [B, S] float, -1..1; None without a PRM.
    step_texts: B lists with the text of each step.
    is_vacuous: tells whether a step's text claims and concludes nothing.
  """
  lengths = np.asarray(rollout.completion_mask).sum(1)
  repetition = [
    repetition_score(row[:length])
    for row, length in zip(np.asarray(rollout.tokens), lengths, strict=True)
  ]
  vacuous = [sum(map(is_vacuous, texts)) for texts in step_texts]
  return ResponseFacts(
    tokens=lengths,
    truncated=np.asarray(rollout.truncated),
    repetition=np.asarray(repetition, np.float64),
    written_steps=np.asarray([len(texts) for texts in step_texts], np.int64),
    vacuous_steps=np.asarray(vacuous, np.int64),
    step_mask=np.asarray(steps.mask),
    empty=np.asarray(steps.empty),
    overflow=np.asarray(steps.overflow),
    step_rewards=None if step_rewards is None else np.asarray(step_rewards),
  )


def rollout_metrics(
  facts: ResponseFacts, correct: np.ndarray
) -> dict[str, float]:
  """Averages the facts of a scored and graded rollout over its responses.

  Args:
    facts: facts of B responses; without step rewards, metrics of step rewards
      are absent.
    correct: [B] float, 1 where the answer is right.

  Returns:
    Means over the batch by name. A mean over an empty set (say over the wrong
    responses if all are right) is absent.
  """
  step_mask, right = facts.step_mask, np.asarray(correct) > 0.5
  # One entry per step text of the batch, the vacuous ones first.
  vacuous = np.arange(facts.written_steps.sum()) < facts.vacuous_steps.sum()
  score_metrics = {}
  if facts.step_rewards is not None:
    worst = np.min(np.where(step_mask, facts.step_rewards, np.inf), axis=1)
    score_metrics = {
      "process_outcome": softmin_outcome(facts.step_rewards, step_mask),
      "min_step_score": worst[step_mask.any(1)],
      "hacked_given_wrong": worst[~right & step_mask.any(1)] > 0,
    }
  high = facts.repetition > HIGH_REPETITION
  values = {
    "accuracy": right,
    **score_metrics,
    "response_tokens": facts.tokens,
    "steps_per_response": step_mask.sum(1),
    "truncated": facts.truncated,
    "truncated_given_correct": facts.truncated[right],
    "repetition": facts.repetition,
    "high_repetition": high,
    "high_repetition_given_correct": high[right],
    "vacuous_step_share": vacuous,
    "empty_step_share": facts.empty[step_mask],
    "step_overflow": facts.overflow > 0,
  }
  return {
    name: float(np.mean(value))
    for name, value in values.items()
    if np.size(value)
  }
