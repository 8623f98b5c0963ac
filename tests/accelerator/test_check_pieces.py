"""Pieces of the check: order, time, and processes that do not end well."""

import dataclasses
import json
import sys
import time

import numpy as np
import pytest
from accelerator import pieces as pieces_module
from accelerator import report, runner, supervisor
from accelerator.pieces import Options, Piece, PieceError

MACHINE = {"backend": "cpu", "devices": {"cpu": 8}, "commit": None}
SECONDS = {"tiny": 5, "full": 50}


@pytest.fixture
def options(tmp_path, monkeypatch):
  monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.05)
  return Options(tmp_path, None, time.time() + 100)


@pytest.fixture
def context(options):
  return options.on(MACHINE)


def piece(name, run, **fields):
  return Piece(name, SECONDS, run, **fields)


def fail(context):
  raise PieceError("there is no such thing")


def crash(context):
  raise ZeroDivisionError("by zero")


def refuse(context):
  raise AssertionError("it must not start")


CHECKED = {"checks": [{"check": "a = b", "right": True, "measured": "0"}]}
FALSE = {"checks": [{"check": "a = c", "right": False, "measured": "1"}]}
for _result in (CHECKED, FALSE):
  _result["checks"][0].update({"allowed": "equal", "reason": "mathematics"})


def test_every_piece_leaves_a_file(context, capsys):
  """One that fails, in a foreseen way or not, does not keep the next off."""
  pieces = [
    piece("a", lambda context: {"summary": "so much", "value": np.inf}),
    piece("b", lambda context: CHECKED),
    piece("c", lambda context: FALSE),
    piece("d", fail),
    piece("e", crash),
    piece("f", refuse, needs_model=True),
    dataclasses.replace(piece("g", refuse), seconds={"tiny": 1e6}),
  ]
  runner.run_pieces(pieces, pieces, context)
  records = [
    json.loads((context.out / f"0{i}_{name}.json").read_text())
    for i, name in enumerate("abcdefg", 1)
  ]
  assert [record["status"] for record in records] == [
    *("done", "right", "wrong", "failed", "failed", "not run", "not run")
  ]
  assert records[0]["result"] == {"summary": "so much", "value": None}
  assert records[3]["error"] == "there is no such thing"
  assert records[4]["error"] == "ZeroDivisionError: by zero"
  assert "crash" in records[4]["traceback"]
  assert records[5]["error"] == "it needs --model=FOLDER"
  assert "it may take 1000000 s" in records[6]["error"]
  assert capsys.readouterr().out.count("\n") == len(pieces)
  assert not report.write(context.out, pieces, "command")
  text = (context.out / "report.md").read_text()
  assert "| a = c | **no** | 1 | equal | mathematics |" in text
  assert report.write(context.out, pieces[:2], "command")


def test_a_check_that_was_killed_goes_on(options):
  """What is complete is not run again, unless the machine is another one."""
  runs = []

  def count(name, result=None):
    def run(context):
      runs.append(name)
      if result is None:
        fail(context)
      return result

    return piece(name, run)

  pieces = [count("right", CHECKED), count("wrong", FALSE), count("failed")]
  for machine, expected in (
    (MACHINE, ["right", "wrong", "failed"]),
    (MACHINE, ["failed"]),
    (MACHINE | {"commit": "1234"}, ["right", "wrong", "failed"]),
  ):
    runs.clear()
    runner.run_pieces(pieces, pieces, options.on(machine))
    assert runs == expected
  # Of another machine, without time: what is complete is kept.
  late = dataclasses.replace(options, deadline=time.time())
  runner.run_pieces(pieces, pieces, late.on(MACHINE))
  record = runner.read_record(runner.file_of(options.out, pieces, pieces[0]))
  assert record["status"] == "not run"
  assert record["earlier"]["result"] == CHECKED


# A process in place of the one that runs pieces: it runs them, but dies in a,
# never ends c, dies after x, and does not end after z. It imports nothing,
# which takes no time.
CHILD = """
import json, os, pathlib, sys, time
out, names = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
(out / "machine.json").write_text('{"backend": "cpu", "devices": {"cpu": 1}}')
for number, name in enumerate(names, 1):
  (file,) = out.glob(f"*_{name}.json")
  file.write_text('{"status": "running"}')
  if name == "a":
    os.abort()
  if name == "c":
    time.sleep(1000)
  file.write_text('{"status": "done", "seconds": 0.0, "result": {}}')
  (out / "ended.json").write_text(json.dumps(names[:number]))
  if name == "x":
    sys.exit(71)
  if name == "z":
    time.sleep(1000)
"""


def supervise(options, pieces):
  """Runs pieces with `CHILD`; their records, and whether all were right."""
  files = [runner.file_of(options.out, pieces, each) for each in pieces]
  for file in files:
    file.touch()  # The child finds it.
  command = [sys.executable, "-c", CHILD, str(options.out)]
  right = supervisor.supervise(command, pieces, pieces, options, "command")
  return right, [runner.read_record(file) for file in files]


def test_a_piece_that_ends_its_process_costs_no_other(
  options, monkeypatch, capsys
):
  """a crashes, b ends, c never does, and d runs while nothing else does."""
  monkeypatch.setattr(pieces_module, "LEAST_SECONDS", 0.2)
  pieces = [
    *(piece(name, refuse) for name in "abc"),
    piece("d", lambda context: {"summary": context.platform}, alone=True),
    piece("e", refuse),
  ]
  pieces[2] = dataclasses.replace(pieces[2], seconds={"tiny": 0.1})
  right, records = supervise(options, pieces)
  assert not right
  assert records[0]["error"] == "its process was ended by SIGABRT"
  assert records[1]["status"] == "done"
  assert records[2]["error"] == "its process was stopped after 0 s"
  assert records[3]["result"]["summary"] == "cpu"
  assert records[4]["status"] == "done"
  assert "SIGABRT" in (options.out / report.FILE).read_text()
  assert not (options.out / supervisor.ENDED_FILE).exists()


def test_a_piece_is_stopped_after_the_time_of_the_check(options, monkeypatch):
  """No process is started for those after it, which say why they do not run."""
  monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.0)
  options = dataclasses.replace(options, deadline=time.time() + 0.5)
  pieces = [piece("c", refuse), piece("b", refuse)]
  pieces[0] = dataclasses.replace(pieces[0], seconds={"tiny": 0.1})
  starts = []
  run = supervisor._run_process
  monkeypatch.setattr(
    supervisor, "_run_process", lambda *told: starts.append(1) or run(*told)
  )
  _, records = supervise(options, pieces)
  assert "after the end of --minutes" in records[0]["error"]
  assert records[1]["status"] == "not run" and len(starts) == 1


def test_a_piece_is_stopped_in_the_time_of_another(options, monkeypatch):
  monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.2)
  kept = options.seconds_left() - 0.5
  options = dataclasses.replace(options, reserved={"tiny": kept})
  pieces = [dataclasses.replace(piece("c", refuse), seconds={"tiny": 0.1})]
  _, (record,) = supervise(options, pieces)
  assert record["error"] == "its process was stopped after 1 s"
  assert options.seconds_left() > 50


def test_a_process_that_dies_between_pieces_costs_none(
  options, monkeypatch, capsys
):
  """As one whose device computes no more, or that does not end well."""
  right, records = supervise(options, [piece(name, refuse) for name in "bxd"])
  assert right and [each["status"] for each in records] == ["done"] * 3
  said = "ended because its device computes no more, after x."
  assert said in capsys.readouterr().out
  (options.out / "other").mkdir()
  other = dataclasses.replace(options, out=options.out / "other")
  right, _ = supervise(other, [piece("x", refuse)])
  assert right
  (options.out / "last").mkdir()
  last = dataclasses.replace(options, out=options.out / "last")
  monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.2)
  right, _ = supervise(last, [piece("z", refuse)])
  assert right


def test_a_process_ends_itself_if_its_device_computes_no_more(
  options, monkeypatch
):
  statuses, ran = [], []

  def leave(message, status):
    statuses.append(status)
    raise SystemExit

  def run(context):
    ran.append(1)
    return {}

  machine = MACHINE | {"backend": "gpu"}
  monkeypatch.setattr(supervisor, "collect_versions", lambda: machine)
  monkeypatch.setattr(supervisor, "exit_immediately", leave)
  pieces = [piece("a", run), piece("b", run)]
  supervisor.run_apart(pieces, pieces, options, "command")
  assert (len(ran), statuses) == (2, [])  # Of a GPU that answers.
  monkeypatch.setattr(supervisor, "device_answers", lambda: False)
  pieces = [piece("d", run), piece("e", run)]
  with pytest.raises(SystemExit):
    supervisor.run_apart(pieces, pieces, options, "command")
  assert (len(ran), statuses) == (3, [supervisor.DEVICE_FAILED])
  assert json.loads((options.out / "ended.json").read_text()) == ["d"]


def test_a_check_that_was_killed_in_a_piece_that_goes_on_keeps_its_record(
  options,
):
  steady = piece("a", refuse, needs_model=True, continues=True)
  earlier = {"piece": "a", "status": "done", "identity": {}, "result": {}}
  path = runner.file_of(options.out, [steady], steady)
  path.write_text(json.dumps({"status": "running", "earlier": earlier}))
  command = [sys.executable, "-c", "pass"]
  supervisor.supervise(command, [], [steady], options, "command")
  assert runner.read_record(path) == earlier


def test_a_process_that_dies_before_a_piece_ends_the_check(options):
  pieces = [piece("a", refuse)]
  command = [sys.executable, "-c", "import sys; sys.exit(3)"]
  with pytest.raises(
    supervisor.SuperviseError, match="ended with exit status 3"
  ):
    supervisor.supervise(command, pieces, pieces, options, "command")


def test_a_piece_has_its_own_deadline(options):
  """Twice its estimate, and nothing of what is kept for one that goes on."""
  steady = piece("a", refuse, needs_model=True, continues=True)
  pieces = [piece("b", refuse), steady]
  assert pieces_module.reserve(pieces[:1], 600) == {"tiny": 0, "full": 0}
  assert pieces_module.reserve(pieces, 30) == {"tiny": 12, "full": 0}
  assert pieces_module.reserve(pieces, 60) == {"tiny": 24, "full": 50}
  context = options.on(MACHINE)
  left = context.for_piece(pieces[0]).seconds_left()
  assert left == pytest.approx(pieces_module.LEAST_SECONDS, abs=5)
  long = dataclasses.replace(pieces[0], seconds={"tiny": 45})
  left = context.for_piece(long).seconds_left()
  assert left == pytest.approx(90, abs=5)
  kept = dataclasses.replace(options, reserved={"tiny": 97}).on(MACHINE)
  assert "s are left besides 97 s for rl" in runner.why_not(
    pieces[0], kept.for_piece(pieces[0])
  )
  told = dataclasses.replace(kept, model=options.out)
  assert runner.why_not(steady, told.for_piece(steady)) is None
