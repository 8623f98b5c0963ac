"""A report shows the numbers that it was given, and no others."""

import json
import math

import matplotlib.figure
import matplotlib.image
import pytest

from pure_jax.host.evaluation.report import (
  plot_tables,
  render_table,
  write_report,
)


def estimate_of(value, count=40, interval=None):
  estimate = {"value": value, "count": count}
  return estimate if interval is None else estimate | {"interval": interval}


TABLES = {
  "Benchmarks": {
    "amc23": {
      "pass@1": estimate_of(0.475, 40, [0.325, 0.625]),
      "response tokens": estimate_of(812.25, 40, [700.0, 930.04]),
    },
    "aime24": {"pass@1": estimate_of(0.1, 30), "pass@8": estimate_of(0.25, 28)},
    "not run": {},
  },
  "amc23 by level": {"Level 1": {"pass@1": estimate_of(1.0, 7)}},
  "Nothing": {},
}


@pytest.fixture
def drawn(monkeypatch):
  """The figures that were saved."""
  figures = []
  save = matplotlib.figure.Figure.savefig

  def savefig(self, *args, **kwargs):
    figures.append(self)
    save(self, *args, **kwargs)

  monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
  return figures


def cells(text):
  """Rows of a Markdown table, without the line below the header."""
  rows = [line.strip("|").split(" | ") for line in text.splitlines()]
  return [[cell.strip() for cell in row] for row in rows if "---" not in row[0]]


def test_the_table_has_every_estimate_and_nothing_else():
  text = render_table(TABLES["Benchmarks"])
  assert cells(text) == [
    ["", "amc23", "aime24"],
    ["problems", "40", "28-30"],
    ["pass@1", "0.475 [0.325, 0.625]", "0.100"],
    ["response tokens", "812.2 [700.0, 930.0]", ""],
    ["pass@8", "", "0.250"],
  ]


def test_the_table_is_aligned_for_a_terminal():
  lines = render_table(TABLES["Benchmarks"]).splitlines()
  assert len({len(line) for line in lines}) == 1
  columns = {
    tuple(i for i, character in enumerate(line) if character == "|")
    for line in lines
  }
  assert len(columns) == 1
  assert set(lines[1]) == {"|", "-"}


def test_a_name_cannot_break_the_table():
  lines = render_table({"a|b": {"p": estimate_of(0.5)}}).splitlines()
  assert "a\\|b" in lines[0]
  assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("table", [{}, {"amc23": {}}])
def test_a_table_without_metrics_is_empty(table):
  assert render_table(table) == ""


def test_the_json_is_strict_and_complete(tmp_path):
  def reject(constant):
    raise AssertionError(constant)

  write_report(tmp_path, "A policy", TABLES)
  text = (tmp_path / "report.json").read_text()
  assert json.loads(text, parse_constant=reject) == {
    "title": "A policy",
    "tables": TABLES,
  }


def test_the_markdown_has_each_table_with_a_metric(tmp_path):
  files = write_report(tmp_path, "A policy", TABLES)
  text = (tmp_path / "report.md").read_text()
  headings = [line for line in text.splitlines() if line.startswith("#")]
  assert headings == ["# A policy", "## Benchmarks", "## amc23 by level"]
  for table in TABLES.values():
    assert render_table(table) in text
  names = ["report.json", "report.md", "report.png"]
  assert [file.name for file in files] == names
  assert sorted(file.name for file in tmp_path.iterdir()) == names


def panels(figure):
  """By title: names, values and intervals drawn."""
  return {
    axis.get_title(): (
      [label.get_text() for label in axis.get_xticklabels()],
      [tuple(point) for line in axis.lines for point in line.get_xydata()],
      [
        [tuple(point) for point in path.vertices]
        for collection in axis.collections
        for path in collection.get_paths()
      ],
    )
    for axis in figure.axes
    if axis.get_visible()
  }


def test_the_picture_shows_points_and_intervals(tmp_path, drawn):
  titles = plot_tables(TABLES, tmp_path / "report.png")
  drawn_panels = panels(drawn[0])
  assert list(drawn_panels) == titles
  assert titles == [
    "Benchmarks: pass@1",
    "Benchmarks: response tokens",
    "Benchmarks: pass@8",
    "amc23 by level: pass@1",
  ]
  assert drawn_panels["Benchmarks: pass@1"] == (
    ["amc23", "aime24"],
    [(0, 0.475), (1, 0.1)],
    [[(0, 0.325), (0, 0.625)]],
  )
  # A metric that one benchmark has is not 0 for the other.
  assert drawn_panels["Benchmarks: pass@8"][:2] == (["aime24"], [(0, 0.25)])
  image = matplotlib.image.imread(tmp_path / "report.png")
  assert image[..., :3].std() > 0.01  # Something is drawn on it.


def test_without_metrics_no_picture_is_written(tmp_path):
  files = write_report(tmp_path, "Nothing", {"Benchmarks": {"amc23": {}}})
  assert [file.name for file in files] == ["report.json", "report.md"]
  assert not (tmp_path / "report.png").exists()
  assert (tmp_path / "report.md").read_text() == "# Nothing\n"


def test_a_number_that_is_not_finite_is_null_and_a_dash(tmp_path):
  """It must not cost the report of an evaluation of many hours."""
  column = {
    "maj@8": estimate_of(math.nan),
    "pass@1": estimate_of(0.5, interval=[0.1, math.inf]),
  }
  tables = TABLES | {"More": {"math500": column}}
  files = write_report(tmp_path, "Title", tables)
  assert [file.name for file in files][-1] == "report.png"
  more = json.loads((tmp_path / "report.json").read_text())["tables"]["More"]
  assert more["math500"]["maj@8"]["value"] is None
  assert more["math500"]["pass@1"]["interval"] == [0.1, None]
  text = (tmp_path / "report.md").read_text()
  assert "| maj@8    | –" in text
  assert "0.500 [0.100, –]" in text


@pytest.mark.parametrize("name", ["$\\frac{$", "a\ud800b", "50 % $ 2^{"])
def test_any_name_can_be_drawn(tmp_path, name):
  """matplotlib reads what is between dollar signs as a formula."""
  tables = {f"{name} by level": {name: {"pass@1": estimate_of(0.5)}}}
  files = write_report(tmp_path, name, tables)
  assert [file.suffix for file in files] == [".json", ".md", ".png"]
