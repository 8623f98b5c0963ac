"""The RL piece of the check: its config, its end, and what it lacks."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import time

import pytest
from accelerator import report, rl, runner
from accelerator.pieces import Context, Options, Piece, PieceError
from accelerator.rl import Files, make_settings, run_rl

from pure_jax.host.data.records import DataError
from pure_jax.host.distributed import preemption
from pure_jax.host.huggingface import HuggingFaceError
from pure_jax.runs import workdir
from pure_jax.runs.tasks import tiny_files


@pytest.fixture(scope="module")
def named(tmp_path_factory):
  """A tiny model and problems in the form of GSM8K's files."""
  folder = tmp_path_factory.mktemp("files")
  model = tiny_files.write_policy(folder / "model", tied=True)
  for name, first in (("train", 1), ("held_out", 50)):
    lines = [
      {
        "question": f"Tom has {n} apples and buys 3. How many?",
        "answer": f"{n}+3=<<{n}+3={n + 3}>>{n + 3}\n#### {n + 3}",
      }
      for n in range(first, first + 8)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{name}.jsonl").write_text(text)
  return Files(
    str(model), str(folder / "train.jsonl"), str(folder / "held_out.jsonl")
  )


def context_of(out, seconds, named, **files):
  files = {"train": named.train, "held_out": named.held_out} | files
  machine, end = {"backend": "cpu"}, time.time() + seconds
  return Context(out, "tiny", machine, end, named.model, files)


@pytest.fixture
def context(tmp_path, named):
  return context_of(tmp_path, 600, named)


def test_without_files_it_says_which_flags_name_them(context, named):
  files = {"train": named.train}
  with pytest.raises(PieceError, match="it needs --held_out: GSM8K's"):
    run_rl(dataclasses.replace(context, rl_files=files))
  with pytest.raises(PieceError, match="needs --train and --held_out: "):
    run_rl(dataclasses.replace(context, rl_files={}))


def test_a_file_that_is_none_is_a_sentence(tmp_path, named):
  context = context_of(tmp_path, 600, named, train="missing.jsonl")
  with pytest.raises(PieceError, match=r"files.train=missing.jsonl is no file"):
    run_rl(context)


def test_rewards_are_outcomes_unless_a_prm_is_named(context, named):
  assert make_settings(context, named).rl.reward_mode == "vr"
  with_prm = Files(named.model, named.train, named.held_out, prm="FOLDER")
  settings = make_settings(context, with_prm)
  assert settings.rl.reward_mode == "prm+vr" and settings.files.prm == "FOLDER"


def test_adapters_are_trained_if_memory_or_disk_are_small(
  context, named, monkeypatch
):
  settings = make_settings(context, named)
  assert settings.rl.lora.rank == 0
  assert settings.files.model.param_dtype == "float32"
  small = {"memory": 10**5, "disk": 10**12}
  monkeypatch.setattr(rl, "available_bytes", lambda: small["memory"])
  usage = type("Usage", (), {"free": property(lambda _: small["disk"])})
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage())
  for sizes in ((10**5, 10**12), (10**12, 10**5)):
    small["memory"], small["disk"] = sizes
    settings = make_settings(context, named)
    assert settings.rl.lora.rank == 32
    assert settings.files.model.param_dtype == "bfloat16"
  small["memory"] = small["disk"] = 10**12
  assert make_settings(context, named).rl.lora.rank == 0


def test_a_repeated_check_goes_on_unless_the_time_is_short(context, capsys):
  """Then the result of the earlier start stands."""
  starts = []

  def run(context):
    starts.append(context)
    return {"summary": f"start {len(starts)}"}

  piece = Piece("p", {"tiny": 60}, run, continues=True)
  late = dataclasses.replace(context, deadline=time.time() + 30)
  for told in (context, context, late):
    runner.run_pieces([piece], [piece], told)
  record = runner.read_record(runner.file_of(context.out, [piece], piece))
  assert (record["status"], record["result"]["summary"]) == ("done", "start 2")
  once = dataclasses.replace(piece, continues=False)
  runner.run_pieces([once], [once], context)
  assert len(starts) == 2
  assert capsys.readouterr().out.count("of the earlier start") == 2


def test_a_start_that_fails_keeps_the_record_of_the_one_before(context):
  """Also if the time is short in between."""
  fails = []

  def run(context):
    if fails:
      raise PieceError("the disk is full")
    return {"summary": "so far"}

  piece = Piece("p", {"tiny": 60}, run, continues=True)
  path = runner.file_of(context.out, [piece], piece)

  def start(told, status):
    runner.run_pieces([piece], [piece], told)
    record = runner.read_record(path)
    assert record["status"] == status
    assert runner.complete_record(record)["result"] == {"summary": "so far"}
    return record

  start(context, "done")
  fails.append(True)
  start(context, "failed")
  start(context, "failed")
  assert not report.write(context.out, [piece], "command")
  text = (context.out / report.FILE).read_text()
  assert "the disk is full" in text and "Of an earlier start (2" in text
  start(dataclasses.replace(context, deadline=time.time() + 30), "done")
  start(context, "failed")
  fails.clear()
  record = start(context, "done")
  assert "earlier" not in record


def test_a_run_goes_on_as_it_began_whatever_the_disk_has(
  context, named, monkeypatch
):
  """Its own checkpoints take the room that there was."""
  folder = context.folder("rl")
  monkeypatch.setattr(rl, "available_bytes", lambda: 10**12)
  settings = make_settings(context, named)
  workdir.prepare_workdir(folder, dataclasses.asdict(settings))
  monkeypatch.setattr(rl, "available_bytes", lambda: 1)
  assert make_settings(context, named) == settings
  (folder / "config.json").unlink()
  smaller = make_settings(context, named)
  assert smaller.rl.lora.rank == 32
  workdir.prepare_workdir(folder, dataclasses.asdict(smaller))
  monkeypatch.setattr(rl, "available_bytes", lambda: 10**12)
  assert make_settings(context, named) == smaller


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (None, "There is no file"),
    ("", "has no row"),
    ('{"problem": "1+1"}', "is no row of GSM8K: field 'answer'"),
    ("question,answer", "is no row of GSM8K"),
  ],
)
def test_files_are_looked_at_before_anything_runs(
  text, message, tmp_path, named
):
  """Else they would be, minutes later, in the last of the pieces."""
  folder, path = pathlib.Path(named.model), tmp_path / "train.jsonl"
  files = {"train": pathlib.Path(named.train), "held_out": path}
  options = Options(tmp_path, None, 0.0, folder, files)
  if text is not None:
    path.write_text(text)
  with pytest.raises((PieceError, DataError), match=message):
    rl.check_files(options)
  files["held_out"] = files["train"]
  rl.check_files(options)
  with pytest.raises(HuggingFaceError, match=r"config\.json"):
    rl.check_files(dataclasses.replace(options, model=tmp_path))
  with pytest.raises(PieceError, match="it needs --train and --held_out"):
    rl.check_files(dataclasses.replace(options, rl_files={}))


def test_the_alarm_rings_once_and_only_inside():
  with rl.Alarm(60.0) as silent:
    pass
  with (
    pytest.raises(preemption.Terminated),
    preemption.raise_on_sigterm(),
    rl.Alarm(0.05) as alarm,
  ):
    time.sleep(5.0)
  assert alarm.rang and not silent.rang


def test_a_run_without_time_says_so(tmp_path, named):
  context = context_of(tmp_path, 1.0, named)
  with pytest.raises(PieceError, match="over before the first iteration"):
    run_rl(context)
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_of_somebody_else_is_passed_on(tmp_path, named):
  """A scheduler that ends the check must not be taken for its end."""
  context = context_of(tmp_path, 600, named)
  with pytest.raises(preemption.Terminated):
    rl.train_for(600, make_settings(context, named), interrupted(tmp_path))


def interrupted(path):
  """A folder's path; SIGTERM comes when the run first asks for its text."""
  came = []

  class Path(type(path)):
    def __str__(self):
      if not came:
        came.append(True)
        os.kill(os.getpid(), signal.SIGTERM)
      return super().__str__()

  return Path(path / "rl")


@pytest.mark.slow
def test_it_trains_until_the_time_is_over_and_goes_on(tmp_path, named):
  """`python -m pytest -m slow tests/accelerator`: two minutes."""
  counts = []
  for seconds in (80.0, 50.0):
    context = context_of(tmp_path, seconds, named)
    result = run_rl(context)
    assert context.seconds_left() > 0
    counts.append(len(result["iterations"]))
    steps = [row["step"] for row in result["iterations"]]
    assert steps == list(range(1, counts[-1] + 1))
    assert result["evaluations"][0]["step"] == 0
  assert 0 < counts[0] < counts[1]
  folder = tmp_path / "work" / "rl"
  assert (folder / "curves.png").exists()
  checkpoints = [int(p.name) for p in (folder / "rl").glob("*[0-9]")]
  assert max(checkpoints) == counts[1]
