"""Files of rows that a config names: read, and told what was not read."""

import os
from collections.abc import Mapping

from pure_jax.host.data.file_dataset import Counts, Rows, load_rows
from pure_jax.host.data.formats.fields import Format
from pure_jax.host.distributed import processes
from pure_jax.host.evaluation.intervals import Estimate
from pure_jax.host.evaluation.report import Table
from pure_jax.host.logs import console

NOT_READ_TABLE = "Rows not read"


def read_file(
  row_format: Format,
  file: str,
  folder: str | os.PathLike,
  *,
  skip_malformed: bool,
) -> Rows:
  """The rows of a file; those that it lacks are told on stderr, in one line.

  Args:
    row_format: how the file is read.
    file: its path.
    folder: where prepared data sets are kept.
    skip_malformed: go on after a malformed row, and count it.

  Returns:
    The rows, with their counts.

  Raises:
    DataError: as `load_rows`.
  """
  rows = load_rows(
    row_format, {"rows": [file]}, folder, skip_malformed=skip_malformed
  )["rows"]
  told = rows.counts.not_read()
  if told and processes.is_process_zero():
    console.tell(f"{file}: of {rows.counts.read} rows, {told}.")
  return rows


def not_read_tables(counts: Mapping[str, Counts]) -> dict[str, Table]:
  """Numbers of rows that were not read, for a report.

  Args:
    counts: of each file, by the name it has in the report.

  Returns:
    `NOT_READ_TABLE` with a column for each file that lacks a row; empty where
    none does.
  """
  columns = {}
  for name, found in counts.items():
    numbers = {
      "malformed": found.skipped,
      "left out by the format": found.left_out,
    }
    if any(numbers.values()):
      columns[name] = {
        metric: Estimate(value=number, count=found.read)
        for metric, number in numbers.items()
      }
  return {NOT_READ_TABLE: columns} if columns else {}
