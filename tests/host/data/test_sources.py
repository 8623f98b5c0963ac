"""Rows of files that expand, and rows without an end: bounded memory."""

import datetime
import json
import resource

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from pure_jax.host.data import parquet
from pure_jax.host.data.file_dataset import read_file
from pure_jax.host.data.formats import mapped
from pure_jax.host.data.records import DataError, Problem
from pure_jax.host.data.sources import read_rows
from pure_jax.host.workers.pool import MIB

OWN = mapped.make_format(Problem, {"problem": "q", "answer": "a"}, source="own")


def write(path, **columns):
  """A Parquet file that does not know that a column was a dictionary."""
  pyarrow.parquet.write_table(
    pyarrow.table(columns),
    path,
    compression="zstd",
    write_statistics=False,
    store_schema=False,
  )
  return path


def repeated(text, count):
  """A column of one text, which takes a few bytes in memory and in a file."""
  zeros = pyarrow.array(np.zeros(count, np.int32))
  return pyarrow.DictionaryArray.from_arrays(zeros, pyarrow.array([text]))


def peak():
  """The peak of this process' memory so far, in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_a_small_file_of_many_long_texts_is_read_a_few_rows_at_a_time(tmp_path):
  """Rows of 256 KiB; 1,024 of them at a time were 1/2 GiB of this process."""
  texts, numbers = repeated("x" * (MIB // 4), 1024), np.arange(1, 1025) % 127
  path = write(tmp_path / "x.parquet", q=texts, n=pyarrow.array(numbers))
  assert path.stat().st_size < 3000
  before, rows = peak(), read_rows(path)
  for number in range(1, 101):
    row = next(rows)
    assert row.location == f"{path}:{number}"
    assert row.row == {"q": "x" * (MIB // 4), "n": number}
  rows.close()
  assert peak() - before < 64 * MIB


def test_a_row_group_may_be_larger_than_the_memory(tmp_path, monkeypatch):
  """As most writers make them: all rows of a file, or a million, in one."""
  monkeypatch.setattr(parquet, "MEMORY_BYTES", 48 * MIB)
  numbers = np.random.default_rng(0)
  texts = [numbers.bytes(2048).hex() for _ in range(16_384)]
  path = tmp_path / "x.parquet"
  pyarrow.parquet.write_table(pyarrow.table({"q": texts}), path)
  file = pyarrow.parquet.ParquetFile(path)
  assert file.metadata.num_row_groups == 1
  assert path.stat().st_size > 60 * MIB
  rows = read_rows(path)
  assert [next(rows).row for _ in range(200)] == [{"q": t} for t in texts[:200]]
  rows.close()


def test_one_row_that_expands_is_an_error_of_the_file(tmp_path, monkeypatch):
  """16 GiB of texts in one row, of which no metadata tells."""
  monkeypatch.setattr(parquet, "MEMORY_BYTES", 64 * MIB)
  texts = repeated("x" * (MIB // 4), 1 << 16)
  offsets = pyarrow.array([0, 1, 1 << 16], pyarrow.int32())
  column = pyarrow.ListArray.from_arrays(offsets, texts)
  path = write(tmp_path / "x.parquet", q=column)
  before = peak()
  with pytest.raises(
    DataError, match=rf"{path}: after row 0: .* more than 64 MiB"
  ):
    list(read_rows(path))
  assert peak() - before < 64 * MIB


def test_a_row_that_is_too_long_is_malformed(tmp_path):
  column = pyarrow.array(["1+1?", "x" * (16 * MIB), "1+2?"])
  path = write(tmp_path / "x.parquet", q=column, a=pyarrow.array(list("234")))
  with pytest.raises(DataError, match=rf"{path}:2: longer than 16 MiB"):
    read_file(OWN, path, tmp_path / "data")
  rows = read_file(OWN, path, tmp_path / "data", skip_malformed=True)
  assert [row.answer for row in rows] == ["2", "4"]
  assert rows.counts.faults == (f"{path}:2: longer than 16 MiB",)


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_line_that_is_too_long_is_malformed(tmp_path, monkeypatch, end):
  """It is not read as a whole; the lines after it keep their numbers."""
  monkeypatch.setattr(parquet, "MAX_ROW_BYTES", 100)
  fits = json.dumps({"q": "x" * 90})
  assert len(fits) == 99
  long = json.dumps({"q": "x" * (3 * MIB)})
  path = tmp_path / "x.jsonl"
  path.write_text(f"{fits}\n\n{long}\n{fits}\n{long}{end}")
  found = [
    (row.location.rpartition(":")[2], row.fault) for row in read_rows(path)
  ]
  fault = "longer than 16 MiB"
  assert found == [("1", None), ("3", fault), ("4", None), ("5", fault)]


@pytest.mark.parametrize("space", [0, MIB - 1, MIB])
def test_white_space_before_an_array_is_no_line(tmp_path, space):
  path = tmp_path / "x.json"
  path.write_text(" " * space + '[{"q": 1},\n{"q": 2}]')
  assert [row.row["q"] for row in read_rows(path)] == [1, 2]
  path.write_text("\n" * space + '{"q": 1}\n{"q": 2}')
  assert [row.row["q"] for row in read_rows(path)] == [1, 2]


def test_values_that_json_does_not_have_are_no_texts(tmp_path):
  """A column that no field names may hold anything."""
  columns = {
    "q": ["1+1?"],
    "a": [datetime.date(2026, 1, 1)],
    "image": [b"\xff"],
    "n": [float("nan")],
  }
  path = tmp_path / "x.parquet"
  pyarrow.parquet.write_table(pyarrow.table(columns), path)
  (row,) = read_rows(path)
  assert row.row["q"] == "1+1?" and np.isnan(row.row["n"])
  with pytest.raises(DataError, match=r"x\.parquet:1: field 'a' is an object"):
    read_file(OWN, path, tmp_path / "data")


def test_a_new_process_reads_on(tmp_path):
  """The worker is replaced if its memory has grown over many rows."""
  column = pyarrow.array([str(i) for i in range(50)])
  path = write(tmp_path / "x.parquet", q=column)
  for first in (0, 1, 16, 33, 49, 50):
    texts, fault, ended = parquet.read_batch(str(path), first)
    expected = [json.dumps({"q": str(i)}) for i in range(first, 50)]
    assert (texts, fault, ended) == (expected, None, True)
