"""Each rule on histories of metrics that were written for it."""

import dataclasses
import math
import types

import numpy as np
import pytest

from pure_jax.host.evaluation import alarms
from pure_jax.host.evaluation.alarms import AlarmThresholds, raised, suspects
from pure_jax.runs.settings.alarms import AlarmSettings

THRESHOLDS = AlarmThresholds(window=2, lag=3)
# A run in which nothing happens.
SOUND = {
  "accuracy": 0.3,
  "process_outcome": 0.1,
  "accepted_wrong": 0.3,
  "accepted_right": 0.2,
  "rejected_right": 0.1,
  "response_tokens": 40.0,
  "no_step_share": 0.0,
  "one_step_share": 0.1,
  "work_without_answer": 0.1,
  "no_work_or_answer": 0.0,
  "high_repetition_given_correct": 0.0,
  "clip_ratio_given_correct": 0.01,
  "entropy": 0.5,
  "kl_reference": 0.01,
}


def history(length=8, **changes):
  """Rows; a change is the values of the last iterations."""
  rows = [dict(SOUND) for _ in range(length)]
  for name, values in changes.items():
    for row, value in zip(rows[-len(values) :], values, strict=True):
      row[name] = value
  return rows


def changed(**changes):
  """Rows in which the PRM also accepts more wrong responses in the end."""
  return history(accepted_wrong=[0.3, 0.31], **changes)


# The mean over two iterations reaches the threshold in the last one, and does
# not reach it with the last value of the third column.
CASES = [
  ("divergence", "process_outcome", [0.1, 0.3001], 0.29),
  ("short_responses", "response_tokens", [20.0, 12.0], 12.1),
  # Of the .9 that it can rise it rises half: to .55 with the other share.
  ("few_steps", "one_step_share", [0.4, 0.71], 0.69),
  ("few_steps", "no_step_share", [0.3, 0.61], 0.59),
  ("no_answers", "no_work_or_answer", [0.2, 0.35], 0.33),
  ("no_answers", "work_without_answer", [0.3, 0.45], 0.43),
  ("repetition", "high_repetition_given_correct", [0.0, 0.101], 0.09),
  ("repetition", "clip_ratio_given_correct", [0.02, 0.1], 0.09),
  ("entropy", "entropy", [0.06, 0.04], 0.05),
  ("kl", "kl_reference", [0.4, 0.61], 0.6),
]


@pytest.mark.parametrize(("alarm", "name", "values", "not_yet"), CASES)
def test_an_alarm_is_raised_at_its_threshold(alarm, name, values, not_yet):
  rows = changed(**{name: values})
  assert [*raised(rows, THRESHOLDS)] == [alarm]
  assert not raised(changed(**{name: [values[0], not_yet]}), THRESHOLDS)
  assert not raised(rows[:-1], THRESHOLDS)


@pytest.mark.parametrize(("alarm", "name", "values", "not_yet"), CASES)
def test_an_alarm_is_raised_once(alarm, name, values, not_yet):
  """Else every iteration would stop the run again, or roll it back."""
  del not_yet
  rows = changed(**{name: values})
  again = [*rows, rows[-1]]
  assert alarms.RULES[alarm](again, THRESHOLDS)
  assert not raised(again, THRESHOLDS)
  # After it was silent for a window, it is raised anew.
  calm = [*again, *history(length=6)]
  assert not raised(calm, THRESHOLDS)
  assert [*raised([*calm, *rows[-2:]], THRESHOLDS)] == [alarm]


@pytest.mark.parametrize(("alarm", "name", "values", "not_yet"), CASES)
def test_a_metric_without_a_value_raises_nothing(alarm, name, values, not_yet):
  """A run without a PRM, verdicts or a reference lacks some."""
  del not_yet
  del alarm
  for value in (None, math.nan, math.inf):
    rows = changed(**{name: values})
    for row in rows:
      row[name] = value
    assert not raised(rows, THRESHOLDS)
  for row in rows:
    del row[name]
  assert not raised(rows, THRESHOLDS)


def test_a_value_that_is_not_finite_is_none():
  """The log has null for it, so that a resumed run reads none."""
  rows = history(kl_reference=[0.0, math.nan])
  assert not raised(rows, THRESHOLDS)
  assert [*raised(history(kl_reference=[1.0, math.nan]), THRESHOLDS)] == []
  assert [*raised(history(kl_reference=[math.nan, 1.0]), THRESHOLDS)] == ["kl"]


def test_the_first_values_may_come_late():
  """A warm-up of the critic has no entropy, and at first nothing is right."""
  rows = history(length=9, entropy=[None] * 3 + [0.5] * 4 + [0.01] * 2)
  assert [*raised(rows, THRESHOLDS)] == ["entropy"]


def test_right_responses_are_weighed_by_their_number():
  """One right response at the limit, in an iteration with no other one, is no
  fifth of the right responses.
  """
  rare = history(accuracy=[0.3, 0.01], clip_ratio_given_correct=[0.01, 1.0])
  assert not raised(rare, THRESHOLDS)  # .013 of .31.
  often = history(accuracy=[0.3, 0.3], clip_ratio_given_correct=[0.01, 1.0])
  assert [*raised(often, THRESHOLDS)] == ["repetition"]
  nothing = history(accuracy=[0.0] * 8, clip_ratio_given_correct=[None] * 8)
  assert not raised(nothing, THRESHOLDS)


def test_divergence_is_silent_while_accuracy_rises():
  rows = changed(process_outcome=[0.3, 0.3], accepted_right=[0.2, 0.2001])
  assert not raised(rows, THRESHOLDS)
  # Whether the PRM accepts the right ones does not matter.
  moved = changed(
    process_outcome=[0.1, 0.31],
    accepted_right=[0.3, 0.3],
    rejected_right=[0.0, 0.0],
  )
  assert [*raised(moved, THRESHOLDS)] == ["divergence"]


def test_divergence_is_silent_if_the_prm_accepts_no_more_wrong_responses():
  """So it is in a run whose accuracy cannot rise any further."""
  assert not raised(history(process_outcome=[0.1, 0.5]), THRESHOLDS)


def test_divergence_looks_back_no_further_than_its_lag():
  """A run that learns for long, and then more slowly, has diverged nowhere."""
  outcome = np.linspace(-0.5, 0.5, 40)
  wrong = np.linspace(0.1, 0.5, 40)
  rows = history(
    length=40, process_outcome=outcome.tolist(), accepted_wrong=wrong.tolist()
  )
  thresholds = dataclasses.replace(THRESHOLDS, outcome_rise=0.08)
  assert not any(raised(rows[:end], thresholds) for end in range(40))
  steep = dataclasses.replace(THRESHOLDS, outcome_rise=0.07)
  assert [end for end in range(41) if raised(rows[:end], steep)] == [5]


def test_without_a_full_window_nothing_is_raised():
  rows = history(length=8, **{"kl_reference": [9.0] * 8})
  ends = [end for end in range(9) if raised(rows[:end], THRESHOLDS)]
  assert ends == [2]


def test_a_reason_has_the_numbers():
  (reason,) = raised(history(one_step_share=[0.4, 0.8]), THRESHOLDS).values()
  assert reason == "60% of the responses have at most one step, at first 10%"
  (reason,) = raised(changed(process_outcome=[0.1, 0.31]), THRESHOLDS).values()
  assert "rose from 0.100 to 0.205" in reason
  rows = history(clip_ratio_given_correct=[0.02, 0.1])
  (reason,) = raised(rows, THRESHOLDS).values()
  assert reason == (
    "6% of the right responses reach the length limit, at first 1%"
  )


@pytest.mark.parametrize(
  ("name", "value"),
  [
    *(("window", 0), ("lag", 0), ("short", 1.1), ("low_entropy", -0.1)),
    *(("outcome_rise", 2.1), ("few_steps_rise", 1.5), ("high_kl", 0.0)),
    *(("no_answer_rise", -1.0), ("repetition_rise", 2.0)),
  ],
)
def test_thresholds_are_validated(name, value):
  with pytest.raises(ValueError, match=name):
    AlarmThresholds(**{name: value})


# ===== Which responses show it =====

FACTS = types.SimpleNamespace(
  tokens=np.asarray([9, 3, 7, 8]),
  content_steps=np.asarray([3, 2, 1, 4]),
  has_answer=np.asarray([True, True, False, False]),
  repetition=np.asarray([0.1, 0.9, 0.3, 0.5]),
  step_mask=np.ones((4, 2), bool),
  step_rewards=np.asarray([[0.9, 0.9], [0.1, 0.8], [0.5, 0.4], [-0.5, 0.9]]),
)
RIGHT = np.asarray([True, False, False, True])


@pytest.mark.parametrize(
  ("alarm", "expected"),
  [
    ("divergence", [2, 1]),  # Wrong, by the PRM's outcome.
    ("short_responses", [1, 2]),
    ("few_steps", [2, 1]),
    ("no_answers", [3, 2]),  # The longest first.
    ("repetition", [3, 0]),  # Right, by repetition.
    ("entropy", [0, 1]),
    ("kl", [0, 1]),
  ],
)
def test_the_clearest_cases_come_first(alarm, expected):
  every = np.ones(4, bool)
  assert suspects(alarm, FACTS, RIGHT, every, 2).tolist() == expected


def test_a_response_that_does_not_show_it_is_not_chosen():
  every, nothing = np.ones(4, bool), np.zeros(4, bool)
  assert suspects("no_answers", FACTS, RIGHT, every, 3).tolist() == [3, 2]
  assert suspects("repetition", FACTS, RIGHT, every, 4).tolist() == [3, 0]
  assert suspects("repetition", FACTS, nothing, every, 2).size == 0
  # Nobody knows whether it is wrong.
  known = np.asarray([True, True, False, True])
  assert suspects("divergence", FACTS, RIGHT, known, 2).tolist() == [1]


def test_every_alarm_has_an_action():
  """A missing one would end a run in the middle."""
  assert alarms.RULES.keys() == AlarmSettings().actions.keys()
