"""The file of a benchmark, and its loop over cases that may fail."""

import contextlib
import dataclasses
import json

import pytest
from benchmarks import bounds, measuring, results
from benchmarks.cases import BenchmarkError, Case, Options
from benchmarks.results import Document
from benchmarks.suites import SUITES
from benchmarks.timing import Arm, Times

MACHINE = {
  "commit": "a", "packages": {"jax": "1"}, "devices": {"cpu": 1},
  "processor": "p", "cores": 2, "date": "1", "load_average": 0.0,
  "command": "c",
}  # fmt: skip
RATES = bounds.Rates(flops_per_second=100.0, bytes_per_second=10.0)


def test_a_file_grows_case_by_case_and_is_resumed(tmp_path):
  """A run that is stopped loses only its present case. Its file cannot be
  resumed on another machine or with other settings."""
  path = tmp_path / "results.json"
  where = MACHINE
  how = dataclasses.asdict(Options()) | {"baselines": ("trl",)}
  first, other = (Case("score", "tiny", rows, 2, 8, 6) for rows in (4, 8))
  line = results.Line("score", Arm(None), Times((2.0, 4.0), 9.0), RATES)
  started = Document(path, where, how)
  started.add(results.Result(first, RATES, {}, [line]))
  started.skip(other, "why")
  saved = json.loads(path.read_text())
  assert saved["cases"][0]["arms"]["score"]["seconds"] == [2.0, 4.0]
  assert saved["skipped"][0]["rows"] == 8
  assert not Document(path, where, how).has(first)
  resumed = Document(path, where | {"date": "2"}, how, resume=True)
  assert resumed.has(first) and not resumed.has(other)
  resumed.add(results.Result(other, RATES, {}, [line]))
  whole = json.loads(path.read_text())
  assert [case["rows"] for case in whole["cases"]] == [4, 8]
  assert (whole["machine"]["date"], whole["skipped"]) == ("2", [])
  assert [run["date"] for run in whole["machine"]["resumed"]] == ["1"]
  for where_else, how_else, named in (
    (where | {"cores": 3}, how, "differ in cores"),
    (where, how | {"baselines": ()}, "differ in baselines"),
  ):
    with pytest.raises(BenchmarkError, match=named):
      Document(path, where_else, how_else, resume=True)


@pytest.mark.parametrize(
  "content",
  [
    *(b"", b"[]", b"{}", b"[" * 200_000, b"\xff", b'{"machine": 1}'),
    *(b'{"machine": {}, "options": {}, "cases": []}', b"1" * 5000),
  ],
  ids=lambda content: repr(content[:20]),
)
def test_a_file_of_something_else_is_not_resumed(tmp_path, content):
  path = tmp_path / "results.json"
  path.write_bytes(content)
  with pytest.raises(BenchmarkError, match="--resume"):
    Document(path, MACHINE, {}, resume=True)
  assert path.read_bytes() == content


def test_a_case_that_fails_ends_no_other_case(tmp_path, monkeypatch, capsys):
  """It is named, and the next case has new baselines. A second run measures
  only the case that failed."""
  started, measured = [], []

  @contextlib.contextmanager
  def run_baselines(suite, names, environments):
    started.append(suite)
    yield {}

  def score_arms(case):
    measured.append(case.rows)
    if case.rows == 4:
      raise BenchmarkError("tokens differ.")
    return {"score": Arm(lambda: 1.0, 9.0)}

  suite = dataclasses.replace(SUITES["score"], compile_arms=score_arms)
  monkeypatch.setitem(SUITES, "score", suite)
  monkeypatch.setattr(measuring, "run_baselines", run_baselines)
  path = tmp_path / "results.json"
  cases = [Case("score", "tiny", rows, 2, 8, 6) for rows in (2, 4, 6)]
  settings = measuring.Settings(2, probe_side=16)
  failed = measuring.measure_all(cases, settings, Document(path, MACHINE, {}))
  assert failed == [cases[1]]
  assert started == ["score", "score"]
  saved = json.loads(path.read_text())
  assert [case["rows"] for case in saved["cases"]] == [2, 6]
  (skipped,) = saved["skipped"]
  assert (skipped["rows"], skipped["why"]) == (4, "failed: tokens differ.")
  assert "failed: tokens differ." in capsys.readouterr().out
  again = Document(path, MACHINE, {}, resume=True)
  assert measuring.measure_all(cases, settings, again) == [cases[1]]
  assert measured == [2, 4, 6, 4]
