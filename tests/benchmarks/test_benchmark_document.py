"""The benchmark's file and its loop: what a run that ends early leaves."""

import contextlib
import dataclasses
import json

import pytest
from benchmarks import (
  bounds,
  document,
  measuring,
  report,
  suites,
)
from benchmarks.cases import BenchmarkError, Case
from benchmarks.programs import Options
from benchmarks.timing import Times

RATES = bounds.Rates(flops_per_second=100.0, bytes_per_second=10.0)


def test_a_file_grows_by_a_case_and_is_gone_on_with(tmp_path):
  """A run that is stopped loses the case it was at; no other machine or way to
  measure may go on with its file."""
  path = tmp_path / "found.json"
  where = {"commit": "a", "packages": {"jax": "1"}, "devices": {"cpu": 1},
           "processor": "p", "cores": 2, "date": "1", "load_average": 0.0,
           "command": "c"}  # fmt: skip
  how = dataclasses.asdict(Options()) | {"peers": ("trl",)}
  first, other = (Case("score", "tiny", rows, 2, 8, 6) for rows in (4, 8))
  line = report.Line("score", Times((2.0, 4.0), 9.0), (), None, None, None)
  begun = document.Document(path, where, how)
  begun.add(report.Result(first, RATES, {}, [line]))
  begun.leave_out(other, "why")
  left = json.loads(path.read_text())
  assert left["cases"][0]["arms"]["score"]["seconds"] == [2.0, 4.0]
  assert left["left_out"][0]["rows"] == 8
  assert not document.Document(path, where, how).has(first)
  going_on = document.Document(path, where | {"date": "2"}, how, resume=True)
  assert going_on.has(first) and not going_on.has(other)
  going_on.add(report.Result(other, RATES, {}, [line]))
  whole = json.loads(path.read_text())
  assert [case["rows"] for case in whole["cases"]] == [4, 8]
  assert (whole["machine"]["date"], whole["left_out"]) == ("2", [])
  assert [run["date"] for run in whole["machine"]["resumed"]] == ["1"]
  for where_else, how_else, named in (
    (where | {"cores": 3}, how, "differ in cores"),
    (where, how | {"peers": ()}, "differ in peers"),
  ):
    with pytest.raises(BenchmarkError, match=named):
      document.Document(path, where_else, how_else, resume=True)


def test_a_case_with_a_fault_ends_no_other_case(tmp_path, monkeypatch, capsys):
  """It is named, and the peers of the next one are new."""
  started = []

  @contextlib.contextmanager
  def running(suite, names, folder):
    started.append(suite)
    yield []

  def faulty(case, options):
    if case.rows == 4:
      raise BenchmarkError("tokens differ.")
    return SCORE(case, options)

  SCORE = suites.SUITES["score"]
  monkeypatch.setitem(suites.SUITES, "score", faulty)
  monkeypatch.setattr(measuring, "running", running)
  path = tmp_path / "found.json"
  cases = [Case("score", "tiny", rows, 2, 8, 6) for rows in (2, 4, 6)]
  how = measuring.How(Options(), 2, 1.0, 16, (), None)
  failed = measuring.measure_all(cases, how, document.Document(path, {}, {}))
  assert failed == [cases[1]]
  assert started == ["score", "score"]
  found = json.loads(path.read_text())
  assert [case["rows"] for case in found["cases"]] == [2, 6]
  (left,) = found["left_out"]
  assert (left["rows"], left["why"]) == (4, "failed: tokens differ.")
  assert "failed: tokens differ." in capsys.readouterr().out
