"""The comparison: its arithmetic, its runs, and that arms differ in credit."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import compare_credit
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from checkout import EXPERIMENTS

from pure_jax.host.distributed import preemption


def test_interval_is_students():
  """Three seeds: t = 4.303 with 2 degrees of freedom, not 1.96."""
  values = [0.2, 0.3, 0.7]
  mean, width = compare_credit.mean_and_interval(values)
  assert mean == pytest.approx(0.4)
  spread = np.std(values, ddof=1)
  assert width == pytest.approx(4.302653 * spread / np.sqrt(3))
  assert compare_credit.mean_and_interval([0.5]) == (0.5, None)


def row(arm, seed, step, accuracy, **more):
  zeros = dict.fromkeys([name for name, _ in compare_credit.COLUMNS], 0.0)
  run = {"arm": arm, "seed": seed, "step": step}
  return run | zeros | {"accuracy": accuracy} | more


def cells_of(line):
  return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_averages_the_last_evaluations_and_the_best():
  rows = [
    row("sum", seed, step, value)
    for seed, values in {"0": [0.1, 0.9, 0.1, 0.2, 0.3], "1": [0.5] * 5}.items()
    for step, value in enumerate(values)
  ]
  rows += [row("vr", "0", 10, 0.25, hacked_given_wrong=None)]
  rows += [row("vr", "0", 20, None, hacked_given_wrong=None)]
  lines = compare_credit.table(rows).splitlines()
  cells = cells_of(lines[2])
  # A rule with a column too few would not make a table.
  assert {line.count("|") for line in lines} == {len(cells) + 1}
  # Last three: means .2 and .5; best .9 and .5. t with one degree: 12.71.
  assert cells[0] == "sum"
  assert cells[1].startswith("0.350 ± ")
  assert float(cells[1].split("±")[1]) == pytest.approx(
    12.71 * np.std([0.2, 0.5], ddof=1) / np.sqrt(2), abs=1e-3
  )
  assert cells[3].startswith("0.700 ± ")
  assert cells[-1] == "2"
  other = cells_of(lines[3])
  assert other[1] == "0.250"  # One seed has no interval.
  assert "–" in other  # Nothing was wrong, so nothing was hacked.
  assert cells_of(lines[0])[1] == "accuracy (last 2-3)"


def test_the_table_leaves_out_the_untrained_policy():
  """With it the mean would be .4, and the best .9, of a run that got worse."""
  rows = [
    row("vr", "0", step, accuracy, greedy_accuracy=accuracy)
    for step, accuracy in ((0, 0.9), (25, 0.1), (50, 0.2))
  ]
  heads, _, cells = map(cells_of, compare_credit.table(rows).splitlines())
  assert heads[1:3] == ["accuracy (last 2)", "greedy (last 2)"]
  assert cells[1:4] == ["0.150", "0.150", "0.200"]


@pytest.mark.skipif(
  not hasattr(os, "sched_getaffinity"), reason="this system binds no cores"
)
def test_each_run_has_its_share_of_the_cores_and_its_log(tmp_path, capsys):
  """The number of cores changes the last digits of a run."""
  cores = os.sched_getaffinity(0)
  line = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
  logs = [tmp_path / f"run{number}" / "log.txt" for number in range(3)]
  for at_a_time in (1, 2):
    compare_credit.run_all([(line, log) for log in logs], at_a_time)
    for log in logs:
      used = {*map(int, log.read_text().splitlines()[-1].split())}
      assert used <= cores
      assert len(used) == max(1, len(cores) // at_a_time)
  assert os.sched_getaffinity(0) == cores
  fails = [sys.executable, "-c", "raise SystemExit('no more room')"]
  with pytest.raises(SystemExit, match="1"):
    compare_credit.run_all([(line, logs[0]), (fails, logs[1])], at_a_time=1)
  assert "1 of 2 runs failed" in capsys.readouterr().err
  assert "no more room" in logs[1].read_text()


def test_ctrl_c_ends_the_runs_and_starts_no_other(tmp_path):
  """Even if it reached this process alone."""
  wait = "import pathlib, time; pathlib.Path('began').touch(); time.sleep(60)"
  first, second = tmp_path / "first.txt", tmp_path / "second.txt"
  line = [sys.executable, "-c", wait]

  def press():
    while not pathlib.Path("began").exists():
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  began = time.monotonic()
  try:
    with contextlib.chdir(tmp_path):
      threading.Thread(target=press).start()
      with pytest.raises(KeyboardInterrupt), preemption.raise_on_ctrl_c():
        compare_credit.run_all([(line, first), (line, second)], at_a_time=1)
  finally:
    signal.signal(signal.SIGINT, before)
  assert time.monotonic() - began < 30
  assert first.exists() and not second.exists()


def test_ctrl_c_ends_a_run_that_is_just_starting(tmp_path):
  """It is among those that run only when it has been started."""
  start = subprocess.Popen

  def start_slowly(*words, **keywords):
    process = start(*words, **keywords)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)
    return process

  line = [sys.executable, "-c", "import time; time.sleep(60)"]
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  began = time.monotonic()
  try:
    with (
      mock.patch.object(subprocess, "Popen", start_slowly),
      pytest.raises(KeyboardInterrupt),
      preemption.raise_on_ctrl_c(),
    ):
      compare_credit.run_all([(line, tmp_path / "log.txt")], at_a_time=1)
  finally:
    signal.signal(signal.SIGINT, before)
  assert time.monotonic() - began < 30


def test_runs_on_the_user_s_models_have_no_world_and_may_share_no_start(
  tmp_path,
):
  """A config of files has no world to seed; a named PRM is not trained."""

  def lines(config_file, changes=()):
    jobs = []
    flags.FLAGS.mark_as_parsed()
    with (
      flagsaver.flagsaver(
        config_file=str(EXPERIMENTS / "configs" / config_file),
        set=[*changes],
        seeds=["7"],
        arms=["sum", "vr"],
      ),
      mock.patch.object(
        compare_credit, "run_all", lambda some, at_a_time: jobs.extend(some)
      ),
    ):
      compare_credit.run_missing(tmp_path)
    return [line for line, _ in jobs]

  world = lines("arithmetic.py:smoke")
  assert len(world) == 3 and all("--config.world.seed=7" in w for w in world)
  trained = lines("files.py", ["files.labelled=rows.jsonl"])
  assert [pathlib.Path(line[1]).name for line in trained] == [
    *("train_prm.py", "train_pure.py", "train_pure.py"),
  ]
  assert all(line[-1].startswith("--start=") for line in trained[1:])
  named = lines("files.py", ["files.prm=folder"])
  assert len(named) == 2
  words = [word for line in [*trained, *named] for word in line]
  assert not [word for word in words if "world" in word]
  assert not [word for line in named for word in line if "--start" in word]


def test_the_committed_table_is_that_of_the_committed_runs():
  folder = EXPERIMENTS / "results" / "credit"
  rows = json.loads((folder / "runs.json").read_text())
  assert (folder / "table.md").read_text() == compare_credit.table(rows)


def test_a_comparison_with_other_settings_is_rejected(tmp_path, capsys):
  """Finished runs are kept, so all of them must have the same settings."""

  def report(**changes):
    flags.FLAGS.mark_as_parsed()
    with (
      flagsaver.flagsaver(workdir=str(tmp_path), report_only=True, **changes),
      pytest.raises(SystemExit) as ended,
    ):
      compare_credit.main(["compare_credit.py"])
    return ended.value.code

  assert report() == 1
  assert capsys.readouterr().err.startswith("No finished run")
  assert report(set=["rl.loss.kl_coef=0.5"]) == 1
  message = capsys.readouterr().err
  assert "set: was [], is now ['rl.loss.kl_coef=0.5']" in message


@pytest.mark.parametrize(
  ("line", "reason"),
  [
    ('{"stage": "rl_eval", "step": 1}', "a row of rl_eval without a number"),
    ('{"stage": ["rl"], "step": 1}', "not a row with a stage"),
    ('{"stage": "rl", "step": 1, "loss": NaN}', "not JSON"),
  ],
)
def test_a_damaged_log_of_a_run_is_named(tmp_path, capsys, line, reason):
  run = tmp_path / "seed0" / "vr"
  run.mkdir(parents=True)
  (run / "summary.json").touch()
  (run / "metrics.jsonl").write_text(f"{line}\n")
  flags.FLAGS.mark_as_parsed()
  with (
    flagsaver.flagsaver(workdir=str(tmp_path), report_only=True),
    pytest.raises(SystemExit) as ended,
  ):
    compare_credit.main(["compare_credit.py"])
  assert ended.value.code == 1
  message = capsys.readouterr().err
  assert message.startswith(f"error: {run}/metrics.jsonl:1 is {reason}")


def test_a_start_without_an_evaluation_is_left_out(tmp_path):
  start = tmp_path / "seed0" / "start"
  start.mkdir(parents=True)
  (start / "metrics.jsonl").write_text('{"stage": "sft", "step": 1}\n')
  flags.FLAGS.mark_as_parsed()
  assert compare_credit.collect_starts(tmp_path) == {}


def test_arms_are_those_the_claim_needs_and_differ_in_credit_alone():
  assert set(compare_credit.ARMS) == {
    *("sum", "softmin", "min", "min_eq3"),
    *("softmin+vr", "min+vr", "sum+vr", "vr"),
  }
  for changes in compare_credit.ARMS.values():
    assert set(changes) == {"form", "process_coef", "verifiable_coef"}
