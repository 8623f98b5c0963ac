"""The tables of docs/metrics.md, and rows of metrics that are held to them."""

import dataclasses
import re

from checkout import ROOT

DOCUMENT = ROOT / "docs" / "metrics.md"
# Fields that every row has.
KEYS = {"stage", "step"}


@dataclasses.dataclass(frozen=True)
class Field:
  """A field of a stage, and which runs have it, in the words of the table."""

  stage: str
  name: str
  runs: str


def documented():
  """Every field of every stage."""
  fields = []
  for section in re.split(r"^## ", DOCUMENT.read_text(), flags=re.M)[1:]:
    heading, *lines = section.splitlines()
    stages = re.findall(r"`(\w+)`", heading)
    cells = [line.split("|") for line in lines if line.startswith("| `")]
    assert stages and cells, heading
    assert all(len(row) == 6 and all(map(str.strip, row[1:5])) for row in cells)
    fields += [
      Field(stage, row[1].strip().strip("`"), row[4].strip())
      for row in cells
      for stage in stages
    ]
  assert len({(f.stage, f.name) for f in fields}) == len(fields)
  return fields


def name_in_table(field):
  """The name of a field, without that of a benchmark or metric or number."""
  if field.endswith("_per_update"):
    return "NAME_per_update"
  field = re.sub(r"^[^/]+/", "BENCHMARK/", field)
  return re.sub(r"_of_\d+", "_of_N", field)


def check(rows, *kinds):
  """Checks the rows of a run against the tables.

  Every field of a row must be in the table of its stage. Every field of such a
  table that is of "all" runs, or of runs of the given kinds, must be in each
  row of the stage.
  """
  fields = documented()
  for row in rows:
    stage = row["stage"]
    written = {name_in_table(name) for name in row.keys() - KEYS}
    known = {f.name for f in fields if f.stage == stage}
    assert written <= known, (stage, "undocumented", written - known)
    kinds_of_run = ("all", *kinds)
    promised = {
      f.name
      for f in fields
      if f.stage == stage and f.runs.partition(";")[0] in kinds_of_run
    }
    assert promised <= written, (stage, "not written", promised - written)
