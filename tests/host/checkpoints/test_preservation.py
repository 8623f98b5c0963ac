"""Which checkpoints are preserved: the latest regular ones and the best one."""

import datetime
import math
import shutil

import jax.numpy as jnp
import pytest
from orbax.checkpoint import checkpoint_manager
from orbax.checkpoint.checkpoint_managers import PreservationContext

from pure_jax.host.checkpoints.checkpointer import Checkpoints
from pure_jax.host.checkpoints.orbax_options import preservation_policy
from pure_jax.host.checkpoints.record import CheckpointMetrics


def preserved(keep_latest, scores, interim=()):
  """Returns the preserved steps of {step: score or None}, in order."""

  def metrics_of(step):
    values = {} if scores[step] is None else {"accuracy": scores[step]}
    return CheckpointMetrics(step in interim, values)

  policy = preservation_policy(keep_latest, "accuracy", metrics_of)
  infos = [
    checkpoint_manager.CheckpointInfo(step, datetime.datetime.min, None)
    for step in scores
  ]
  decisions = policy.should_preserve(infos, context=PreservationContext())
  return [step for step, keep in zip(scores, decisions, strict=True) if keep]


@pytest.mark.parametrize(
  ("keep_latest", "scores", "expected"),
  [
    (2, {1: None, 2: None, 3: None}, [2, 3]),
    (5, {1: None, 2: None}, [1, 2]),
    (1, {1: 0.9, 2: 0.1, 3: 0.2}, [1, 3]),
    # The later one of two equals, as `restore_best` chooses it.
    (1, {1: 0.9, 2: 0.9, 3: 0.2}, [2, 3]),
    (1, {1: None, 2: 0.1, 3: None, 4: None}, [2, 4]),
    (1, {}, []),
  ],
)
def test_the_latest_and_the_best_are_preserved(keep_latest, scores, expected):
  assert preserved(keep_latest, scores) == expected


def test_an_interim_checkpoint_does_not_count_as_regular():
  """If it did, step 10 would be removed for it: preemption would leave less
  to fall back on.
  """
  scores = dict.fromkeys((10, 20, 25))
  assert preserved(2, scores, interim=[25]) == [10, 20, 25]
  # After two preemptions and the next regular save, both are gone.
  assert preserved(2, scores | {27: None}, interim=[25, 27]) == [10, 20, 27]
  scores = dict.fromkeys((10, 20, 27, 30))
  assert preserved(2, scores, interim=[27]) == [20, 30]


def make_state(step):
  return {"w": jnp.arange(6.0) + step}


def save_scores(folder, scores, **options):
  """Saves steps with accuracies, reopening the folder as a resume does."""
  for step, accuracy in scores.items():
    metrics = None if accuracy is None else {"accuracy": accuracy}
    with Checkpoints(folder, best_metric="accuracy", **options) as checkpoints:
      checkpoints.save(step, make_state(step), metrics=metrics)


def test_the_best_checkpoint_is_restored_by_its_metric(tmp_path):
  """Not finite, or without the metric, a checkpoint is never the best."""
  scores = {1: 0.3, 2: 0.9, 3: math.nan, 4: math.inf, 5: None, 6: 0.1, 7: 0.4}
  save_scores(tmp_path, scores)
  with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
    assert checkpoints.steps() == [2, 6, 7]
    best = checkpoints.restore_best(make_state(0))
    assert best.step == 2
    assert best.state["w"].tolist() == make_state(2)["w"].tolist()
    assert checkpoints.restore_latest(make_state(0)).step == 7
  with Checkpoints(tmp_path, best_metric="loss") as checkpoints:
    assert checkpoints.restore_best(make_state(0)) is None


def test_a_damaged_best_checkpoint_gives_way_to_the_next_best(tmp_path, caplog):
  save_scores(tmp_path, {1: 0.9, 2: 0.1, 3: 0.2})
  array_file = next(
    p for p in (tmp_path / "1" / "state").iterdir() if p.is_file()
  )
  array_file.unlink()
  with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
    assert checkpoints.restore_best(make_state(0)).step == 3
  assert str(tmp_path / "1") in caplog.text


def test_preemption_leaves_no_trace_in_what_is_preserved(tmp_path):
  """Saves 10, 20, 30, with or without an interim save at 25 and a resume."""
  for folder, interim in ((tmp_path / "a", []), (tmp_path / "b", [25])):
    with Checkpoints(folder, keep_latest=2) as checkpoints:
      for step in (10, 20):
        checkpoints.save(step, make_state(step))
      for step in interim:
        checkpoints.save(step, make_state(step), interim=True)
        assert checkpoints.steps() == [10, 20, 25]
        assert checkpoints.steps(regular=True) == [10, 20]
    with Checkpoints(folder, keep_latest=2) as checkpoints:
      newest = checkpoints.restore_latest(make_state(0)).step
      assert newest == (25 if interim else 20)
      checkpoints.save(30, make_state(30))
      assert checkpoints.steps() == [20, 30]


def test_what_a_killed_save_left_to_remove_is_removed(tmp_path):
  """Killed behind the save of 6: neither 3 nor what is left of 2 stays."""
  scores = {1: 0.9, 2: 0.1, 3: 0.2, 5: 0.3, 6: 0.4}
  save_scores(tmp_path, scores, keep_latest=5)
  shutil.rmtree(tmp_path / "2" / "record")
  options = {"best_metric": "accuracy", "keep_latest": 2}
  with Checkpoints(tmp_path, **options) as checkpoints:
    assert checkpoints.restore_latest(make_state(0)).step == 6
    assert checkpoints.steps() == [1, 2, 3, 5, 6]  # A reader removes nothing.
    checkpoints.remove_superseded()
    assert checkpoints.steps() == [1, 5, 6]
  assert not (tmp_path / "2").exists()
