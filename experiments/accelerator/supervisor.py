"""Starts the process that runs pieces, and outlives it.

If a piece crashes its process, breaks the device or hangs, only that piece is
lost. Pieces that start processes of their own run
in here, where no device is open: a TPU belongs to one process, and jax takes
most of a GPU's memory.
"""

import itertools
import math
import signal
import subprocess
import time
from collections.abc import Sequence

from accelerator import report, runner
from accelerator.machine import device_answers
from accelerator.pieces import Context, Options, Piece
from pure_jax.host import json_text
from pure_jax.host.atomic_files import write_json_atomic
from pure_jax.host.distributed.processes import exit_immediately
from pure_jax.host.logs import console
from pure_jax.host.workers import child_guard
from pure_jax.runs.workdir import collect_versions

# A piece may exceed the deadline by this much: its estimate may be too low. A
# process may take as long to end after its last piece.
GRACE_SECONDS = 30.0
# A piece is stopped after this multiple of the time in which it should end.
PATIENCE = 1.25
POLL_SECONDS = 0.5
# Exit status of a process whose device computes no more.
DEVICE_FAILED = 71
# Versions and devices, from the process that opened them.
MACHINE_FILE = "machine.json"
# Names of the pieces that have ended in the process that runs, in order.
ENDED_FILE = "ended.json"


class SuperviseError(RuntimeError):
  """The check cannot go on; the message says why."""


def supervise(
  command: Sequence[str],
  chosen: Sequence[Piece],
  pieces: Sequence[Piece],
  options: Options,
  shown: str,
) -> bool:
  """Runs pieces in processes of their own, or in here if they are alone.

  Args:
    command: starts a process that calls `run_apart` with the pieces whose names
      follow it, separated by commas.
    chosen: the pieces to run.
    pieces: all pieces, which number the files.
    options: what the command line says.
    shown: the command line for the report.

  Returns:
    Whether every piece that ran was right.

  Raises:
    SuperviseError: if jax does not start, at first or after a crash.
  """
  (options.out / MACHINE_FILE).unlink(missing_ok=True)
  for piece in pieces:
    path = runner.file_of(options.out, pieces, piece)
    record = runner.read_record(path)
    if record is not None and record["status"] == runner.RUNNING:
      # An earlier start was killed in it.
      if (earlier := runner.complete_record(record)) is None:
        path.unlink()
      else:
        write_json_atomic(path, earlier)
  for alone, members in itertools.groupby(chosen, lambda piece: piece.alone):
    group = list(members)
    if not alone:
      _run_group(command, group, pieces, options)
    else:
      if not (options.out / MACHINE_FILE).exists():
        _run_group(command, [], pieces, options)
      runner.run_pieces(group, pieces, _context(options))
    report.write(options.out, pieces, shown)
  (options.out / ENDED_FILE).unlink(missing_ok=True)
  return report.write(options.out, pieces, shown)


def run_apart(
  chosen: Sequence[Piece], pieces: Sequence[Piece], options: Options, shown: str
) -> None:
  """Runs pieces in this process, which `supervise` has started."""
  machine = collect_versions()
  write_json_atomic(options.out / MACHINE_FILE, machine)
  for number, piece in enumerate(chosen, 1):
    runner.run_pieces([piece], pieces, options.on(machine))
    report.write(options.out, pieces, shown)
    write_json_atomic(
      options.out / ENDED_FILE, [each.name for each in chosen[:number]]
    )
    # After some errors a GPU computes nothing more for its process, which may
    # not even end.
    if machine["backend"] != "cpu" and not device_answers():
      exit_immediately("", DEVICE_FAILED)


def _context(options: Options) -> Context:
  """What pieces are told on the machine that a process has described."""
  return options.on(json_text.parse((options.out / MACHINE_FILE).read_bytes()))


def _run_group(
  command: Sequence[str],
  group: Sequence[Piece],
  pieces: Sequence[Piece],
  options: Options,
) -> None:
  """Runs pieces in a process, and those after one that ends it in another."""
  described = options.out / MACHINE_FILE
  waiting = list(group)
  while waiting or not described.exists():
    if described.exists():
      context = _context(options)
      if not any(runner.can_run(each, pieces, context) for each in waiting):
        runner.run_pieces(waiting, pieces, context)  # It says why.
        return
    (options.out / ENDED_FILE).unlink(missing_ok=True)
    names = ",".join(piece.name for piece in waiting)
    why = _run_process([*command, names], waiting, pieces, options)
    if why is None:
      return
    died = _find_running(waiting, pieces, options)
    if died is not None:
      path = runner.file_of(options.out, pieces, died)
      record = runner.read_record(path)
      record |= {"status": runner.FAILED, "error": f"its process {why}"}
      write_json_atomic(path, record)
      runner.tell(died, record)
      waiting = waiting[1 + waiting.index(died) :]
      continue
    ended = _count_ended(options)
    if waiting and ended:
      console.show(f"The process {why}, after {waiting[ended - 1].name}.")
    elif waiting or not described.exists():
      raise SuperviseError(
        f"The process that runs the pieces {why} before the first of them: see "
        "its messages above. Does `python -c 'import jax; "
        "print(jax.devices())'` work?"
      )
    waiting = waiting[ended:]


def _count_ended(options: Options) -> int:
  """The number of pieces that have ended in the last process."""
  path = options.out / ENDED_FILE
  return len(json_text.parse(path.read_bytes())) if path.exists() else 0


def _find_running(
  waiting: Sequence[Piece], pieces: Sequence[Piece], options: Options
) -> Piece | None:
  """The piece whose file says that it has not ended."""
  for piece in waiting:
    record = runner.read_record(runner.file_of(options.out, pieces, piece))
    if record is not None and record["status"] == runner.RUNNING:
      return piece
  return None


def _limit(piece: Piece, options: Options) -> float:
  """Seconds after which a piece is stopped; 0 in the time of another."""
  context = _context(options)
  left = context.seconds_left() - context.reserved
  if not piece.continues and left < -GRACE_SECONDS:
    return 0.0
  return PATIENCE * piece.most_seconds(context.size)


def _run_process(
  command: Sequence[str],
  group: Sequence[Piece],
  pieces: Sequence[Piece],
  options: Options,
) -> str | None:
  """Waits for a process; returns how it ended too early, or None."""
  process = subprocess.Popen(command)
  child_guard.add(process.pid)
  running, since = None, time.monotonic()
  try:
    while process.poll() is None:
      if options.seconds_left() < -GRACE_SECONDS:
        return f"was stopped {GRACE_SECONDS:.0f} s after the end of --minutes"
      piece = _find_running(group, pieces, options)
      if piece is not running:
        running, since = piece, time.monotonic()
      limit = math.inf
      if running is not None:
        limit = _limit(running, options)
      elif 0 < len(group) == _count_ended(options):
        limit = GRACE_SECONDS
      took = time.monotonic() - since
      if took > limit:
        return f"was stopped after {took:.0f} s"
      time.sleep(POLL_SECONDS)
    status = process.wait()
  finally:
    process.kill()
    process.wait()
    child_guard.remove(process.pid)
  if status == 0:
    return None
  if status == DEVICE_FAILED:
    return "ended because its device computes no more"
  if status > 0:
    return f"ended with exit status {status}"
  return f"was ended by {signal.Signals(-status).name}"
