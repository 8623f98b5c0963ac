"""Correctness of a small training step."""

from typing import Any

import jax
import numpy as np

from accelerator import small_step
from accelerator.checks import check, compare
from accelerator.exact import check_exactly
from accelerator.pieces import Context
from accelerator.small_step import StepResult, find_cpu
from accelerator.tolerances import tolerance


def run_float32(context: Context) -> dict[str, Any]:
  """Checks the step in float32 with the highest precision of products.

  Args:
    context: what the piece is told.

  Returns:
    Checks of tokens, log-probs, rewards, loss, gradient and update.
  """
  return _check_dtype(context, "float32")


def run_bfloat16(context: Context) -> dict[str, Any]:
  """Checks the step in bfloat16, with looser tolerances.

  Args:
    context: what the piece is told.

  Returns:
    Checks as `run_float32`, without tokens, which rounding changes.
  """
  return _check_dtype(context, "bfloat16")


def _check_dtype(context, dtype):
  """Runs the step on the default device and on the CPU, and compares."""
  exact = dtype == "float32"
  result = small_step.run_step((jax.devices()[0],), dtype, greedy=exact)
  checks = check_exactly(result, dtype)
  notes = [
    "float64 is a decoder in numpy that shares no code with the models; the "
    "derivative is a central difference of its loss."
  ]
  if context.platform == "cpu":
    notes.append(
      "This is the CPU: there is no other device to compare with, and float64 "
      "alone says whether it is right."
    )
  else:
    on_cpu = small_step.run_step((find_cpu(),), dtype, greedy=exact)
    checks += check_same(result, on_cpu, dtype, "CPU")
  right = sum(line["right"] for line in checks)
  return {
    "summary": f"{right} of {len(checks)} comparisons in {dtype} hold",
    "checks": checks,
    "notes": notes,
  }


def run_engine(context: Context) -> dict[str, Any]:
  """Checks that continuous batching samples what one loop does, in float32.

  Args:
    context: what the piece is told.

  Returns:
    Checks of tokens and log-probs.
  """
  del context
  device = jax.devices()[0]
  # As in `run_float32`, whose result is taken.
  loop = small_step.run_step((device,), "float32", greedy=True).sampled
  with small_step.precision_of("float32"):
    layout = small_step.make_layout([device])
    rollout = jax.device_get(small_step.sample_by_engine(layout, "float32"))
  share = (loop.tokens == rollout.tokens).mean()
  return {
    "summary": f"{share:.1%} of the engine's tokens are those of one loop",
    "checks": [
      check(
        "engine's tokens = one loop",
        share == 1,
        f"{share:.1%} equal",
        "equal",
        "a row samples with its own keys, whatever the other slots do",
      ),
      compare(
        "engine's log-probs = one loop",
        rollout.sampled_logp,
        loop.sampled_logp,
        *tolerance("float32", "log-probs"),
      ),
    ],
  }


def run_devices(context: Context) -> dict[str, Any]:
  """Checks that several devices do what one does, in float32.

  Weights and rows are split over the largest power of two of them, at most 8.

  Args:
    context: what the piece is told.

  Returns:
    Checks as of the CPU in `run_float32`; a note if there is one device.
  """
  count = 2 ** int(np.log2(min(context.num_devices, 8)))
  if count == 1:
    note = "There is one device: nothing was split."
    return {"summary": note, "notes": [note]}
  devices = jax.devices()
  alone = small_step.run_step((devices[0],), "float32", greedy=True)
  split = small_step.run_step(tuple(devices[:count]), "float32", greedy=False)
  checks = check_same(split, alone, "float32", "one device")
  right = sum(line["right"] for line in checks)
  return {
    "summary": f"{right} of {len(checks)} comparisons of {count} devices hold",
    "checks": checks,
  }


def check_same(
  result: StepResult, other: StepResult, dtype: str, name: str
) -> list[dict[str, Any]]:
  """Compares a step with the same step on other devices.

  Args:
    result: what the device computed.
    other: what the others computed.
    dtype: the compute dtype of both.
    name: of the others.

  Returns:
    The checks.
  """
  rows = [
    ("policy's log-probs", lambda r: r.scores.old_logp, "log-probs"),
    ("reference's log-probs", lambda r: r.scores.ref_logp, "log-probs"),
    ("step rewards", lambda r: r.scores.step_rewards, "rewards"),
    ("loss", lambda r: r.loss, "loss"),
    ("norm of the gradient", lambda r: r.grad_norm, "gradient"),
  ]
  checks = [
    compare(
      f"{what} = {name}", read(result), read(other), *tolerance(dtype, of)
    )
    for what, read, of in rows
  ]
  # The worst weight alone: a table of all of them says no more.
  pairs = jax.tree_util.tree_leaves_with_path(result.gradient)
  allowed, reason = tolerance(dtype, "gradient")
  worst = max(
    (
      compare(
        f"gradient of weights = {name}, worst {jax.tree_util.keystr(path)}",
        gradient,
        small_step.leaf(other.gradient, path),
        allowed,
        reason,
      )
      for path, gradient in pairs
    ),
    key=lambda line: line["difference"],
  )
  checks.append(worst)
  if dtype == "float32":
    reason = "the same keys give the same noise, and no token is a close call"
    for what, ours, theirs in (
      ("sampled", result.sampled, other.sampled),
      ("greedy", result.greedy, other.greedy),
    ):
      if ours is None:
        continue
      share = (ours.tokens == theirs.tokens).mean()
      checks.append(
        check(
          f"{what} tokens = {name}",
          share == 1,
          f"{share:.1%} equal",
          "equal",
          reason,
        )
      )
  return checks
