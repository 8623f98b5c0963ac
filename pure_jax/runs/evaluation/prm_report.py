"""From scored rows to the tables of an evaluation of a PRM."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pure_jax.host.evaluation import prm_metrics
from pure_jax.host.evaluation.intervals import (
  Estimate,
  estimate,
  estimate_average_statistic,
  estimate_statistic,
)
from pure_jax.host.evaluation.report import Table
from pure_jax.host.evaluation.solution_choice import (
  choose_among_solutions,
)
from pure_jax.runs.evaluation.labelled_solutions import LEFT_OUT
from pure_jax.runs.settings.prm_evaluation import EvaluatePRMSettings
from pure_jax.runs.settings.run import ConfigError


@dataclasses.dataclass(frozen=True)
class Scored:
  """The scored rows of a data set as arrays, in the order of its file.

  Attributes:
    rows: n dicts of `score_file`.
    rewards: [n, S] float64, 0 where there is no step.
    step_mask: [n, S] bool.
    good: [n, S] bool, labels.
    label_mask: [n, S] bool, True where a step has a label.
    left_out: rows without a score, by reason.
    total: rows of the data set.
  """

  rows: list[dict[str, Any]]
  rewards: np.ndarray
  step_mask: np.ndarray
  good: np.ndarray
  label_mask: np.ndarray
  left_out: dict[str, int]
  total: int


def collect(rows: Sequence[Mapping[str, Any]]) -> Scored:
  """Arrays of all rows of one data set."""
  rows = sorted(rows, key=lambda row: row["row"])
  kept = [row for row in rows if row["left_out"] is None]
  shape = len(kept), max((len(row["labels"]) for row in kept), default=1)
  rewards = np.zeros(shape)
  step_mask, good, label_mask = (np.zeros(shape, bool) for _ in range(3))
  for place, row in enumerate(kept):
    count = len(row["labels"])
    rewards[place, :count] = row["step_rewards"]
    step_mask[place, :count] = True
    good[place, :count] = [label == 1 for label in row["labels"]]
    label_mask[place, :count] = [label is not None for label in row["labels"]]
  reasons = [row["left_out"] for row in rows]
  left_out = {reason: reasons.count(reason) for reason in LEFT_OUT}
  return Scored(kept, rewards, step_mask, good, label_mask, left_out, len(rows))


# ===== ProcessBench: the first error =====


def with_first_error(scored: Scored) -> tuple[Scored, prm_metrics.FirstErrors]:
  """The rows whose first error is known, and where it is.

  Known is: every step is labelled good, or every step before the first that is
  labelled bad is.
  """
  bad = scored.label_mask & ~scored.good
  known_good = scored.label_mask & scored.good
  first = np.where(bad.any(1), bad.argmax(1), bad.shape[1])
  before = np.arange(bad.shape[1]) < first[:, None]
  known = (known_good | ~(before & scored.step_mask)).all(1)
  errors = prm_metrics.labelled_errors(np.where(bad.any(1), first, -1))
  part = dataclasses.replace(
    scored,
    rewards=scored.rewards[known],
    step_mask=scored.step_mask[known],
    good=scored.good[known],
    label_mask=scored.label_mask[known],
    rows=[row for row, keep in zip(scored.rows, known, strict=True) if keep],
  )
  return part, errors.take(known)


def choose_threshold(
  settings: EvaluatePRMSettings, scored: Mapping[str, Scored]
) -> float:
  """What the reward of a good step is above.

  Raises:
    ConfigError: if the data set cannot decide it.
  """
  if settings.threshold == "zero":
    return 0.0
  if settings.threshold_data not in scored:
    raise ConfigError(
      f"threshold_data={settings.threshold_data!r} is none of {[*scored]}."
    )
  part, errors = with_first_error(scored[settings.threshold_data])
  found = prm_metrics.choose_threshold(part.rewards, part.step_mask, errors)
  if found is None:
    raise ConfigError(
      f"threshold_data={settings.threshold_data!r} cannot decide on a "
      "threshold: it needs scored solutions with a known first error, others "
      "without an error, and scores that differ."
    )
  return found


def first_error_statistic(
  scored: Scored, threshold: float, name: str
) -> tuple[Callable[[np.ndarray], float | None], int]:
  """(A number of ProcessBench as a function of items drawn, their count)."""
  part, labelled = with_first_error(scored)
  predicted = prm_metrics.predicted_errors(
    part.rewards, part.step_mask, threshold
  )

  def statistic(rows: np.ndarray) -> float | None:
    numbers = prm_metrics.process_bench(
      predicted.take(rows), labelled.take(rows)
    )
    return numbers.get(name)

  return statistic, len(part.rows)


def first_error_metrics(
  scored: Scored, threshold: float, settings: EvaluatePRMSettings
) -> dict[str, Estimate]:
  """The three numbers of ProcessBench; intervals over its items."""
  statistics = {
    name: first_error_statistic(scored, threshold, name)
    for name in ("error_accuracy", "correct_accuracy", "f1")
  }
  ((_, count), *_) = statistics.values()
  return _estimates(
    {name: statistic for name, (statistic, _) in statistics.items()},
    count,
    settings,
  )


# ===== Single steps =====


def step_metrics(
  scored: Scored, threshold: float, settings: EvaluatePRMSettings
) -> dict[str, Estimate]:
  """Accuracy, AUC and calibration; intervals over the problems.

  The solutions of a problem, and the steps of a solution, are drawn together:
  they are not independent.
  """
  rows, _ = np.nonzero(scored.label_mask)
  rewards = scored.rewards[scored.label_mask]
  good = scored.good[scored.label_mask]
  steps_of: dict[str, list[int]] = {}
  for step, row in enumerate(rows):
    steps_of.setdefault(scored.rows[row]["problem"], []).append(step)
  members = [np.asarray(steps) for steps in steps_of.values()]

  def over_problems(
    metric: Callable[..., float | None], *options: float
  ) -> Callable[[np.ndarray], float | None]:
    def statistic(problems: np.ndarray) -> float | None:
      chosen = np.concatenate([members[problem] for problem in problems])
      there = np.ones(len(chosen), bool)
      return metric(rewards[chosen], good[chosen], there, *options)

    return statistic

  metrics = {
    "step_accuracy": over_problems(prm_metrics.accuracy, threshold),
    "balanced_accuracy": over_problems(
      prm_metrics.balanced_accuracy, threshold
    ),
    "auc": over_problems(prm_metrics.auc),
    "calibration_error": over_problems(
      prm_metrics.calibration_error, settings.bins
    ),
    "good_share": over_problems(lambda _, good, there: float(good.mean())),
  }
  return _estimates(metrics, len(members), settings)


def _estimates(
  statistics: Mapping[str, Callable[[np.ndarray], float | None]],
  count: int,
  settings: EvaluatePRMSettings,
) -> dict[str, Estimate]:
  """Estimates of what has a value."""
  found = {
    name: estimate_statistic(
      statistic,
      count,
      seed=settings.bootstrap_seed,
      resamples=settings.resamples,
    )
    for name, statistic in statistics.items()
  }
  return {name: value for name, value in found.items() if value is not None}


# ===== Whole solutions =====


def choice_metrics(
  scored: Scored, settings: EvaluatePRMSettings
) -> dict[str, Estimate]:
  """Best-of-n among the solutions of each problem, and what it must beat."""
  found = choose_among_solutions(
    [row["problem"] for row in scored.rows],
    [row["final_correct"] for row in scored.rows],
    [row["answer"] for row in scored.rows],
    scored.rewards,
    scored.step_mask,
  )
  return {
    name: estimate(
      metric, seed=settings.bootstrap_seed, resamples=settings.resamples
    )
    for name, metric in found.items()
  }


# ===== The report =====


def make_tables(
  settings: EvaluatePRMSettings,
  formats: Mapping[str, str],
  scored: Mapping[str, Scored],
) -> tuple[float, dict[str, Table]]:
  """Everything that is reported.

  Args:
    settings: the evaluation's.
    formats: of each data set, by name.
    scored: of each data set, by name.

  Returns:
    (the threshold, tables for `host.evaluation.report`).
  """
  threshold = choose_threshold(settings, scored)
  benchmark = {
    name: first_error_metrics(part, threshold, settings)
    for name, part in scored.items()
  }
  # The benchmark's summary is the mean over its subsets, each counting once.
  subsets = [
    first_error_statistic(part, threshold, "f1")
    for name, part in scored.items()
    if formats[name] == "processbench" and "f1" in benchmark[name]
  ]
  if len(subsets) > 1:
    mean = estimate_average_statistic(
      subsets, seed=settings.bootstrap_seed, resamples=settings.resamples
    )
    benchmark["mean of subsets"] = {"f1": mean}
  return threshold, {
    "ProcessBench": benchmark,
    "Steps": {
      name: step_metrics(part, threshold, settings)
      for name, part in scored.items()
    },
    "Choice among solutions": {
      name: choice_metrics(part, settings) for name, part in scored.items()
    },
    "Share of rows left out": {
      name: {
        reason: Estimate(value=count / part.total, count=part.total)
        for reason, count in part.left_out.items()
      }
      for name, part in scored.items()
    },
  }
