"""Reads the raw rows of JSON-lines, JSON and Parquet files."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator

from pure_jax.host import json_text
from pure_jax.host.data.formats import Row
from pure_jax.host.data.records import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_SPACE = re.compile(r"\s*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
  ``.json`` file is read into memory as a whole.

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
    contents = (line.removeprefix(_BYTE_ORDER_MARK).strip() for line in file)
    is_array = next(filter(None, contents), b"").startswith(b"[")
  yield from (
    _array(path) if path.suffix == ".json" and is_array else _lines(path)
  )


def _lines(path: pathlib.Path) -> Iterator[RawRow]:
  """Rows of a file with one object per line."""
  # Bytes, not text: in text, other characters than "\n" may end a line.
  with path.open("rb") as file:
    for number, line in enumerate(file, 1):
      if number == 1:
        line = line.removeprefix(_BYTE_ORDER_MARK)
      if not line.strip():
        continue
      location = f"{path}:{number}"
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
  # Imported late: only Parquet files need it.
  import pyarrow
  import pyarrow.parquet

  number = 0
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      for batch in file.iter_batches(batch_size=1024):
        for row in batch.to_pylist():
          number += 1
          yield RawRow(f"{path}:{number}", row)
  except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
    raise DataError(
      f"{path}: after row {number}: not readable as Parquet: {error}"
    ) from error


def _checked(location: str, value: object) -> RawRow:
  """The raw row of a JSON value, which must be an object."""
  if isinstance(value, dict):
    return RawRow(location, value)
  return RawRow(location, None, "not a JSON object")
