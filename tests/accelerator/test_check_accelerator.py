"""The check of an accelerator: it runs here, and it sees what is wrong.

The whole check, with bfloat16, several devices, all kernels and the killed run:

  pytest -m slow tests/accelerator/test_check_accelerator.py
"""

import dataclasses
import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from accelerator import (
  exact,
  kernels,
  numbers,
  report,
  resume,
  runner,
  small_step,
  supervisor,
)
from accelerator import pieces as pieces_module
from accelerator.pieces import Options, Piece, PieceError
from checkout import EXPERIMENTS
from script_in_process import imported_script

MACHINE = {"backend": "cpu", "devices": {"cpu": 8}, "commit": None}
SECONDS = {"tiny": 5, "full": 50}


@pytest.fixture
def options(tmp_path, monkeypatch):
  monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.05)
  return Options(tmp_path, None, time.time() + 100)


@pytest.fixture
def context(options):
  return options.on(MACHINE)


@pytest.fixture(scope="module")
def step():
  """The step in float32; the pieces take it from the cache of `run_step`."""
  return small_step.run_step((jax.devices()[0],), "float32", greedy=True)


def wrong(checks):
  return [line["check"] for line in checks if not line["right"]]


def test_a_step_in_float32_is_that_of_numpy(step, context):
  result = numbers.run_float32(context)
  assert wrong(result["checks"]) == []
  assert len(result["checks"]) == 10
  assert len({tuple(row) for row in step.sampled.tokens}) > 12
  assert np.abs(step.scores.step_rewards).max() > 0.1


def of_other_rows(step):
  """Rows that sampled with the keys of other rows."""
  return step.replace(
    sampled=jax.tree.map(lambda x: np.roll(x, 1, axis=0), step.sampled)
  )


def without_one_bias(step):
  layers = step.gradient["layers"]
  layers = layers | {"key_bias": np.zeros_like(layers["key_bias"])}
  return step.replace(gradient=step.gradient | {"layers": layers})


def with_decayed_norm(step):
  norm = step.params["final_norm"]
  return step.replace(
    params=step.params | {"final_norm": norm * (1 - np.float32(1e-4))}
  )


def with_shifted_scores(step):
  scores = step.scores
  return step.replace(
    scores=scores.replace(
      old_logp=np.roll(scores.old_logp, 1, axis=1),
      step_rewards=scores.step_rewards * np.float32(1 + 1e-4),
    )
  )


def with_not_a_number(step):
  return step.replace(loss=np.float32(np.nan))


@pytest.mark.parametrize(
  ("fault", "seen"),
  [
    (of_other_rows, ["sampled tokens = float64"]),
    (
      without_one_bias,
      ["gradient along a direction = float64", "update = float64"],
    ),
    (with_decayed_norm, ["update = float64"]),
    (
      with_shifted_scores,
      ["policy's log-probs = float64", "step rewards = float64"],
    ),
    (with_not_a_number, ["loss = float64"]),
  ],
)
def test_a_wrong_step_is_seen(step, fault, seen):
  assert wrong(exact.check_exactly(fault(step), "float32")) == seen


def test_another_device_is_compared_with_the_cpu(step):
  """Small differences in tokens, gradient and loss of the other."""
  assert wrong(numbers.check_same(step, step, "float32", "CPU")) == []
  other = of_other_rows(without_one_bias(with_not_a_number(step)))
  (loss, gradient, tokens) = wrong(
    numbers.check_same(other, step, "float32", "CPU")
  )
  assert loss == "loss = CPU"
  assert gradient.endswith("worst ['layers']['key_bias']")
  assert tokens == "sampled tokens = CPU"


def test_the_engine_samples_what_one_loop_does(step, context):
  """Whose rollout it takes from the piece before."""
  steps = small_step.run_step.cache_info().misses
  assert wrong(numbers.run_engine(context)["checks"]) == []
  assert small_step.run_step.cache_info().misses == steps


DECODE = next(each for each in kernels.KERNELS if each.sizes == "decode")
CUDNN = kernels.KERNELS[0]


def test_a_kernel_is_compared_with_its_reference():
  checks = kernels.check_kernel(DECODE, "float32", "tiny", True)
  assert len(checks) == 1
  assert wrong(checks) == []


def test_a_wrong_kernel_is_seen():
  """It attends to the slots that are masked."""

  def unmasked(implementation, interpret, q, keys, values, masks):
    if implementation != "xla":
      masks = tuple(mask | True for mask in masks)
    return DECODE.call("xla", interpret, q, keys, values, masks)

  kernel = dataclasses.replace(DECODE, call=unmasked)
  assert wrong(kernels.check_kernel(kernel, "float32", "tiny", True)) == [
    "decode attention in float32: output 0"
  ]


def test_without_a_cpu_no_kernel_is_compared(monkeypatch, context):
  def missing(platform):
    raise RuntimeError("Unknown backend cpu")

  monkeypatch.setattr(jax, "devices", missing)
  with pytest.raises(PieceError, match="has no CPU to compare with"):
    kernels.run_kernels(context)


def test_no_kernel_is_blamed_for_a_device_that_computes_no_more(
  monkeypatch, context
):
  def broken(*arguments):
    raise RuntimeError("an illegal memory access")

  failing = dataclasses.replace(DECODE, call=broken)
  monkeypatch.setattr(kernels, "KERNELS", (failing, failing))
  monkeypatch.setattr(kernels, "device_answers", lambda: False)
  result = kernels.run_kernels(context)
  assert len(wrong(result["checks"])) == 1
  assert "the device computes no more" in result["tables"]["Kernels"][1]["how"]


def test_a_kernel_that_cannot_run_says_why(monkeypatch, context):
  """One that fails otherwise is wrong, and the next one is still checked."""

  def broken(*arguments):
    raise RuntimeError("the compiler said no")

  failing = dataclasses.replace(DECODE, call=broken, dtypes=("float32",))
  monkeypatch.setattr(kernels, "KERNELS", (failing, CUDNN))
  result = kernels.run_kernels(context)
  assert wrong(result["checks"]) == ["decode attention in float32 runs"]
  assert "the compiler said no" in result["checks"][0]["measured"]
  rows = result["tables"]["Kernels"]
  assert "it needs a GPU and this is a cpu" in rows[1]["how"]


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


def rows_of_run(**changes):
  return [
    {"stage": "rl", "step": step, "loss": changes.get(f"step{step}", step / 3)}
    for step in range(1, 5)
  ]


def test_a_run_that_does_not_continue_exactly_is_seen():
  assert wrong(resume.compare_runs(rows_of_run(), rows_of_run())) == []
  before, after = resume.compare_runs(
    rows_of_run(), rows_of_run(step3=1 + 1e-9)
  )
  assert (before["right"], after["right"]) == (True, False)
  assert after["measured"] == "loss of rl 3 is 1.000000001 in place of 1.0"
  checks = resume.compare_runs(rows_of_run(), rows_of_run(step2=0, step4=0))
  assert len(wrong(checks)) == 2
  assert checks[1]["reason"] == resume.NOISE
  assert len(wrong(resume.compare_runs([], []))) == 2


def test_a_piece_that_does_not_exist_is_named(tmp_path, capsys):
  with (
    imported_script(
      "check_accelerator", f"--out={tmp_path}", "--pieces=machine,sped"
    ) as script,
    pytest.raises(SystemExit),
  ):
    script.main(["check_accelerator"])
  assert "--pieces: no 'sped' among ['machine', " in capsys.readouterr().err


def test_a_model_that_is_none_is_named_before_anything_runs(tmp_path, capsys):
  out = tmp_path / "out"
  words = (
    f"out={out}",
    f"model={tmp_path / 'missing'}",
    "train=a",
    "held_out=b",
  )
  with (
    imported_script("check_accelerator", *words) as script,
    pytest.raises(SystemExit),
  ):
    script.main(["check_accelerator"])
  assert "missing" in capsys.readouterr().err and not out.exists()


@pytest.mark.slow
def test_the_whole_check_is_right_here(tmp_path):
  """As a user starts it, and once more: nothing is run again."""
  command = [
    sys.executable,
    str(EXPERIMENTS / "check_accelerator.py"),
    f"--out={tmp_path}",
    "--minutes=20",
    "--pieces=machine,float32,bfloat16,engine,devices,kernels,resume",
  ]
  first = subprocess.run(command, capture_output=True, text=True, timeout=1200)
  assert first.returncode == 0, first.stdout + first.stderr
  records = [
    json.loads(path.read_text()) for path in sorted(tmp_path.glob("*_*.json"))
  ]
  assert [record["status"] for record in records] == [
    *("done", "right", "right", "right", "done", "right", "right")
  ]
  text = (tmp_path / "report.md").read_text()
  assert "--minutes=20" in text and "--deadline" not in text
  again = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert again.stdout.count("(of the earlier start)") == len(records)


@pytest.mark.slow
def test_several_devices_do_what_one_does(context):
  result = numbers.run_devices(context)
  assert wrong(result["checks"]) == []
  assert "8 devices" in result["summary"]
