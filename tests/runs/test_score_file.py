"""The file of scores: what it holds, and which lines it rejects."""

import dataclasses
import json

import pytest

from pure_jax.host.data.records import LabelledSolution
from pure_jax.host.evaluation.record_file import RecordFileError
from pure_jax.runs.evaluation.score_file import (
  FILE,
  is_scored,
  open_scores,
  unscored,
)

SIZES = {"a": 3}
STEPS = LabelledSolution(
  "id", "test", "1 + 1?", ("1 + 1 = 2", "So 2."), (1, None)
)
SCORED = dataclasses.replace(unscored("a", 0, STEPS), step_rewards=(0.25, -1.0))
LEFT_OUT = dataclasses.replace(
  unscored("a", 1, STEPS), left_out="too many steps"
)
# A line that the file may add.
LINE = json.loads(json.dumps(dataclasses.asdict(SCORED) | {"row": 2}))


@pytest.fixture
def folder(tmp_path):
  """A folder with two solutions of three."""
  with open_scores(tmp_path, SIZES) as scores:
    scores.append([SCORED, LEFT_OUT])
  return tmp_path


def test_records_are_read_as_written_and_a_cut_last_line_is_dropped(folder):
  path = folder / FILE
  written = path.read_bytes()
  path.write_bytes(written + written[:40])
  with open_scores(folder, SIZES) as scores:
    assert scores.records == {("a", 0): SCORED, ("a", 1): LEFT_OUT}
    assert is_scored(scores, unscored("a", 1, STEPS))
    assert not is_scored(scores, unscored("a", 2, STEPS))
  assert path.read_bytes() == written


def test_another_solution_in_a_scored_row_raises(folder):
  changed = dataclasses.replace(STEPS, labels=(1, 1))
  with (
    open_scores(folder, SIZES) as scores,
    pytest.raises(RecordFileError, match=r"another 'a'.* first in row 0"),
  ):
    is_scored(scores, unscored("a", 0, changed))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"step_rewards": [0.25]}, "not 2 numbers in -1..1"),
    ({"step_rewards": [0.25, 0.5, 0.5]}, "not 2 numbers in -1..1"),
    ({"step_rewards": [0.25, float("nan")]}, "NaN is not a number of JSON"),
    ({"step_rewards": [0.25, 1.5]}, "not 2 numbers in -1..1"),
    ({"step_rewards": [0.25, "1"]}, "not 2 numbers in -1..1"),
    ({"step_rewards": [0.25, True]}, "not 2 numbers in -1..1"),
    ({"step_rewards": None}, "step_rewards is None"),
    ({"step_rewards": 1}, "step_rewards is 1"),
    ({"left_out": "tired"}, "left_out is 'tired', not one of"),
    ({"left_out": "too many steps"}, "without step_rewards"),
    ({"left_out": 1}, "left_out is 1"),
    ({"data": "b"}, r"data is 'b', none of \['a'\]"),
    ({"data": ["a"]}, r"data is \['a'\]"),
    ({"row": 3}, "row is 3, but its file has 3 rows"),
    ({"row": -1}, "row is -1"),
    ({"row": 1.0}, "row is 1.0"),
    ({"row": True}, "row is True"),
    ({"row": 1}, r"holds \('a', 1\) a second time"),
    ({"id": 5}, "id is 5"),
    ({"problem": None}, "problem is None"),
    ({"labels": [1, 2]}, r"labels is \[1, 2\], not 0, 1 and null"),
    ({"labels": [1, []]}, "labels is"),
    ({"labels": "good"}, "labels is 'good'"),
    ({"final_correct": 1}, "final_correct is 1"),
    ({"answer": 2}, "answer is 2"),
    ({"more": 1}, "it has other fields"),
  ],
)
def test_an_invalid_record_is_reported(folder, changes, message):
  assert_rejected(folder, json.dumps(LINE | changes), message)


@pytest.mark.parametrize("field", [*LINE])
def test_a_record_that_lacks_a_field_is_reported(folder, field):
  row = {k: v for k, v in LINE.items() if k != field}
  assert_rejected(folder, json.dumps(row), "it has other fields")


@pytest.mark.parametrize("line", ["", "5", "[1]", "{", "[" * 100_000, "\udcff"])
def test_a_line_that_is_no_record_is_reported(folder, line):
  assert_rejected(folder, line, "is not a scored solution")


def assert_rejected(folder, line, message):
  """Names file, line and reason, says what to do, and changes nothing."""
  path = folder / FILE
  with path.open("ab") as file:
    file.write(line.encode("utf-8", "surrogateescape") + b"\n")
  before = path.read_bytes()
  with pytest.raises(RecordFileError, match=message) as caught:
    open_scores(folder, SIZES)
  assert f"{path}:3 " in str(caught.value)
  assert "Remove" in str(caught.value)
  assert path.read_bytes() == before
