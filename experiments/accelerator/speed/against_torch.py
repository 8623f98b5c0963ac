"""Rollouts of transformers and a training step of torch, on the same weights.

Two pieces: the first draws the weights, writes them as a Hugging Face folder
and times our programs. The second runs torch in processes of its own while no
process of the check holds the device: jax reserves most of a GPU's memory when
it opens it, and gives none back.
"""

import importlib.metadata
import importlib.util
import pathlib
import shutil
import sys
import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from benchmarks import batches
from benchmarks.baselines.preparation import MAX_POSITIONS, draw_experience
from benchmarks.baselines.process import Process
from benchmarks.bounds import count_weights
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import init_policy
from benchmarks.suites.training import OPTIMIZER, step_spec

from accelerator import checks
from accelerator.pieces import Context, PieceError
from accelerator.speed import programs, results, timings
from accelerator.speed.rows import Group, Row
from accelerator.speed.sizes import make_cases
from pure_jax.advantages import pure_advantages
from pure_jax.host import huggingface, json_text
from pure_jax.host.atomic_files import write_json_atomic
from pure_jax.training.micro_batches import count_micro_batches

REPEATS = 3
DEVICES = {"gpu": "cuda", "cpu": "cpu"}
# In float32: of the loss as a share of an advantage, and of the norm.
TOLERANCE = 1e-3
_OURS, _BATCH = "ours.json", "batch.npz"


def time_ours(context: Context) -> dict[str, Any]:
  """Writes random weights and a batch, and times our programs on them.

  Args:
    context: what the piece is told.

  Returns:
    The rows of a rollout and an update; why not, if torch cannot run here.
  """
  why = _obstacle(context)
  if why is not None:
    return {"summary": why}
  cases = make_cases(context)
  shape, rows, texts = cases.sizes.baseline
  decode, update = (
    cases.decode(shape, rows),
    cases.texts("update", shape, texts),
  )
  folder = context.folder("torch")
  (folder / _OURS).unlink(missing_ok=True)
  _export(folder / "policy", update)
  np.savez(folder / _BATCH, **_draw_batch(decode, update))
  measured = timings.measure(
    context,
    [
      Group(
        lambda: programs.rollout_weights(decode),
        [programs.decode_program("rollout", decode)],
      ),
      Group(
        lambda: programs.update_weights(update),
        [programs.update_program("update", update)],
      ),
    ],
  )
  ours = {row.name: _as_record(row) for row in measured if row.line is not None}
  write_json_atomic(folder / _OURS, {"dtype": cases.options.dtype, **ours})
  return results.as_result(measured, results.describe(measured))


def compare_with_torch(context: Context) -> dict[str, Any]:
  """Times transformers' `generate` and a step of torch.

  It opens no device in this process.

  Args:
    context: what the piece is told.

  Returns:
    A row for each, with the ratio of its seconds to ours. In float32 the step
    must have our loss and gradient norm.

  Raises:
    PieceError: if a script of torch fails, or the first piece did not run.
  """
  why = _obstacle(context)
  if why is not None:
    return {"summary": why}
  folder = context.folder("torch")
  if not (folder / _OURS).exists() or not (folder / "policy").exists():
    raise PieceError(
      "our own times, or the weights, are missing: remove the file of "
      "torch_ours, and repeat the check with it"
    )
  ours = json_text.parse((folder / _OURS).read_bytes())
  with np.load(folder / _BATCH) as saved:
    batch = dict(saved)
  rows, verdicts = [], []
  try:
    if "rollout" in ours:
      rows.append(_time_generate(context, folder, ours, batch))
    if "update" in ours:
      row, answer = _time_step(context, folder, ours, batch)
      rows.append(row)
      if ours["dtype"] == "float32":
        verdicts = _check_step(answer, ours["update"], batch["advantages"])
  except BenchmarkError as error:
    # The weights stay for a repeated check.
    raise PieceError(str(error)) from error
  shutil.rmtree(folder / "policy", ignore_errors=True)  # Gigabytes.
  summary = ", ".join(
    f"{row['row']} takes {row['times ours']:.2f} times as long as ours"
    for row in rows
  )
  return {
    "summary": summary or "none of our programs ran",
    "tables": {"Torch": rows},
    "checks": verdicts,
  }


def _obstacle(context: Context) -> str | None:
  """Says why torch cannot run here; None if it can."""
  for name in ("torch", "transformers"):
    if importlib.util.find_spec(name) is None:
      return f"{name} is not installed, so there is nothing to compare with"
  if context.platform not in DEVICES:
    return f"torch does not run on the platform {context.platform!r} here"
  version = importlib.metadata.version("torch")
  if context.platform == "gpu" and version.endswith("+cpu"):
    return f"torch {version} is a build for CPUs"
  return None


def _export(folder: pathlib.Path, case: Case) -> None:
  """Writes the weights that every program of the case reads."""
  shutil.rmtree(folder, ignore_errors=True)
  needed = 4 * count_weights(case.model_config)
  free = shutil.disk_usage(folder.parent).free
  if free < 2 * needed:
    raise PieceError(
      f"the weights need {needed / 1e9:,.1f} GB in {folder}, and the disk has "
      f"{free / 1e9:,.1f} GB"
    )
  huggingface.export_policy(
    folder, init_policy(case), case.model_config, max_positions=MAX_POSITIONS
  )


def _draw_batch(decode: Case, update: Case) -> dict[str, np.ndarray]:
  """Prompts of the rollout, and the batch of the update with its advantages."""
  experience = draw_experience(update)
  credit = step_spec(update).credit
  advantages, _ = jax.jit(pure_advantages, static_argnums=1)(experience, credit)
  rollout = batches.draw_rollout(update)
  arrays = {
    "decode_prompts": batches.draw_prompts(decode).tokens,
    "prompts": rollout.prompt_tokens,
    "completions": rollout.tokens,
    "advantages": advantages,
    "old_logp": experience.old_logp,
  }
  return {name: np.asarray(array) for name, array in arrays.items()}


def _as_record(row: Row) -> dict[str, Any]:
  """What the second piece needs of a row."""
  options, case = row.case.options, row.case
  reference = row.line.arm.reference
  return {
    "seconds": row.seconds,
    "tokens": row.line.times.work,
    "model": case.model,
    "vocab_size": case.vocab_size,
    "samples": case.samples,
    "new_tokens": case.new_tokens,
    "micro_batches": count_micro_batches(case.rows, options.rows_at_a_time),
    "remat": options.remat in ("layer", "offload"),
    "clip": step_spec(case).loss.clip_low,
    "reference": None if reference is None else list(map(float, reference)),
  }


def _time_generate(
  context: Context,
  folder: pathlib.Path,
  ours: Mapping[str, Any],
  batch: Mapping[str, np.ndarray],
) -> dict[str, Any]:
  """Times transformers' `generate` on prompts without padding."""
  case = ours["rollout"]
  seconds, versions, _ = _run(
    context,
    "transformers_sampler.py",
    {"policy": str(folder / "policy"), "dtype": ours["dtype"]},
    {
      "tokens": batch["decode_prompts"],
      "samples": case["samples"],
      "new_tokens": case["new_tokens"],
      "pad_id": batches.PAD_ID,
      "lengths": None,
      "greedy": False,
    },
  )
  return _row("transformers' generate", seconds, case, versions)


def _time_step(
  context: Context,
  folder: pathlib.Path,
  ours: Mapping[str, Any],
  batch: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], dict[str, float]]:
  """Times a training step; the second result is its first loss and norm."""
  case = ours["update"]
  names = ("prompts", "completions", "advantages", "old_logp")
  seconds, versions, first = _run(
    context,
    "torch_step.py",
    {"policy": str(folder / "policy"), "dtype": ours["dtype"]},
    {
      "batch": {name: batch[name].tolist() for name in names},
      "micro_batches": case["micro_batches"],
      "clip": case["clip"],
      "remat": case["remat"],
      "optimizer": {
        name: getattr(OPTIMIZER, name)
        for name in (
          *("learning_rate", "beta1", "beta2"),
          *("weight_decay", "max_grad_norm"),
        )
      },
    },
  )
  return _row("torch's training step", seconds, case, versions), first


def _run(
  context: Context,
  script: str,
  loaded: Mapping[str, Any],
  prepared: Mapping[str, Any],
) -> tuple[float, dict[str, str], dict[str, Any]]:
  """Runs a script: median seconds, versions, and its first answer."""
  device = DEVICES[context.platform]
  with Process("torch", sys.executable, script) as process:
    # A call waits for as long as the script takes.
    timer = threading.Timer(max(1.0, context.seconds_left()), process.kill)
    timer.start()
    try:
      info = process.call("load", **loaded, device=device)
      process.call("prepare", **prepared)
      process.call("run")  # Warms up.
      first = process.call("answer")
      seconds = [process.call("run")["seconds"] for _ in range(REPEATS)]
    finally:
      timer.cancel()
  return float(np.median(seconds)), info["versions"], first


def _row(
  name: str,
  seconds: float,
  ours: Mapping[str, Any],
  versions: Mapping[str, str],
) -> dict[str, Any]:
  """The columns of a row."""
  return {
    "row": f"{name}, {ours['model']}",
    "seconds": seconds,
    "tokens/s": round(ours["tokens"] / seconds, 1),
    "ours, seconds": ours["seconds"],
    "times ours": seconds / ours["seconds"],
    "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
  }


def _check_step(
  answer: Mapping[str, float],
  ours: Mapping[str, Any],
  advantages: np.ndarray,
) -> list[dict[str, Any]]:
  """Compares the first step with ours; the loss is a mean that cancels."""
  loss, norm = ours["reference"]
  scale = np.abs(advantages).mean()
  tolerance = TOLERANCE + 2 / ours["vocab_size"]
  reason = "Only ours gives padding no probability."
  return [
    checks.compare(name, [value], [expected], tolerance, reason)
    for name, value, expected in (
      # As shares of the mean advantage, from 1.
      (
        "loss of torch, ours",
        1 + answer["loss"] / scale,
        1 + loss / scale,
      ),
      ("gradient norm of torch, ours", answer["grad_norm"], norm),
    )
  ]
