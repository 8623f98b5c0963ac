"""Reads the raw rows of JSON-lines, JSON and Parquet files."""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import BinaryIO

from pure_jax.host import json_text
from pure_jax.host.data import parquet
from pure_jax.host.data.formats import Row
from pure_jax.host.data.records import DataError
from pure_jax.host.workers.pool import MIB

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_SPACE = re.compile(r"\s*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TOO_LONG = f"longer than {parquet.MAX_ROW_BYTES // MIB} MiB"


@dataclasses.dataclass(frozen=True)
class RawRow:
  """A row of a file before its format parses it.

  Attributes:
    location: "file:line", or "file:row" for Parquet, from 1.
    row: the fields by name; None if the row could not be read.
    fault: why not; None if it was.
  """

  location: str
  row: Row | None
  fault: str | None = None


def read_rows(path: pathlib.Path) -> Iterator[RawRow]:
  """Reads the rows of a file, in order; a malformed row has a fault.

  A ``.json`` file contains one array of objects, or one object per line. In the
  other text files every line that is not blank is a row. Only the array of a
  ``.json`` file is read into memory as a whole. Of the other files a row of
  more than `parquet.MAX_ROW_BYTES` is malformed.

  Args:
    path: a file with one of `SUFFIXES`.

  Raises:
    DataError: if the file is missing, has another suffix, or is damaged such
      that the rest cannot be read.
  """
  if not path.is_file():
    raise DataError(f"There is no file {path}.")
  if path.suffix not in SUFFIXES:
    raise DataError(
      f"{path} is not one of {', '.join(SUFFIXES)}: rename or convert it."
    )
  if path.suffix == ".parquet":
    yield from _parquet(path)
    return
  with path.open("rb") as file:
    start = file.read(len(_BYTE_ORDER_MARK)).removeprefix(_BYTE_ORDER_MARK)
    pieces = itertools.chain([start], iter(lambda: file.read(MIB), b""))
    is_array = next(filter(None, map(bytes.strip, pieces)), b"")[:1] == b"["
  yield from (
    _array(path) if path.suffix == ".json" and is_array else _lines(path)
  )


def _lines(path: pathlib.Path) -> Iterator[RawRow]:
  """Rows of a file with one object per line."""
  # Bytes, not text: in text, other characters than "\n" may end a line.
  with path.open("rb") as file:
    for number, line in enumerate(_bounded_lines(file), 1):
      location = f"{path}:{number}"
      if line is None:
        yield RawRow(location, None, _TOO_LONG)
        continue
      if number == 1:
        line = line.removeprefix(_BYTE_ORDER_MARK)
      if not line.strip():
        continue
      try:
        value = json_text.parse(line.rstrip())
      except UnicodeDecodeError:
        yield RawRow(location, None, "not UTF-8")
      except json.JSONDecodeError as error:
        yield RawRow(
          location, None, f"not JSON: {error.msg}, column {error.colno}"
        )
      except ValueError as error:
        yield RawRow(location, None, f"not readable: {error}")
      else:
        yield _checked(location, value)


def _bounded_lines(file: BinaryIO) -> Iterator[bytes | None]:
  """Lines of a file; None for one of more than `MAX_ROW_BYTES`."""
  while line := file.readline(parquet.MAX_ROW_BYTES + 1):
    is_whole = len(line) <= parquet.MAX_ROW_BYTES
    rest = line
    while rest and not rest.endswith(b"\n"):
      rest = file.readline(MIB)
    yield line if is_whole else None


def _array(path: pathlib.Path) -> Iterator[RawRow]:
  """Rows of a file that contains one array."""
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError:
    raise DataError(f"{path}: not UTF-8. Convert it.") from None
  line, counted = 1, 0

  def skip_space(start: int) -> int:
    space = _SPACE.match(text, start)
    return space.end() if space else start

  position = skip_space(skip_space(0) + 1)
  while text[position : position + 1] != "]":
    line, counted = line + text.count("\n", counted, position), position
    location = f"{path}:{line}"
    try:
      value, position = json_text.parse_start(text, position)
    except ValueError as error:
      raise DataError(
        f"{location}: not JSON: {error}. Nothing after it can be read: mend "
        "the array, or write one object per line."
      ) from None
    yield _checked(location, value)
    position = skip_space(position)
    if text[position : position + 1] == ",":
      position = skip_space(position + 1)
    elif text[position : position + 1] != "]":
      line += text.count("\n", counted, position)
      raise DataError(
        f"{path}:{line}: the array does not go on with ',' or ']': it was cut "
        "off, or is not JSON."
      )


def _parquet(path: pathlib.Path) -> Iterator[RawRow]:
  """Rows of a Parquet file."""
  number = 0
  try:
    for text in parquet.row_texts(str(path)):
      number += 1
      location = f"{path}:{number}"
      if text is None:
        yield RawRow(location, None, _TOO_LONG)
      else:
        yield RawRow(location, json_text.parse(text))
  except parquet.ParquetError as error:
    raise DataError(
      f"{path}: after row {number}: not readable as Parquet: {error}"
    ) from error


def _checked(location: str, value: object) -> RawRow:
  """The raw row of a JSON value, which must be an object."""
  if isinstance(value, dict):
    return RawRow(location, value)
  return RawRow(location, None, "not a JSON object")
