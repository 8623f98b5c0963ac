"""report.md: all pieces of a check, to read."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from accelerator import runner
from accelerator.pieces import Piece
from pure_jax.host.atomic_files import write_text_atomic

FILE = "report.md"


def write(out: pathlib.Path, pieces: Sequence[Piece], command: str) -> bool:
  """Writes the report from the files of the pieces.

  Args:
    out: folder of the check.
    pieces: all pieces of the check.
    command: the command line.

  Returns:
    Whether every piece that ran was right: none was wrong, none failed.
  """
  records = {
    piece.name: runner.read_record(runner.file_of(out, pieces, piece))
    for piece in pieces
  }
  started = {
    name: record for name, record in records.items() if record is not None
  }
  lines = ["# Check of an accelerator", "", f"    {command}", ""]
  lines += _table([_overview(name, item) for name, item in started.items()])
  for name, record in started.items():
    lines += ["", f"## {name}", "", *_details(record)]
  write_text_atomic(out / FILE, "\n".join(lines).rstrip() + "\n")
  bad = ("wrong", runner.FAILED, runner.RUNNING)
  return not any(record["status"] in bad for record in started.values())


def _overview(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
  """The row of a piece in the first table."""
  result = record.get("result", {})
  return {
    "piece": name,
    "status": record["status"],
    "seconds": record.get("seconds"),
    "": record.get("error") or result.get("summary", ""),
  }


def _details(record: Mapping[str, Any]) -> Iterable[str]:
  """The lines of a piece."""
  if "error" in record:
    yield f"{record['error']}."
  if "earlier" in record:
    yield from ("", f"Of an earlier start ({record['earlier']['date']}):", "")
    yield from _details(record["earlier"])
  result = record.get("result", {})
  for note in result.get("notes", ()):
    yield f"- {note}"
  if result.get("notes"):
    yield ""
  shown = ("check", "right", "measured", "allowed", "reason")
  checks = result.get("checks", ())
  yield from _table([{name: row.get(name) for name in shown} for row in checks])
  for title, rows in result.get("tables", {}).items():
    yield from ("", f"### {title}", "")
    yield from _table(rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """A table of Markdown; a row may lack columns."""
  columns = list(dict.fromkeys(name for row in rows for name in row))
  if not columns:
    return []
  cells = [[_cell(row.get(name)) for name in columns] for row in rows]
  lines = [columns, ["---"] * len(columns), *cells]
  return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: Any) -> str:
  """A value in one cell."""
  if value is None:
    return ""
  if isinstance(value, bool):
    return "yes" if value else "**no**"
  if isinstance(value, float):
    return f"{value:.4g}"
  return " ".join(str(value).split()).replace("|", "\\|")
