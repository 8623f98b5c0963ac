"""A run that was killed, stopped or out of disk resumes exactly.

The thorough tests: python -m pytest -m slow tests/runs/test_survival.py, and
python tests/kills.py.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from unittest import mock

import kills
import numpy as np
import pytest
import smoke_run

from pure_jax.parallel import sharding
from pure_jax.runs.rl import functions
from pure_jax.runs.saved_run import read_run
from pure_jax.training import optim

RL = ("rl", "rl_eval")
# Everything that an iteration with several updates has to continue with: the
# order of mini-batches, the count of the warm-up, the KL coefficient.
SEVERAL_UPDATES = (
  "--config.rl.updates.mini_batches=2",
  "--config.rl.updates.epochs=2",
  "--config.rl.updates.shuffle=true",
  "--config.rl.optim.warmup_steps=12",
  "--config.rl.adaptive_kl={'target': 0.01, 'horizon': 200}",
)


def test_killed_in_a_save_then_stopped_it_continues_exactly(finished, tmp_path):
  """Killed while iteration 2 is saved, stopped later in the next epoch."""
  whole, _ = finished
  workdir, start = tmp_path / "killed", f"--start={whole}"
  rl = workdir / "rl"
  assert smoke_run.kill(lambda: [*rl.glob("*tmp*")], workdir, start)
  shutil.rmtree(rl / "2", ignore_errors=True)  # If the save was quicker.
  left = kills.unfinished(workdir)
  status, stderr = smoke_run.signal_when(
    lambda: kills.unfinished(workdir) - left or (rl / "2").exists(),
    signal.SIGTERM,
    *("train_pure.py", workdir, start),
  )
  assert status == 75, stderr
  said = re.search(r"stopped by SIGTERM after step ([234]) of rl, .*", stderr)
  assert said and "continues" in said[0] and "Traceback" not in stderr
  assert (rl / said[1] / "checksums.json").exists()
  if said[1] == "4":  # If the run was quicker, nothing would be left to do.
    shutil.rmtree(rl / "4")
  done = smoke_run.run("train_pure.py", workdir, start)
  assert done.returncode == 0, done.stderr
  smoke_run.assert_same_run(workdir, whole, RL)


def test_a_run_with_several_updates_that_broke_off_continues_exactly(
  finished, tmp_path
):
  """It breaks off after the updates of iteration 2, which are lost."""
  options = (
    f"--start={finished[0]}",
    *SEVERAL_UPDATES,
    "--config.rl.iterations=2",
    "--config.rl.checkpoint_every=1",
  )
  whole, workdir = tmp_path / "whole", tmp_path / "broken"
  done = smoke_run.call("train_pure.py", whole, *options)
  assert done.returncode == 0, done.stderr
  update, left = functions.RLFunctions.update, [None] * 2

  def update_and_break_off(*arguments):
    result = update(*arguments)
    left.pop()
    if not left:
      raise RuntimeError("a power cut")
    return result

  with (
    mock.patch.object(functions.RLFunctions, "update", update_and_break_off),
    pytest.raises(RuntimeError, match="a power cut"),
  ):
    smoke_run.call("train_pure.py", workdir, *options)
  assert (workdir / "rl" / "1").exists()
  assert not (workdir / "rl" / "2").exists()
  done = smoke_run.call("train_pure.py", workdir, *options)
  assert done.returncode == 0, done.stderr
  smoke_run.assert_same_run(workdir, whole, RL)
  arrays, step = smoke_run.arrays(workdir / "rl")
  assert (step, arrays["step"], arrays["skipped"]) == (2, 8, 0)
  rows = [row for row in smoke_run.rows(workdir) if row["stage"] == "rl"]
  coefficients = [row["kl_coef"] for row in rows] + [arrays["kl_coef"]]
  saved = read_run(workdir).restore_policy(sharding.make_layout(), "latest")
  assert saved.state.kl_coef == arrays["kl_coef"]
  assert coefficients[0] == pytest.approx(1e-3)
  for row, following in zip(rows, coefficients[1:], strict=True):
    error = np.clip(row["kl_rollout"] / 0.01 - 1, -0.2, 0.2)
    expected = row["kl_coef"] * (1 + error * 32 / 200)
    assert following == pytest.approx(expected, rel=1e-5)
    assert len(row["clip_fraction_per_update"]) == 4
    # The warm-up counts updates: only the first of the run has a rate of 0.
    moved = [abs(x - 1) > 1e-4 for x in row["ratio_max_per_update"]]
    assert moved == [False, row["step"] > 1, True, True]


def test_skipped_updates_stop_the_run_and_save_state_and_batch(
  finished, tmp_path, monkeypatch
):
  """A learning rate of 1e30 gives NaN from the second update on."""
  monkeypatch.setattr(optim, "learning_rate_schedule", lambda _: lambda _: 1e30)
  workdir = tmp_path / "run"
  options = (
    f"--start={finished[0]}",
    "--config.rl.max_skipped_updates=2",
  )
  done = smoke_run.call("train_pure.py", workdir, *options)
  assert done.returncode == 1
  assert "rl, step 3: 2 updates in a row" in done.stderr
  assert "Traceback" not in done.stderr
  path = workdir / "nonfinite" / "rl_3.npz"
  assert str(path) in done.stderr and f"{workdir}/rl/3" in done.stderr
  arrays, step = smoke_run.arrays(workdir / "rl")
  assert step == 3
  assert (arrays["skipped"], arrays["skipped_in_a_row"]) == (2, 2)
  with np.load(path) as batch:
    assert batch["rollout.tokens"].shape == (32, 48)
    assert not np.isfinite(batch["scores.old_logp"]).all()
    assert np.isfinite(batch["scores.step_rewards"]).all()
    assert batch["correct"].shape == batch["has_answer"].shape == (32,)
    facts = json.loads(str(batch["facts"]))
  assert (facts["stage"], facts["step"]) == ("rl", 3)
  samples = smoke_run.rows(workdir, "samples.jsonl")
  assert samples[-1]["problem"] == facts["problems"][-1]
  # The same command tries one more batch and fails again.
  again = smoke_run.call("train_pure.py", workdir, *options)
  assert again.returncode == 1
  assert "rl, step 4: 3 updates in a row" in again.stderr
  assert [r["step"] for r in smoke_run.rows(workdir) if r["stage"] == "rl"] == [
    *(1, 2, 3, 4)
  ]


def test_sigterm_before_any_loop_ends_in_a_sentence(tmp_path):
  """Data are prepared and nothing is trained: there is nothing to save."""
  workdir = tmp_path / "run"
  status, stderr = smoke_run.signal_when(
    (workdir / "config.json").exists,
    signal.SIGTERM,
    *("train_sft.py", workdir),
  )
  assert status == 143
  assert stderr.splitlines()[-1].startswith("stopped by SIGTERM where nothing")
  assert "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_is_the_uninterrupted_run(
  finished, tmp_path, seed
):
  """All stages from nothing, nine times killed or stopped, some in saves."""
  whole, _ = finished
  began = time.monotonic()
  assert smoke_run.run("train_pure.py", tmp_path / "timed").returncode == 0
  duration, chance = time.monotonic() - began, random.Random(seed)
  moments = [
    *(kills.Moment(chance.uniform(0, duration * 0.1), True) for _ in range(4)),
    *(kills.Moment(chance.uniform(0, duration * 0.9)) for _ in range(3)),
    kills.Moment(chance.uniform(0, duration * 0.9), number=signal.SIGTERM),
  ]
  chance.shuffle(moments)
  workdir = tmp_path / "killed"
  moments = iter([kills.Moment(0, in_save=True), *moments])
  count, torn = kills.interrupt(workdir, moments)
  smoke_run.assert_same_run(workdir, whole)
  assert count and torn, "no kill hit the middle of a save"


@pytest.mark.slow
def test_several_updates_killed_at_random_are_the_uninterrupted_ones(
  finished, tmp_path
):
  """Killed and stopped at any moment of RL, many of them between updates."""
  options = (f"--start={finished[0]}", *SEVERAL_UPDATES)
  whole, workdir = tmp_path / "whole", tmp_path / "killed"
  assert smoke_run.run("train_pure.py", whole, *options).returncode == 0
  chance, rl = random.Random(0), workdir / "rl"
  moments = [
    kills.Moment(chance.uniform(0, 4), number=number, after=rl)
    for number in [signal.SIGKILL] * 5 + [signal.SIGTERM] * 2
  ]
  kills.interrupt(workdir, iter(moments), *options)
  smoke_run.assert_same_run(workdir, whole, RL)


@pytest.mark.slow
def test_a_run_continues_on_another_mesh(finished, tmp_path):
  """Two more iterations on 2 x 2 devices and on one, equal up to rounding."""
  shown = []
  for name, mesh in (("one", ()), ("four", (("data", 2), ("fsdp", 2)))):
    workdir = tmp_path / name
    shutil.copytree(finished[0], workdir)
    done = smoke_run.run(
      *("train_pure.py", workdir, "--config.rl.iterations=6"),
      *(f"--config.mesh.{axis}={size}" for axis, size in mesh),
      XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )
    assert done.returncode == 0, done.stderr
    shown.append([r for r in smoke_run.rows(workdir) if r["stage"] == "rl"])
    versions = json.loads((workdir / "config.json").read_text())["versions"]
    assert list(versions[-1]["devices"].values()) == [4]
  one, four = shown
  assert [row["step"] for row in four] == [1, 2, 3, 4, 5, 6]
  assert (
    four[:4]
    == one[:4]
    == [row for row in smoke_run.rows(finished[0]) if row["stage"] == "rl"]
  )
  # The same parameters sample the same tokens; sums round differently.
  for name in ("response_tokens", "accuracy", "entropy", "grad_norm"):
    assert four[4][name] == pytest.approx(one[4][name], rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 40_000])
def test_a_run_whose_disk_fills_up_continues_once_there_is_room(
  finished, tmp_path, room
):
  """With no room the metrics do not fit; with 40 kB the checkpoint does not."""
  whole, disk = finished[0], tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
  try:
    mounted = subprocess.run(mount, capture_output=True, check=False)
  except FileNotFoundError:
    pytest.skip("there is no mount here")
  if mounted.returncode:
    pytest.skip(f"no file system can be mounted here: {mounted.stderr}")
  workdir, start = disk / "run", f"--start={whole}"
  metrics, filler = workdir / "metrics.jsonl", disk / "filler"

  def fill():
    """Once the checkpoint of iteration 2 is there, takes all but `room`."""
    if filler.exists() or not (workdir / "rl" / "2").exists():
      return False
    with filler.open("wb", buffering=0) as file:
      os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free)
      file.seek(0, os.SEEK_END)
      with contextlib.suppress(OSError):
        while True:
          file.write(bytes(4096))
      file.truncate(file.tell() - room)
    return True

  try:
    status, stderr = smoke_run.signal_when(
      fill, 0, *("train_pure.py", workdir, start)
    )
    assert status == 1, stderr
    assert "No space left on device" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert metrics.exists()
    assert (workdir / "rl" / "2" / "checksums.json").exists()
    filler.unlink()
    done = smoke_run.run("train_pure.py", workdir, start)
    assert done.returncode == 0, done.stderr
    smoke_run.assert_same_run(workdir, whole, RL)
  finally:
    subprocess.run(["umount", "-l", str(disk)], check=True)
