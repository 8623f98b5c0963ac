"""The training scripts as users run them: from nothing, restarted, misused.

A whole run as a process is `finished`; other runs are calls in this process.
"""

import json
import os
import shutil
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke_run
from configs import arithmetic
from smoke_run import arrays, call, command, environment, rows

from pure_jax.host.checkpoints.weights import load_tree, save_tree
from pure_jax.host.text.sentencepiece_tokenizer import SentencePieceTokenizer
from pure_jax.models import prm
from pure_jax.models.params import abstract_params
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.settings import conversion


def test_one_command_leaves_everything(finished):
  workdir, done = finished
  assert "accuracy" in done.stdout
  assert "score" in done.stderr and "credit" in done.stderr  # Samples.
  assert {row["stage"] for row in rows(workdir)} == {
    *("sft", "prm_head", "prm_full", "prm_eval", "rl", "rl_eval")
  }
  iterations = [row for row in rows(workdir) if row["stage"] == "rl"]
  assert [row["step"] for row in iterations] == [1, 2, 3, 4]
  names = {
    *("accuracy", "process_outcome", "min_step_score", "response_tokens"),
    *("steps_per_response", "truncated", "repetition", "vacuous_step_share"),
    *("kl_reference", "entropy", "clip_fraction", "ratio_max", "ratio_min"),
    *("logp_drift_max", "grad_norm", "skipped_updates"),
  }
  for row in iterations:
    assert names <= row.keys()
    assert row["logp_drift_max"] < 1e-4
  timed = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-2])
  assert timed["rollout_tokens_per_second"] > 0
  evaluations = [row for row in rows(workdir) if row["stage"] == "rl_eval"]
  assert [row["step"] for row in evaluations] == [0, 2, 4]
  assert "greedy_accuracy" in evaluations[0]
  for name in (
    *("curves.png", "summary.json", "config.json", "samples.jsonl"),
    *("generations.jsonl", "generations/rl_eval_000004.md"),
  ):
    assert (workdir / name).stat().st_size > 100, name
  assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
  assert list((workdir / "tensorboard" / "rl").iterdir())
  record = json.loads((workdir / "config.json").read_text())
  assert record["config"]["rl"]["iterations"] == 4
  assert record["versions"][0]["packages"]["jax"]
  metadata = workdir / "rl" / "4" / "record" / "metadata"
  metadata = json.loads(metadata.read_text())
  assert metadata["config"] == record["config"]
  assert metadata["versions"] == record["versions"][0]
  # 32 prompts drawn of 20: one epoch, and 12 of the next.
  assert metadata["extra"]["cursor"] == {"seed": 0, "epoch": 1, "index": 12}


def fails(script, workdir, *options):
  """The message of a script that ends in a sentence."""
  done = call(script, workdir, *options)
  assert done.returncode == 1
  assert "Traceback" not in done.stderr
  return done.stderr


def test_samples_of_a_form_without_step_returns_have_scores(finished, tmp_path):
  """`min_dense` is defined on tokens: a run in that form must not end there."""
  done = call(
    "train_pure.py",
    tmp_path / "run",
    f"--start={finished[0]}",
    "--config.rl.iterations=1",
    "--config.rl.credit.form=min_dense",
    "--config.rl.credit.fold_verifiable=true",
    "--config.rl.credit.baseline=paper_b",
  )
  assert done.returncode == 0, done.stderr
  lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
  for line in lines:
    sample = json.loads(line)
    assert len(sample["steps"]) == len(sample["step_rewards"])
    assert "step_returns" not in sample
  assert f"score {sample['step_rewards'][-1]:+.2f}  " in done.stderr


def test_a_finished_run_started_again_changes_nothing(finished, tmp_path):
  """But for what a process left that was killed behind its last save."""
  whole, workdir = finished[0], tmp_path / "run"
  shutil.copytree(whole, workdir)
  shutil.copytree(workdir / "rl" / "4", workdir / "rl" / "1")
  (workdir / "rl" / "1" / "checksums.json").unlink()
  (workdir / "sft" / "8.orbax-checkpoint-tmp").mkdir()
  again = call("train_pure.py", workdir)
  assert again.returncode == 0, again.stderr
  smoke_run.assert_same_run(workdir, whole)


@pytest.fixture(scope="module")
def started(finished, tmp_path_factory):
  """A run of RL alone: its folder, and the options that it has."""
  workdir = tmp_path_factory.mktemp("started") / "run"
  options = (
    f"--start={finished[0]}",
    "--config.rl.old_logp.source=sampled",
    "--config.rl.old_logp.check_every=3",
  )
  strict = "--config.rl.old_logp.tolerance=1e-12"
  message = fails("train_pure.py", workdir, *options, strict).splitlines()[-1]
  assert message.startswith(
    "error: Iteration 1: the sampler's log-probs are up"
  )
  assert "--config.rl.old_logp.source=score" in message
  done = call("train_pure.py", workdir, *options)
  assert done.returncode == 0, done.stderr
  return workdir, options


def test_sampled_log_probs_are_checked_and_learn_the_same(finished, started):
  """A run whose log-probs are off ends; within the tolerance it continues."""
  iterations, expected = (
    {row["step"]: row for row in rows(folder) if row["stage"] == "rl"}
    for folder in (started[0], finished[0])
  )
  checked = [
    step for step, row in iterations.items() if "logp_drift_max" in row
  ]
  assert checked == [1, 4]
  for name in ("grad_norm", "ratio_max", "logp_drift_max", "response_tokens"):
    np.testing.assert_allclose(
      iterations[1][name],
      expected[1][name],
      rtol=1e-4,
      atol=1e-5,
      err_msg=name,
    )


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_samples_in_int8_and_weighs_for_it(finished, tmp_path, rank):
  """With adapters the base alone is rounded. Weights of 1 would do nothing."""
  done = call(
    "train_pure.py",
    tmp_path / "run",
    f"--start={finished[0]}",
    f"--config.rl.lora.rank={rank}",
    "--config.rl.rollout.weights=int8",
    "--config.rl.loss.importance_cap=2.0",
  )
  assert done.returncode == 0, done.stderr
  for row in rows(tmp_path / "run"):
    if row["stage"] == "rl":
      assert 1e-3 < row["logp_drift_max"] < 1
      assert 0 < row["sampler_kl"] < 0.1 and row["skipped_updates"] == 0
      assert row["importance_weight"] != 1
      assert abs(row["importance_weight"] - 1) < 0.05


@pytest.mark.parametrize(
  ("line", "reason"),
  [
    (b"{", "is not JSON"),
    # What only the summary needs, at the end of the run.
    (b'{"stage": "rl_eval", "step": 1}', "is a row of rl_eval without"),
  ],
  ids=["json", "metric"],
)
def test_a_damaged_log_is_named_and_not_overwritten(
  finished, tmp_path, line, reason
):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  damaged = line + b"\n" + (workdir / "metrics.jsonl").read_bytes()
  (workdir / "metrics.jsonl").write_bytes(damaged)
  message = fails("train_pure.py", workdir)
  assert f"metrics.jsonl:1 {reason}" in message
  assert (workdir / "metrics.jsonl").read_bytes() == damaged


def test_a_missing_log_ends_in_a_sentence(finished, tmp_path):
  """There is nothing to summarise."""
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  (workdir / "metrics.jsonl").unlink()
  message = fails("train_pure.py", workdir)
  assert "has no evaluation of RL" in message.splitlines()[-1]


@pytest.mark.slow
def test_lost_weights_of_a_finished_stage_can_be_restored(finished, tmp_path):
  """By the way that the error names: the last checkpoint holds them."""
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  shutil.rmtree(workdir / "sft" / "weights")
  mark = workdir / "sft" / "done.json"
  assert f"remove {mark}." in fails("train_sft.py", workdir)
  mark.unlink()
  done = call("train_sft.py", workdir)
  assert done.returncode == 0, done.stderr
  restored, expected = (
    arrays(folder / "sft" / "weights")[0] for folder in (workdir, finished[0])
  )
  assert restored.keys() == expected.keys()
  for name, array in restored.items():
    np.testing.assert_array_equal(array, expected[name], name)


def test_an_unfinished_start_is_trained_by_one_run_at_a_time(
  finished, tmp_path
):
  """Two would clear away what the other one is writing."""
  start = tmp_path / "start"
  shutil.copytree(finished[0], start)
  (start / "prm" / "done.json").unlink()
  with workdirs.lock_folder(start):
    message = fails("train_prm.py", tmp_path / "run", f"--start={start}")
  assert f"Another process is running in {start}" in message


def test_a_workdir_of_another_config_is_rejected(finished):
  workdir, _ = finished
  before = (workdir / "metrics.jsonl").read_bytes()
  message = fails("train_pure.py", workdir, "--config.rl.loss.clip_low=0.1")
  assert "rl.loss.clip_low: was 0.2, is now 0.1" in message
  assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_resumed_run_must_name_its_start(finished, started):
  """Resumed without --start it would train another policy and PRM."""
  workdir, (_, *others) = started
  assert "start: was" in fails("train_pure.py", workdir, *others)
  fewer = (*started[1], "--config.rl.iterations=2")
  assert "is already at iteration 4" in fails("train_pure.py", workdir, *fewer)
  record = json.loads((workdir / "config.json").read_text())
  assert record["config"]["rl"]["iterations"] == 4
  # `test_survival` compares such a run with the whole one, bit for bit.
  assert [(row["stage"], row["step"]) for row in rows(workdir)] == [
    (row["stage"], row["step"])
    for row in rows(finished[0])
    if row["stage"] in ("rl", "rl_eval")
  ]


def test_a_start_of_another_world_is_rejected(finished, tmp_path):
  start = f"--start={finished[0]}"
  message = fails(
    "train_pure.py", tmp_path / "other", start, "--config.world.seed=5"
  )
  assert "world.seed: was 0, is now 5" in message
  none, start = tmp_path / "none", f"--start={tmp_path}"
  message = fails("train_pure.py", none, start)
  assert "is not the workdir of a run" in message
  (tmp_path / "config.json").write_text("{")
  assert "is not the record of a run" in fails("train_pure.py", none, start)
  assert not none.exists()


def test_an_impossible_config_leaves_no_folder(tmp_path):
  workdir = tmp_path / "a"
  message = fails("train_pure.py", workdir, "--config.rl.micro_batches=5")
  assert "does not divide the 32 responses" in message
  message = fails(
    *("train_pure.py", workdir, "--config.mesh.tensor=16"),
    "--config.mesh.rules=tensor",
  )
  assert "needs 16 devices" in message and "lower mesh.data" in message
  assert not workdir.exists()


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ("--config.rl.micro_batchs=2", 'Did you mean "micro_batches"'),
    ("--config.rll.prompts=2", 'Did you mean "rl"'),
    ("--config.rl.prompts=many", "invalid literal"),
    ("--config=nowhere.py", "nowhere.py"),
    (
      "--config.rl.sampler.max_new_tokens=2",
      "has room for none of 20 responses",
    ),
  ],
)
def test_a_bad_option_ends_in_a_sentence(tmp_path, option, message):
  assert message in fails("train_sft.py", tmp_path / "a", option)


def test_ctrl_c_ends_in_a_sentence(tmp_path):
  workdir = tmp_path / "run"
  # So many steps that a busy machine does not end them before the signal.
  steps = ("--config.sft.steps=1000000", "--config.sft.optim.decay_steps=0")
  # A shell's background job ignores SIGINT, and so would its children.
  handler = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    process = subprocess.Popen(
      command("train_sft.py", workdir, *steps),
      env=environment(),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
  finally:
    signal.signal(signal.SIGINT, handler)
  metrics = workdir / "metrics.jsonl"
  while not (metrics.exists() and metrics.read_text()):
    assert process.poll() is None, "ended before it could be stopped"
    time.sleep(0.02)
  os.killpg(process.pid, signal.SIGINT)
  _, stderr = process.communicate(timeout=100)
  assert process.returncode == 130
  assert stderr.splitlines()[-1] == "stopped; the same command continues"
  assert "Traceback" not in stderr
  assert not (workdir / "sft" / "done.json").exists()


def test_an_unwritable_workdir_is_named(tmp_path):
  blocked = tmp_path / "file"
  blocked.write_text("in the way")
  assert str(blocked) in fails("train_sft.py", blocked / "run")


def test_rewards_of_nan_stop_the_run_before_an_update(finished, tmp_path):
  """The weights of the PRM are finite, and products of them are not."""
  start = tmp_path / "start"
  shutil.copytree(finished[0], start)
  config = arithmetic.get_config("smoke")
  settings = conversion.settings_from_config(config)
  settings = settings.for_platform("cpu")
  vocab = SentencePieceTokenizer(start / "tokenizer.model").vocab_size
  model = prm.extend_config(
    settings.model.architecture(vocab), settings.prm.extra_layers
  )
  folder = start / "prm" / "weights"
  params = load_tree(folder, abstract_params(prm.declare_prm(model)))
  params = jax.tree.map(lambda x: jnp.full_like(x, 1e38), params)
  save_tree(folder, jax.device_get(params))

  message = fails("train_pure.py", tmp_path / "run", f"--start={start}")
  assert "Iteration 1: the PRM's step rewards of 32 of 32" in message
  with np.load(tmp_path / "run" / "nonfinite" / "rl_1.npz") as batch:
    assert np.isnan(batch["scores.step_rewards"]).any(axis=1).all()
  assert not [r for r in rows(tmp_path / "run") if r["stage"] == "rl"]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("script", "stage", "step"),
  [("train_sft.py", "sft", 4), ("train_prm.py", "prm_full", 4)],
)
def test_a_killed_supervised_stage_continues_exactly(
  finished, tmp_path, script, stage, step
):
  whole, _ = finished
  workdir = tmp_path / "killed"
  process = subprocess.Popen(
    command(script, workdir),
    env=environment(),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  metrics = workdir / "metrics.jsonl"
  row = f'"stage": "{stage}", "step": {step}'
  while not (metrics.exists() and row in metrics.read_text()):
    assert process.poll() is None, "ended before it could be killed"
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  # As a process: the eight devices of this one round otherwise.
  done = smoke_run.run(script, workdir)
  assert done.returncode == 0, done.stderr
  stages = {row["stage"] for row in rows(workdir)}
  assert rows(workdir) == [r for r in rows(whole) if r["stage"] in stages]
  assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
