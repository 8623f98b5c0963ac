"""Means over problems and their bootstrap intervals.

A benchmark is a sample of problems, and an interval says how much the metric
would vary for another sample. The bootstrap draws the problems again, with
replacement. The responses stay with their problem, because responses to one
problem are not independent. Intervals are those of the percentile method
(Efron, "Bootstrap methods: another look at the jackknife", Annals of
Statistics 7, 1979). They cover the choice of problems and of responses, not
the training seed.

Means use `scipy.stats.bootstrap`. Other statistics, such as an F1, have a
bootstrap here, because a resample may not define them (an accuracy on
erroneous solutions of which none was drawn) and scipy has no such case.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NotRequired, TypedDict

import numpy as np


class Estimate(TypedDict):
  """A metric as it appears in reports and their JSON.

  Attributes:
    value: the metric.
    count: number of problems (or items) it is computed from, at least 1.
    interval: [low, high]; absent if there is none.
  """

  value: float
  count: int
  interval: NotRequired[list[float]]


@dataclasses.dataclass(frozen=True)
class Statistic:
  """A statistic of the problems of a benchmark.

  Attributes:
    compute: maps [count] int indices of problems, repeats included, to the
      statistic; None if these problems do not define it.
    count: number of problems, 0 or more.
  """

  compute: Callable[[np.ndarray], float | None]
  count: int


@dataclasses.dataclass(frozen=True)
class Bootstrap:
  """How intervals are computed.

  One seed draws the same problems for every metric of equally many problems,
  so metrics of one benchmark are compared on the same resamples.

  Attributes:
    seed: seed of the resampling.
    resamples: number of times the problems are drawn, at least 1.
    confidence: share of resamples inside the interval, between 0 and 1.
  """

  seed: int
  resamples: int = 2000
  confidence: float = 0.95

  def __post_init__(self):
    """Validates the ranges."""
    if self.resamples < 1 or not 0 < self.confidence < 1:
      raise ValueError(
        f"A bootstrap of {self.resamples} resamples at confidence "
        f"{self.confidence}: at least one resample and a confidence between 0 "
        "and 1 are needed."
      )

  def rng(self) -> np.random.Generator:
    """Returns a new generator, seeded."""
    return np.random.default_rng(self.seed)

  def interval(self, resampled: Sequence[float]) -> list[float]:
    """Returns the quantiles that exclude equal shares on both sides."""
    tail = (1 - self.confidence) / 2
    return np.quantile(resampled, [tail, 1 - tail]).tolist()


def estimate_mean(
  benchmarks: Sequence[np.ndarray], bootstrap: Bootstrap
) -> Estimate:
  """Estimates a mean over problems, averaged over benchmarks.

  Each benchmark counts the same, however many problems it has, and its problems
  are drawn separately. One benchmark gives the plain mean. `Estimate.count` is
  the total number of problems. There is no interval if each benchmark has a
  single problem.

  Args:
    benchmarks: [P] float for each benchmark, the metric of each of its
      problems; at least one benchmark, each with at least one problem.
    bootstrap: how the interval is computed.

  >>> estimate_mean([np.array([1, 0.5])], Bootstrap(seed=0))
  {'value': 0.75, 'count': 2, 'interval': [0.5, 1.0]}
  """
  estimate = Estimate(
    value=float(np.mean([values.mean() for values in benchmarks])),
    count=sum(values.size for values in benchmarks),
  )
  # scipy resamples two values or more; the mean of one never changes.
  samples = [values for values in benchmarks if values.size > 1]
  constant = sum(float(values[0]) for values in benchmarks if values.size == 1)
  if samples:
    import scipy.stats  # Here, because the import takes a second.

    def mean(*drawn: np.ndarray, axis: int) -> np.ndarray:
      means = [np.mean(sample, axis=axis) for sample in drawn]
      return (sum(means) + constant) / len(benchmarks)

    resampled = scipy.stats.bootstrap(
      samples,
      mean,
      n_resamples=bootstrap.resamples,
      method="percentile",
      rng=bootstrap.rng(),
    )
    estimate["interval"] = bootstrap.interval(resampled.bootstrap_distribution)
  return estimate


def estimate_statistic(
  benchmarks: Sequence[Statistic], bootstrap: Bootstrap
) -> Estimate | None:
  """Estimates any statistic of problems, averaged as by `estimate_mean`.

  The statistic is computed anew for every resample. The paired difference of
  two models is the statistic `lambda rows: a[rows].mean() - b[rows].mean()`.

  Args:
    benchmarks: the statistic of each benchmark.
    bootstrap: how the interval is computed. Resamples in which a benchmark's
      statistic is None are left out.

  Returns:
    The estimate. None without benchmarks, or if the statistic of one of them is
    None. No interval if each benchmark has a single problem, or no resample
    defines the statistic. If all problems agree, the interval has no width,
    which says nothing about other problems.

  >>> largest = Statistic(lambda rows: float(rows.max()), count=3)
  >>> estimate_statistic([largest], Bootstrap(seed=0))["value"]
  2.0
  """
  values = [
    benchmark.compute(np.arange(benchmark.count)) if benchmark.count else None
    for benchmark in benchmarks
  ]
  if not values or None in values:
    return None
  estimate = Estimate(
    value=float(np.mean(values)),
    count=sum(benchmark.count for benchmark in benchmarks),
  )
  if all(benchmark.count == 1 for benchmark in benchmarks):
    return estimate
  rng, means = bootstrap.rng(), []
  for _ in range(bootstrap.resamples):
    drawn = [
      benchmark.compute(rng.integers(0, benchmark.count, benchmark.count))
      for benchmark in benchmarks
    ]
    if None not in drawn:
      means.append(np.mean(drawn))
  if means:
    estimate["interval"] = bootstrap.interval(means)
  return estimate
