"""Starts the process that runs pieces, and outlives it.

A program that crashes the process, or never ends, then costs its own piece and
no other. Pieces that start processes of their own run in here, where no device
is open: a TPU belongs to one process, and jax takes most of a GPU's memory.
"""

import itertools
import signal
import subprocess
from collections.abc import Sequence

from accelerator import report, runner
from accelerator.pieces import Options, Piece
from pure_jax.host import json_text
from pure_jax.host.atomic_files import write_json_atomic
from pure_jax.host.workers import child_guard
from pure_jax.runs.workdir import collect_versions

# A piece may exceed the deadline by this much: its estimate may be too low.
GRACE_SECONDS = 30.0
# Versions and devices, from the process that opened them.
MACHINE_FILE = "machine.json"


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
    SuperviseError: if jax does not start.
  """
  (options.out / MACHINE_FILE).unlink(missing_ok=True)
  for piece in pieces:
    path = runner.file_of(options.out, pieces, piece)
    record = runner.read_record(path)
    if record is not None and record["status"] == runner.RUNNING:
      path.unlink()  # An earlier start was killed in it.
  for alone, members in itertools.groupby(chosen, lambda piece: piece.alone):
    group = list(members)
    if not alone:
      _run_group(command, group, pieces, options)
    else:
      if not (options.out / MACHINE_FILE).exists():
        _run_group(command, [], pieces, options)
      machine = json_text.parse((options.out / MACHINE_FILE).read_bytes())
      runner.run_pieces(group, pieces, options.on(machine))
    report.write(options.out, pieces, shown)
  return report.write(options.out, pieces, shown)


def run_apart(
  chosen: Sequence[Piece], pieces: Sequence[Piece], options: Options, shown: str
) -> None:
  """Runs pieces in this process, which `supervise` has started."""
  machine = collect_versions()
  write_json_atomic(options.out / MACHINE_FILE, machine)
  for piece in chosen:
    runner.run_pieces([piece], pieces, options.on(machine))
    report.write(options.out, pieces, shown)


def _run_group(
  command: Sequence[str],
  group: Sequence[Piece],
  pieces: Sequence[Piece],
  options: Options,
) -> None:
  """Runs pieces in a process, and those after one that ends it in another."""
  waiting = list(group)
  while True:
    names = ",".join(piece.name for piece in waiting)
    why = _run_process([*command, names], options)
    if why is None:
      return
    died = _find_running(waiting, pieces, options)
    if died is None:
      raise SuperviseError(
        f"The process that runs the pieces {why} between two of them: see its "
        "messages above. Does `python -c 'import jax; print(jax.devices())'` "
        "work?"
      )
    path = runner.file_of(options.out, pieces, died)
    record = runner.read_record(path)
    record |= {"status": runner.FAILED, "error": f"its process {why}"}
    write_json_atomic(path, record)
    runner.tell(died, record)
    waiting = waiting[1 + waiting.index(died) :]
    if not waiting:
      return


def _find_running(
  waiting: Sequence[Piece], pieces: Sequence[Piece], options: Options
) -> Piece | None:
  """The piece whose file says that it has not ended."""
  for piece in waiting:
    record = runner.read_record(runner.file_of(options.out, pieces, piece))
    if record is not None and record["status"] == runner.RUNNING:
      return piece
  return None


def _run_process(command: Sequence[str], options: Options) -> str | None:
  """Waits for a process; returns how it ended too early, or None."""
  process = subprocess.Popen(command)
  child_guard.add(process.pid)
  try:
    status = process.wait(max(0.0, options.seconds_left()) + GRACE_SECONDS)
  except subprocess.TimeoutExpired:
    return f"was stopped {GRACE_SECONDS:.0f} s after the end of --minutes"
  finally:
    process.kill()
    process.wait()
    child_guard.remove(process.pid)
  if status == 0:
    return None
  if status > 0:
    return f"ended with exit status {status}"
  return f"was ended by {signal.Signals(-status).name}"
