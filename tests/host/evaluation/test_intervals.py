"""Means over problems and their bootstrap, against exact distributions."""

import itertools
import math

import numpy as np
import pytest

from pure_jax.host.evaluation.answer_metrics import average
from pure_jax.host.evaluation.intervals import (
  PerProblem,
  bootstrap_interval,
  by_group,
  estimate,
  estimate_average,
  estimate_average_statistic,
  estimate_statistic,
)


def all_there(values):
  return PerProblem(np.asarray(values, float), np.ones(len(values), bool))


def exact_interval(values, confidence=0.95):
  """Quantiles of the mean over every possible resample."""
  means = sorted(
    sum(drawn) / len(values)
    for drawn in itertools.product(values, repeat=len(values))
  )
  tail = (1 - confidence) / 2
  low = means[math.ceil(tail * len(means)) - 1]
  return low, means[math.ceil((1 - tail) * len(means)) - 1]


def test_agrees_with_every_possible_resample():
  values = [0.0, 0.1, 0.35, 0.6, 0.75, 1.0]
  found = estimate(all_there(values), seed=0, resamples=20_000)
  assert found["value"] == pytest.approx(2.8 / 6, abs=1e-12)
  assert found["count"] == 6
  # The Monte Carlo error of a quantile: the means lie 0.01 apart there.
  assert found["interval"] == pytest.approx(exact_interval(values), abs=0.01)


def test_the_confidence_is_two_sided():
  """Means of 10 fair coins, binomial: 95 % is [.2, .8], 50 % is [.4, .6];
  with the whole tail on each side 50 % would be a single point, .5.
  """
  coins = np.repeat([0.0, 1.0], 5)
  interval = [
    bootstrap_interval(
      lambda rows: coins[rows].mean(), 10, seed=1, confidence=confidence
    )
    for confidence in (0.95, 0.5)
  ]
  assert interval[0] == pytest.approx((0.2, 0.8), abs=1e-12)
  assert interval[1] == pytest.approx((0.4, 0.6), abs=1e-12)


def test_responses_stay_with_their_problem():
  """Ten problems, eight responses each, all right or all wrong: the interval
  is that of ten coins. Drawing 80 responses would give [.39, .61].
  """
  correct = np.repeat(np.arange(10) < 5, 8).reshape(10, 8)
  found = estimate(average(correct, np.ones((10, 8), bool)), seed=0)
  assert found["interval"] == pytest.approx([0.2, 0.8], abs=1e-12)


def test_the_interval_covers_the_truth_as_often_as_it_says():
  """Of 300 data sets with mean 0.4, about 95 % of the intervals hold it; an
  interval of half the width would hold it in 67 %.
  """
  rng = np.random.default_rng(0)
  held = 0
  for seed in range(300):
    values = rng.beta(2, 3, 60)
    low, high = bootstrap_interval(
      lambda rows, v=values: v[rows].mean(), 60, seed=seed, resamples=300
    )
    held += low <= 0.4 <= high
  # Three standard errors, and the percentile method is a little narrow.
  assert 0.90 <= held / 300 <= 0.985


def test_a_seed_gives_the_same_interval_and_another_does_not():
  values = all_there(np.random.default_rng(3).random(40))
  first, again = (estimate(values, seed=5)["interval"] for _ in range(2))
  assert first == again
  assert estimate(values, seed=6)["interval"] != first


def test_one_seed_draws_the_same_problems_for_every_statistic():
  """Unpaired, the difference of a model and itself plus 0.1 would vary."""
  first = np.random.default_rng(0).random(30)
  second = first + 0.1
  drawn = []

  def difference(rows):
    drawn.append(rows)
    return second[rows].mean() - first[rows].mean()

  low, high = bootstrap_interval(difference, 30, seed=0)
  assert (low, high) == pytest.approx((0.1, 0.1), abs=1e-12)
  again = []
  bootstrap_interval(lambda rows: again.append(rows) or 0.0, 30, seed=0)
  np.testing.assert_array_equal(drawn, again)


def test_problems_without_a_value_take_no_part():
  values = np.array([0.25, np.nan, 0.75, 0.5, 99.0])
  mask = np.array([True, False, True, True, False])
  found = estimate(PerProblem(values, mask), seed=2)
  assert found == estimate(all_there([0.25, 0.75, 0.5]), seed=2)
  assert (found["value"], found["count"]) == (0.5, 3)


def test_one_problem_has_a_value_but_no_interval():
  """An interval of no width would claim certainty."""
  assert estimate(all_there([0.5]), seed=0) == {"value": 0.5, "count": 1}


def test_without_values_there_is_no_estimate():
  assert estimate(all_there([]), seed=0) is None
  nothing = PerProblem(np.ones(3), np.zeros(3, bool))
  assert estimate(nothing, seed=0) is None
  assert estimate_statistic(lambda rows: None, 5, seed=0) is None
  assert estimate_statistic(lambda rows: 1.0, 0, seed=0) is None


def test_resamples_without_the_statistic_are_left_out():
  """An accuracy on the one odd item: 1 wherever it was drawn, else nothing;
  counting nothing as 0 would give [0, 1].
  """
  odd = np.array([True, False, False])
  found = estimate_statistic(
    lambda rows: 1.0 if odd[rows].any() else None, 3, seed=0
  )
  assert found == {"value": 1.0, "count": 3, "interval": [1.0, 1.0]}
  never_again = iter([0.5])
  found = estimate_statistic(lambda rows: next(never_again, None), 3, seed=0)
  assert found == {"value": 0.5, "count": 3}


@pytest.mark.parametrize(
  "options", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0.0}]
)
def test_impossible_bootstraps_are_refused(options):
  with pytest.raises(ValueError, match="at least one resample"):
    bootstrap_interval(lambda rows: 0.0, 3, seed=0, **options)


def test_groups_hold_their_problems_and_no_others():
  values = PerProblem(
    np.array([0.1, 0.2, 0.3, 0.4, 0.5]),
    np.array([True, True, False, True, True]),
  )
  groups = by_group(values, ["b", "a", "b", None, "a"])
  assert list(groups) == ["a", "b"]
  assert groups["a"].value.tolist() == [0.2, 0.5]
  assert groups["b"].mask.tolist() == [True, False]
  assert estimate(groups["b"], seed=0) == {"value": 0.1, "count": 1}
  with pytest.raises(ValueError, match="2 groups for 5 problems"):
    by_group(values, ["a", "b"])


def averages(parts):
  """Both ways to average benchmarks whose metric is a mean."""
  parts = [np.asarray(values) for values in parts]
  statistics = [
    (lambda rows, values=values: values[rows].mean(), len(values))
    for values in parts
  ]
  return (
    estimate_average([all_there(values) for values in parts], seed=0),
    estimate_average_statistic(statistics, seed=0),
  )


def test_an_average_counts_each_benchmark_once_and_draws_it_for_itself():
  """Pairs of a 0 and a 1: both 0 in one resample of four. All of three pairs
  in one of 64, below 2.5 %, so the lowest mean of the interval is (½ + 0) / 3,
  where the same draw for all three would make it 0.
  """
  pair = [0.0, 1.0]
  for found in averages([pair, pair, pair]):
    assert (found["value"], found["count"]) == (0.5, 6)
    assert found["interval"] == pytest.approx([1 / 6, 5 / 6], abs=1e-12)
  for found in averages([[0.25] * 9, pair]):
    assert (found["value"], found["count"]) == (0.375, 11)
    assert found["interval"] == pytest.approx([0.125, 0.625], abs=1e-12)
  for found in averages([[0.25], [0.75]]):
    assert found == {"value": 0.5, "count": 2}


def test_an_average_leaves_out_resamples_without_a_statistic():
  """None, not 0, where a benchmark drew no item that counts."""
  ones = lambda rows: 1.0 if np.any(rows == 0) else None  # noqa: E731
  found = estimate_average_statistic([(ones, 2), (ones, 2)], seed=0)
  assert found == {"value": 1.0, "count": 4, "interval": [1.0, 1.0]}
  none = lambda rows: None  # noqa: E731
  assert estimate_average_statistic([(ones, 2), (none, 2)], seed=0) is None
  assert estimate_average_statistic([], seed=0) is None
