"""Tables of an evaluation of a PRM, computed from scored solutions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pure_jax.host.evaluation import prm_metrics
from pure_jax.host.evaluation.intervals import (
  Bootstrap,
  Estimate,
  Statistic,
  estimate_mean,
  estimate_statistic,
)
from pure_jax.host.evaluation.ranking import ranking_metrics
from pure_jax.host.evaluation.report import Table
from pure_jax.runs.evaluation.labelled_solutions import LEFT_OUT
from pure_jax.runs.evaluation.score_file import ScoredSolution
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.evaluation import EvaluatePRMSettings


@dataclasses.dataclass(frozen=True)
class ScoredData:
  """The scored solutions of a data set as arrays, in file order.

  Attributes:
    solutions: n solutions with step rewards.
    rewards: [n, S] float64, 0 where masked.
    step_mask: [n, S] bool, True where the step exists.
    good: [n, S] bool, labels.
    label_mask: [n, S] bool, True where a step has a label.
    characters: [n] int64, length of the steps' texts.
    left_out: number of solutions without step rewards, by reason.
    total: number of solutions of the data set.
  """

  solutions: list[ScoredSolution]
  rewards: np.ndarray
  step_mask: np.ndarray
  good: np.ndarray
  label_mask: np.ndarray
  characters: np.ndarray
  left_out: dict[str, int]
  total: int


def stack_solutions(
  solutions: Sequence[ScoredSolution], characters: Sequence[int]
) -> ScoredData:
  """Collects the solutions that are not left out into arrays.

  Args:
    solutions: all solutions of a data set, in any order.
    characters: length of the texts of each row of the data set.
  """
  solutions = sorted(solutions, key=lambda solution: solution.row)
  scored = [s for s in solutions if s.left_out is None]
  shape = len(scored), max((len(s.labels) for s in scored), default=1)
  rewards = np.zeros(shape)
  step_mask, good, label_mask = (np.zeros(shape, bool) for _ in range(3))
  for row, solution in enumerate(scored):
    count = len(solution.labels)
    rewards[row, :count] = solution.step_rewards
    step_mask[row, :count] = True
    good[row, :count] = [label == 1 for label in solution.labels]
    label_mask[row, :count] = [label is not None for label in solution.labels]
  reasons = [solution.left_out for solution in solutions]
  return ScoredData(
    solutions=scored,
    rewards=rewards,
    step_mask=step_mask,
    good=good,
    label_mask=label_mask,
    characters=np.asarray([characters[s.row] for s in scored], int),
    left_out={reason: reasons.count(reason) for reason in LEFT_OUT},
    total=len(solutions),
  )


# ===== ProcessBench: the first error =====


def with_first_error(
  data: ScoredData,
) -> tuple[ScoredData, prm_metrics.FirstErrors]:
  """Selects the solutions whose first error is known.

  The first error is known in two cases: every step is labelled good; or a step
  is labelled bad, and every step before the first such step is labelled good.

  Args:
    data: scored solutions.

  Returns:
    (the selected solutions, their first errors).
  """
  bad = data.label_mask & ~data.good
  labelled_good = data.label_mask & data.good
  first = np.where(bad.any(1), bad.argmax(1), bad.shape[1])
  before = np.arange(bad.shape[1]) < first[:, None]
  known = (labelled_good | ~(before & data.step_mask)).all(1)
  errors = prm_metrics.labelled_errors(np.where(bad.any(1), first, -1))
  selected = dataclasses.replace(
    data,
    solutions=[data.solutions[row] for row in np.flatnonzero(known)],
    rewards=data.rewards[known],
    step_mask=data.step_mask[known],
    good=data.good[known],
    label_mask=data.label_mask[known],
    characters=data.characters[known],
  )
  return selected, errors.take(known)


def choose_threshold(
  settings: EvaluatePRMSettings, data_sets: Mapping[str, ScoredData]
) -> float:
  """The threshold of a good step: 0, or that of the best F1.

  Args:
    settings: choose 0, or the data set whose F1 counts.
    data_sets: scored solutions by data set.

  Raises:
    ConfigError: if `threshold_data` defines no F1.
  """
  if settings.threshold == "zero":
    return 0.0
  name = settings.threshold_data
  data, errors = with_first_error(data_sets[name])
  threshold = prm_metrics.choose_threshold(data.rewards, data.step_mask, errors)
  if threshold is None:
    raise ConfigError(
      f"threshold_data={name!r} cannot decide on a threshold: it needs scored "
      "solutions with a known first error, others without an error, and scores "
      "that differ."
    )
  return threshold


def _first_error_statistic(
  data: ScoredData, threshold: float, name: str
) -> Statistic:
  """A metric of ProcessBench as a statistic of solutions."""
  selected, labelled = with_first_error(data)
  predicted = prm_metrics.predicted_errors(
    selected.rewards, selected.step_mask, threshold
  )

  def compute(rows: np.ndarray) -> float | None:
    metrics = prm_metrics.process_bench(
      predicted.take(rows), labelled.take(rows)
    )
    return metrics.get(name)

  return Statistic(compute, len(selected.solutions))


# ===== Single steps =====


@dataclasses.dataclass(frozen=True)
class _LabelledSteps:
  """The labelled steps of a data set, and which of them a problem has.

  The solutions of a problem, and the steps of a solution, are drawn together
  for intervals, because they are not independent.
  """

  rewards: np.ndarray
  good: np.ndarray
  steps_of_problem: list[np.ndarray]

  @classmethod
  def of(cls, data: ScoredData) -> "_LabelledSteps":
    """Collects them, in file order."""
    rows, _ = np.nonzero(data.label_mask)
    steps_of: dict[str, list[int]] = {}
    for step, row in enumerate(rows):
      steps_of.setdefault(data.solutions[row].problem, []).append(step)
    return cls(
      data.rewards[data.label_mask],
      data.good[data.label_mask],
      [np.asarray(steps) for steps in steps_of.values()],
    )

  def statistic(
    self, metric: Callable[..., float | None], *options: float
  ) -> Statistic:
    """A metric of steps as a statistic of problems."""

    def compute(problems: np.ndarray) -> float | None:
      steps = np.concatenate([self.steps_of_problem[i] for i in problems])
      mask = np.ones(len(steps), bool)
      return metric(self.rewards[steps], self.good[steps], mask, *options)

    return Statistic(compute, len(self.steps_of_problem))


def step_metrics(
  data: ScoredData, threshold: float, bins: int, bootstrap: Bootstrap
) -> dict[str, Estimate]:
  """Estimates accuracy, AUC and calibration, with intervals over problems.

  Args:
    data: scored solutions.
    threshold: a step is good if its reward is above it.
    bins: number of bins of the calibration error.
    bootstrap: how intervals are computed.
  """
  steps = _LabelledSteps.of(data)
  return _estimates(
    {
      "step_accuracy": steps.statistic(prm_metrics.accuracy, threshold),
      "balanced_accuracy": steps.statistic(
        prm_metrics.balanced_accuracy, threshold
      ),
      "auc": steps.statistic(prm_metrics.auc),
      "calibration_error": steps.statistic(prm_metrics.calibration_error, bins),
      "good_share": steps.statistic(lambda _, good, mask: float(good.mean())),
    },
    bootstrap,
  )


def calibration(
  data: ScoredData, bins: int, bootstrap: Bootstrap
) -> dict[str, dict[str, Estimate]]:
  """Compares p(good) with the labels: a reliability table.

  Args:
    data: scored solutions.
    bins: number of bins of equal width, those of the calibration error.
    bootstrap: how intervals, over the problems with steps in a bin, are
      computed.

  Returns:
    A column for each bin that has labelled steps: how many, their mean p(good)
    and the share of good ones.
  """
  labelled, columns = data.label_mask, {}
  row_and_step = np.argwhere(labelled)
  for number, chosen in prm_metrics.steps_of_bins(
    data.rewards, labelled, bins
  ).items():
    mask = np.zeros_like(labelled)
    mask[tuple(row_and_step[chosen].T)] = True
    steps = _LabelledSteps.of(dataclasses.replace(data, label_mask=mask))
    columns[f"{number / bins:.3g}-{(number + 1) / bins:.3g}"] = {
      "steps": Estimate(value=len(chosen), count=len(steps.steps_of_problem))
    } | _estimates(
      {
        "p(good)": steps.statistic(
          lambda rewards, good, mask: float((rewards.mean() + 1) / 2)
        ),
        "good_share": steps.statistic(lambda _, good, mask: float(good.mean())),
      },
      bootstrap,
    )
  return columns


def _estimates(
  statistics: Mapping[str, Statistic], bootstrap: Bootstrap
) -> dict[str, Estimate]:
  """Estimates statistics; those without a value are absent."""
  estimates = {
    name: estimate_statistic([statistic], bootstrap)
    for name, statistic in statistics.items()
  }
  return {name: e for name, e in estimates.items() if e is not None}


# ===== Whole solutions =====


def _best_of_n_metrics(
  data: ScoredData, bootstrap: Bootstrap
) -> dict[str, Estimate]:
  """Estimates best-of-n among the solutions of a problem, and its baselines."""
  metrics = prm_metrics.best_of_n_metrics(
    [solution.problem for solution in data.solutions],
    [solution.final_correct for solution in data.solutions],
    [solution.answer for solution in data.solutions],
    data.rewards,
    data.step_mask,
  )
  return {
    name: estimate_mean([values], bootstrap) for name, values in metrics.items()
  }


# ===== The report =====


def make_tables(
  settings: EvaluatePRMSettings,
  formats: Mapping[str, str],
  data_sets: Mapping[str, ScoredData],
) -> tuple[float, dict[str, Table]]:
  """Computes all tables of an evaluation.

  Args:
    settings: settings of the evaluation.
    formats: file format of each data set, by name.
    data_sets: scored solutions by data set.

  Returns:
    (the threshold, tables for `host.evaluation.report`).

  Raises:
    ConfigError: if no threshold can be chosen.
  """
  bootstrap = Bootstrap(settings.bootstrap_seed, settings.resamples)
  threshold = choose_threshold(settings, data_sets)
  process_bench = {
    name: _estimates(
      {
        metric: _first_error_statistic(data, threshold, metric)
        for metric in ("error_accuracy", "correct_accuracy", "f1")
      },
      bootstrap,
    )
    for name, data in data_sets.items()
  }
  # ProcessBench reports the mean over its subsets, each counting once.
  subsets = [
    _first_error_statistic(data, threshold, "f1")
    for name, data in data_sets.items()
    if formats[name] == "processbench" and "f1" in process_bench[name]
  ]
  if len(subsets) > 1:
    mean = estimate_statistic(subsets, bootstrap)
    process_bench["mean of subsets"] = {"f1": mean}
  return threshold, {
    "ProcessBench": process_bench,
    "Steps": {
      name: step_metrics(data, threshold, settings.bins, bootstrap)
      for name, data in data_sets.items()
    },
    **{
      f"Calibration on {name}": calibration(data, settings.bins, bootstrap)
      for name, data in data_sets.items()
    },
    "Ranking of solutions": {
      name: ranking_metrics(
        data.rewards,
        data.step_mask,
        [solution.problem for solution in data.solutions],
        [solution.final_correct for solution in data.solutions],
        data.characters,
        bootstrap,
      )
      for name, data in data_sets.items()
    },
    "Choice among solutions": {
      name: _best_of_n_metrics(data, bootstrap)
      for name, data in data_sets.items()
    },
    "Share of rows left out": {
      name: {
        reason: Estimate(value=count / data.total, count=data.total)
        for reason, count in data.left_out.items()
      }
      for name, data in data_sets.items()
    },
  }
