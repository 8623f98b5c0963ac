"""Runs with a critic: what they log and save, and how they resume."""

import dataclasses
import importlib
import json
import shutil

import numpy as np
import pytest
import smoke_run
import train_pure

from pure_jax.host.logs import curves
from pure_jax.models import lora, policy
from pure_jax.models import params as weights
from pure_jax.parallel import sharding
from pure_jax.runs import saved_run
from pure_jax.runs.run import open_run
from pure_jax.runs.settings import conversion
from pure_jax.training import optim

FLAGS = (
  "--config.rl.credit.baseline=gae",
  "--config.rl.credit.fold_verifiable=true",
  "--config.rl.credit.gae_lambda=0.95",
  "--config.rl.critic.optim.learning_rate=1e-2",
  "--config.rl.critic.warmup_iterations=1",
)
VALUE_METRICS = {
  *("value_loss", "value_clip_fraction", "explained_variance"),
  *("critic_grad_norm", "critic_skipped_updates", "critic_skipped_in_a_row"),
}


def rl_rows(workdir):
  return [row for row in smoke_run.rows(workdir) if row["stage"] == "rl"]


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
  """Four iterations with a critic, of which the first trains only that."""
  workdir = tmp_path_factory.mktemp("critic") / "run"
  done = smoke_run.call(
    "train_pure.py", workdir, f"--start={finished[0]}", *FLAGS
  )
  assert done.returncode == 0, done.stderr
  return workdir


def test_the_critic_moves_and_the_policy_starts_after_the_warm_up(
  finished, whole
):
  rows = rl_rows(whole)
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert all(row.keys() >= VALUE_METRICS for row in rows)
  assert rows[0]["explained_variance"] == 0 == rows[0]["value_mean"]
  targets = [row["value_target_mean"] for row in rows]
  assert np.sign(rows[3]["value_mean"]) == np.sign(np.mean(targets))
  assert all(
    row["value_loss"] > 0 == row["value_clip_fraction"] for row in rows
  )
  # Credit and responses are logged from the start, the policy's loss later.
  assert "step_score_mean" in rows[0] and "accuracy" in rows[0]
  assert ["policy_loss" in row for row in rows] == [False, True, True, True]
  # In the second rollout, the policy is still the one that RL began with.
  plain = rl_rows(finished[0])
  assert rows[0]["accuracy"] == plain[0]["accuracy"]
  assert rows[1]["response_tokens"] != rows[0]["response_tokens"]
  assert abs(rows[1]["kl_reference"]) < 1e-9 < rows[2]["kl_reference"]


def test_a_checkpoint_has_both_states_and_without_a_critic_one(finished, whole):
  both, _ = smoke_run.arrays(whole / "rl")
  one, _ = smoke_run.arrays(finished[0] / "rl")
  assert {"step", "params.embedding", "skipped"} <= one.keys()
  assert {name.split(".")[0] for name in both} == {"policy", "critic"}
  assert {f"policy.{name}" for name in one} <= both.keys()
  assert both["critic.params.value.kernel"].shape == (32, 1)
  assert np.abs(both["critic.params.value.kernel"]).min() > 0
  assert (both["critic.step"], both["policy.step"]) == (4, 3)
  embedding = both["critic.params.embedding"]
  assert (embedding != both["policy.params.embedding"]).any()


def test_a_run_that_lost_its_last_iterations_resumes_exactly(
  finished, whole, tmp_path
):
  """A critic that started anew would change every later advantage."""
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  shutil.rmtree(workdir / "rl" / "4")
  done = smoke_run.call(
    "train_pure.py", workdir, f"--start={finished[0]}", *FLAGS
  )
  assert done.returncode == 0, done.stderr
  smoke_run.assert_same_run(workdir, whole, ("rl", "rl_eval"))


def test_skipped_updates_of_the_critic_alone_stop_the_run(
  finished, tmp_path, monkeypatch
):
  """In the warm-up there are no others; a rate of 1e30 gives NaN."""
  monkeypatch.setattr(optim, "learning_rate_schedule", lambda _: lambda _: 1e30)
  workdir = tmp_path / "run"
  done = smoke_run.call(
    *("train_pure.py", workdir, f"--start={finished[0]}", *FLAGS),
    "--config.rl.critic.warmup_iterations=3",
    "--config.rl.max_skipped_updates=2",
  )
  assert done.returncode == 1
  assert "rl, step 3: 2 updates in a row" in done.stderr
  arrays, step = smoke_run.arrays(workdir / "rl")
  assert step == 3
  counters = [arrays[f"{of}.skipped_in_a_row"] for of in ("critic", "policy")]
  assert counters == [2, 0]
  assert (workdir / "nonfinite" / "rl_3.npz").exists()


def test_the_policy_of_a_run_with_a_critic_is_restored_alone(whole):
  layout = sharding.make_layout()
  saved = saved_run.read_run(whole)
  restored = saved.restore_policy(layout, "latest")
  declared = policy.declare_policy(saved.policy_architecture())
  weights.check_params(restored.state.params, declared)
  expected, step = smoke_run.arrays(whole / "rl")
  assert restored.step == step == 4
  np.testing.assert_array_equal(
    restored.state.params["embedding"], expected["policy.params.embedding"]
  )


def test_a_critic_of_adapters_in_packed_rows_and_mini_batches(
  tmp_path, monkeypatch
):
  """Policy and critic share the frozen weights below their adapters."""
  config = importlib.import_module("configs.qwen2p5_7b").get_config(
    "smoke_prm_one_loop"
  )
  config.progress = False
  config.rl.update(
    {
      "iterations": 1,
      "length_buckets": 1,
      "lora": {"rank": 2, "alpha": 8.0, "targets": ("query", "down")},
      "credit": {"baseline": "gae", "fold_verifiable": True},
      "updates": {"mini_batches": 2, "epochs": 2, "shuffle": True},
    }
  )
  settings = conversion.settings_from_config(config)
  monkeypatch.setattr(curves, "plot_curves", lambda *unused: None)  # Seconds.
  workdir = tmp_path / "run"
  with open_run(settings, str(workdir)) as run:
    train_pure.train_rl(run)
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  (row,) = [r for r in map(json.loads, lines) if r["stage"] == "rl"]
  assert len(row["value_loss_per_update"]) == 4
  assert row["critic_skipped_updates"] == row["skipped_updates"] == 0
  assert np.isfinite(row["value_loss"]) and row["critic_grad_norm"] > 0
  saved = saved_run.read_run(workdir)
  adapters = saved.restore_policy(sharding.make_layout(), "latest").state.params
  model = saved.settings.rl.lora.of(saved.policy_architecture())
  declared, _ = lora.split_adapters(policy.declare_policy(model))
  weights.check_params(adapters, declared)
  arrays, _ = smoke_run.arrays(workdir / "rl")
  of_critic = {n for n in arrays if n.startswith("critic.params.")}
  names = {n.removeprefix("critic.params.") for n in of_critic}
  assert names == {
    *(f"layers.{name}" for name in declared["layers"]),
    *("value.kernel", "value.bias"),
  }


def test_a_warm_up_that_leaves_no_iteration_is_refused():
  config = importlib.import_module("configs.arithmetic").get_config("smoke")
  config.rl.critic.warmup_iterations = 4
  settings = conversion.settings_from_config(config)  # Without a critic.
  credit = dataclasses.replace(
    settings.rl.credit, baseline="gae", fold_verifiable=True
  )
  assert not settings.rl.trains_critic
  with pytest.raises(ValueError, match="leaves none of the 4 iterations"):
    dataclasses.replace(settings.rl, credit=credit)
  with pytest.raises(ValueError, match="or None for no limit, got 0"):
    dataclasses.replace(settings.rl.critic, value_clip=0.0)
