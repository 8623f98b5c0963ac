"""Rows of an untrusted file: a wrong value is a fault, or can be stored.

For each format, every value of a valid row is replaced by every value of
`HOSTILE`, at any depth, and removed.
"""

import copy
import json
import math

import pytest

from pure_jax.host.data import storage
from pure_jax.host.data.file_dataset import read_file
from pure_jax.host.data.formats import mapped
from pure_jax.host.data.formats.gsm8k_steps import GENERATORS
from pure_jax.host.data.formats.named import find_format
from pure_jax.host.data.records import DataError, LabelledSolution, Problem

WORKED = "1+1 = <<1+1=2>>2\nA: 2"
ROWS = {
  "gsm8k": {"question": "q?", "answer": "1+1 = <<1+1=2>>2\n#### 2"},
  "math8k": {
    "question": "q",
    "answer": "null",
    "ref_answer": "3",
    "level": "3",
  },
  "math500": {
    "problem": "p",
    "answer": "3",
    "solution": "s",
    "subject": "a",
    "level": 3,
    "unique_id": "u",
  },
  "minerva_math": {
    "problem": "p",
    "solution": "\\boxed{3}",
    "type": "t",
    "idx": 1,
  },
  "olympiadbench": {
    "question": "q",
    "solution": ["s"],
    "final_answer": ["$3$"],
    "is_multiple_answer": False,
    "unit": None,
    "error": "1e-1",
    "context": None,
    "id": 3,
    "subfield": "a",
  },
  "aime24": {"problem": "p", "answer": "025", "solution": "s", "id": 3},
  "amc23": {"problem": "p", "answer": 27.0, "id": 1},
  "stepwise": {
    "prompt": "p",
    "completions": ["a", "b"],
    "labels": [True, False],
  },
  "math_shepherd": {
    "input": "p Step 1: a ки Step 2: b ки",
    "label": "p Step 1: a + Step 2: b -",
    "task": "GSM8K",
  },
  "processbench": {
    "id": "x",
    "generator": "g",
    "problem": "p",
    "steps": ["a", "b"],
    "final_answer_correct": True,
    "label": -1,
  },
  "prm800k": {
    "question": {"problem": "p", "ground_truth_answer": "3"},
    "label": {
      "steps": [
        {
          "completions": [
            {"text": "a", "rating": 1, "flagged": False},
            {"text": "b", "rating": -1, "flagged": None},
          ],
          "chosen_completion": None,
          "human_completion": {"text": "c", "flagged": None},
        }
      ],
      "finish_reason": "solution",
    },
    "is_quality_control_question": False,
    "is_initial_screening_question": False,
  },
  "gsm8k_steps": {
    "question": "q",
    "ground_truth": WORKED,
    **{name: {"solution": WORKED, "is_correct": True} for name in GENERATORS},
  },
  "mapped_problems": {
    "id": "a",
    "problem": "p",
    "answer": "3",
    "withheld_answer": "4",
    "several_answers": False,
    "tolerance": 0.1,
    "unit": "cm",
    "solution": "s",
    "level": 3,
    "subject": "x",
  },
  "mapped_steps": {
    "id": "a",
    "problem": "p",
    "steps": ["a", "b"],
    "labels": [True, None],
    "answer": "3",
    "final_correct": True,
    "generator": "g",
  },
}
HOSTILE = [
  *(None, True, False, 0, -1, 7, 1.5, 1e300, 10**12, 10**400),
  *(math.nan, math.inf, "", "  ", "x", "\ud800", "\x00\x1b[2J", "3\r\n4"),
  *("1e999", "٣", "9" * 5000, "(" * 5000, "<<" + "(" * 300 + ">>"),
  *([], {}, [None], [[]], [1], [""], ["\ud800"], [math.nan], {"a": 1}),
]
MISSING = object()
# Fields that may be of another type than in the rows above.
NUMBERS_TOO = ("id", "answer", "withheld_answer")
ZERO_OR_ONE = ("labels",)


def row_format(name):
  if name.startswith("mapped_"):
    return find_format(name, {field: field for field in ROWS[name]})
  return find_format(name)


def paths(value, path=()):
  """The paths of all values within a value."""
  if path:
    yield path
  if isinstance(value, dict | list):
    for key in value if isinstance(value, dict) else range(len(value)):
      yield from paths(value[key], (*path, key))


def changed(row, path, value):
  row = copy.deepcopy(row)
  holder = row
  for key in path[:-1]:
    holder = holder[key]
  if value is MISSING:
    del holder[path[-1]]
  else:
    holder[path[-1]] = value
  return row


def original(row, path):
  for key in path:
    row = row[key]
  return row


def json_type(value):
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return float if is_number else type(value)


@pytest.mark.parametrize("name", ROWS)
def test_a_hostile_value_is_a_fault_or_can_be_stored(name):
  kind, row = row_format(name), ROWS[name]
  features = storage.record_features(kind.record)
  assert kind.parse(copy.deepcopy(row), 0)
  for path in paths(row):
    for value in (MISSING, *HOSTILE):
      try:
        records = kind.parse(changed(row, path, value), 0)
      except ValueError as error:
        assert str(error)
        continue
      for record in records:
        example = storage.encode_record(record)
        for field, feature in features.items():
          feature.encode_example(example[field])
        json.dumps(example, ensure_ascii=False).encode()


@pytest.mark.parametrize("name", ROWS)
def test_a_value_of_another_type_is_a_fault(name):
  kind, row = row_format(name), ROWS[name]
  is_mapped = name.startswith("mapped_")
  for path in paths(row):
    before = original(row, path)
    for value in HOSTILE:
      if value is None or before is None:
        continue
      if json_type(value) is json_type(before):
        continue
      if is_mapped and path[0] in NUMBERS_TOO and json_type(value) is float:
        continue
      if is_mapped and path[0] in ZERO_OR_ONE and value in (0, 1):
        continue
      try:
        kind.parse(changed(row, path, value), 0)
      except ValueError:
        continue
      pytest.fail(f"{path} may be {ascii(value)[:40]}")


def test_a_number_that_cannot_be_stored_has_its_row(tmp_path):
  path = tmp_path / "x.jsonl"
  rows = [{"problem": "p", "level": 3}, {"problem": "p", "level": 10**12}]
  path.write_text("\n".join(map(json.dumps, rows)))
  fields = {"problem": "problem", "level": "level"}
  kind = mapped.make_format(Problem, fields, source="own")
  with pytest.raises(DataError, match=f"{path}:2: the level is 1000000000000"):
    read_file(kind, path, tmp_path / "data")


def test_a_fault_quotes_a_long_value_in_part(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text(json.dumps({"p": "p", "s": ["a"], "l": ["x" * 10**6]}))
  fields = {"problem": "p", "steps": "s", "labels": "l"}
  kind = mapped.make_format(LabelledSolution, fields, source="own")
  with pytest.raises(DataError, match=f"{path}:1: the label 'xxx") as error:
    read_file(kind, path, tmp_path / "data")
  assert len(str(error.value)) < 1000
