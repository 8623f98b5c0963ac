"""Data sets of files: reading, storing, and files that raise an error."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import real_data
from checkout import ROOT

from pure_jax.host.data.batches import Cursor, next_batch
from pure_jax.host.data.file_dataset import read_file
from pure_jax.host.data.formats import Format, gsm8k_steps, mapped, problems
from pure_jax.host.data.records import DataError, LabelledSolution, Problem
from pure_jax.host.data.sources import read_rows

OWN = mapped.make_format(Problem, {"problem": "q", "answer": "a"}, source="own")


def write_lines(path: pathlib.Path, *rows) -> pathlib.Path:
  """Writes a JSON-lines file. Rows that are bytes become lines as they are."""
  lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
  path.write_bytes(b"".join(line + b"\n" for line in lines))
  return path


def sums(count: int) -> list[dict]:
  return [{"q": f"{i}+1?", "a": str(i + 1)} for i in range(count)]


def prepared(folder: pathlib.Path) -> set[str]:
  """Names of the prepared data sets in a folder."""
  return {path.parent.name for path in folder.rglob("1.0.0")}


FULL = (
  Problem(
    "a/1", "a", "p\u2028q", "x=1", "y", True, 0.25, "cm", "s", 5, "Algebra"
  ),
  Problem("a/2", "a", "p"),
  Problem("a/3", "a", "π?", "0", None, False, 0.0, None, None, 1, None),
)
LABELLED = (
  LabelledSolution("b/1", "b", "p", ("one", "two\nlines", "3"), (1, 0, None)),
  LabelledSolution(
    "b/2", "b", "p", ("one",), (None,), "7", False, "some model"
  ),
  LabelledSolution("b/3", "b", "p", ("one",), (0,), "7", True, None),
)


@pytest.mark.parametrize("records", [FULL, LABELLED])
def test_a_stored_record_is_read_unchanged(records, tmp_path):
  # A field stored under another name, or None read as 0 or "", would differ.
  kind = Format("own", 1, type(records[0]), lambda row, _: [records[row["i"]]])
  path = write_lines(tmp_path / "x.jsonl", *({"i": i} for i in range(3)))
  assert tuple(read_file(kind, path, tmp_path / "data")) == records


def test_rows_are_in_the_order_of_the_file(tmp_path):
  path = write_lines(tmp_path / "x.jsonl", *sums(70), *sums(3))
  rows = read_file(OWN, path, tmp_path / "data")
  assert [int(row.answer) for row in rows] == [*range(1, 71), 1, 2, 3]
  assert [row.id for row in rows] == [f"own/{number}" for number in range(73)]


def test_rows_are_read_by_index(tmp_path):
  rows = read_file(OWN, write_lines(tmp_path / "x.jsonl", *sums(9)), tmp_path)
  indices, _ = next_batch(len(rows), 6, Cursor(0))
  assert [row.id for row in rows.take(indices)] == [
    f"own/{index}" for index in indices
  ]
  assert rows[-1].id == rows[np.int64(8)].id == "own/8"
  assert [row.id for row in rows[1:6:2]] == ["own/1", "own/3", "own/5"]
  assert rows.take([]) == rows[9:] == []
  for index in (9, -10):
    with pytest.raises(IndexError, match=f"no record {index} of 9"):
      rows[index]


def test_a_second_load_parses_no_row(tmp_path):
  path = write_lines(tmp_path / "x.jsonl", *sums(5))
  first = read_file(OWN, path, tmp_path / "data")

  def fail(*_):
    raise AssertionError("parsed again")

  again = read_file(
    dataclasses.replace(OWN, parse=fail), path, tmp_path / "data"
  )
  assert list(again) == list(first) and again.counts == first.counts


def test_other_contents_or_formats_are_another_data_set(tmp_path):
  data = tmp_path / "data"
  path = write_lines(tmp_path / "x.jsonl", *sums(5))
  read_file(OWN, path, data)
  # The same contents under another name are the same data set.
  read_file(OWN, write_lines(tmp_path / "renamed.jsonl", *sums(5)), data)
  assert len(prepared(data)) == 1
  read_file(OWN, write_lines(path, *sums(6)), data)
  read_file(dataclasses.replace(OWN, version=2), path, data)
  other = {"problem": "a", "answer": "q"}
  read_file(mapped.make_format(Problem, other, source="own"), path, data)
  read_file(OWN, path, data, skip_malformed=True)
  assert len(prepared(data)) == 5
  assert len(read_file(OWN, path, data)) == 6


FAULTS = [
  (b'{"q": "1+1?", "a"', "not JSON: .*, column 18"),
  (b'["q", "a"]', "not a JSON object"),
  (b'{"q": "1+1?", "a": "\xff"}', "not UTF-8"),
  (b'{"q": "1+1?", "a": "\\ud83d"}', "field 'a' holds half a surrogate"),
  (b"[" * 100_000, "not readable: .*nested"),
  ({"a": "2"}, "field 'q' is missing; there is 'a'"),
  ({"q": 1, "a": "2"}, "field 'q' is a number, not text"),
  ({"q": " ", "a": "2"}, "field 'q' is empty"),
  ({"q": "1+1?", "a": ["2"]}, "field 'a' is a list, not text"),
  ({"q": "1+1?", "a": 10**400}, "field 'a' is beyond every float"),
]


@pytest.mark.parametrize("row, reason", FAULTS)
def test_a_malformed_row_raises_with_file_line_and_reason(
  row, reason, tmp_path
):
  path = write_lines(tmp_path / "x.jsonl", {"q": "0+0?", "a": "0"}, b"", row)
  data = tmp_path / "data"
  with pytest.raises(DataError, match=rf"^{path}:3: {reason}"):
    read_file(OWN, path, data)
  assert not prepared(data)
  # No data set is left behind that the corrected file would find.
  write_lines(path, {"q": "0+0?", "a": "0"}, {"q": "1+1?", "a": "2"})
  assert [row.answer for row in read_file(OWN, path, data)] == ["0", "2"]


def test_malformed_rows_are_skipped_and_counted_with_skip_malformed(tmp_path):
  bad = [row for row, _ in FAULTS]
  path = write_lines(
    tmp_path / "x.jsonl", {"q": "0+0?", "a": "0"}, *bad, {"q": "?", "a": None}
  )
  for _ in range(2):  # A later load returns the same counts.
    rows = read_file(OWN, path, tmp_path / "data", skip_malformed=True)
    counts = rows.counts
    assert (counts.read, counts.made, counts.skipped) == (12, 2, 10)
    assert counts.left_out == 0 and len(counts.faults) == len(FAULTS)
    assert counts.faults[1] == f"{path}:3: not a JSON object"
  assert [row.id for row in rows] == ["own/0", "own/11"]
  assert not rows[1].has_answer


def test_only_the_first_faults_are_stored(tmp_path):
  path = write_lines(tmp_path / "x.jsonl", *sums(1), *([b"x"] * 50))
  counts = read_file(OWN, path, tmp_path / "data", skip_malformed=True).counts
  assert counts.skipped == 50 and len(counts.faults) == 20


def test_rows_that_the_format_leaves_out_are_not_malformed(tmp_path):
  evens = Format(
    "evens", 1, Problem, lambda row, n: [] if n % 2 else OWN.parse(row, n)
  )
  path = write_lines(tmp_path / "x.jsonl", *sums(5))
  counts = read_file(evens, path, tmp_path / "data").counts
  assert (counts.made, counts.left_out, counts.skipped) == (3, 2, 0)


def test_a_file_without_records_raises(tmp_path):
  path = write_lines(tmp_path / "x.jsonl", b"x")
  with pytest.raises(DataError, match=r"no row: of 1 .*1 malformed \(first: "):
    read_file(OWN, path, tmp_path / "data", skip_malformed=True)
  path.write_bytes(b"")
  with pytest.raises(
    DataError, match=rf"no row: of 0 in {path}, none is there"
  ):
    read_file(OWN, path, tmp_path / "data")


def test_files_that_cannot_be_read_raise_with_their_name(tmp_path):
  with pytest.raises(DataError, match=r"no file .*gone.jsonl"):
    read_file(OWN, tmp_path / "gone.jsonl", tmp_path)
  text = tmp_path / "x.txt"
  text.write_text("{}")
  with pytest.raises(DataError, match=r"x\.txt is not one of \.jsonl"):
    read_file(OWN, text, tmp_path)
  parquet = tmp_path / "x.parquet"
  parquet.write_bytes(b"PAR1 and no more")
  with pytest.raises(DataError, match=r"x\.parquet: .*not readable as Parquet"):
    read_file(OWN, parquet, tmp_path)


def test_a_folder_that_cannot_be_made_raises_with_its_name(tmp_path):
  (tmp_path / "data").write_text("a file")
  path = write_lines(tmp_path / "x.jsonl", *sums(1))
  with pytest.raises(DataError, match=r"Cannot prepare .*data"):
    read_file(OWN, path, tmp_path / "data")


def test_all_kinds_of_files_are_read_to_the_same_rows(tmp_path):
  rows = sums(1_200)
  table = pyarrow.Table.from_pylist(rows)
  pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=300)
  write_lines(tmp_path / "x.jsonl", *rows)
  write_lines(tmp_path / "lines.json", *rows)
  (tmp_path / "array.json").write_text(json.dumps(rows, indent=2))
  for name in ("x.parquet", "x.jsonl", "lines.json", "array.json"):
    raw_rows = list(read_rows(tmp_path / name))
    assert [raw.row for raw in raw_rows] == rows, name
  assert raw_rows[1].location == f"{tmp_path / 'array.json'}:6"


def test_unicode_line_ends_and_byte_order_marks_do_not_split_rows(tmp_path):
  # str.splitlines would cut at both characters.
  row = {"q": "a\u2028b\x85c", "a": "1"}
  text = json.dumps(row, ensure_ascii=False).encode()
  for name in ("x.jsonl", "x.json"):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text + b"\r\n\n" + text)
    assert [raw.row for raw in read_rows(tmp_path / name)] == [row, row]
  (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf [" + text + b"]\n")
  assert [raw.row for raw in read_rows(tmp_path / "x.json")] == [row]


@pytest.mark.parametrize(
  "text, line, reason",
  [
    ('[{"q": 1},\n{"q"', 2, "not JSON"),
    ('[{"q": 1}\n,\n', 3, "not JSON"),
    ('[{"q": 1}\n', 2, "cut off"),
    ('[{"q": 1}\n{"q": 2}]', 2, "cut off"),
    ("[" * 100_000, 1, "not JSON"),
  ],
)
def test_an_array_that_is_cut_off_is_not_read_in_part(
  text, line, reason, tmp_path
):
  path = tmp_path / "x.json"
  path.write_text(text)
  with pytest.raises(DataError, match=rf"{path}:{line}: .*{reason}"):
    read_file(OWN, path, tmp_path / "data", skip_malformed=True)


def test_an_empty_array_has_no_rows(tmp_path):
  path = tmp_path / "x.json"
  path.write_text(" [ ] ")
  assert list(read_rows(path)) == []


def test_an_array_element_that_is_no_object_raises_with_its_line(tmp_path):
  path = tmp_path / "x.json"
  path.write_text('[\n {"q": "?", "a": 1},\n\n 7,\n {"q": "?", "a": 2}]')
  with pytest.raises(DataError, match=rf"{path}:4: not a JSON object"):
    read_file(OWN, path, tmp_path)
  rows = read_file(OWN, path, tmp_path, skip_malformed=True)
  assert [row.answer for row in rows] == ["1", "2"]


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "record"])
def test_damaged_data_sets_raise_and_say_what_to_remove(damage, tmp_path):
  path = write_lines(tmp_path / "x.jsonl", *sums(500))
  read_file(OWN, path, tmp_path / "data")
  (stored,) = (tmp_path / "data").rglob("*rows.array_record*")
  content = bytearray(stored.read_bytes())
  if damage == "cut":
    stored.write_bytes(content[: len(content) // 2])
  elif damage == "flip":
    content[len(content) // 2] ^= 0xFF
    stored.write_bytes(content)
  elif damage == "gone":
    stored.unlink()
  else:
    (stored.parent / "dataset_info.json").write_text("{")
  with pytest.raises(DataError, match=r"remove (that|its) folder"):
    list(read_file(OWN, path, tmp_path / "data"))


def test_preparing_imports_no_tensorflow_and_prints_nothing(tmp_path):
  path = write_lines(tmp_path / "x.jsonl", *sums(3))
  code = f"""
import socket, sys
def fail(*_, **__):
  raise AssertionError("used the network")
socket.socket.connect = socket.getaddrinfo = fail
from pure_jax.host.data import file_dataset, records
from pure_jax.host.data.formats import mapped
own = mapped.make_format(
  records.Problem, {{"problem": "q", "answer": "a"}}, source="own")
rows = file_dataset.read_file(own, {str(path)!r}, {str(tmp_path)!r})
assert [row.answer for row in rows] == ["1", "2", "3"]
assert not {{"tensorflow", "torch", "pyarrow"}} & sys.modules.keys()
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_real_files_as_data_sets(tmp_path):
  """test_problems and test_gsm8k_steps parse all rows of all real files."""
  test = real_data.require("gsm8k/test.jsonl")
  rows = read_file(problems.GSM8K, test, tmp_path)
  assert (len(rows), rows[0].answer) == (1_319, "18")
  path = real_data.require("prm800k/rows.jsonl")
  # GSM8K's parser on another file: the first line is the first fault.
  with pytest.raises(DataError, match=r"rows\.jsonl:1: field 'answer' is mis"):
    read_file(problems.GSM8K, path, tmp_path)
  solutions = real_data.require("gsm8k/example_model_solutions.jsonl")
  few = tmp_path / "few.jsonl"
  few.write_text("".join(solutions.read_text().splitlines(True)[:50]))
  labelled = read_file(gsm8k_steps.make_format(), few, tmp_path)
  assert len(labelled) == 4 * 50
  assert labelled[-1].problem == rows[49].problem
