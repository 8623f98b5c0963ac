"""Reads Parquet files in a process of bounded memory.

A Parquet file of a few hundred bytes may hold gigabytes: a text in a dictionary
that every row repeats, runs of one number, prefixes, a page of zeros that was
compressed. The metadata need not show it. So pyarrow reads in a worker process
(`host.workers.pool`), a few rows at a time, and its rows come back as JSON
texts of bounded length. A crash of pyarrow is an error of the file, too.
"""

import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

from pure_jax.host.workers.pool import MIB, WorkerPool

# A row of a file of any kind; the texts of a problem take some KiB.
MAX_ROW_BYTES = 16 * MIB
# Rows decoded at a time. They are in memory together: as bytes, as Python's
# texts (at most four bytes a character), and one of them as JSON.
ROWS = 16
MEMORY_BYTES = 1024 * MIB
SECONDS = 600.0  # For `_REPLY_CHARACTERS` or one row.
_REPLY_CHARACTERS = MIB
# Readers in the worker by file and number of the next row.
_READERS: dict[tuple[str, int], Iterator[Any]] = {}


class ParquetError(ValueError):
  """A file that cannot be read further; the message says why."""


def row_texts(path: str) -> Iterator[str | None]:
  """Reads the rows of a file, in order, as JSON texts.

  A value that JSON does not have, such as a date or bytes, is an object with
  the name of its type.

  Args:
    path: the file.

  Yields:
    A JSON object; None for a row of more than `MAX_ROW_BYTES` characters.

  Raises:
    ParquetError: if the file is damaged, or its rows need too much memory.
    PoolError: if the process cannot be started.
  """
  with WorkerPool(
    read_batch,
    import_pyarrow,
    workers=1,
    timeout_seconds=SECONDS,
    memory_bytes=MEMORY_BYTES,
  ) as pool:
    number, ended = 0, False
    while not ended:
      (outcome,) = pool.run([[path, number]])
      if outcome.timed_out:
        raise ParquetError(f"some rows took more than {SECONDS:g} s")
      if outcome.value is None:
        raise ParquetError(
          f"{ROWS} rows or fewer needed more than {MEMORY_BYTES // MIB} MiB"
          if outcome.failure == "out of memory"
          else f"its reader {outcome.failure}"
        )
      texts, fault, ended = outcome.value
      yield from texts
      number += len(texts)
      if fault is not None:
        raise ParquetError(fault)


def import_pyarrow() -> None:
  """Imports what `read_batch` needs, before memory is limited."""
  # Other allocators reserve more addresses than they use.
  os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
  import pyarrow.parquet  # noqa: F401


def read_batch(
  path: str, first: int
) -> tuple[list[str | None], str | None, bool]:
  """Reads the next rows of a file, without limits of time and memory.

  Args:
    path: the file.
    first: number of the first row, from 0. If the previous call did not end
      there, the rows before it are read again.

  Returns:
    (rows as of `row_texts`, why the next one cannot be read or None, whether
    there are no more).
  """
  rows = _READERS.pop((path, first), None)
  if rows is None:
    rows = itertools.islice(_rows(path), first, None)
  texts: list[str | None] = []
  size = 0
  try:
    for row in rows:
      text = json.dumps(row, default=_describe)
      texts.append(text if len(text) <= MAX_ROW_BYTES else None)
      size += len(texts[-1] or "")
      if size >= _REPLY_CHARACTERS:
        _READERS[path, first + len(texts)] = rows
        return texts, None, False
  except MemoryError:
    raise
  # pyarrow raises errors of many types for damaged files.
  except Exception as error:
    return texts, str(error)[:500], True
  return texts, None, True


def _rows(path: str) -> Iterator[dict[str, Any]]:
  """The rows of a file, as Python's values."""
  import pyarrow.parquet

  # Without a buffer, a column of a row group is read as a whole.
  with pyarrow.parquet.ParquetFile(
    path, pre_buffer=False, buffer_size=MIB
  ) as file:
    for batch in file.iter_batches(batch_size=ROWS, use_threads=False):
      yield from batch.to_pylist()


def _describe(value: object) -> dict[str, str]:
  """The object that stands for a value that JSON does not have."""
  return {"type": type(value).__name__}
