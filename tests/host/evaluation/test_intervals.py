"""Means over problems and their bootstrap, against exact distributions."""

import itertools
import math

import numpy as np
import pytest

from pure_jax.host.evaluation.intervals import (
  Bootstrap,
  Statistic,
  estimate_mean,
  estimate_statistic,
)


def mean_of(values, **options):
  """Estimate of the mean of one benchmark."""
  return estimate_mean([np.asarray(values)], Bootstrap(**options))


def statistic_of(compute, count, **options):
  """Estimate of a statistic of one benchmark."""
  return estimate_statistic([Statistic(compute, count)], Bootstrap(**options))


def exact_interval(values, confidence=0.95):
  """Quantiles of the mean over every possible resample."""
  means = sorted(
    sum(drawn) / len(values)
    for drawn in itertools.product(values, repeat=len(values))
  )
  tail = (1 - confidence) / 2
  low = means[math.ceil(tail * len(means)) - 1]
  return low, means[math.ceil((1 - tail) * len(means)) - 1]


def test_the_interval_equals_that_of_all_possible_resamples():
  values = [0.0, 0.1, 0.35, 0.6, 0.75, 1.0]
  estimate = mean_of(values, seed=0, resamples=20_000)
  assert estimate["value"] == pytest.approx(2.8 / 6, abs=1e-12)
  assert estimate["count"] == 6
  # The Monte Carlo error of a quantile: the means lie 0.01 apart there.
  assert estimate["interval"] == pytest.approx(exact_interval(values), abs=0.01)


def test_the_confidence_is_two_sided():
  """Means of 10 fair coins, binomial: 95 % is [.2, .8], 50 % is [.4, .6];
  with the whole tail on each side 50 % would be a single point, .5.
  """
  coins = np.repeat([0.0, 1.0], 5)
  for confidence, expected in ((0.95, [0.2, 0.8]), (0.5, [0.4, 0.6])):
    options = {"seed": 1, "confidence": confidence}
    by_mean = mean_of(coins, **options)["interval"]
    assert by_mean == pytest.approx(expected, abs=1e-12)
    by_statistic = statistic_of(lambda rows: coins[rows].mean(), 10, **options)[
      "interval"
    ]
    assert by_statistic == by_mean


def test_responses_stay_with_their_problem():
  """Ten problems, eight responses each, all right or all wrong: the interval
  is that of ten coins. Drawing 80 responses would give [.39, .61].
  """
  correct = np.repeat(np.arange(10) < 5, 8).reshape(10, 8)
  estimate = mean_of(correct.mean(1), seed=0)
  assert estimate["interval"] == pytest.approx([0.2, 0.8], abs=1e-12)


def test_the_interval_covers_the_true_mean_as_often_as_it_claims():
  """Of 300 data sets with mean 0.4, about 95 % of the intervals cover it; an
  interval of half the width would cover it in 67 %.
  """
  rng = np.random.default_rng(0)
  covered = 0
  for seed in range(300):
    values = rng.beta(2, 3, 60)
    low, high = mean_of(values, seed=seed, resamples=300)["interval"]
    covered += low <= 0.4 <= high
  # Three standard errors, and the percentile method is a little narrow.
  assert 0.90 <= covered / 300 <= 0.985


def test_a_seed_gives_the_same_interval_and_another_does_not():
  values = np.random.default_rng(3).random(40)
  first, again = (mean_of(values, seed=5)["interval"] for _ in range(2))
  assert first == again
  assert mean_of(values, seed=6)["interval"] != first


def test_one_seed_draws_the_same_problems_for_every_statistic():
  """Unpaired, the difference of a model and itself plus 0.1 would vary."""
  first = np.random.default_rng(0).random(30)
  second = first + 0.1
  drawn = []

  def difference(rows):
    drawn.append(rows)
    return second[rows].mean() - first[rows].mean()

  interval = statistic_of(difference, 30, seed=0)["interval"]
  assert interval == pytest.approx([0.1, 0.1], abs=1e-12)
  again = []
  statistic_of(lambda rows: again.append(rows) or 0.0, 30, seed=0)
  np.testing.assert_array_equal(drawn, again)


def test_one_problem_has_a_value_but_no_interval():
  """An interval of no width would claim certainty."""
  assert mean_of([0.5], seed=0) == {"value": 0.5, "count": 1}


def test_without_values_there_is_no_estimate():
  assert statistic_of(lambda rows: None, 5, seed=0) is None
  assert statistic_of(lambda rows: 1.0, 0, seed=0) is None


def test_resamples_without_the_statistic_are_left_out():
  """An accuracy on the one odd item is 1 if it is drawn, else undefined;
  counting that as 0 would give [0, 1].
  """
  odd = np.array([True, False, False])
  estimate = statistic_of(
    lambda rows: 1.0 if odd[rows].any() else None, 3, seed=0
  )
  assert estimate == {"value": 1.0, "count": 3, "interval": [1.0, 1.0]}
  never_again = iter([0.5])
  estimate = statistic_of(lambda rows: next(never_again, None), 3, seed=0)
  assert estimate == {"value": 0.5, "count": 3}


@pytest.mark.parametrize(
  "options", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0.0}]
)
def test_invalid_options_of_a_bootstrap_raise(options):
  with pytest.raises(ValueError, match="at least one resample"):
    Bootstrap(seed=0, **options)


def averages(benchmarks):
  """The two estimators, for benchmarks whose metric is a mean."""
  benchmarks = [np.asarray(values) for values in benchmarks]
  bootstrap = Bootstrap(seed=0)
  statistics = [
    Statistic(lambda rows, values=values: values[rows].mean(), len(values))
    for values in benchmarks
  ]
  return (
    estimate_mean(benchmarks, bootstrap),
    estimate_statistic(statistics, bootstrap),
  )


def test_an_average_counts_each_benchmark_once_and_draws_it_separately():
  """Pairs of a 0 and a 1: both 0 in one resample of four. All of three pairs
  in one of 64, below 2.5 %, so the lowest mean of the interval is (½ + 0) / 3,
  where the same draw for all three would make it 0.
  """
  pair = [0.0, 1.0]
  for estimate in averages([pair, pair, pair]):
    assert (estimate["value"], estimate["count"]) == (0.5, 6)
    assert estimate["interval"] == pytest.approx([1 / 6, 5 / 6], abs=1e-12)
  for estimate in averages([[0.25] * 9, pair]):
    assert (estimate["value"], estimate["count"]) == (0.375, 11)
    assert estimate["interval"] == pytest.approx([0.125, 0.625], abs=1e-12)
  for estimate in averages([[0.25], [0.75]]):
    assert estimate == {"value": 0.5, "count": 2}


def test_an_average_leaves_out_resamples_without_a_statistic():
  """None, not 0, if a benchmark drew no item that counts."""
  first = Statistic(lambda rows: 1.0 if np.any(rows == 0) else None, 2)
  never = Statistic(lambda rows: None, 2)
  estimate = estimate_statistic([first, first], Bootstrap(seed=0))
  assert estimate == {"value": 1.0, "count": 4, "interval": [1.0, 1.0]}
  assert estimate_statistic([first, never], Bootstrap(seed=0)) is None
  assert estimate_statistic([], Bootstrap(seed=0)) is None
