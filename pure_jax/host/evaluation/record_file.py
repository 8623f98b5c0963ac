"""An append-only file of records, one line of strict JSON each.

Evaluations append responses and scores, which are expensive to compute, as
soon as they exist. A killed process loses at most the line it was writing, and
the next process continues behind the last whole line.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from pure_jax.host import json_text


class RecordFileError(RuntimeError):
  """A file of records that cannot be read or written."""


class Record(Protocol):
  """A frozen dataclass of JSON values and tuples of them."""

  @property
  def key(self) -> Hashable:
    """Identifies the record in its file."""
    ...


Kind = TypeVar("Kind", bound=Record)


class RecordFile(Generic[Kind]):
  """Records in a file that only grows, with its contents in memory.

  Attributes:
    records: the records of the file by their key, in file order.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    parse: Callable[[dict[str, Any]], Kind],
    noun: str,
  ):
    """Reads the file and opens it for appending.

    A last line without a newline, which a killed process leaves, is dropped.

    Args:
      path: the file, created if missing; its folder must exist.
      parse: converts the JSON object of a line to a record; raises a ValueError
        if it cannot.
      noun: name of a record in messages, such as "a response".

    Raises:
      RecordFileError: if a line is not a record or repeats one, or the file
        cannot be opened. The message names the line; the file is not changed.
    """
    self._path, self._noun = pathlib.Path(path), noun
    try:
      content = self._path.read_bytes() if self._path.exists() else b""
      whole_lines = content[: content.rfind(b"\n") + 1]
      self.records = self._read(whole_lines, parse)
      self._file = self._path.open("ab")
      self._file.truncate(len(whole_lines))
    except OSError as error:
      raise RecordFileError(
        f"{self._path} cannot be opened: {error}"
      ) from error

  def __enter__(self) -> "RecordFile[Kind]":
    return self

  def __exit__(self, *unused: object) -> None:
    # `append` has raised for records that could not be written.
    with contextlib.suppress(OSError):
      self._file.close()

  def append(self, records: Sequence[Kind]) -> None:
    """Writes new records and flushes the file.

    Raises:
      RecordFileError: if the file has one of them, or cannot be written.
    """
    lines = []
    for record in records:
      if record.key in self.records:
        raise RecordFileError(f"{self._path} already holds {record.key}.")
      self.records[record.key] = record
      row = json.dumps(dataclasses.asdict(record), allow_nan=False)
      lines.append(row.encode() + b"\n")
    try:
      self._file.write(b"".join(lines))
      self._file.flush()
    except OSError as error:
      raise RecordFileError(
        f"{self._path} cannot be written: {error}. The same command continues "
        "behind the last line of the file."
      ) from error

  def _read(
    self, content: bytes, parse: Callable[[dict[str, Any]], Kind]
  ) -> dict[Hashable, Kind]:
    """Parses whole lines; returns records by key."""
    records: dict[Hashable, Kind] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
      try:
        row = json_text.parse(line, finite=True)
        if not isinstance(row, dict):
          raise ValueError("it is not a JSON object")
        record = parse(row)
      except ValueError as error:
        raise RecordFileError(
          f"{self._path}:{number} is not {self._noun}: {error}. Remove that "
          "line; the same command makes the record again."
        ) from error
      if record.key in records:
        raise RecordFileError(
          f"{self._path}:{number} holds {record.key} a second time. Remove one "
          "of the two lines."
        )
      records[record.key] = record
    return records


def check_fields(
  row: dict[str, Any], record: type, unchecked: Collection[str] = ()
) -> None:
  """Validates that a JSON object has the fields of a record.

  Args:
    row: the JSON object.
    record: the dataclass of the record.
    unchecked: fields whose type is not checked here, such as tuples.

  Raises:
    ValueError: naming the field that is missing, unknown or of another type.
  """
  fields = dataclasses.fields(record)
  if row.keys() != {field.name for field in fields}:
    raise ValueError("it has other fields")
  for field in fields:
    if field.name in unchecked:
      continue
    value = row[field.name]
    # JSON's true is an int to Python.
    takes_bool = field.type in (bool, bool | None)
    wrong_bool = isinstance(value, bool) and not takes_bool
    is_huge = isinstance(value, int) and abs(value) >= 2**63
    if wrong_bool or is_huge or not isinstance(value, field.type):
      raise ValueError(f"{field.name} is {value!r}")


def is_reward(value: object) -> bool:
  """Tells whether a JSON value is a step reward, a number in -1..1.

  Args:
    value: any JSON value; true and false are no numbers.
  """
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return is_number and -1 <= value <= 1
