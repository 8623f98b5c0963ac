"""Metrics and samples of a run, as JSON lines and TensorBoard events.

A row is one line of strict JSON: ``{"stage": "rl", "step": 3, ...}``. A number
that is not finite is written as null, because strict JSON has no NaN, and so is
a metric without a value (None), such as a mean over nothing. A list of numbers
has a value for each of a step's updates; TensorBoard does not get it.

A resumed run first removes the rows it will write again, so a killed and
resumed run leaves the same file as an uninterrupted one. Only fields that
measure time differ; their names end in ``seconds`` or ``_per_second``.
"""

import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from pure_jax.host import json_text
from pure_jax.host.atomic_files import write_text_atomic

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
ALARMS_FILE = "alarms.jsonl"


class MetricsError(RuntimeError):
  """A file of rows that cannot be read; the message names the line."""


class RowWriter:
  """An append-only file of rows that have a stage and a step."""

  def __init__(self, workdir: str | os.PathLike, name: str):
    """Opens a file in the folder of a run, which is created if missing.

    Raises:
      MetricsError: if a line of the file is not a row; the file stays as it is.
    """
    self._path = pathlib.Path(workdir) / name
    self._path.parent.mkdir(parents=True, exist_ok=True)
    if self._path.exists():
      self._read()
      with self._path.open("rb+") as file:
        # A kill may have cut the last line short.
        file.truncate(file.read().rfind(b"\n") + 1)
    self._file = self._path.open("a", encoding="utf-8")

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def rewind(self, stage: str, step: int) -> None:
    """Removes the rows of a stage from a step on; call it on resume."""
    rows = self._read()
    earlier = [r for r in rows if r["stage"] != stage or r["step"] < step]
    if len(earlier) == len(rows):
      return
    self._file.close()
    lines = [json_text.dump(row) + "\n" for row in earlier]
    write_text_atomic(self._path, "".join(lines))
    self._file = self._path.open("a", encoding="utf-8")

  def _read(self) -> list[dict[str, Any]]:
    """Reads the file."""
    return read_log(self._path)

  def _append(self, row: Mapping[str, Any]) -> None:
    """Writes a row, and hands it to the operating system at once."""
    self._file.write(json_text.dump(row) + "\n")
    self._file.flush()


class MetricsWriter(RowWriter):
  """Appends metrics to ``metrics.jsonl`` and to TensorBoard events.

  TensorBoard shows each stage as its own run, below ``tensorboard/``.
  """

  def __init__(self, workdir: str | os.PathLike):
    """Opens the files in the folder of a run, which is created if missing."""
    super().__init__(workdir, METRICS_FILE)
    self._events_folder = pathlib.Path(workdir) / "tensorboard"
    self._events: dict[str, Any] = {}  # EventFile by stage.

  def rewind(self, stage: str, step: int) -> None:
    """Removes the rows of a stage from a step on; call it on resume."""
    super().rewind(stage, step)
    if stage in self._events:
      self._events.pop(stage).close()
    # TensorBoard then hides older events at or after the step.
    if (self._events_folder / stage).exists():
      self._open_events(stage, purge_step=step)

  def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes a row.

    Args:
      stage: name of the stage, such as "rl" or "rl_eval".
      step: step within the stage, >= 0.
      metrics: scalars by name, or lists [n] of them: Python, numpy or jax; None
        where the metric has no value. TensorBoard gets only scalars.

    Raises:
      ValueError: for an array of more axes, or a metric called "stage" or
        "step".
    """
    row: dict[str, Any] = {"stage": stage, "step": int(step)}
    scalars = {}
    for name, value in metrics.items():
      if name in row:
        raise ValueError(f"A metric must not be called {name!r}.")
      if value is None:
        row[name] = None
      elif np.ndim(value) == 1:
        row[name] = [_to_number(item) for item in value]
      else:
        row[name] = scalars[name] = _to_number(value)
    self._append(row)
    if stage not in self._events:
      self._open_events(stage)
    self._events[stage].write(int(step), scalars)

  def has(self, stage: str, step: int) -> bool:
    """Returns whether a row was written."""
    return any(
      (row["stage"], row["step"]) == (stage, step) for row in self._read()
    )

  def close(self) -> None:
    """Flushes and closes the files."""
    super().close()
    for events in self._events.values():
      events.close()

  def _read(self) -> list[dict[str, Any]]:
    """Reads the file, in which every value is a number."""
    return read_metrics(self._path.parent)

  def _open_events(self, stage: str, purge_step: int | None = None) -> None:
    """Starts an event file."""
    # Imported here: tensorboardX imports torch if it is installed, which takes
    # seconds, and a script that ends with a config error writes no events.
    from pure_jax.host.logs.event_file import EventFile

    folder = self._events_folder / stage
    self._events[stage] = EventFile(folder, purge_step)


class NoWriter:
  """Takes the place of a writer in processes that write no logs."""

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused: object) -> None:
    return

  def rewind(self, stage: str, step: int) -> None:
    """Does nothing."""

  def write(self, stage: str, step: int, rows: Any) -> None:
    """Does nothing."""


class RecordsWriter(RowWriter):
  """Appends records, such as ``samples.jsonl`` and ``alarms.jsonl`` hold."""

  def write(
    self, stage: str, step: int, records: Sequence[Mapping[str, Any]]
  ) -> None:
    """Writes one row for each record.

    Args:
      stage: name of the stage.
      step: step within the stage, >= 0.
      records: dicts of text, numbers (numpy and jax too) and lists of them.
    """
    for record in records:
      self._append({"stage": stage, "step": int(step)} | dict(record))


def read_log(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads the rows of a log, such as ``samples.jsonl``.

  Args:
    path: the file.

  Returns:
    Rows in the order written: a "stage", which is text, a "step", an int from
    0, and values of JSON; null becomes None. An incomplete last line, as a
    killed run leaves it, is skipped.

  Raises:
    MetricsError: if a line is not such a row; it names the line.
  """
  return [row for _, row in _numbered_rows(path)]


def read_metrics(
  path: str | os.PathLike,
  stage: str | None = None,
  required: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Reads ``metrics.jsonl``.

  Args:
    path: the file, or the folder of a run.
    stage: the stage whose rows are returned; None returns all rows.
    required: metrics that each of these rows must have: a number or null.

  Returns:
    Rows as of `read_log`, whose values are finite numbers, None, or lists of
    these.

  Raises:
    MetricsError: if a line is not such a row, or lacks a required metric; it
      names the line.
  """
  path = pathlib.Path(path)
  path = path / METRICS_FILE if path.is_dir() else path
  rows = []
  for number, row in _numbered_rows(path):
    for name, value in row.items():
      values = value if isinstance(value, list) else [value]
      if name != "stage" and not all(map(_is_number_or_none, values)):
        raise MetricsError(
          f"{path}:{number} is not a row of metrics: {name} is "
          f"{_shown(value)}, not a number or null. {_ADVICE}"
        )
    if stage is not None and row["stage"] != stage:
      continue
    for name in required:
      if isinstance(row.get(name, []), list):
        raise MetricsError(
          f"{path}:{number} is a row of {stage} without a number {name}. "
          f"{_ADVICE}"
        )
    rows.append(row)
  return rows


_ADVICE = "Mend or remove that line."


def _numbered_rows(
  path: str | os.PathLike,
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (number of the line, row) of a file's whole lines."""
  try:
    content = pathlib.Path(path).read_bytes()
  except FileNotFoundError:
    raise MetricsError(f"There is no file {path}.") from None
  except IsADirectoryError:
    raise MetricsError(f"{path} is a folder: move it away.") from None
  for number, line in enumerate(content.split(b"\n")[:-1], 1):
    try:
      row = json_text.parse(line, finite=True)
    except ValueError as error:
      raise MetricsError(
        f"{path}:{number} is not JSON: {error}. {_ADVICE}"
      ) from error
    stage = row.get("stage") if isinstance(row, dict) else None
    if not isinstance(stage, str) or not stage or not stage.isprintable():
      raise MetricsError(
        f"{path}:{number} is not a row with a stage and a step: "
        f"{_shown(row)}. {_ADVICE}"
      )
    step = row.get("step")
    if type(step) is not int or not 0 <= step < 2**63:
      raise MetricsError(
        f"{path}:{number} is not a row with a stage and a step: step is "
        f"{_shown(step)}. {_ADVICE}"
      )
    yield number, row


def _shown(value: Any) -> str:
  """The beginning of a value, for a message."""
  return json_text.dump(value)[:60]


def _is_number_or_none(value: Any) -> bool:
  """Tells whether a value of JSON is null or fits a float64."""
  if value is None or isinstance(value, float):
    return True
  return type(value) is int and abs(value) <= sys.float_info.max


def _to_number(value: Any) -> int | float:
  """Returns a scalar of any array library as a Python number."""
  scalar = np.asarray(value)
  if scalar.ndim or scalar.dtype.kind == "c":
    raise ValueError(f"A metric must be one real number, got {value!r}.")
  number = scalar.item()
  if isinstance(number, bool):
    return int(number)
  return number if isinstance(number, int) else float(number)
