"""One number per problem, its mean over the problems, and how sure that is.

A benchmark is a sample of problems. What would another sample have given? The
bootstrap draws the problems again, with replacement; the responses stay with
their problem, because responses to one problem are not independent. The
interval is that of the percentile method (Efron, "Bootstrap methods: another
look at the jackknife", Annals of Statistics 7, 1979). It covers the choice of
problems and the responses that were drawn for them, not the training seed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NotRequired, TypedDict

import numpy as np


class Estimate(TypedDict):
  """A metric as reports and JSON have it.

  Attributes:
    value: the metric.
    count: the problems (or items) it is computed from, at least 1.
    interval: [low, high]; absent where there is none.
  """

  value: float
  count: int
  interval: NotRequired[list[float]]


@dataclasses.dataclass(frozen=True)
class PerProblem:
  """A number for each problem that has one.

  Attributes:
    value: [P] float64, 0 where there is none.
    mask: [P] bool, True where the problem has the number.
  """

  value: np.ndarray
  mask: np.ndarray


def estimate(
  per_problem: PerProblem, *, seed: int, resamples: int = 2000
) -> Estimate | None:
  """The mean over the problems that have a value, with its 95 % interval.

  Args:
    per_problem: [P], from `host.evaluation.answer_metrics`.
    seed: of the bootstrap.
    resamples: how often the problems are drawn again, at least 1.

  Returns:
    The estimate; None where no problem has a value. A single problem has no
    interval.

  >>> found = PerProblem(np.array([1.0, 0.5, 0]), np.array([True, True, False]))
  >>> estimate(found, seed=0)
  {'value': 0.75, 'count': 2, 'interval': [0.5, 1.0]}
  """
  value = per_problem.value[per_problem.mask]
  if not value.size:
    return None
  return estimate_statistic(
    lambda rows: float(value[rows].mean()),
    value.size,
    seed=seed,
    resamples=resamples,
  )


def estimate_average(
  parts: Sequence[PerProblem], *, seed: int, resamples: int = 2000
) -> Estimate | None:
  """The mean of the means of several benchmarks, each counting the same.

  The bootstrap draws the problems of each benchmark among themselves: how many
  a benchmark has, and which benchmarks there are, is no accident.

  Args:
    parts: the metric on each benchmark.
    seed: of the bootstrap.
    resamples: how often the problems are drawn again, at least 1.

  Returns:
    The estimate, `count` the problems of all benchmarks together; None where
    there is no benchmark, or one of them has no problem with a value. No
    interval where each benchmark has a single problem.

  Raises:
    ValueError: if `resamples` is out of range.

  >>> one = PerProblem(np.ones(1), np.ones(1, bool))
  >>> four = PerProblem(np.full(4, 0.25), np.ones(4, bool))
  >>> estimate_average([one, four], seed=0)
  {'value': 0.625, 'count': 5, 'interval': [0.625, 0.625]}
  """
  _check_bootstrap(resamples)
  values = [part.value[part.mask] for part in parts]
  if not values or not all(value.size for value in values):
    return None
  found = Estimate(
    value=float(np.mean([value.mean() for value in values])),
    count=sum(value.size for value in values),
  )
  if any(value.size > 1 for value in values):
    rng = np.random.default_rng(seed)
    drawn = [
      value[rng.integers(0, value.size, (resamples, value.size))].mean(1)
      for value in values
    ]
    found["interval"] = list(_percentiles(np.mean(drawn, axis=0)))
  return found


def estimate_statistic(
  statistic: Callable[[np.ndarray], float | None],
  count: int,
  *,
  seed: int,
  resamples: int = 2000,
) -> Estimate | None:
  """Any statistic of a list of problems, with its 95 % interval.

  For what is no mean over problems, such as an F1 or an AUC: the statistic is
  computed anew from every resample.

  Args:
    statistic: from the [count] int indices of the problems drawn, repeats
      included, to the number; None where they do not define one.
    count: number of problems, 0 or more.
    seed: of the bootstrap.
    resamples: how often the problems are drawn again, at least 1.

  Returns:
    The estimate; None where the statistic of all problems is None.
  """
  value = statistic(np.arange(count)) if count else None
  if value is None:
    return None
  found = Estimate(value=float(value), count=int(count))
  interval = bootstrap_interval(
    statistic, count, seed=seed, resamples=resamples
  )
  if interval is not None:
    found["interval"] = list(interval)
  return found


def estimate_average_statistic(
  parts: Sequence[tuple[Callable[[np.ndarray], float | None], int]],
  *,
  seed: int,
  resamples: int = 2000,
) -> Estimate | None:
  """The mean of a statistic over several benchmarks, each counting the same.

  As `estimate_average`, for what is no mean over problems.

  >>> last = lambda rows: float(rows[-1])
  >>> estimate_average_statistic([(last, 1), (last, 3)], seed=0)["value"]
  1.0

  Args:
    parts: (statistic, number of problems) of each benchmark, as for
      `estimate_statistic`.
    seed: of the bootstrap.
    resamples: how often the problems are drawn again, at least 1. Those in
      which a benchmark's statistic is None are left out.

  Returns:
    The estimate, `count` the problems of all benchmarks together; None where
    there is no benchmark, or one of them has no value. No interval where each
    benchmark has a single problem, or no resample has a value.

  Raises:
    ValueError: if `resamples` is out of range.
  """
  _check_bootstrap(resamples)
  values = [
    statistic(np.arange(count)) if count else None for statistic, count in parts
  ]
  if not values or None in values:
    return None
  found = Estimate(
    value=float(np.mean(values)), count=sum(count for _, count in parts)
  )
  if all(count == 1 for _, count in parts):
    return found
  rng = np.random.default_rng(seed)
  drawn = [
    [statistic(rng.integers(0, count, count)) for statistic, count in parts]
    for _ in range(resamples)
  ]
  means = [np.mean(values) for values in drawn if None not in values]
  if means:
    found["interval"] = list(_percentiles(means))
  return found


def bootstrap_interval(
  statistic: Callable[[np.ndarray], float | None],
  count: int,
  *,
  seed: int,
  resamples: int = 2000,
  confidence: float = 0.95,
) -> tuple[float, float] | None:
  """The percentile bootstrap interval of a statistic of problems.

  One seed draws the same problems for every statistic of as many problems:
  `lambda rows: a[rows].mean() - b[rows].mean()` is the paired difference of
  two models.

  Args:
    statistic: as for `estimate_statistic`. Resamples for which it is None, say
      an accuracy on erroneous items where none was drawn, are left out.
    count: number of problems, 0 or more.
    seed: of the resampling.
    resamples: how often the problems are drawn again, at least 1.
    confidence: share of resamples inside, between 0 and 1.

  Returns:
    (low, high); None where there is nothing to draw from: fewer than two
    problems, or no resample with a statistic. Where all problems agree the
    interval has no width, which says nothing about problems not seen.

  Raises:
    ValueError: if `resamples` or `confidence` is out of range.
  """
  _check_bootstrap(resamples, confidence)
  if count < 2:
    return None
  rng = np.random.default_rng(seed)
  drawn = (statistic(rng.integers(0, count, count)) for _ in range(resamples))
  values = [value for value in drawn if value is not None]
  return _percentiles(values, confidence) if values else None


def _check_bootstrap(resamples: int, confidence: float = 0.95) -> None:
  """Raises a ValueError for what is no bootstrap."""
  if resamples < 1 or not 0 < confidence < 1:
    raise ValueError(
      f"A bootstrap of {resamples} resamples at confidence {confidence}: at "
      "least one resample and a confidence between 0 and 1 are needed."
    )


def _percentiles(
  values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float]:
  """The range that leaves out as many values on each side."""
  tail = (1 - confidence) / 2
  low, high = np.quantile(values, [tail, 1 - tail])
  return float(low), float(high)


def by_group(
  per_problem: PerProblem, groups: Sequence[str | None]
) -> dict[str, PerProblem]:
  """Parts of a metric, such as the levels of a benchmark.

  Args:
    per_problem: [P].
    groups: P names; None for a problem that belongs to no group.

  Returns:
    The problems of each group, in the order of its name. A group without
    problems does not exist.

  Raises:
    ValueError: if there is not one name for each problem.
  """
  if len(groups) != len(per_problem.value):
    raise ValueError(
      f"{len(groups)} groups for {len(per_problem.value)} problems: give one "
      "for each, None where it is unknown."
    )
  rows_of: dict[str, list[int]] = {}
  for row, group in enumerate(groups):
    if group is not None:
      rows_of.setdefault(group, []).append(row)
  return {
    group: PerProblem(per_problem.value[rows], per_problem.mask[rows])
    for group, rows in sorted(rows_of.items())
  }
