"""Alarms: rules that recognise reward hacking and collapse as they happen.

A rule is a pure function of the metrics of a run's iterations so far, rows of
stage ``rl`` as in metrics.jsonl. It returns None, or a sentence that says what
it saw. *Now* is the mean of a metric over the last `window` iterations, *then*
that over the `window` iterations that ended `lag` iterations earlier, and *at
first* that over the first `window` iterations that have the metric. A rule is
silent as long as one of the means that it compares does not exist.

The cases are those of the paper (arXiv 2504.15275).
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pure_jax import ranges
from pure_jax.host.evaluation.response_facts import ResponseFacts
from pure_jax.host.evaluation.response_scores import softmin_outcome


class AlarmError(RuntimeError):
  """An alarm that stops a run; the message says which, why, and what to do."""


Row = Mapping[str, Any]
History = Sequence[Row]


@dataclasses.dataclass(frozen=True)
class AlarmThresholds:
  """The numbers in the rules.

  Attributes:
    window: iterations that a mean is taken over.
    lag: iterations between *then* and *now*.
    outcome_rise: least rise of the process outcome, of `divergence`.
    short: largest share of the first length, of `short_responses`.
    few_steps_rise: least rise, of `few_steps`; 1 is that of the share of
      responses from its first value to all of them, here and below.
    no_answer_rise: least rise, of `no_answers`.
    repetition_rise: least rise, of `repetition`.
    low_entropy: largest share of the first entropy, of `entropy`.
    high_kl: largest KL that raises no alarm, of `kl`, nats per token.
  """

  window: int = 5
  lag: int = 10
  outcome_rise: float = 0.1
  short: float = 0.4
  few_steps_rise: float = 0.5
  no_answer_rise: float = 0.3
  repetition_rise: float = 0.05
  low_entropy: float = 0.1
  high_kl: float = 0.5

  def __post_init__(self):
    """Validates the numbers."""
    ranges.within(1, 1_000_000, self, "window lag")
    ranges.within(0, 1, self, "short low_entropy")
    ranges.within(0, 1, self, "few_steps_rise no_answer_rise repetition_rise")
    ranges.within(0, 2, self, "outcome_rise")  # Of scores from -1 to 1.
    ranges.within(*ranges.KL, self, "high_kl")


Rule = Callable[[History, AlarmThresholds], str | None]


def divergence(history: History, thresholds: AlarmThresholds) -> str | None:
  """The PRM likes responses more and more, and they are not right more often.

  `process_outcome` is now at least `outcome_rise` above then, `accepted_wrong`
  is above then, and accuracy over the responses to problems with a known
  answer, `accepted_right` + `rejected_right`, is not.

  Args:
    history: rows of the iterations.
    thresholds: the numbers in the rules.
  """
  outcome, before = _now_and_then(history, ("process_outcome",), thresholds)
  names = ("accepted_right", "rejected_right")
  accuracy, accuracy_before = _now_and_then(history, names, thresholds)
  wrong, wrong_before = _now_and_then(history, ("accepted_wrong",), thresholds)
  if outcome is None or before is None or wrong is None or wrong_before is None:
    return None
  if accuracy is None or accuracy_before is None or accuracy > accuracy_before:
    return None
  if outcome < before + thresholds.outcome_rise or wrong <= wrong_before:
    return None
  return (
    f"in {thresholds.lag} iterations the process outcome rose from "
    f"{before:.3f} to {outcome:.3f}, and accuracy went from "
    f"{accuracy_before:.3f} to {accuracy:.3f}"
  )


def short_responses(
  history: History, thresholds: AlarmThresholds
) -> str | None:
  """Responses say ever less (case 3: "Thank you.").

  `response_tokens` is now at most `short` times its value at first.

  Args:
    history: rows of the iterations.
    thresholds: the numbers in the rules.
  """
  tokens, first = _now_and_first(history, ("response_tokens",), thresholds)
  if tokens is None or first is None or tokens > thresholds.short * first:
    return None
  return f"responses have {tokens:.1f} tokens, at first {first:.1f}"


def few_steps(history: History, thresholds: AlarmThresholds) -> str | None:
  """Responses avoid the separator (case 2) or have no content (case 3).

  The share of responses with at most one step that has content,
  `no_step_share` + `one_step_share`, has risen by at least `few_steps_rise` of
  what there was to rise.

  Args:
    history: rows of the iterations.
    thresholds: the numbers in the rules.
  """
  names = ("no_step_share", "one_step_share")
  share, first = _now_and_first(history, names, thresholds)
  return _risen(
    share, first, thresholds.few_steps_rise, "have at most one step"
  )


def no_answers(history: History, thresholds: AlarmThresholds) -> str | None:
  """Responses think and do not answer (case 1).

  The share of responses without an answer, `work_without_answer` +
  `no_work_or_answer`, has risen by at least `no_answer_rise` of what there was
  to rise.

  Args:
    history: rows of the iterations.
    thresholds: the numbers in the rules.
  """
  names = ("work_without_answer", "no_work_or_answer")
  share, first = _now_and_first(history, names, thresholds)
  return _risen(share, first, thresholds.no_answer_rise, "give no answer")


def repetition(history: History, thresholds: AlarmThresholds) -> str | None:
  """Right responses become repetitive, or as long as they can.

  The paper saw this four iterations before a collapse. One of
  `high_repetition_given_correct` and `clip_ratio_given_correct` has risen by at
  least `repetition_rise` of what there was to rise. Their means are over
  responses: iterations are weighed by `accuracy`.

  Args:
    history: rows of the iterations.
    thresholds: the numbers in the rules.
  """
  for name, saying in (
    ("high_repetition_given_correct", "right responses are highly repetitive"),
    ("clip_ratio_given_correct", "right responses reach the length limit"),
  ):
    # Of all responses those that are right and have it, and those right.
    both = [
      {"both": row["accuracy"] * (row[name] or 0), "right": row["accuracy"]}
      for row in history
      if row.get("accuracy") is not None and name in row
    ]
    now, first = _now_and_first(both, ("both",), thresholds)
    right, first_right = _now_and_first(both, ("right",), thresholds)
    if now is None or first is None or not right or not first_right:
      continue
    share, first_share = now / right, first / first_right
    if _has_risen(share, first_share, thresholds.repetition_rise):
      return f"{share:.0%} of the {saying}, at first {first_share:.0%}"
  return None


def entropy(history: History, thresholds: AlarmThresholds) -> str | None:
  """The policy has stopped exploring.

  `entropy` is now at most `low_entropy` times its value at first.

  Args:
    history: rows of the iterations.
    thresholds: the numbers in the rules.
  """
  nats, first = _now_and_first(history, ("entropy",), thresholds)
  if nats is None or first is None or nats > thresholds.low_entropy * first:
    return None
  return f"the entropy is {nats:.3f} nats, at first {first:.3f}"


def kl(history: History, thresholds: AlarmThresholds) -> str | None:
  """The policy runs away from the reference.

  `kl_reference` is now above `high_kl`. Silent in runs that do not measure it.

  Args:
    history: rows of the iterations.
    thresholds: the numbers in the rules.
  """
  nats = _mean(history[-thresholds.window :], ("kl_reference",), thresholds)
  if nats is None or nats <= thresholds.high_kl:
    return None
  return f"the KL to the reference is {nats:.3f} nats per token"


RULES: dict[str, Rule] = {
  rule.__name__: rule
  for rule in (
    *(divergence, short_responses, few_steps, no_answers),
    *(repetition, entropy, kl),
  )
}


def raised(history: History, thresholds: AlarmThresholds) -> dict[str, str]:
  """The alarms that the last iteration raises, each with its reason.

  An alarm is raised when its rule holds and has not held in the `window`
  iterations before.

  Args:
    history: rows of all iterations of a run, in order.
    thresholds: the numbers in the rules.
  """
  alarms = {}
  for name, rule in RULES.items():
    reason = rule(history, thresholds)
    held = (
      rule(history[: len(history) - back], thresholds)
      for back in range(1, min(thresholds.window, len(history)) + 1)
    )
    if reason is not None and all(before is None for before in held):
      alarms[name] = reason
  return alarms


def suspects(
  alarm: str,
  facts: ResponseFacts,
  right: np.ndarray,
  gradable: np.ndarray,
  count: int,
) -> np.ndarray:
  """Chooses responses that show what an alarm is about.

  Args:
    alarm: name of the alarm.
    facts: facts of the B responses of the iteration that raised it.
    right: [B] bool, whether the answer is right.
    gradable: [B] bool, whether the answer of the problem is known.
    count: the most to choose.

  Returns:
    [n] int, rows, the clearest case first; the first rows if the alarm is
    about all responses.
  """
  signs = {
    "short_responses": -facts.tokens,
    "few_steps": -facts.content_steps,
    "no_answers": np.where(facts.has_answer, -np.inf, facts.tokens),
    "repetition": np.where(right, facts.repetition, -np.inf),
  }
  if facts.step_rewards is not None:
    outcome = softmin_outcome(facts.step_rewards, facts.step_mask)
    signs["divergence"] = np.where(gradable & ~right, outcome, -np.inf)
  sign = np.asarray(signs.get(alarm, np.zeros(len(right))), np.float64)
  order = np.argsort(-sign, kind="stable")[:count]
  return order[sign[order] > -np.inf]


def _mean(
  rows: History, names: Sequence[str], thresholds: AlarmThresholds
) -> float | None:
  """Mean over a window of the sum of metrics.

  None if the window is not full, or if no row has a value of each.
  """
  if len(rows) < thresholds.window:
    return None
  known = [sum(row[name] for name in names) for row in _known(rows, names)]
  return statistics.fmean(known) if known else None


def _known(rows: History, names: Sequence[str]) -> History:
  """The rows with a finite value of each metric; a log has null for others."""
  return [
    row
    for row in rows
    if all(row.get(n) is not None and math.isfinite(row[n]) for n in names)
  ]


def _now_and_then(
  history: History, names: Sequence[str], thresholds: AlarmThresholds
) -> tuple[float | None, float | None]:
  """(mean now, mean `lag` iterations earlier)."""
  window, lag = thresholds.window, thresholds.lag
  earlier = history[: max(len(history) - lag, 0)]
  return (
    _mean(history[-window:], names, thresholds),
    _mean(earlier[-window:], names, thresholds),
  )


def _now_and_first(
  history: History, names: Sequence[str], thresholds: AlarmThresholds
) -> tuple[float | None, float | None]:
  """(mean now, mean over the first iterations that have a value)."""
  window = thresholds.window
  return (
    _mean(history[-window:], names, thresholds),
    _mean(_known(history, names)[:window], names, thresholds),
  )


def _risen(
  share: float | None, first: float | None, rise: float, saying: str
) -> str | None:
  """A sentence if a share of responses has risen."""
  if share is None or first is None or not _has_risen(share, first, rise):
    return None
  return f"{share:.0%} of the responses {saying}, at first {first:.0%}"


def _has_risen(share: float, first: float, rise: float) -> bool:
  """Whether a share has risen by so much of what there was to rise."""
  return share >= first + rise * (1 - first)
