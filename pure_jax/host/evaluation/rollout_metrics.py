"""Metrics of a training batch of responses, including those that show hacking.

Watch accuracy together with process reward: a policy that hacks its PRM raises
the second without the first. Repetition and truncation among *correct*
responses precede the collapse that the paper (arXiv 2504.15275) describes.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from pure_jax.host.evaluation.answer_metrics import pass_at_k
from pure_jax.host.evaluation.repetition import (
  HIGH_REPETITION,
  response_repetition,
)
from pure_jax.host.evaluation.response_scores import softmin_outcome
from pure_jax.host.text.tokenization import SEPARATOR
from pure_jax.types import Rollout, StepBoundaries

# Words with which a response looks back at what it has written: the list of
# PURE's code (github.com/CJReinforce/PURE, branch verl,
# verl/utils/monitored_metric), which extends that of Open-Reasoner-Zero.
REFLECTION_PATTERNS = tuple(
  re.compile(pattern)
  for pattern in (
    r"wait,",
    r"alternatively,",
    r"however,",
    r"recheck[,\s]",
    r"rethink[,\s]",
    r"retry[,\s]",
    r"try again",
    r"let's check",
    r"let's verify",
  )
)
# Metrics of step rewards.
SCORE_METRICS = ("process_outcome", "min_step_score", "hacked_given_wrong")
# By name; None where the mean is over nothing.
Metrics = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class ResponseFacts:
  """Per-response quantities from which the metrics are computed.

  Each process computes them for its own rows; they are small enough to be
  gathered for the whole batch.

  Attributes:
    tokens: [B] int64, number of tokens.
    truncated: [B] bool, cut by the length limit.
    at_limit: [B] bool, as long as the limit: truncated, or ended with its last
      token.
    repetition: [B] float64, see `repetition_score`.
    reflection_words: [B] int64, see `count_reflection_words`.
    written_steps: [B] int64, number of step texts.
    vacuous_steps: [B] int64, how many of them claim and conclude nothing.
    step_mask: [B, S] bool, True where the step exists.
    empty: [B, S] bool, steps without content.
    overflow: [B] int32, steps merged into the last one.
    step_rewards: [B, S] float32, -1..1; None without a PRM.
  """

  tokens: np.ndarray
  truncated: np.ndarray
  at_limit: np.ndarray
  repetition: np.ndarray
  reflection_words: np.ndarray
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
  repetition_unit: str = "characters",
) -> ResponseFacts:
  """Computes the facts of each of B responses.

  Args:
    rollout: numpy arrays, [B, C].
    steps: numpy arrays, [B, C] and [B, S].
    step_rewards: [B, S] float, -1..1; None without a PRM.
    step_texts: B lists with the text of each step.
    is_vacuous: tells whether a step's text claims and concludes nothing.
    repetition_unit: one of `repetition.UNITS`.
  """
  mask = np.asarray(rollout.completion_mask)
  lengths = mask.sum(1)
  texts = [SEPARATOR.join(steps_of_row) for steps_of_row in step_texts]
  rows = zip(texts, np.asarray(rollout.tokens), lengths, strict=True)
  repetition = [
    response_repetition(text, row[:length], repetition_unit)
    for text, row, length in rows
  ]
  reflection = [count_reflection_words(text) for text in texts]
  vacuous = [sum(map(is_vacuous, texts)) for texts in step_texts]
  return ResponseFacts(
    tokens=lengths,
    truncated=np.asarray(rollout.truncated),
    at_limit=lengths == mask.shape[1],
    repetition=np.asarray(repetition, np.float64),
    reflection_words=np.asarray(reflection, np.int64),
    written_steps=np.asarray([len(texts) for texts in step_texts], np.int64),
    vacuous_steps=np.asarray(vacuous, np.int64),
    step_mask=np.asarray(steps.mask),
    empty=np.asarray(steps.empty),
    overflow=np.asarray(steps.overflow),
    step_rewards=None if step_rewards is None else np.asarray(step_rewards),
  )


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
  step_mask, right = facts.step_mask, np.asarray(correct) > 0.5
  wrong = np.asarray(gradable) & ~right
  # One entry per step text of the batch, the vacuous ones first.
  vacuous = np.arange(facts.written_steps.sum()) < facts.vacuous_steps.sum()
  score_metrics = {}
  if facts.step_rewards is not None:
    rewards, has_steps = facts.step_rewards, step_mask.any(1)
    if np.isfinite(rewards[step_mask]).all():
      worst = np.min(np.where(step_mask, rewards, np.inf), axis=1)
      score_metrics = {
        "process_outcome": softmin_outcome(rewards, step_mask),
        "min_step_score": worst[has_steps],
        "hacked_given_wrong": worst[wrong & has_steps] > 0,
      }
    else:
      score_metrics = dict.fromkeys(SCORE_METRICS, ())
  # The paper watches these apart for right and for wrong responses.
  watched = {
    "response_tokens": facts.tokens,
    "clip_ratio": facts.at_limit,
    "truncated": facts.truncated,
    "repetition": facts.repetition,
    "high_repetition": facts.repetition > HIGH_REPETITION,
  }
  values = {"accuracy": right, **score_metrics}
  for name, value in watched.items():
    values[name] = value
    values[f"{name}_given_correct"] = value[right]
    values[f"{name}_given_wrong"] = value[wrong]
  values |= {
    "steps_per_response": step_mask.sum(1),
    "reflection_words": facts.reflection_words,
    "reflection_share": facts.reflection_words > 0,
    "vacuous_step_share": vacuous,
    "empty_step_share": facts.empty[step_mask],
    "step_overflow": facts.overflow > 0,
  }
  return {
    name: float(np.mean(value)) if np.size(value) else None
    for name, value in values.items()
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


def count_reflection_words(text: str) -> int:
  """Counts the reflection words of a response.

  As in PURE's code, the patterns match the lowercased text, without word
  boundaries ("await," has "wait,"), and each is counted by itself ("retry
  again" counts twice).

  >>> count_reflection_words("Wait, 3+5=8. However, let's verify: 8-5=3.")
  3
  >>> count_reflection_words("")
  0

  Args:
    text: any text.
  """
  lowered = text.lower()
  return sum(len(pattern.findall(lowered)) for pattern in REFLECTION_PATTERNS)
