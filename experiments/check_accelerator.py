"""Checks what an accelerator computes and how fast, in the time that there is.

  python experiments/check_accelerator.py --out=DIR --minutes=10
  python experiments/check_accelerator.py --out=DIR --minutes=30 \\
    --model=FOLDER --train=train.jsonl --held_out=test.jsonl
  python experiments/check_accelerator.py --out=DIR --pieces=float32,kernels

It runs on whatever jax finds, piece by piece. Each piece prints a line and
writes its file, DIR/NN_NAME.json, as soon as it ends; DIR/report.md has all of
them to read. A piece starts only if its upper estimate fits into the time left.
By these estimates, which have not been measured, ten minutes hold the
comparisons and decoding of the 1.5B shape, and all pieces but rl take a little
over 20. The same command continues a check that was killed: pieces whose files
are complete are not run again, unless device, sizes or versions are others.

  machine    devices, memory, versions; measured bandwidth and matrix rates
  float32    rollouts, scores, gradient and update of a small model, compared
             with numpy in float64 and, on an accelerator, with the CPU
  bfloat16   the same in bfloat16
  engine     continuous batching, compared with one loop
  devices    several devices, compared with one
  kernels    every kernel, and its gradient if it has one, compared with its
             reference, or why it cannot run here
  resume     a run that is killed and continued, compared with one that is not
  decode_*   decoding with 1 to 256 rows, against the bandwidth
  steps_*    prefill, scores, and updates of all weights and of adapters,
             against the matrix rate
  *_choices  which attention, chunks and remat make scores and updates fastest
  int8       rollouts with matrices or the cache in int8
  torch*     rollouts of transformers and a step of torch on the same weights
  rl         with --model: RL on GSM8K for the time that is left; a repeated
             check goes on with it

A comparison that does not hold, or a piece that fails, makes the exit status 1;
a piece that is not run does not. Pieces run in a process of their own: a crash,
or an error after which the device computes no more, ends only its own piece. A
piece is stopped if it takes two and a half times its estimate, though not in
its first 100 s, or is not done 30 s after --minutes. With --model, two fifths
of the time are kept for rl. The sizes are tiny on a CPU, where times mean
nothing, and full elsewhere.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import itertools
import logging
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from absl import app, flags
from accelerator import report, supervisor
from accelerator.correctness import (
  run_bfloat16,
  run_devices,
  run_engine,
  run_float32,
)
from accelerator.kernels import run_kernels
from accelerator.machine import run_machine
from accelerator.pieces import SIZES, Options, Piece, PieceError, reserve
from accelerator.resume import run_resume
from accelerator.rl import check_files, run_rl
from accelerator.speed.table import SPEED_PIECES

from pure_jax.host.atomic_files import check_writable
from pure_jax.host.logs import console
from pure_jax.runs.exit_status import USER_ERRORS

# All pieces, in order. Seconds are the most that a piece may need.
PIECES = (
  Piece("machine", {"tiny": 10, "full": 40}, run_machine),
  Piece("float32", {"tiny": 20, "full": 80}, run_float32),
  Piece("bfloat16", {"tiny": 20, "full": 80}, run_bfloat16),
  Piece("engine", {"tiny": 15, "full": 50}, run_engine),
  Piece("devices", {"tiny": 20, "full": 40}, run_devices),
  Piece("kernels", {"tiny": 20, "full": 60}, run_kernels),
  Piece("resume", {"tiny": 45, "full": 150}, run_resume, alone=True),
  *SPEED_PIECES,
  Piece(
    "rl",
    {"tiny": 60, "full": 180},
    run_rl,
    needs_model=True,
    continues=True,
  ),
)

_OUT = flags.DEFINE_string("out", None, "Folder of the results.")
_MINUTES = flags.DEFINE_float("minutes", 10.0, "Time for all pieces.")
flags.register_validator(
  _MINUTES,
  lambda minutes: 0 <= minutes <= 1e6,
  message="must be between 0 and 1e6",
)
_MODEL = flags.DEFINE_string(
  "model", None, "Hugging Face folder of the policy that rl trains."
)
_RL_FILES = {
  flag.name: flag
  for flag in (
    flags.DEFINE_string(
      "train", None, "With --model: GSM8K's train.jsonl, the problems of RL."
    ),
    flags.DEFINE_string(
      "held_out", None, "With --model: GSM8K's test.jsonl, for evaluations."
    ),
    flags.DEFINE_string(
      "prm", None, "With --model: folder of a PRM; None: outcome rewards."
    ),
  )
}
_SIZE = flags.DEFINE_enum(
  "size", None, SIZES, "Of models and batches; tiny on a CPU, full elsewhere."
)
_PIECES = flags.DEFINE_list(
  "pieces", [piece.name for piece in PIECES], "The pieces to run."
)
# Set by the script for the process that it starts, after all other words.
_DEADLINE = flags.DEFINE_float("deadline", None, "Internal: set by the script.")
_GROUP = flags.DEFINE_list("group", None, "Internal: set by the script.")
flags.register_validator(
  _DEADLINE,
  lambda deadline: deadline is None or 0 <= deadline <= 1e12,
  message="must be between 0 and 1e12",
)


def main(argv: list[str]) -> None:
  """Runs the pieces; the exit status is 1 if something is wrong."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  logging.getLogger("absl").setLevel(logging.WARNING)
  by_name = {piece.name: piece for piece in PIECES}
  unknown = [name for name in _PIECES.value if name not in by_name]
  if unknown:
    fail(f"--pieces: no {unknown[0]!r} among {list(by_name)}.")
  chosen = [piece for piece in PIECES if piece.name in _PIECES.value]
  options = make_options(chosen)
  out = options.out
  internal = "--deadline="
  words = itertools.takewhile(lambda x: not x.startswith(internal), sys.argv)
  shown = shlex.join(["python", *words])
  if _DEADLINE.value is not None:
    group = [piece for piece in chosen if piece.name in _GROUP.value]
    supervisor.run_apart(group, PIECES, options, shown)
    return
  if options.model is not None and any(piece.needs_model for piece in chosen):
    try:
      check_files(options)
    except (PieceError, *USER_ERRORS) as error:
      fail(f"rl: {error}")
  try:
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out)
  except OSError as error:
    fail(f"--out={out} cannot be written: {error}.")
  # jax would take 75 % of a GPU.
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
  command = [
    sys.executable,
    *sys.argv,
    f"{internal}{options.deadline}",
    "--group",
  ]
  try:
    right = supervisor.supervise(command, chosen, PIECES, options, shown)
  except supervisor.SuperviseError as error:
    fail(str(error))
  console.show(f"The report is {out / report.FILE}")
  if not right:
    sys.exit(1)


def make_options(chosen: Sequence[Piece]) -> Options:
  """Reads the flags that pieces are told."""
  model = _MODEL.value and pathlib.Path(_MODEL.value).absolute()
  seconds = 60 * _MINUTES.value
  return Options(
    out=pathlib.Path(_OUT.value).absolute(),
    size=_SIZE.value,
    deadline=_DEADLINE.value or time.time() + seconds,
    model=model,
    rl_files={
      name: pathlib.Path(flag.value).absolute()
      for name, flag in _RL_FILES.items()
      if flag.value is not None
    },
    reserved={} if model is None else reserve(chosen, seconds),
  )


def fail(reason: str) -> NoReturn:
  """Ends the script with a sentence."""
  console.tell(f"error: {reason}")
  sys.exit(1)


if __name__ == "__main__":
  flags.mark_flag_as_required("out")
  interrupts.run(app.run, main)
