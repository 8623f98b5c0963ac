"""Resume after a kill: a killed and continued run equals one that was not.

The runs are processes of their own. This piece opens no device, so that they
can: see `Piece.alone`.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from accelerator.checks import check
from accelerator.pieces import Context, PieceError
from pure_jax.host.workers import child_guard

TRAIN = pathlib.Path(__file__).parents[1] / "train_pure.py"
CONFIG = "configs/qwen2p5_math_1p5b.py:smoke_vr_one_loop"
ITERATIONS, CHECKPOINT_EVERY = 4, 2
# Killed when the metrics of this iteration are written: after a checkpoint, and
# with an iteration behind it that is computed again.
KILL_AT = 3
OPTIONS = (
  f"--config.rl.iterations={ITERATIONS}",
  f"--config.rl.checkpoint_every={CHECKPOINT_EVERY}",
  f"--config.rl.eval_every={ITERATIONS}",
  "--config.rl.eval_prompts=4",
  "--config.rl.packed_tokens=None",
  # High enough that every update shows in the metrics of the next rollout.
  "--config.rl.optim.learning_rate=1e-3",
)
# XLA's flag for sums in the same order each time; it only matters on a GPU.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
POLL_SECONDS = 0.005
# If the device does not repeat itself, the kill is not to blame.
NOISE = "the rows before the kill differ as well: the device does not repeat"
_TIMINGS = ("seconds", "_per_second")


def run_resume(context: Context) -> dict[str, Any]:
  """Compares an uninterrupted run with one that was killed and continued.

  Args:
    context: what the piece is told.

  Returns:
    A check of all metrics, and the rows of both runs.

  Raises:
    PieceError: if a run fails, or ends before it could be killed.
  """
  folder = context.folder("resume")
  whole, killed = folder / "whole", folder / "killed"
  for path in (whole, killed):
    shutil.rmtree(path, ignore_errors=True)  # Of a check that was killed.
  variables = environment(context)
  try:
    seconds = [_finish(context, folder, whole, variables)]
  except PieceError:
    log = (folder / "whole.log").read_text(errors="replace")
    if DETERMINISTIC not in variables.get("XLA_FLAGS", "") or (
      DETERMINISTIC.strip("-").partition("=")[0] not in log
    ):
      raise
    # This version of XLA does not know the flag, and names it in its error.
    variables["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "")
    seconds = [_finish(context, folder, whole, variables)]
  seconds.append(_kill(context, folder, killed, variables))
  last = read_rows(killed)[-1]["step"]
  seconds.append(_finish(context, folder, killed, variables))
  whole_rows, continued_rows = read_rows(whole), read_rows(killed)
  return {
    "summary": (
      f"killed in iteration {last + 1} of {ITERATIONS}, continued, "
      f"{len(whole_rows)} rows of metrics compared"
    ),
    "checks": compare_runs(whole_rows, continued_rows),
    "tables": {
      "Processes": [
        {"process": name, "seconds": round(each, 1)}
        for name, each in zip(
          ("uninterrupted", "killed", "continued"), seconds, strict=True
        )
      ]
    },
    "rows": {"uninterrupted": whole_rows, "continued": continued_rows},
  }


def environment(context: Context) -> dict[str, str]:
  """The variables of the runs, the same for all of them.

  The runs are tiny, and another process may still hold memory: they take it as
  they need it. On a CPU they are compiled without LLVM's optimiser.
  """
  variables = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  if context.platform == "gpu":
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}"
    variables["XLA_FLAGS"] = flags.strip()
  if context.platform == "cpu":
    variables["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  return variables


@contextlib.contextmanager
def _started(folder, workdir, variables) -> Iterator[tuple[Any, pathlib.Path]]:
  """Starts a run, whose output goes to a file, and kills it at the end."""
  log = folder / f"{workdir.name}.log"
  with log.open("ab") as file:
    process = subprocess.Popen(
      [
        sys.executable,
        str(TRAIN),
        f"--config={TRAIN.parent / CONFIG}",
        f"--workdir={workdir}",
        # The second and third run need not compile.
        f"--compilation_cache={folder / 'programs'}",
        *OPTIONS,
      ],
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=subprocess.STDOUT,
      env=variables,
    )
  child_guard.add(process.pid)
  try:
    yield process, log
  finally:
    process.kill()
    process.wait()
    child_guard.remove(process.pid)


def _finish(context, folder, workdir, variables) -> float:
  """Runs to the end; returns the seconds."""
  start = time.perf_counter()
  with _started(folder, workdir, variables) as (process, log):
    try:
      status = process.wait(max(1.0, context.seconds_left()))
    except subprocess.TimeoutExpired:
      raise PieceError(
        f"the run in {workdir} had not ended when the time was over"
      ) from None
  if status:
    raise PieceError(f"a run ended with status {status}: {_last_words(log)}")
  return time.perf_counter() - start


def _kill(context, folder, workdir, variables) -> float:
  """Runs until `KILL_AT` and kills the process; returns the seconds."""
  start = time.perf_counter()
  with _started(folder, workdir, variables) as (process, log):
    while process.poll() is None and not _has_reached(workdir):
      if context.seconds_left() < 0:
        raise PieceError("the time was over before the run could be killed")
      time.sleep(POLL_SECONDS)
  if process.returncode != -signal.SIGKILL:
    raise PieceError(
      f"the run ended by itself with status {process.returncode} before it "
      f"could be killed: {_last_words(log)}"
    )
  return time.perf_counter() - start


def _has_reached(workdir) -> bool:
  """Whether the metrics of iteration `KILL_AT` are written."""
  try:
    return any(
      row["stage"] == "rl" and row["step"] >= KILL_AT
      for row in read_rows(workdir)
    )
  except (OSError, ValueError):  # Not there yet, or half a line.
    return False


def _last_words(log) -> str:
  """The last line of a log."""
  lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
  return next((line for line in reversed(lines) if line.strip()), "no output")


def read_rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the metrics of a run without its timings."""
  text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
  return [
    {
      name: value
      for name, value in json.loads(line).items()
      if not name.endswith(_TIMINGS)
    }
    for line in text.splitlines()
  ]


def compare_runs(
  whole_rows: Sequence[dict[str, Any]],
  continued_rows: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
  """Compares the metrics of two runs, before and after the kill.

  The checkpoint before the kill is of iteration `CHECKPOINT_EVERY`, so later
  rows are computed by the continued run.

  Args:
    whole_rows: rows of the uninterrupted run.
    continued_rows: rows of the run that was killed and continued.

  Returns:
    One check for the rows up to the checkpoint and one for those after it.
  """
  checks = []
  for name, is_part in (
    ("before the kill", lambda row: row["step"] <= CHECKPOINT_EVERY),
    ("after it", lambda row: row["step"] > CHECKPOINT_EVERY),
  ):
    ours = [row for row in continued_rows if is_part(row)]
    theirs = [row for row in whole_rows if is_part(row)]
    difference = first_difference(theirs, ours)
    reason = "the checkpoint has weights, moments, keys and order of the data"
    if name == "before the kill":
      reason = "the same programs on the same inputs: the device repeats itself"
    elif difference and not checks[0]["right"]:
      reason = NOISE
    checks.append(
      check(
        f"metrics of the continued run {name} = of the uninterrupted one",
        difference is None and len(theirs) > 0,
        difference or f"{len(theirs)} rows equal",
        "equal",
        reason,
      )
    )
  return checks


def first_difference(
  whole_rows: Sequence[dict[str, Any]],
  continued_rows: Sequence[dict[str, Any]],
) -> str | None:
  """Says where two lists of rows differ first; None if they do not."""
  if len(continued_rows) != len(whole_rows):
    return f"{len(continued_rows)} rows in place of {len(whole_rows)}"
  for ours, theirs in zip(continued_rows, whole_rows, strict=True):
    for name in {**theirs, **ours}:
      if ours.get(name) != theirs.get(name):
        return (
          f"{name} of {theirs['stage']} {theirs['step']} is {ours.get(name)!r} "
          f"in place of {theirs.get(name)!r}"
        )
  return None
