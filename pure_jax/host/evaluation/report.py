"""Writes an evaluation as a table, as JSON and as a picture.

A report is plain data: tables by title; in each table columns by name (say
benchmarks, or the levels of one); in each column metrics by name, each an
`intervals.Estimate`. A metric that a column lacks is an empty cell. A number
that is not finite is null in JSON, and not drawn.
"""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pure_jax.host.atomic_files import (
  replace_atomic,
  write_json_atomic,
  write_text_atomic,
)
from pure_jax.host.evaluation.intervals import Estimate
from pure_jax.host.logs.visible import markdown, visible

JSON_FILE = "report.json"
MARKDOWN_FILE = "report.md"
PICTURE_FILE = "report.png"

Table = Mapping[str, Mapping[str, Estimate]]

_PANELS_IN_A_ROW = 4


def write_report(
  folder: str | os.PathLike, title: str, tables: Mapping[str, Table]
) -> list[pathlib.Path]:
  """Writes ``report.json``, ``report.md`` and ``report.png``.

  Args:
    folder: an existing folder.
    title: heading of the Markdown, "title" of the JSON.
    tables: results by table, column and metric. Tables and columns without a
      metric are in the JSON only.

  Returns:
    The files written. The picture is missing if there is nothing to draw.
  """
  folder = pathlib.Path(folder)
  sections = [f"# {markdown(title)}"]
  for name, table in tables.items():
    text = render_table(table)
    if text:
      sections.append(f"## {markdown(name)}\n\n{visible(text)}")
  write_json_atomic(folder / JSON_FILE, {"title": title, "tables": tables})
  write_text_atomic(folder / MARKDOWN_FILE, "\n\n".join(sections) + "\n")
  written = [folder / JSON_FILE, folder / MARKDOWN_FILE]
  if plot_tables(tables, folder / PICTURE_FILE):
    written.append(folder / PICTURE_FILE)
  return written


def render_table(table: Table) -> str:
  """Renders a Markdown table with aligned columns, readable in a terminal.

  Args:
    table: estimates by column and metric.

  Returns:
    Lines without a newline at the end: a header; the number of problems of
    each column, a range if its metrics differ in it; and a row for each metric,
    "value [low, high]". Numbers below 10 have three decimals, larger ones one,
    an int none; a dash stands for a number that is not finite. Empty if no
    column has a metric.

  >>> accuracy = {"value": 0.5, "count": 40, "interval": [0.35, 0.65]}
  >>> print(render_table({"amc23": {"pass@1": accuracy}}))
  |          | amc23                |
  |----------|----------------------|
  | problems | 40                   |
  | pass@1   | 0.500 [0.350, 0.650] |
  """
  columns = {name: column for name, column in table.items() if column}
  if not columns:
    return ""
  metrics = dict.fromkeys(m for column in columns.values() for m in column)
  rows = [["", *columns], ["problems", *map(_counts, columns.values())]]
  for metric in metrics:
    cells = [_cell(c[metric]) if metric in c else "" for c in columns.values()]
    rows.append([metric, *cells])
  rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows
  ]
  lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
  return "\n".join(lines)


def plot_tables(
  tables: Mapping[str, Table], path: str | os.PathLike
) -> list[str]:
  """Draws each metric of each table: a point and its interval per column.

  Args:
    tables: results by table, column and metric.
    path: the PNG file to write, unless there is nothing to draw.

  Returns:
    Titles of the panels drawn, in order.
  """
  panels = {
    visible(f"{title}: {metric}"): {
      visible(name): column[metric]
      for name, column in table.items()
      if metric in column
    }
    for title, table in tables.items()
    for metric in dict.fromkeys(m for c in table.values() for m in c)
  }
  if not panels:
    return []
  width = min(_PANELS_IN_A_ROW, len(panels))
  height = math.ceil(len(panels) / width)
  import matplotlib.figure  # Here, because only the end of a run draws.

  # The dollar sign of a name begins no formula.
  with matplotlib.rc_context({"text.parse_math": False}):
    figure = matplotlib.figure.Figure(
      figsize=(3.2 * width, 2.4 * height), layout="constrained"
    )
    grid = figure.subplots(height, width, squeeze=False).flatten()
    for axis, (title, points) in zip(grid, panels.items(), strict=False):
      _draw_panel(axis, title, points)
    for axis in grid[len(panels) :]:
      axis.set_visible(False)
    with replace_atomic(path) as file:
      figure.savefig(file, dpi=110, format="png")
  return list(panels)


def _draw_panel(axis: Any, title: str, points: Mapping[str, Estimate]) -> None:
  """Draws the estimates of a metric."""
  for x, point in enumerate(points.values()):
    interval = point.get("interval", ())
    if interval and all(map(math.isfinite, interval)):
      axis.vlines(x, *interval, color="C0", linewidth=1.5)
  values = [point["value"] for point in points.values()]
  axis.plot(range(len(values)), values, "o", color="C0", markersize=4)
  axis.set_xticks(range(len(points)), points, rotation=30, ha="right")
  axis.set_xlim(-0.5, len(points) - 0.5)
  axis.set_title(title, fontsize=8)
  axis.tick_params(labelsize=7)
  axis.grid(alpha=0.3)


def _counts(column: Mapping[str, Estimate]) -> str:
  """Returns the number of problems of a column, or its range."""
  counts = [estimate["count"] for estimate in column.values()]
  low, high = min(counts), max(counts)
  return str(low) if low == high else f"{low}-{high}"


def _cell(estimate: Estimate) -> str:
  """Returns an estimate as text."""
  text = _number(estimate["value"])
  if "interval" in estimate:
    text += f" [{', '.join(map(_number, estimate['interval']))}]"
  return text


def _number(value: float) -> str:
  """Returns a share, a score or a length as text; a count if it is an int."""
  if isinstance(value, int):
    return str(value)
  if not math.isfinite(value):
    return "–"
  return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
