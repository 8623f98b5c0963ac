"""The data sets of an evaluation of a PRM, from the files of its settings."""

import os
import pathlib

from pure_jax.host.checkpoints import integrity
from pure_jax.host.data import file_dataset as data_files
from pure_jax.host.data.file_dataset import Counts
from pure_jax.host.data.formats import responses
from pure_jax.host.data.formats.named import find_format
from pure_jax.host.data.records import LabelledSolution, split_by_problem
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.evaluation import DataSettings


def fingerprints(data: DataSettings) -> list[str]:
  """Fingerprints the files of a data set, to compare when a run is resumed.

  Args:
    data: its settings.

  Raises:
    ConfigError: if a file is missing.
  """
  files = [file for file in (data.file, data.problems) if file is not None]
  for file in files:
    if not pathlib.Path(file).is_file():
      raise ConfigError(f"data: there is no file {file} ({data.name}).")
  return [integrity.fingerprint(file) for file in files]


def read_data(
  data: DataSettings, folder: str | os.PathLike, *, skip_malformed: bool
) -> tuple[list[LabelledSolution], Counts]:
  """Reads the solutions of a data set.

  Args:
    data: its settings.
    folder: gets the prepared data.
    skip_malformed: True counts malformed rows, False raises for one.

  Returns:
    (the solutions, what became of the rows of the file).

  Raises:
    ConfigError: if no problem is held out.
    DataError: if a file cannot be read.
  """
  if data.format == responses.NAME:
    row_format = responses.RESPONSES
  else:
    row_format = find_format(data.format, data.fields, data.neutral_labels)
  records = data_files.read_file(
    row_format, data.file, folder, skip_malformed=skip_malformed
  )
  rows = list(records)
  if data.format == responses.NAME:
    problems = data_files.read_file(
      find_format(data.problems_format, data.problems_fields),
      data.problems,
      folder,
      skip_malformed=skip_malformed,
    )
    rows = responses.with_problems(rows, problems, data.problems)
  if data.held_out_one_in is not None:
    _, held_out = split_by_problem(rows, data.held_out_one_in)
    rows = [rows[index] for index in held_out]
    if not rows:
      raise ConfigError(
        f"data: held_out_one_in={data.held_out_one_in} holds out no problem of "
        f"{data.file} ({data.name})."
      )
  return rows, records.counts
