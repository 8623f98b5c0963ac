"""Raw rows of JSON-lines, JSON and Parquet files, with where each stands."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator

from pure_jax.host.data.formats.fields import Row
from pure_jax.host.data.records import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_SPACE = re.compile(r"\s*")


@dataclasses.dataclass(frozen=True)
class RawRow:
  """A row as a file has it.

  Attributes:
    place: "file:line", or "file:row" for Parquet, from 1.
    row: its fields; None where it is no object.
    fault: why there is no row, None where there is one.
  """

  place: str
  row: Row | None
  fault: str | None = None


def read_rows(path: pathlib.Path) -> Iterator[RawRow]:
  """The rows of a file, in its order.

  A ``.json`` file holds one array of objects, or lines of objects; in other
  text files every line that is not blank is a row. Nothing is kept in memory
  but the array of a ``.json`` file.

  Args:
    path: a file with one of `SUFFIXES`.

  Yields:
    A raw row for each, malformed ones with their fault.

  Raises:
    DataError: if the file is missing, of another kind, or damaged such that
      nothing after the fault can be read.
  """
  if not path.is_file():
    raise DataError(f"There is no file {path}.")
  if path.suffix not in SUFFIXES:
    raise DataError(
      f"{path} is not one of {', '.join(SUFFIXES)}: rename or convert it."
    )
  if path.suffix == ".parquet":
    yield from _parquet(path)
  elif path.suffix == ".json" and _begins_with_bracket(path):
    yield from _array(path)
  else:
    yield from _lines(path)


def _begins_with_bracket(path: pathlib.Path) -> bool:
  """Whether a JSON file holds an array."""
  with path.open("rb") as file:
    for line in file:
      found = line.removeprefix(b"\xef\xbb\xbf").strip()
      if found:
        return found.startswith(b"[")
  return False


def _lines(path: pathlib.Path) -> Iterator[RawRow]:
  """Rows of a file with one object per line."""
  # Bytes, not text: other characters than "\n" may end a line of text.
  with path.open("rb") as file:
    for number, line in enumerate(file, 1):
      if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
      if not line.strip():
        continue
      place = f"{path}:{number}"
      try:
        value = json.loads(line.rstrip())
      except UnicodeDecodeError:
        yield RawRow(place, None, "not UTF-8")
      except json.JSONDecodeError as error:
        yield RawRow(
          place, None, f"not JSON: {error.msg}, column {error.colno}"
        )
      except (ValueError, RecursionError) as error:
        yield RawRow(place, None, f"not readable: {error}")
      else:
        yield _checked(place, value)


def _array(path: pathlib.Path) -> Iterator[RawRow]:
  """Rows of a file that holds one array."""
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError:
    raise DataError(f"{path}: not UTF-8. Convert it.") from None
  decoder = json.JSONDecoder()
  line, counted = 1, 0

  def skip_space(start: int) -> int:
    found = _SPACE.match(text, start)
    return found.end() if found else start

  position = skip_space(skip_space(0) + 1)
  while text[position : position + 1] != "]":
    line, counted = line + text.count("\n", counted, position), position
    place = f"{path}:{line}"
    try:
      value, position = decoder.raw_decode(text, position)
    except (ValueError, RecursionError) as error:
      raise DataError(
        f"{place}: not JSON: {error}. Nothing after it can be read: mend the "
        "array, or write one object per line."
      ) from None
    yield _checked(place, value)
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
  # Comes with tensorflow-datasets; no other source needs it.
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


def _checked(place: str, value: object) -> RawRow:
  """A row, if a JSON value is one."""
  if isinstance(value, dict):
    return RawRow(place, value)
  return RawRow(place, None, "not a JSON object")
