"""Runs that an alarm stops or rolls back, whole and interrupted."""

import json
import signal

import pytest
from smoke_run import assert_same_run, call, rows

from pure_jax.runs.rl import roll_backs

ALARMS = (
  "--config.rl.iterations=6",
  "--config.rl.eval_every=3",
  "--config.rl.checkpoint_every=2",
  "--config.rl.checkpoints_kept=5",
  "--config.rl.alarms.thresholds.window=1",
)
# The mean of one iteration is at most that of the first: in the first.
AT_ONCE = (*ALARMS, "--config.rl.alarms.thresholds.low_entropy=1.0")
CHANGES = (
  "--config.rl.alarms.roll_back.iterations=1",
  "--config.rl.alarms.roll_back.times=1",
  "--config.rl.alarms.roll_back.empty_step_reward=-1.0",
  "--config.rl.alarms.roll_back.learning_rate=0.25",
)


def train(workdir, finished, *options):
  return call("train_pure.py", workdir, f"--start={finished}", *options)


def record(workdir):
  return json.loads((workdir / roll_backs.RECORD_FILE).read_text())


def logged(workdir, stage="rl"):
  return [row for row in rows(workdir) if row["stage"] == stage]


@pytest.fixture(scope="module")
def told(finished, tmp_path_factory):
  """A run whose alarms tell."""
  workdir = tmp_path_factory.mktemp("runs") / "told"
  done = train(workdir, finished[0], *AT_ONCE)
  assert done.returncode == 0, done.stderr
  return workdir


@pytest.fixture(scope="module")
def roll_back(told):
  """Flags of a run that is rolled back from iteration 5."""
  values = [row["kl_reference"] for row in logged(told)]
  limit = (max(values[:4]) + values[4]) / 2
  assert values[4] > limit
  return (
    *ALARMS,
    *CHANGES,
    "--config.rl.alarms.kl=roll_back",
    f"--config.rl.alarms.thresholds.high_kl={limit}",
  )


@pytest.fixture(scope="module")
def rolled_back(finished, roll_back, tmp_path_factory):
  """A run that is rolled back once, in one process."""
  workdir = tmp_path_factory.mktemp("runs") / "rolled_back"
  done = train(workdir, finished[0], *roll_back)
  assert done.returncode == 0, done.stderr
  return workdir


def test_an_alarm_tells(told):
  alarms = rows(told, "alarms.jsonl")
  row = alarms[0]
  assert (row["step"], row["alarm"], row["action"]) == (1, "entropy", "tell")
  assert "nats" in row["reason"]
  signed = [row["step"] for row in rows(told, "samples.jsonl") if "sign" in row]
  assert signed == [row["step"] for row in alarms for _ in range(2)]


def test_samples_have_their_group(told):
  """From it the page about a run computes advantages."""
  samples = rows(told, "samples.jsonl")
  for sample in samples:
    group, member = sample["group"], sample["group"]["member"]
    assert group["step_rewards"][member] == sample["step_rewards"]
    assert group["correct"][member] == sample["correct"]
    assert len(group["empty"][member]) == len(sample["steps"])
    lengths = [len(scores) for scores in group["step_rewards"]]
    assert [len(tokens) for tokens in group["step_tokens"]] == lengths
    assert all(count > 0 for row in group["step_tokens"] for count in row)
  assert len({sample["group"]["member"] for sample in samples}) > 1


def test_a_run_is_rolled_back_and_ends(rolled_back, told):
  (once,) = record(rolled_back)
  assert (once["alarm"], once["step"], once["to"]) == ("kl", 5, 4)
  assert [row["step"] for row in logged(rolled_back)] == [1, 2, 3, 4, 5, 6]
  undone = rolled_back / roll_backs.UNDONE / "1"
  assert [row["step"] for row in logged(undone)] == [5]
  # Until then nothing is different; then other samples of the same prompts.
  assert logged(rolled_back)[:4] == logged(told)[:4]
  assert logged(undone) == logged(told)[4:5]
  before, after = (
    [row for row in rows(folder, "samples.jsonl") if row["step"] == 5]
    for folder in (undone, rolled_back)
  )
  assert before[-1]["problem"] == after[-1]["problem"]
  assert before[-1]["steps"] != after[-1]["steps"]
  assert {row.get("sign") for row in before} == {None, "kl"}
  summary = json.loads((rolled_back / "summary.json").read_text())
  assert summary["roll_backs"] == 1


def test_alarms_are_logged_with_what_they_did(rolled_back):
  undone = rows(rolled_back / roll_backs.UNDONE / "1", "alarms.jsonl")
  assert [(row["step"], row["action"]) for row in undone] == [(5, "roll_back")]
  # It was rolled back as often as it may be.
  assert {row["action"] for row in rows(rolled_back, "alarms.jsonl")} <= {
    "tell"
  }


@pytest.mark.parametrize("moment", ["begin", "_keep_undone", "finish"])
def test_an_interrupted_roll_back_ends_as_a_whole_one(
  finished, rolled_back, roll_back, tmp_path, monkeypatch, moment
):
  workdir = tmp_path / "run"
  function = getattr(roll_backs, moment)

  def dies(run, *arguments):
    """As if the process was killed right after it."""
    result = function(run, *arguments)
    if result is run:  # Nothing to finish yet.
      return result
    raise KeyboardInterrupt

  monkeypatch.setattr(roll_backs, moment, dies)
  done = train(workdir, finished[0], *roll_back)
  assert done.returncode == 130, done.stderr
  monkeypatch.undo()
  done = train(workdir, finished[0], *roll_back)
  assert done.returncode == 0, done.stderr
  assert_same_run(workdir, rolled_back)
  assert record(workdir) == record(rolled_back)
  assert rows(workdir, "alarms.jsonl") == rows(rolled_back, "alarms.jsonl")


def test_sigterm_during_a_roll_back_is_not_lost(
  finished, rolled_back, roll_back, tmp_path, monkeypatch
):
  workdir, begin = tmp_path / "run", roll_backs.begin

  def terminated(run, alarm, *arguments):
    if alarm is not None:
      signal.raise_signal(signal.SIGTERM)
    return begin(run, alarm, *arguments)

  monkeypatch.setattr(roll_backs, "begin", terminated)
  done = train(workdir, finished[0], *roll_back)
  assert done.returncode == 75 and "was rolled back" in done.stderr
  monkeypatch.undo()
  assert train(workdir, finished[0], *roll_back).returncode == 0
  assert_same_run(workdir, rolled_back)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
  finished, told, tmp_path
):
  """What an alarm does may be changed while a run goes on."""
  stopped = tmp_path / "stopped"
  stop = (*AT_ONCE, "--config.rl.alarms.entropy=stop")
  done = train(stopped, finished[0], *stop)
  assert done.returncode == 1
  assert "alarm entropy" in done.stderr and "Traceback" not in done.stderr
  assert "--config.rl.alarms.entropy=tell" in done.stderr
  done = train(stopped, finished[0], *AT_ONCE)
  assert done.returncode == 0, done.stderr
  assert_same_run(stopped, told)
