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
  correctness,
  exact,
  kernels,
  resume,
  small_step,
)
from accelerator.pieces import Options, PieceError
from checkout import EXPERIMENTS
from script_in_process import imported_script

MACHINE = {"backend": "cpu", "devices": {"cpu": 8}, "commit": None}


@pytest.fixture
def context(tmp_path):
  return Options(tmp_path, None, time.time() + 100).on(MACHINE)


@pytest.fixture(scope="module")
def step():
  """The step in float32; the pieces take it from the cache of `run_step`."""
  return small_step.run_step((jax.devices()[0],), "float32", greedy=True)


def wrong(checks):
  return [line["check"] for line in checks if not line["right"]]


def test_a_step_in_float32_is_that_of_numpy(step, context):
  result = correctness.run_float32(context)
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
  assert wrong(correctness.check_same(step, step, "float32", "CPU")) == []
  other = of_other_rows(without_one_bias(with_not_a_number(step)))
  (loss, gradient, tokens) = wrong(
    correctness.check_same(other, step, "float32", "CPU")
  )
  assert loss == "loss = CPU"
  assert gradient.endswith("worst ['layers']['key_bias']")
  assert tokens == "sampled tokens = CPU"


def test_the_engine_samples_what_one_loop_does(step, context):
  """Whose rollout it takes from the piece before."""
  steps = small_step.run_step.cache_info().misses
  assert wrong(correctness.run_engine(context)["checks"]) == []
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
  result = correctness.run_devices(context)
  assert wrong(result["checks"]) == []
  assert "8 devices" in result["summary"]
