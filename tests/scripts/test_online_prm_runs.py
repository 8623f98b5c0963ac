"""Runs whose PRM is updated on rollouts: logs, checkpoints, resuming."""

import shutil

import numpy as np
import pytest
import smoke_run

from pure_jax.models import params as weights
from pure_jax.models import policy
from pure_jax.parallel import sharding
from pure_jax.runs import saved_run

FLAGS = (
  "--config.rl.online_prm.every=2",
  "--config.rl.online_prm.labels=steps",
  "--config.rl.online_prm.optim.learning_rate=1e-2",
)
UPDATE_METRICS = {
  *("prm_update_loss", "prm_update_accuracy", "prm_update_steps"),
  *("prm_grad_norm", "prm_skipped_updates"),
}


def stage_rows(workdir, stage):
  return [row for row in smoke_run.rows(workdir) if row["stage"] == stage]


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
  """Four iterations; the PRM is updated after the second and the fourth."""
  workdir = tmp_path_factory.mktemp("online") / "run"
  done = smoke_run.call(
    "train_pure.py", workdir, f"--start={finished[0]}", *FLAGS
  )
  assert done.returncode == 0, done.stderr
  return workdir


def test_the_prm_moves_and_scores_otherwise_after_its_update(finished, whole):
  rows, plain = stage_rows(whole, "rl"), stage_rows(finished[0], "rl")
  has_update = [row.keys() >= UPDATE_METRICS for row in rows]
  assert has_update == [False, True, False, True]
  # Each response has a first step, which the checker always labels.
  config = saved_run.read_run(whole).settings.rl
  assert rows[1]["prm_update_steps"] >= config.responses
  # The first two iterations are those of a run whose PRM stays.
  for name in ("accuracy", "process_outcome", "response_tokens"):
    for row, other in zip(rows[:2], plain, strict=False):
      assert row[name] == pytest.approx(other[name], rel=1e-6)
  assert rows[2]["process_outcome"] != plain[2]["process_outcome"]
  drifts = [row["prm_drift"] for row in stage_rows(whole, "rl_eval")]
  assert drifts[0] == 0 and min(drifts[1:]) > 0


def test_a_checkpoint_has_the_prm_and_the_policy_is_restored_alone(whole):
  arrays, step = smoke_run.arrays(whole / "rl")
  assert {name.split(".")[0] for name in arrays} == {"policy", "prm"}
  assert (arrays["prm.step"], arrays["policy.step"]) == (2, 4)
  saved = saved_run.read_run(whole)
  restored = saved.restore_policy(sharding.make_layout(), "latest")
  declared = policy.declare_policy(saved.policy_architecture())
  weights.check_params(restored.state.params, declared)
  assert restored.step == step == 4
  np.testing.assert_array_equal(
    restored.state.params["embedding"], arrays["policy.params.embedding"]
  )


def test_a_run_that_lost_its_last_iterations_resumes_exactly(
  finished, whole, tmp_path
):
  """With the first PRM, or a new optimizer, the scores would be others."""
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  shutil.rmtree(workdir / "rl" / "4")
  done = smoke_run.call(
    "train_pure.py", workdir, f"--start={finished[0]}", *FLAGS
  )
  assert done.returncode == 0, done.stderr
  smoke_run.assert_same_run(workdir, whole, ("rl", "rl_eval"))


def test_verdicts_teach_it_for_the_share_of_prompts_that_has_answers(
  finished, tmp_path
):
  """Every response has a worst step, and all prompts have an answer here."""
  workdir = tmp_path / "run"
  done = smoke_run.call(
    *("train_pure.py", workdir, f"--start={finished[0]}"),
    "--config.rl.online_prm.every=1",
    "--config.rl.iterations=1",
    "--config.rl.answer_fraction=1.0",
  )
  assert done.returncode == 0, done.stderr
  (row,) = stage_rows(workdir, "rl")
  config = saved_run.read_run(workdir).settings.rl
  assert row["prm_update_steps"] == config.responses


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("every=0",), "every must be at least 1"),
    (("every=5",), "more than the 4 iterations"),
    (("every=1", "labels=both"), "labels must be one of"),
  ],
)
def test_settings_that_update_nothing_end_in_a_sentence(
  finished, tmp_path, flags, message
):
  options = [f"--config.rl.online_prm.{flag}" for flag in flags]
  done = smoke_run.call(
    "train_pure.py", tmp_path / "run", f"--start={finished[0]}", *options
  )
  assert done.returncode == 1 and message in done.stderr, done.stderr
