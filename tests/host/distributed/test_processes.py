"""Two processes run RL as one process does, and a killed run resumes.

The scripts run the whole loop: 2 processes with 2 fake devices each, connected
by gloo, against 1 process with 4. The two processes decode with continuous
batching, the one process in a single loop.
"""

import json
import os
import signal
import time
from unittest import mock

import jax
import local_cluster
import numpy as np
import pytest
import train_pure
import train_sft
from checkout import ROOT
from configs import arithmetic

from pure_jax.host.checkpoints.checkpointer import Checkpoints
from pure_jax.host.distributed import preemption, processes
from pure_jax.host.logs import curves
from pure_jax.models import policy, prm
from pure_jax.models.params import init_params
from pure_jax.parallel import sharding
from pure_jax.runs.run import open_run
from pure_jax.runs.settings import conversion
from pure_jax.runs.spec import RandomStream
from pure_jax.training import train
from pure_jax.training.optim import make_optimizer

SCRIPT = ROOT / "experiments" / "train_pure.py"
CONFIG = ROOT / "experiments" / "configs" / "arithmetic.py"
# Sums and differences up to 6: a little training answers some of them right.
OVERRIDES = {
  "progress": False,
  "mesh.data": 2,
  "mesh.fsdp": 2,
  "world.min_operations": 1,
  "world.max_operations": 2,
  "world.operand_max": 3,
  "world.value_max": 6,
  "model.num_layers": 1,
  "sft.demonstrations": 200,
  "sft.steps": 120,
  "sft.batch_size": 32,
  "sft.log_every": 120,
  "prm.labelled": 200,
  "prm.policy_prompts": 32,
  # Each process decodes the steps of its rows and encodes them again.
  "prm.score.separator": "each",
  "rl.iterations": 4,
  "rl.prompts": 8,
  "rl.samples_per_prompt": 2,
  "rl.sampler.max_new_tokens": 24,
  "rl.answer_fraction": 1.0,
  "rl.eval_prompts": 8,
  "rl.eval_every": 4,
  "rl.samples_every": 1,
  "rl.checkpoint_every": 1,
  # A mini-batch has responses of both processes, in any order.
  "rl.updates.mini_batches": 2,
  "rl.updates.epochs": 2,
  "rl.updates.shuffle": True,
}
ONE_UPDATE = {"rl.updates.mini_batches": 1, "rl.updates.epochs": 1}
# Sums of floats: other collectives add their terms in another order. Counts
# (verdicts, tokens, steps, repetition) must be equal.
CLOSE = {
  *("process_outcome", "min_step_score", "return_mean", "step_score_mean"),
  *("advantage_mean", "advantage_std", "policy_loss", "entropy", "grad_norm"),
  *("kl_reference", "kl_old", "ratio_max", "ratio_min", "ratio_mean"),
  *("logp_drift_max", "loss", "prm_loss"),
}


# Continuous batching, with one prompt in the slots of each of 4 row shards.
CONTINUOUS = {"rl.engine.slots": 8, "rl.engine.sync_interval": 12}


def settings(**changes):
  config = arithmetic.get_config("smoke")
  config.update_from_flattened_dict(OVERRIDES | changes)
  return conversion.settings_from_config(config)


def start_two(workdir, start=None, **changes):
  given = OVERRIDES | changes
  words = [f"--config.{name}={value}" for name, value in given.items()]
  return local_cluster.start(
    SCRIPT,
    f"--config={CONFIG}:smoke",
    f"--workdir={workdir}",
    *words,
    *([f"--start={start}"] if start else []),
    devices=2,
  )


def rows(workdir, name="metrics.jsonl", stages=("rl", "rl_eval")):
  lines = (workdir / name).read_text().splitlines()
  parsed = [json.loads(line) for line in lines]
  return [row for row in parsed if row["stage"] in stages]


def untimed(metrics):
  """Rows without the fields that measure time."""
  timed = ("_per_second", "seconds")
  return [
    {name: value for name, value in row.items() if not name.endswith(timed)}
    for row in metrics
  ]


def final_state(workdir, model):
  """Returns the step and the state of the last checkpoint."""
  abstract = jax.eval_shape(
    lambda: train.new_state(
      init_params(jax.random.key(0), policy.declare_policy(model)),
      make_optimizer(settings().rl.optim),
    )
  )
  with Checkpoints(workdir / "rl") as checkpoints:
    restored = checkpoints.restore_latest(abstract)
  return restored.step, jax.device_get(restored.state)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """Policy and PRM to start from, and a run of RL by this process alone."""
  start = tmp_path_factory.mktemp("processes") / "start"
  with open_run(settings(), str(start)) as run:
    train_sft.train_policy(run)
    declared = prm.declare_prm(run.spec.prm_model)
    init = jax.jit(
      lambda key: init_params(key, declared),
      out_shardings=sharding.weight_shardings(
        declared, run.spec.layouts.training
      ),
    )
    run.folder.finish_stage(
      "prm", init(run.spec.key(RandomStream.PRM_WEIGHTS)), {}
    )
  workdir = start.parent / "alone"
  with (
    open_run(settings(), str(workdir), str(start)) as run,
    mock.patch.object(curves, "SHOWN", ("loss",)),  # All take seconds.
  ):
    train_pure.train_rl(run)
    return start, workdir, run.spec.model


@pytest.fixture(scope="module")
def two(alone):
  """The same run by two processes: its folder, and how they ended."""
  start, whole, _ = alone
  workdir = whole.parent / "two"
  ended = local_cluster.finish(start_two(workdir, start, **CONTINUOUS))
  for status, _, stderr in ended:
    assert status == 0, stderr
    assert "donated" not in stderr
  return workdir, ended


def assert_alike(expected, actual):
  """Compares metrics of runs that add floats in different orders."""
  for one, two in zip(untimed(expected), untimed(actual), strict=True):
    assert one.keys() == two.keys()
    for name, value in one.items():
      where = f"{name} of {one['stage']} {one['step']}"
      if name.removesuffix("_per_update") in CLOSE:
        assert two[name] == pytest.approx(value, rel=1e-4, abs=2e-6), where
      else:
        assert two[name] == value, where


def test_two_processes_run_what_one_runs(alone, two):
  """Metrics of the rows of process 0 alone would differ, and so would those of
  responses that are graded as answers to the problems of other rows.
  """
  expected = rows(alone[1])
  assert len(expected) == 6
  assert_alike(expected, rows(two[0]))
  # Without a right answer, or with equal lengths, this would say little.
  assert 0 < sum(row["accuracy"] for row in expected) < len(expected)
  assert len({row["response_tokens"] for row in expected}) > 1


@pytest.mark.parametrize("name", ["samples.jsonl", "generations.jsonl"])
def test_two_processes_write_the_samples_of_one(alone, two, name):
  expected, actual = rows(alone[1], name), rows(two[0], name)
  assert len(expected) == len(actual) == 8
  for one, other in zip(expected, actual, strict=True):
    for rounded in {"step_rewards", "step_returns"} & one.keys():
      assert other.pop(rounded) == pytest.approx(one.pop(rounded), abs=2e-4)
    assert one == other  # Every token is equal.


def test_two_processes_train_the_weights_of_one(alone, two):
  step, expected = final_state(alone[1], alone[2])
  step_of_two, actual = final_state(two[0], alone[2])
  assert step == step_of_two == 4
  for one, two in zip(
    jax.tree.leaves(expected.params),
    jax.tree.leaves(actual.params),
    strict=True,
  ):
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=2e-5)


def test_only_process_0_writes_logs(two):
  workdir, ended = two
  assert "everything is in" in ended[0][1]
  assert "everything is in" not in ended[1][1]
  assert "iteration" not in ended[1][2]  # Samples are shown on stderr.
  record = json.loads((workdir / "config.json").read_text())
  assert record["versions"][-1]["processes"] == 2
  assert len(list((workdir / "tensorboard" / "rl").iterdir())) == 1
  assert (workdir / "summary.json").exists()
  assert (workdir / "curves.png").exists()
  assert not (workdir / ".processes").exists()


def start_and_wait(workdir, start):
  """Starts two processes and waits for their first checkpoint."""
  started = start_two(workdir, start, **CONTINUOUS)
  deadline = time.monotonic() + 300
  while not (workdir / "rl" / "1").exists():
    assert all(process.poll() is None for process in started)
    assert time.monotonic() < deadline, "no checkpoint"
    time.sleep(0.02)
  return started


@pytest.mark.slow
def test_sigterm_to_one_stops_all_with_their_step_saved(alone, two):
  """pytest -m slow tests/host/distributed/test_processes.py"""
  workdir = two[0].parent / "terminated"
  started = start_and_wait(workdir, alone[0])
  started[1].send_signal(signal.SIGTERM)
  for status, _, stderr in local_cluster.finish(started):
    assert status == preemption.PREEMPTED_STATUS, stderr
    assert "stopped by SIGTERM after step" in stderr
  for status, _, stderr in local_cluster.finish(
    start_two(workdir, alone[0], **CONTINUOUS)
  ):
    assert status == 0, stderr
  assert untimed(rows(workdir)) == untimed(rows(two[0]))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_after_one_process_dies_the_run_resumes(alone, two, victim):
  """pytest -m slow tests/host/distributed/test_processes.py"""
  workdir = two[0].parent / f"killed_{victim}"
  started = start_and_wait(workdir, alone[0])
  os.kill(started[victim].pid, signal.SIGKILL)
  began = time.monotonic()
  status, _, stderr = local_cluster.finish(started)[1 - victim]
  assert time.monotonic() - began < 30
  assert status == processes.PROCESS_LOST_STATUS
  assert f"process {victim} died" in stderr and "the same command" in stderr
  assert not (workdir / "summary.json").exists()
  before = [row for row in rows(workdir) if row["step"] <= 1]
  for status, _, stderr in local_cluster.finish(
    start_two(workdir, alone[0], **CONTINUOUS)
  ):
    assert status == 0, stderr
  # Their times are the same, so they were not run again.
  assert rows(workdir)[: len(before)] == before and len(before) == 2
  assert untimed(rows(workdir)) == untimed(rows(two[0]))
  _, expected = final_state(two[0], alone[2])
  _, actual = final_state(workdir, alone[2])
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Some donated buffers")
def test_continuous_batching_runs_what_one_loop_runs(alone):
  """Responses in the wrong rows would be graded for others' problems."""
  workdir = alone[1].parent / "turns"
  with open_run(settings(**CONTINUOUS), str(workdir), str(alone[0])) as run:
    train_pure.train_rl(run)
  assert_alike(rows(alone[1]), rows(workdir))


@pytest.mark.slow
def test_two_processes_decode_in_one_loop_as_one_does(alone):
  """pytest -m slow tests/host/distributed/test_processes.py"""
  workdir = alone[1].parent / "two_in_one_loop"
  for status, _, stderr in local_cluster.finish(start_two(workdir, alone[0])):
    assert status == 0, stderr
    assert "donated" not in stderr
  assert_alike(rows(alone[1]), rows(workdir))


@pytest.mark.slow
def test_two_processes_run_every_stage_as_one_does(tmp_path):
  """Process 0 makes the data and the tokenizer from nothing."""
  with open_run(settings(**ONE_UPDATE), str(tmp_path / "one")) as run:
    train_pure.train_rl(run)
  ended = local_cluster.finish(start_two(tmp_path / "two", **ONE_UPDATE))
  for status, _, stderr in ended:
    assert status == 0, stderr
  stages = ("sft", "prm_head", "prm_full", "prm_eval", "rl", "rl_eval")
  expected, actual = (
    rows(tmp_path / name, stages=stages) for name in ("one", "two")
  )
  assert {row["stage"] for row in expected} == {*stages}
  assert_alike(expected, actual)
