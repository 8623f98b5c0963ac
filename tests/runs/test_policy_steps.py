"""The PRM on the policy's own steps, against labels of a checker."""

import math
import types

import numpy as np
import pytest

from pure_jax.runs.rl.responses import prm_step_metrics
from pure_jax.runs.tasks.files import FilesTask

TEXTS = [["3+5=8", "8-2=6", "box"], ["3+5=9"], ["3+5=8", "8-2=7"]]
LABELS = [[1, 1, None], [0], [1, 0]]
SCORES = [[0.9, 0.5, -0.9], [-0.5, 0, 0], [0.7, 0.6, 0]]


def run_of(labels, read_end=False):
  """A run of one process, whose task labels steps as given."""

  def step_labels(problems, texts):
    assert problems == ["a", "b", "c"] and texts == TEXTS
    return labels

  score = types.SimpleNamespace(read_end=read_end, max_steps=3)
  settings = types.SimpleNamespace(prm=types.SimpleNamespace(score=score))
  return types.SimpleNamespace(
    spec=types.SimpleNamespace(settings=settings),
    task=types.SimpleNamespace(
      step_labels=step_labels,
      find_answer=lambda texts: "8" if len(texts) == 1 else None,
    ),
    batches=types.SimpleNamespace(
      share=np.arange, gather=lambda count, tree: tree
    ),
  )


def metrics(labels=LABELS, scores=SCORES, read_end=False):
  facts = types.SimpleNamespace(
    step_rewards=None if scores is None else np.asarray(scores, np.float32),
    truncated=np.array([True, False, False]),
  )
  graded = types.SimpleNamespace(texts=TEXTS)
  run = run_of(labels, read_end)
  return prm_step_metrics(run, ["a", "b", "c"], graded, facts)


def test_scores_are_compared_with_labels_by_hand():
  """Good .9 .5 .7, bad -.5 .6: of six pairs five are ordered."""
  assert metrics() == {
    "prm_step_accuracy": pytest.approx(4 / 5),
    "prm_balanced_accuracy": pytest.approx((1 + 1 / 2) / 2),
    "prm_auc": pytest.approx(5 / 6),
    # p(good) is .95, .75, .25, .85 and .8, of which the last two share a bin:
    # half of them is good.
    "prm_calibration_error": pytest.approx(
      (0.05 + 0.25 + 0.25 + 2 * (0.825 - 0.5)) / 5
    ),
    "prm_good_share": pytest.approx(3 / 5),
    "prm_labelled_steps": 5.0,
  }


def test_without_labels_or_finite_scores_a_metric_is_null():
  nothing = metrics(labels=[[None] * 3, [None], [None] * 2])
  assert nothing.pop("prm_labelled_steps") == 0
  assert nothing.keys() == metrics().keys() - {"prm_labelled_steps"}
  assert {*nothing.values()} == {None}
  broken = metrics(scores=[[math.nan, 0, 0], *SCORES[1:]])
  assert broken["prm_auc"] is None and broken["prm_labelled_steps"] == 5


def test_an_end_without_an_answer_is_bad_if_the_prm_reads_it():
  """Of the three only the last response has ended without an answer."""
  labels = [[1, 1, None], [1], [1, None]]
  assert metrics(labels)["prm_good_share"] == 1
  assert metrics(labels, read_end=True)["prm_good_share"] == 4 / 5


def test_a_step_without_a_label_may_have_any_score():
  scores = [[0.9, 0.5, math.nan], *SCORES[1:]]
  assert metrics(scores=scores) == metrics()


def test_steps_of_files_are_labelled_by_their_equations():
  steps = [["3 + 5 = 8.", "So it is 8.", "8 - 2 = 7."], []]
  assert FilesTask.step_labels(None, ["a", "b"], steps) == [[1, None, 0], []]


def test_without_a_prm_there_is_nothing_to_compare():
  assert metrics(scores=None) == {}
