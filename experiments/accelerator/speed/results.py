"""The results of speed pieces: rows to read, and with every number as JSON."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from benchmarks.results import line_as_json

from accelerator import checks
from accelerator.speed.rows import Row


def as_result(rows: Sequence[Row], summary: str) -> dict[str, Any]:
  """Makes the result of a piece.

  Args:
    rows: its rows.
    summary: its line.

  Returns:
    What `accelerator` says, and "rows" with sizes, options and every number.
  """
  notes = []
  if any(row.line is not None for row in rows):
    notes = [
      "Programs are compiled at the same time, up to "
      f"{len(os.sched_getaffinity(0))} of them, or come from the user's cache."
    ]
  return {
    "summary": summary,
    "tables": {"Speed": [_columns(row) for row in rows]},
    "rows": _as_json(rows),
    "checks": _failures(rows),
    "notes": notes,
  }


def describe(rows: Sequence[Row]) -> str:
  """Lists tokens per second and the share of the bound of rows that ran."""
  parts = [
    f"{row.name} {row.line.times.rate:,.0f} tokens/s "
    f"({row.line.bound_reached:.0%} of the bound)"
    for row in rows
    if row.line is not None
  ]
  return ", ".join(parts) or "none of the programs ran"


def _as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
  """Converts rows to sizes, options and every number of the benchmark."""
  records = []
  for row in rows:
    record = {"name": row.name, **dataclasses.asdict(row.case)}
    if row.line is None:
      record["why_not"] = row.why
    else:
      record |= line_as_json(row.line) | {"counts": row.unit}
    records.append(record)
  return records


def _failures(rows: Sequence[Row]) -> list[dict[str, Any]]:
  """Lists what is wrong: programs that failed for no foreseen reason."""
  return [
    checks.check(row.name, False, row.why, "runs", "The program must run.")
    for row in rows
    if not row.expected
  ]


def _columns(row: Row) -> dict[str, Any]:
  """The columns of a row to read."""
  if row.line is None:
    return {"row": row.name, "why not": row.why}
  line = row.line
  seconds, limit = line.bound
  compilation = line.arm.compilation
  memory = compilation.memory
  return {
    "row": row.name,
    "seconds": line.times.median,
    "tokens/s": round(line.times.rate, 1),
    "counts": row.unit,
    "bound s": seconds,
    "bound by": limit,
    "of bound": f"{line.bound_reached:.1%}",
    "of matrix rate": f"{line.of_product_rate:.1%}",
    "of bandwidth": f"{line.of_bandwidth:.1%}",
    "GB": memory and round(memory.total / 1e9, 3),
    "compiled in s": round(compilation.seconds, 1),
  }
