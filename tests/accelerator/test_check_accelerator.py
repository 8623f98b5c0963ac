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
from accelerator.pieces import Options, Piece, PieceError
from checkout import EXPERIMENTS
from script_in_process import imported_script

MACHINE = {"backend": "cpu", "devices": {"cpu": 8}, "commit": None}
SECONDS = {"tiny": 5, "full": 50}


@pytest.fixture
def options(tmp_path):
  return Options(tmp_path, None, time.time() + 100)


@pytest.fixture
def context(options):
  return options.on(MACHINE)


@pytest.fixture(scope="module")
def step():
  """The step in float32; the pieces take it from the cache of `run_step`."""
  return small_step.run_step((jax.devices()[0],), "float32")


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
  assert wrong(numbers.run_engine(context)["checks"]) == []


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


# A process in place of the one that runs pieces: it starts a piece and dies, or
# hangs, or runs the rest. It imports nothing, which takes no time.
CHILD = """
import json, os, pathlib, sys, time
out, names = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
(out / "machine.json").write_text('{"backend": "cpu", "devices": {"cpu": 1}}')
for name in names:
  file = out / f"0{'abc'.index(name) + 1}_{name}.json"
  file.write_text('{"status": "running"}')
  if name == "a":
    os.abort()
  if name == "c":
    time.sleep(1000)
  file.write_text('{"status": "done", "seconds": 0.0, "result": {}}')
"""


def test_a_piece_that_ends_its_process_costs_no_other(
  options, monkeypatch, capsys
):
  """a crashes, b ends, c never does, and d runs while nothing else does."""
  monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.0)
  pieces = [
    *(piece(name, refuse) for name in "abc"),
    piece("d", lambda context: {"summary": context.platform}, alone=True),
  ]
  options = dataclasses.replace(options, deadline=time.time() + 1.5)
  pieces[3] = dataclasses.replace(pieces[3], seconds={"tiny": -100})
  command = [sys.executable, "-c", CHILD, str(options.out)]
  assert not supervisor.supervise(command, pieces, pieces, options, "command")
  records = [
    runner.read_record(runner.file_of(options.out, pieces, each))
    for each in pieces
  ]
  assert records[0]["error"] == "its process was ended by SIGABRT"
  assert records[1]["status"] == "done"
  assert "after the end of --minutes" in records[2]["error"]
  assert records[3]["result"]["summary"] == "cpu"
  assert "SIGABRT" in (options.out / report.FILE).read_text()


def test_a_process_that_dies_before_a_piece_ends_the_check(options):
  pieces = [piece("a", refuse)]
  command = [sys.executable, "-c", "import sys; sys.exit(3)"]
  with pytest.raises(
    supervisor.SuperviseError, match="ended with exit status 3"
  ):
    supervisor.supervise(command, pieces, pieces, options, "command")


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
  again = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert again.stdout.count("(of the earlier start)") == len(records)


@pytest.mark.slow
def test_several_devices_do_what_one_does(context):
  result = numbers.run_devices(context)
  assert wrong(result["checks"]) == []
  assert "8 devices" in result["summary"]
