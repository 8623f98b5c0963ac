"""Runs pieces in order; each leaves a file as soon as it ends."""

import datetime
import pathlib
import time
import traceback
from collections.abc import Sequence
from typing import Any

from accelerator.pieces import Context, Piece, PieceError
from pure_jax.host import json_text
from pure_jax.host.atomic_files import write_json_atomic
from pure_jax.host.logs import console
from pure_jax.runs.memory import exhausted

# Statuses of a piece whose result stands; "done" has nothing to check.
COMPLETE = ("right", "wrong", "done")
RUNNING, FAILED, SKIPPED = "running", "failed", "not run"
_ADVICE = "The device is too small for the sizes of this piece."


def file_of(
  out: pathlib.Path, pieces: Sequence[Piece], piece: Piece
) -> pathlib.Path:
  """The file of a piece: its place among all pieces, then its name."""
  number = 1 + [other.name for other in pieces].index(piece.name)
  return out / f"{number:02d}_{piece.name}.json"


def read_record(path: pathlib.Path) -> dict[str, Any] | None:
  """Reads the file of a piece; None if it is missing or no such file."""
  try:
    record = json_text.parse(path.read_bytes())
  except (OSError, ValueError):
    return None
  if not isinstance(record, dict) or "status" not in record:
    return None
  return record


def complete_record(record: dict[str, Any] | None) -> dict[str, Any] | None:
  """The record if its result stands, or the earlier one that it has kept."""
  if record is None or record["status"] in COMPLETE:
    return record
  return record.get("earlier")


def identify(context: Context, piece: Piece) -> dict[str, Any]:
  """What must be the same for the result of a killed check to stand."""
  return {
    "size": context.size,
    "model": str(context.model) if piece.needs_model else None,
    "machine": context.machine,
  }


def run_pieces(
  chosen: Sequence[Piece], pieces: Sequence[Piece], context: Context
) -> None:
  """Runs some of all pieces, in order.

  A piece whose file is complete, and of the same device, sizes and versions, is
  not run again. One that fails does not keep the next from running.

  Args:
    chosen: the pieces to run.
    pieces: all pieces of the check, which number the files.
    context: what the pieces are told.
  """
  for piece in chosen:
    path, told = file_of(context.out, pieces, piece), context.for_piece(piece)
    earlier = complete_record(read_record(path))
    if not _must_run(piece, told, earlier) and _stands(piece, told, earlier):
      write_json_atomic(path, earlier)  # A start after it may have failed.
      tell(piece, earlier, " (of the earlier start)")
      continue
    record = {"piece": piece.name, "identity": _identity(piece, told)}
    # Of other versions, or of a run that goes on: a start that fails, or has no
    # time, takes nothing from it.
    kept = {"earlier": earlier} if earlier else {}
    why = why_not(piece, told)
    if why is not None:
      record |= kept | {"status": SKIPPED, "error": why}
    else:
      # If the process dies, the file tells in which piece.
      write_json_atomic(path, record | kept | {"status": RUNNING})
      record |= run_piece(piece, told)
      if record["status"] not in COMPLETE:
        record |= kept
    write_json_atomic(path, record)
    tell(piece, record)


def can_run(piece: Piece, pieces: Sequence[Piece], context: Context) -> bool:
  """Whether `run_pieces` would do more with a piece than write why it is not.

  Args:
    piece: the piece.
    pieces: all pieces of the check, which number the files.
    context: what the pieces are told.
  """
  told = context.for_piece(piece)
  earlier = complete_record(read_record(file_of(context.out, pieces, piece)))
  return _must_run(piece, told, earlier)


def _identity(piece: Piece, context: Context) -> Any:
  return json_text.to_json(identify(context, piece))


def _stands(
  piece: Piece, context: Context, earlier: dict[str, Any] | None
) -> bool:
  """Whether an earlier start has a result of the same device and versions."""
  return earlier is not None and earlier["identity"] == _identity(
    piece, context
  )


def _must_run(
  piece: Piece, context: Context, earlier: dict[str, Any] | None
) -> bool:
  """Whether a piece has something to do, and can start."""
  done = _stands(piece, context, earlier) and not piece.continues
  return not done and why_not(piece, context) is None


def why_not(piece: Piece, context: Context) -> str | None:
  """Says why a piece does not start; None if it does."""
  if piece.needs_model and context.model is None:
    return "it needs --model=FOLDER"
  needed, left = piece.seconds[context.size], context.seconds_left()
  if left < needed:
    others = f" besides {context.reserved:.0f} s for rl"
    return (
      f"it may take {needed:.0f} s, and {max(0, left):.0f} s are left"
      f"{others if context.reserved and not piece.continues else ''}"
    )
  return None


def run_piece(piece: Piece, context: Context) -> dict[str, Any]:
  """Runs a piece; returns its status, seconds, and result or error."""
  date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  start = time.perf_counter()
  try:
    result = json_text.to_json(piece.run(context))
  # Whatever it is, the pieces after this one may still tell something.
  except Exception as error:
    outcome = {"status": FAILED, "error": _sentence(error)}
    if not isinstance(error, PieceError):
      outcome["traceback"] = traceback.format_exc()
  else:
    verdicts = [line["right"] for line in result.get("checks", ())]
    status = ("right" if all(verdicts) else "wrong") if verdicts else "done"
    outcome = {"status": status, "result": result}
  seconds = time.perf_counter() - start
  return {"date": date, "seconds": round(seconds, 2), **outcome}


def _sentence(error: Exception) -> str:
  """What happened, in one line."""
  if isinstance(error, PieceError):
    return str(error)
  memory = exhausted.explain(error, _ADVICE)
  lines = str(error).strip().splitlines() or [""]
  return memory or f"{type(error).__name__}: {lines[0]}"[:500]


def tell(piece: Piece, record: dict[str, Any], suffix: str = "") -> None:
  """Prints the line of a piece that has ended."""
  seconds = record.get("seconds")
  took = "" if seconds is None else f" in {seconds:.1f} s"
  what = record.get("error") or record["result"].get("summary", "")
  console.show(f"{piece.name}: {record['status']}{took}{suffix}. {what}")
