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
    path = file_of(context.out, pieces, piece)
    identity = json_text.to_json(identify(context, piece))
    earlier = read_record(path)
    why = why_not(piece, context)
    stands = earlier is not None and earlier["status"] in COMPLETE
