"""Tables of an evaluation of a PRM, from scores made by hand."""

import dataclasses

import numpy as np
import pytest
from configs import evaluate_prm

from pure_jax.host.evaluation.intervals import Bootstrap
from pure_jax.runs.evaluation import prm_tables
from pure_jax.runs.evaluation.score_file import ScoredSolution
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.evaluation import EvaluatePRMSettings


def settings(**changes):
  fields = evaluate_prm.get_config("smoke").to_dict()
  return conversion.settings_from_config(
    fields | {"resamples": 50} | changes, EvaluatePRMSettings
  )


BOOTSTRAP = Bootstrap(seed=0, resamples=50)


def solutions(*labels_and_rewards):
  return [
    ScoredSolution(
      data="a",
      row=row,
      id=str(row),
      problem=str(row),
      labels=tuple(labels),
      final_correct=None,
      answer=None,
      step_rewards=tuple(rewards),
    )
    for row, (labels, rewards) in enumerate(labels_and_rewards)
  ]


def scored(*labels_and_rewards):
  return prm_tables.stack_solutions(
    solutions(*labels_and_rewards), [1] * len(labels_and_rewards)
  )


def test_only_a_first_error_that_is_known_counts():
  """An unlabelled step before the first bad label may be the first error."""
  data, errors = prm_tables.with_first_error(
    scored(
      ([1, 0, None], [0.1, 0.2, 0.3]),  # Known: the second.
      ([None, 0], [0.1, 0.2]),  # The first may be wrong.
      ([1, 1], [0.1, 0.2]),  # Known: none.
      ([1, None], [0.1, 0.2]),  # The second may be wrong.
      ([0, 1, 0], [0.1, 0.2, 0.3]),  # Known: the first.
      ([1, 1, 1], [0.1, 0.2, 0.3]),  # Known: none.
    )
  )
  assert [solution.row for solution in data.solutions] == [0, 2, 4, 5]
  assert errors.has_error.tolist() == [True, False, True, False]
  assert errors.index[errors.has_error].tolist() == [1, 0]
  np.testing.assert_array_equal(data.rewards[1], [0.1, 0.2, 0.0])


def test_the_mean_counts_each_subset_once_and_no_other_data():
  right, missed = ([1], [0.5]), ([0], [0.5])
  detected = ([0], [-0.5])
  data_sets = {
    "one": scored(right, detected),  # F1 1.
    "two": scored(right, detected, missed, missed, missed),  # 2·¼/(1+¼) = .4.
    "other": scored(right, missed),  # F1 0.
  }
  formats = {"one": "processbench", "two": "processbench", "other": "stepwise"}
  threshold, tables = prm_tables.make_tables(settings(), formats, data_sets)
  f1 = {name: c["f1"]["value"] for name, c in tables["ProcessBench"].items()}
  assert threshold == 0
  # Over all items of both it would be .57, with the other set .47.
  assert f1 == pytest.approx(
    {"one": 1.0, "two": 0.4, "other": 0.0, "mean of subsets": 0.7}
  )
  mean = tables["ProcessBench"]["mean of subsets"]["f1"]
  assert mean["count"] == 7
  low, high = tables["ProcessBench"]["two"]["f1"]["interval"]
  # Every resample of "one" with an F1 has an F1 of 1.
  assert mean["interval"] == pytest.approx(
    [(1 + low) / 2, (1 + high) / 2], abs=0.1
  )
  alone = {"one": data_sets["one"]}
  _, tables = prm_tables.make_tables(settings(), formats, alone)
  assert tables["ProcessBench"].keys() == {"one"}


def test_intervals_of_steps_draw_whole_problems():
  """Ten steps of one problem are not ten independent observations."""
  confident = [([1] * 10, [0.9] * 10), ([1] * 10, [-0.9] * 10)]
  metrics = prm_tables.step_metrics(scored(*confident), 0.0, 10, BOOTSTRAP)
  assert metrics["step_accuracy"]["value"] == 0.5
  # Steps drawn one by one would never be all right or all wrong.
  assert metrics["step_accuracy"]["interval"] == [0.0, 1.0]
  assert metrics["step_accuracy"]["count"] == 2
  assert "auc" not in metrics  # There is no bad step.


def test_the_threshold_moves_accuracy_and_not_the_ranking():
  data = scored(([1, 0], [0.6, 0.4]), ([1, 0], [0.7, 0.3]))
  low = prm_tables.step_metrics(data, 0.0, 10, BOOTSTRAP)
  high = prm_tables.step_metrics(data, 0.5, 10, BOOTSTRAP)
  assert low["step_accuracy"]["value"] == 0.5
  assert high["step_accuracy"]["value"] == 1.0
  assert low["balanced_accuracy"]["value"] == 0.5
  assert high["balanced_accuracy"]["value"] == 1.0
  assert low["auc"] == high["auc"]
  assert low["calibration_error"] == high["calibration_error"]


def test_calibration_has_the_bins_of_the_config():
  """p is .25, a bad step, and .3, a good one: |(0 - .25) + (1 - .3)| / 2 in
  one bin, (.25 + .7) / 2 in two of twenty.
  """
  data = scored(([0], [-0.5]), ([1], [-0.4]))
  for bins, expected in ((1, 0.225), (20, 0.475)):
    _, tables = prm_tables.make_tables(
      settings(bins=bins), {"a": "stepwise"}, {"a": data}
    )
    error = tables["Steps"]["a"]["calibration_error"]["value"]
    assert error == pytest.approx(expected)


def test_every_interval_follows_from_the_seed():
  rng = np.random.default_rng(0)
  pairs = solutions(
    *(
      ([1, int(rng.random() < 0.5)], rng.uniform(-1, 1, 2).tolist())
      for _ in range(60)
    )
  )
  data = prm_tables.stack_solutions(
    [
      dataclasses.replace(
        solution,
        problem=str(solution.row // 2),
        final_correct=bool(solution.row % 3),
      )
      for solution in pairs
    ],
    range(60),
  )
  both = {"one": data, "two": data}
  formats = dict.fromkeys(both, "processbench")

  def intervals(seed):
    _, tables = prm_tables.make_tables(
      settings(bootstrap_seed=seed), formats, both
    )
    return {
      (table, column, name): value["interval"]
      for table, columns in tables.items()
      for column, metrics in columns.items()
      for name, value in metrics.items()
      if "interval" in value
    }

  first, again, other = intervals(0), intervals(0), intervals(1)
  assert first == again
  # Some intervals may agree by chance, but not a whole column.
  columns = {(table, column) for table, column, _ in first}
  moved = {
    position[:2] for position in first if first[position] != other[position]
  }
  assert moved == columns
  assert ("ProcessBench", "mean of subsets") in columns
  assert ("Choice among solutions", "one") in columns


def test_data_that_define_no_threshold_raise():
  changed = settings(threshold="best_on", threshold_data="a")
  with pytest.raises(ConfigError, match="'a' cannot decide on a threshold"):
    prm_tables.choose_threshold(changed, {"a": scored(([1], [0.5]))})
  data = scored(([1, 1], [0.6, 0.5]), ([1, 0], [0.9, 0.3]))
  # Halfway between .3 and .5: lower misses the error, higher adds false ones.
  assert prm_tables.choose_threshold(changed, {"a": data}) == 0.4


def test_of_several_best_thresholds_the_lowest_is_chosen():
  """At -.2 and at .5 every prediction is right."""
  data = scored(([1, 1], [0.9, 0.9]), ([0, None], [-0.5, 0.1]))
  changed = settings(threshold="best_on", threshold_data="a")
  threshold = prm_tables.choose_threshold(changed, {"a": data})
  assert threshold == pytest.approx(-0.2)


def test_without_scored_solutions_the_tables_are_empty():
  (solution,) = solutions(([1], [0.5]))
  data = prm_tables.stack_solutions(
    [
      dataclasses.replace(
        solution, left_out="too many steps", step_rewards=None
      )
    ],
    [1],
  )
  _, tables = prm_tables.make_tables(
    settings(), {"a": "processbench"}, {"a": data}
  )
  shares = tables.pop("Share of rows left out")["a"]
  assert shares["too many steps"] == {"value": 1.0, "count": 1}
  assert shares["problem too long"] == {"value": 0.0, "count": 1}
  assert tables.pop("Calibration on a") == {}
  assert all(table == {"a": {}} for table in tables.values())


def outcomes(*problems_outcomes_and_rewards):
  """Solutions with an outcome, of 10, 20, ... characters."""
  made = [
    dataclasses.replace(solution, problem=problem, final_correct=outcome)
    for solution, (problem, outcome, _) in zip(
      solutions(
        *(
          ([None] * len(rewards), rewards)
          for *_, rewards in problems_outcomes_and_rewards
        )
      ),
      problems_outcomes_and_rewards,
      strict=True,
    )
  ]
  characters = range(10, 10 * len(made) + 10, 10)
  return prm_tables.stack_solutions(made, characters)


def ranked(data):
  _, tables = prm_tables.make_tables(settings(), {"a": "stepwise"}, {"a": data})
  return tables["Ranking of solutions"]["a"]


def test_solutions_are_ranked_over_all_problems_and_within_each():
  """A PRM that knows only which problem is easy ranks nothing for RL."""
  data = outcomes(
    ("easy", True, [0.8, 0.9]),
    ("easy", True, [0.8, 0.9, 0.8]),
    ("easy", False, [0.8]),
    ("hard", True, [-0.9]),
    ("hard", False, [-0.9, -0.8]),
    ("hard", False, [-0.9]),
    ("easy", None, [-1.0]),  # Not used.
  )
  metrics = ranked(data)
  values = {name: metric["value"] for name, metric in metrics.items()}
  assert values["right"] == 0.5
  # Of 9 pairs 4 are won (easy over hard), 4 are ties, 1 is lost.
  assert values["auc minimum"] == pytest.approx(6 / 9)
  assert values["auc within problems minimum"] == 0.5
  assert metrics["auc within problems minimum"]["count"] == 2
  # Of "last", one of two pairs of "easy" is won, of "hard" one of two is lost.
  assert values["auc within problems last"] == pytest.approx((0.75 + 0.25) / 2)
  # Six lengths in order, scores .9 thrice and .05 thrice.
  ranks = np.array([5, 5, 5, 2, 2, 2]) - 3.5
  lengths = np.arange(6) - 2.5
  expected = (ranks * lengths).sum() / np.sqrt(
    (ranks**2).sum() * (lengths**2).sum()
  )
  assert values["correlation with characters minimum"] == pytest.approx(
    expected
  )


def test_without_an_outcome_or_a_pair_there_is_no_ranking():
  unknown = outcomes(("a", None, [0.5]))
  assert ranked(unknown) == {}
  right = ranked(outcomes(("a", True, [0.5]), ("b", True, [0.5])))
  assert right.keys() == {"right"}  # Equal scores correlate with nothing.


def test_calibration_counts_the_steps_of_each_bin():
  """p(good) is .05, .5 and .95; a bin includes its upper limit."""
  data = scored(
    ([0, 1, None], [-0.9, -0.9, -0.9]),
    ([1, 1], [0.0, 0.9]),
    ([0], [0.9]),
  )
  table = prm_tables.calibration(data, 10, BOOTSTRAP)
  assert [*table] == ["0-0.1", "0.4-0.5", "0.9-1"]
  values = {
    column: [metrics[name]["value"] for name in ("steps", "p(good)")]
    for column, metrics in table.items()
  }
  assert values["0-0.1"] == [2, pytest.approx(0.05)]
  assert values["0.4-0.5"] == [1, 0.5]
  assert values["0.9-1"] == [2, pytest.approx(0.95)]
  assert [m["good_share"]["value"] for m in table.values()] == [0.5, 1.0, 0.5]
  # Both steps of the last bin are of problems of their own.
  assert table["0.9-1"]["steps"]["count"] == 2
  assert table["0-0.1"]["steps"]["count"] == 1
