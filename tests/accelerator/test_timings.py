"""Timings of the check: choices, summaries, and torch."""

import dataclasses
import functools
import json
import time

import numpy as np
import pytest
from accelerator.pieces import Context, PieceError
from accelerator.speed import against_torch, timings
from accelerator.speed.rows import Row
from accelerator.speed.sizes import SIZES, make_cases
from accelerator.speed.table import SPEED_PIECES
from benchmarks import machine
from benchmarks.bounds import Phase, Rates
from benchmarks.cases import MODELS, BenchmarkError
from benchmarks.results import Line
from benchmarks.timing import Arm, Compilation, Times
from script_in_process import imported_script

from pure_jax.runs.planning.compiler import Memory

COMPILATION = Compilation(1.0, Memory(1, 1, 0, 1), None)


@pytest.fixture
def context(tmp_path):
  return Context(tmp_path, "tiny", {"backend": "cpu"}, time.time() + 600)


def timed_row(name, case, seconds):
  arm = Arm(None, 10, [Phase(1.0, 1.0)], COMPILATION)
  line = Line(name, arm, Times((seconds,), 10), Rates(1.0, 1.0))
  return Row(name, case, "tokens", line)


@pytest.fixture
def measured(monkeypatch):
  """Seconds by the options in which a case differs; the cases, in order."""
  seconds, order = {}, []

  def measure(context, groups):
    measured = []
    for group in groups:
      for program in group.programs:
        if isinstance(program, Row):
          measured.append(program)
          continue
        order.append(program.name)
        row = timed_row(
          program.name, program.case, seconds.get(program.name, 1.0)
        )
        measured.append(row)
    return measured

  monkeypatch.setattr(timings, "measure", measure)
  return seconds, order


def test_the_best_of_each_setting_are_measured_together(context, measured):
  """And the summary names the fastest, with its ratio to the defaults."""
  seconds, order = measured
  seconds |= {"defaults": 2.0, "attention_chunk=8": 1.6, "remat=dots": 1.8}
  seconds |= {"logits_chunk=6": 2.2}
  together = "remat=dots, attention_chunk=8"
  seconds[together] = 1.25
  result = timings.update_choices(context)
  assert order == [
    *("defaults", "attention_chunk=8", "logits_chunk=6", "remat=dots"),
    together,
  ]
  assert result["summary"] == (
    f"update: {together} is 1.60 times as fast as the defaults"
  )
  # cuDNN and splash say why not, in their rows.
  speed = result["tables"]["Speed"]
  tpu, gpu = (row["why not"] for row in speed if "why not" in row)
  assert "runs on a TPU only" in tpu and "runs on a GPU only" in gpu
  assert result["checks"] == []


def test_defaults_that_are_fastest_are_not_measured_again(context, measured):
  seconds, order = measured
  seconds |= dict.fromkeys(("attention_chunk=8", "logits_chunk=6"), 1.5)
  result = timings.score_choices(context)
  assert order == ["defaults", "attention_chunk=8", "logits_chunk=6"]
  assert result["summary"] == "scores: the defaults are fastest"


def test_an_update_that_cannot_fit_says_so_and_adapters_are_compared(
  context, measured, monkeypatch
):
  """Its weights, gradients and moments alone exceed the memory."""
  seconds, order = measured
  # 16 bytes for each of 22,816 weights.
  monkeypatch.setattr(timings, "available_bytes", lambda: 320_000)
  result = timings.steps(context, "7B")
  assert order == ["prefill", "scores of 3 models", "update of adapters"]
  (row,) = [r for r in result["tables"]["Speed"] if "why not" in r]
  assert row["row"] == "update of all weights" and "GB" in row["why not"]
  assert "times as fast" not in result["summary"]
  monkeypatch.setattr(timings, "available_bytes", machine.available_bytes)
  seconds |= {"update of all weights": 3.0, "update of adapters": 2.0}
  result = timings.steps(context, "7B")
  assert "adapters are updated 1.50 times as fast" in result["summary"]


def test_int8_rollouts_are_compared_with_those_that_are_not(context, measured):
  seconds, _ = measured
  seconds |= {"tiny, matrices in int8": 0.5, "tiny, cache in int8": 2.0}
  result = timings.int8(context)
  assert result["summary"] == (
    "matrices in int8: 2.00 times as fast; cache in int8: 0.50 times as fast"
  )
  assert [row["options"]["cache_dtype"] for row in result["rows"]] == [
    *(None, None, None, "int8")
  ]
  assert [row["options"]["int8_matrices"] for row in result["rows"]] == [
    *(False, True, False, False)
  ]


def test_full_sizes_are_those_that_were_asked_for(context):
  """Three published shapes, decoded with 1 to 256 rows in bfloat16."""
  machine = {"backend": "gpu"}
  full = dataclasses.replace(context, size="full", machine=machine)
  cases = make_cases(full)
  for shape, name in (("0.5B", "qwen2p5_0p5b"), ("7B", "qwen2p5_7b")):
    rows = cases.sizes.decode_rows[shape]
    assert tuple(rows) == (1, 8, 64, 256)
    for case in (cases.decode(shape, n) for n in rows):
      assert case.model == name and case.options.dtype == "bfloat16"
      assert case.rows % case.samples == 0
  update = cases.texts("update", "1.5B")
  assert update.options.remat == "layer"  # As in configs/files.py.
  assert update.rows % update.options.rows_at_a_time == 0
  for sizes in SIZES.values():
    assert set(sizes.models.values()) <= MODELS.keys()


def test_rates_are_those_of_the_piece_of_this_machine(context, monkeypatch):
  """They are measured only if they are missing, or of another machine."""
  monkeypatch.setattr(
    timings, "measure_rates", lambda _: {"float32": 5, "read": 6, "copy": 4}
  )
  path = context.out / "01_machine.json"
  rates = {"float32": 1.0, "bfloat16": 2.0, "read": 3.0, "copy": 4.0}
  record = {"status": "done", "result": {"rates": rates}}
  assert timings.machine_rates(context) == Rates(5, 6)
  for backend, expected in (("cpu", Rates(1.0, 4.0)), ("gpu", Rates(5, 6))):
    identity = {"machine": {"backend": backend}}
    path.write_text(json.dumps(record | {"identity": identity}))
    assert timings.machine_rates(context) == expected


def test_torch_is_left_out_where_it_cannot_run(context, monkeypatch):
  """Its absence is no fault of the device."""
  installed = {"torch", "transformers"}
  monkeypatch.setattr(
    against_torch.importlib.util,
    "find_spec",
    lambda name: name in installed or None,
  )
  on_tpu = dataclasses.replace(context, machine={"backend": "tpu"})
  runs = against_torch.time_ours, against_torch.compare_with_torch
  for run in runs:
    assert "on the platform 'tpu'" in run(on_tpu)["summary"]
  on_gpu = dataclasses.replace(context, machine={"backend": "gpu"})
  monkeypatch.setattr(
    against_torch.importlib.metadata, "version", lambda name: "2.13.0+cpu"
  )
  for run in runs:
    assert run(on_gpu)["summary"] == "torch 2.13.0+cpu is a build for CPUs"
  installed.remove("torch")
  for run in runs:
    assert "torch is not installed" in run(context)["summary"]


def test_the_weights_stay_until_torch_has_run(context, monkeypatch):
  """A repeated check finds them."""
  folder = context.folder("torch")
  weights = folder / "policy"
  weights.mkdir()
  (folder / "ours.json").write_text('{"dtype": "float32", "rollout": {}}')
  np.savez(folder / "batch.npz", tokens=1)

  def fail(*unused):
    raise BenchmarkError("the disk is full")

  monkeypatch.setattr(against_torch, "_obstacle", lambda context: None)
  monkeypatch.setattr(against_torch, "_time_generate", fail)
  with pytest.raises(PieceError, match="the disk is full"):
    against_torch.compare_with_torch(context)
  assert weights.exists()
  row = {"row": "generate", "times ours": 2.0}
  monkeypatch.setattr(against_torch, "_time_generate", lambda *unused: row)
  assert "2.00 times" in against_torch.compare_with_torch(context)["summary"]
  assert not weights.exists()
  with pytest.raises(PieceError, match="or the weights, are missing"):
    against_torch.compare_with_torch(context)


def test_a_step_of_torch_must_have_our_loss_and_gradient():
  ours = {"reference": [0.001, 2.0], "vocab_size": 10**6}
  advantages = np.array([[1.0, -1.0], [2.0, -2.0]])

  def verdicts(loss, norm):
    answer = {"loss": loss, "grad_norm": norm}
    found = against_torch._check_step(answer, ours, advantages)
    return [line["right"] for line in found]

  assert verdicts(0.0015, 2.001) == [True, True]
  assert verdicts(0.004, 2.001) == [False, True]
  assert verdicts(0.001, 2.01) == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("piece", SPEED_PIECES[:-2], ids=lambda p: p.name)
def test_every_program_of_every_piece_runs(piece, context):
  """`python -m pytest -m slow tests/accelerator`: half a minute each."""
  result = piece.run(context)
  assert result["checks"] == []
  ran = [row for row in result["rows"] if "why_not" not in row]
  assert ran and all(row["median_seconds"] > 0 for row in ran)
  for row in result["rows"]:
    if "why_not" in row:
      assert row["options"]["attention"] in ("splash", "cudnn")


@pytest.mark.slow
def test_torch_takes_the_same_step_on_the_same_weights(context):
  """transformers and torch run in processes of their own."""
  pytest.importorskip("torch", reason="torch comes with [test]")
  against_torch.time_ours(context)
  assert (context.folder("torch") / "policy").exists()
  result = against_torch.compare_with_torch(context)
  assert [line["right"] for line in result["checks"]] == [True, True]
  assert [row["times ours"] > 0 for row in result["tables"]["Torch"]] == [
    *(True, True)
  ]
  assert not (context.folder("torch") / "policy").exists()


def test_torch_is_the_only_piece_without_the_device():
  with imported_script("check_accelerator") as script:
    by_name = {piece.name: piece for piece in script.PIECES}
  assert {piece.name for piece in SPEED_PIECES} < by_name.keys()
  assert [piece.name for piece in SPEED_PIECES if piece.alone] == ["torch"]
  assert by_name["rl"].continues and by_name["rl"].needs_model
  partials = [
    piece for piece in SPEED_PIECES if isinstance(piece.run, functools.partial)
  ]
  assert len(partials) == 6  # Three shapes are decoded, three have steps.
