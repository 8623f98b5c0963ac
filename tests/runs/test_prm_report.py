"""Tables of an evaluation from hand-made rows of scores."""

import numpy as np
import pytest
from configs import evaluate_prm

from pure_jax.runs.evaluation import prm_report
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.prm_evaluation import EvaluatePRMSettings


def settings(**changes):
  fields = evaluate_prm.get_config("smoke").to_dict()
  return conversion.settings_from_config(
    fields | {"resamples": 50} | changes, EvaluatePRMSettings
  )


def rows(*labels_and_rewards):
  return [
    {
      "data": "a",
      "row": number,
      "id": str(number),
      "problem": str(number),
      "left_out": None,
      "step_rewards": rewards,
      "labels": labels,
      "final_correct": None,
      "answer": None,
    }
    for number, (labels, rewards) in enumerate(labels_and_rewards)
  ]


def scored(*labels_and_rewards):
  return prm_report.collect(rows(*labels_and_rewards))


def test_only_a_first_error_that_is_known_counts():
  """What is not labelled before the first bad label may be the first error."""
  part, errors = prm_report.with_first_error(
    scored(
      ([1, 0, None], [0.1, 0.2, 0.3]),  # Known: the second.
      ([None, 0], [0.1, 0.2]),  # The first may be wrong.
      ([1, 1], [0.1, 0.2]),  # Known: none.
      ([1, None], [0.1, 0.2]),  # The second may be wrong.
      ([0, 1, 0], [0.1, 0.2, 0.3]),  # Known: the first.
      ([1, 1, 1], [0.1, 0.2, 0.3]),  # Known: none.
    )
  )
  assert [row["row"] for row in part.rows] == [0, 2, 4, 5]
  assert errors.found.tolist() == [True, False, True, False]
  assert errors.index[errors.found].tolist() == [1, 0]
  np.testing.assert_array_equal(part.rewards[1], [0.1, 0.2, 0.0])


def test_the_mean_counts_each_subset_once_and_no_other_data():
  right, missed = ([1], [0.5]), ([0], [0.5])
  found = ([0], [-0.5])
  parts = {
    "one": scored(right, found),  # F1 1.
    "two": scored(right, found, missed, missed, missed),  # 2·¼/(1+¼) = .4.
    "other": scored(right, missed),  # F1 0.
  }
  formats = {"one": "processbench", "two": "processbench", "other": "stepwise"}
  threshold, tables = prm_report.make_tables(settings(), formats, parts)
  f1 = {name: c["f1"]["value"] for name, c in tables["ProcessBench"].items()}
  assert threshold == 0
  # Over all items of both it would be .57, with the other set .47.
  assert f1 == pytest.approx(
    {"one": 1.0, "two": 0.4, "other": 0.0, "mean of subsets": 0.7}
  )
  mean = tables["ProcessBench"]["mean of subsets"]["f1"]
  assert mean["count"] == 7
  low, high = tables["ProcessBench"]["two"]["f1"]["interval"]
  # Of "one", every resample with an F1 has the same, 1.
  assert mean["interval"] == pytest.approx(
    [(1 + low) / 2, (1 + high) / 2], abs=0.1
  )
  alone = {"one": parts["one"]}
  _, tables = prm_report.make_tables(settings(), formats, alone)
  assert tables["ProcessBench"].keys() == {"one"}


def test_intervals_of_steps_draw_problems_whole():
  """Ten right steps of one problem are not ten independent observations."""
  sure = [([1] * 10, [0.9] * 10), ([1] * 10, [-0.9] * 10)]
  found = prm_report.step_metrics(scored(*sure), 0.0, settings())
  assert found["step_accuracy"]["value"] == 0.5
  # Drawn one by one, half of 20 steps is never all or nothing.
  assert found["step_accuracy"]["interval"] == [0.0, 1.0]
  assert found["step_accuracy"]["count"] == 2
  assert "auc" not in found  # There is no bad step.


def test_the_threshold_moves_accuracy_and_not_the_ranking():
  part = scored(([1, 0], [0.6, 0.4]), ([1, 0], [0.7, 0.3]))
  low = prm_report.step_metrics(part, 0.0, settings())
  high = prm_report.step_metrics(part, 0.5, settings())
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
  part = scored(([0], [-0.5]), ([1], [-0.4]))
  for bins, expected in ((1, 0.225), (20, 0.475)):
    found = prm_report.step_metrics(part, 0.0, settings(bins=bins))
    assert found["calibration_error"]["value"] == pytest.approx(expected)


def test_every_interval_follows_from_the_seed():
  rng = np.random.default_rng(0)
  given = rows(
    *(
      ([1, int(rng.random() < 0.5)], rng.uniform(-1, 1, 2).tolist())
      for _ in range(60)
    )
  )
  for number, row in enumerate(given):
    row |= {"problem": str(number // 2), "final_correct": bool(number % 3)}
  part = prm_report.collect(given)
  both = {"one": part, "two": part}
  formats = dict.fromkeys(both, "processbench")

  def intervals(seed):
    _, tables = prm_report.make_tables(
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
  # Shares of few items may agree by chance, but not all of a column.
  columns = {(table, column) for table, column, _ in first}
  moved = {where[:2] for where in first if first[where] != other[where]}
  assert moved == columns
  assert ("ProcessBench", "mean of subsets") in columns
  assert ("Choice among solutions", "one") in columns


def test_a_data_set_that_cannot_decide_is_named():
  changed = settings(threshold="best_on", threshold_data="a")
  with pytest.raises(ConfigError, match="'a' cannot decide on a threshold"):
    prm_report.choose_threshold(changed, {"a": scored(([1], [0.5]))})
  part = scored(([1, 1], [0.6, 0.5]), ([1, 0], [0.9, 0.3]))
  # Halfway between .3 and .5: below it nothing is found, above too much.
  assert prm_report.choose_threshold(changed, {"a": part}) == 0.4


def test_of_several_best_thresholds_the_lowest_is_chosen():
  """At -.2 and at .5 every item is right: only their places differ."""
  part = scored(([1, 1], [0.9, 0.9]), ([0, None], [-0.5, 0.1]))
  changed = settings(threshold="best_on", threshold_data="a")
  found = prm_report.choose_threshold(changed, {"a": part})
  assert found == pytest.approx(-0.2)


def test_nothing_scored_gives_empty_tables():
  out = [row | {"left_out": "too many steps"} for row in rows(([1], [0.5]))]
  part = prm_report.collect(out)
  _, tables = prm_report.make_tables(
    settings(), {"a": "processbench"}, {"a": part}
  )
  shares = tables.pop("Share of rows left out")["a"]
  assert shares["too many steps"] == {"value": 1.0, "count": 1}
  assert shares["problem too long"] == {"value": 0.0, "count": 1}
  assert all(table == {"a": {}} for table in tables.values())
