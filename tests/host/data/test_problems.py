"""Problems of GSM8K, PURE's MATH prompts and benchmarks: real and by hand."""

import collections
import copy
import re

import pytest
import real_data

from pure_jax.host.data.formats import fields
from pure_jax.host.data.formats.problems import (
  AIME24,
  AMC23,
  GSM8K,
  MATH8K,
  MATH500,
  MINERVA_MATH,
  OLYMPIADBENCH,
)
from pure_jax.host.data.records import problem_key
from pure_jax.host.data.sources import read_rows


def parse_file(row_format, name):
  path = real_data.require(name)
  return [
    record
    for number, raw in enumerate(read_rows(path))
    for record in row_format.parse(raw.row, number)
  ]


# ===== Real files =====


@pytest.mark.parametrize(
  "row_format, name, count",
  [
    (GSM8K, "gsm8k/train.jsonl", 7_473),
    (GSM8K, "gsm8k/test.jsonl", 1_319),
    (MATH8K, "math8k/prompts.json", 8_523),
    (MATH500, "benchmarks/math500.jsonl", 500),
    (MINERVA_MATH, "benchmarks/minerva_math.jsonl", 272),
    (OLYMPIADBENCH, "benchmarks/olympiadbench.jsonl", 675),
    (AIME24, "benchmarks/aime24.jsonl", 30),
    (AMC23, "benchmarks/amc23.jsonl", 40),
  ],
)
def test_every_real_row_is_read_once(row_format, name, count):
  rows = parse_file(row_format, name)
  assert len(rows) == len({row.id for row in rows}) == count
  assert all(row.has_answer for row in rows) != (row_format is MATH8K)
  for row in rows:
    texts = [row.problem, row.answer, row.solution, row.withheld_answer]
    for text in texts:
      assert text is None or (text and text == text.strip())


def test_gsm8k_answers_are_plain_numbers():
  rows = parse_file(GSM8K, "gsm8k/train.jsonl")
  assert all(re.fullmatch(r"-?\d+", row.answer) for row in rows)
  # "109,200,000" in the file; a reading up to the comma would give 109.
  assert sum(row.answer == "109200000" for row in rows) == 1
  assert rows[0].answer == "72"
  assert rows[0].solution.startswith("Natalia sold 48/2 = 24 clips in May.\n")
  assert not any("<<" in r.solution or "####" in r.solution for r in rows)


def test_math8k_has_answers_for_879_and_withholds_the_others():
  rows = parse_file(MATH8K, "math8k/prompts.json")
  assert sum(row.has_answer for row in rows) == 879
  # Never both: a withheld answer must not be used in the 10 % setting.
  assert not any(row.answer and row.withheld_answer for row in rows)
  neither = [
    i for i, r in enumerate(rows) if not (r.answer or r.withheld_answer)
  ]
  assert neither == [5_054, 5_158]
  assert collections.Counter(row.level for row in rows) == {
    5: 3_361,
    4: 2_648,
    3: 2_514,
  }
  assert "null" not in {r.answer for r in rows} | {
    r.withheld_answer for r in rows
  }
  assert rows[0].withheld_answer == "118"
  keys = collections.Counter(problem_key(row.problem) for row in rows)
  assert [key for key, count in keys.items() if count > 1] == [
    problem_key(rows[1_769].problem)
  ]


def test_math500_has_level_and_subject():
  rows = parse_file(MATH500, "benchmarks/math500.jsonl")
  assert collections.Counter(row.level for row in rows) == {
    1: 43,
    2: 90,
    3: 105,
    4: 128,
    5: 134,
  }
  assert sum(row.subject == "Number Theory" for row in rows) == 62
  assert rows[0].id == "math500/test/precalculus/807.json"
  assert rows[0].answer == r"\left( 3, \frac{\pi}{2} \right)"


def test_minerva_answers_are_in_the_box():
  rows = parse_file(MINERVA_MATH, "benchmarks/minerva_math.jsonl")
  answers = {row.id: row.answer for row in rows}
  assert answers["minerva_math/0"] == "1.6"
  assert "np.arcsin(10/13)" in answers.values()
  # Nested braces, and a line break before the closing one.
  assert r"I(0) e^{-\frac{t}{R C}}" in answers.values()
  assert len({row.subject for row in rows}) == 9


def test_olympiadbench_answers_have_no_dollars_but_unit_and_tolerance():
  rows = parse_file(OLYMPIADBENCH, "benchmarks/olympiadbench.jsonl")
  by_id = {row.id.removeprefix("olympiadbench/"): row for row in rows}
  assert sum(row.several_answers for row in rows) == 94
  assert sum(row.unit is not None for row in rows) == 8
  assert not any("$" in row.answer for row in rows)
  assert by_id["1606"].answer == "2"
  assert by_id["1664"].answer == "69,84" and by_id["1664"].several_answers
  assert by_id["2349"].answer == "221,8"  # "$221,$8$" in the file.
  assert by_id["1970"].answer == r"(-\infty, 0) \cup\{1\}"  # "$...$." there.
  assert (by_id["2592"].answer, by_id["2592"].unit) == ("4.2", "%")
  assert by_id["2592"].tolerance == 0.1
  assert [row.id for row in rows if row.tolerance is not None] == [
    "olympiadbench/2592"
  ]


def test_competition_answers_are_written_as_numbers():
  aime = {
    row.id: row.answer for row in parse_file(AIME24, "benchmarks/aime24.jsonl")
  }
  # "025" and "073" in the file: a comparison of texts would fail "25".
  assert (aime["aime24/67"], aime["aime24/75"]) == ("25", "73")
  amc = {
    row.id: row.answer for row in parse_file(AMC23, "benchmarks/amc23.jsonl")
  }
  assert (amc["amc23/0"], amc["amc23/17"], amc["amc23/3"]) == (
    "27",
    "-1",
    "3159",
  )
  assert not any("." in answer for answer in amc.values())


# ===== By hand =====

ROWS = {
  "gsm8k": (GSM8K, {"question": "q", "answer": "1+1=<<1+1=2>>2\n#### 2"}),
  "math8k": (
    MATH8K,
    {"question": "q", "answer": "null", "ref_answer": "2", "level": "5"},
  ),
  "math500": (
    MATH500,
    {
      "problem": "q",
      "answer": "2",
      "solution": "s",
      "subject": "Algebra",
      "level": 5,
      "unique_id": "a/1",
    },
  ),
  "minerva": (
    MINERVA_MATH,
    {
      "problem": "q",
      "solution": r"\boxed{1}, so \boxed{2}",
      "type": "t",
      "idx": 0,
    },
  ),
  "olympiad": (
    OLYMPIADBENCH,
    {
      "id": 1,
      "context": "c",
      "question": "q",
      "solution": ["s", "t"],
      "final_answer": ["$2$"],
      "is_multiple_answer": False,
      "unit": None,
      "error": None,
      "subfield": "Algebra",
    },
  ),
  "aime": (AIME24, {"id": 1, "problem": "q", "answer": "002", "solution": "s"}),
  "amc": (AMC23, {"id": 1, "problem": "q", "answer": 2.0}),
}


@pytest.mark.parametrize("name", ROWS)
def test_answers_by_hand(name):
  row_format, row = ROWS[name]
  (record,) = row_format.parse(row, 0)
  if name == "math8k":
    assert (record.answer, record.withheld_answer) == (None, "2")
  else:
    assert record.answer == "2"
  assert record.problem == ("c\n\nq" if name == "olympiad" else "q")


@pytest.mark.parametrize(
  "name, changes, reason",
  [
    ("gsm8k", {"answer": "2"}, "0 '####', not one"),
    ("gsm8k", {"answer": "s #### 1 #### 2"}, "2 '####', not one"),
    ("gsm8k", {"answer": "s\n#### 2 eggs"}, "'2 eggs' is not a number"),
    ("gsm8k", {"answer": "s\n#### 1,08"}, "'1,08' is not a number"),
    ("gsm8k", {"question": None}, "field 'question' is null"),
    ("math8k", {"answer": ""}, "field 'answer' is empty"),
    ("math8k", {"level": "6"}, "level '6' is not one of 1 to 5"),
    ("math500", {"level": "5"}, "'level' is text, not a number"),
    ("math500", {"level": 5.5}, "'level' is 5.5, not a whole number"),
    ("math500", {"level": True}, "'level' is a bool, not a number"),
    ("minerva", {"solution": r"\boxed{2"}, "no closed"),
    ("minerva", {"solution": r"\boxed{ }"}, "no closed"),
    ("olympiad", {"final_answer": ["1", "2"]}, "holds 2 texts, not one"),
    ("olympiad", {"final_answer": [2]}, "'final_answer' is a number, not text"),
    ("olympiad", {"final_answer": "2"}, "'final_answer' is text, not a list"),
    ("olympiad", {"final_answer": ["$$"]}, "the answer is empty"),
    ("olympiad", {"error": "some"}, "'error' is 'some', not a number"),
    ("olympiad", {"error": "-1"}, "tolerance is -1.0"),
    ("olympiad", {"error": "nan"}, "tolerance is nan"),
    ("olympiad", {"is_multiple_answer": "no"}, "is text, not true or false"),
    ("aime", {"answer": "-1"}, "'-1' is not a number from 0 to 999"),
    ("aime", {"answer": "²"}, "'²' is not a number"),
    ("amc", {"answer": float("nan")}, "'answer' is nan, not a finite number"),
    ("amc", {"answer": "27"}, "'answer' is text, not a number"),
    ("amc", {"answer": True}, "'answer' is a bool, not a number"),
  ],
)
def test_malformed_problems_raise_with_the_reason(name, changes, reason):
  row_format, row = ROWS[name]
  with pytest.raises(ValueError, match=reason):
    row_format.parse(row | changes, 0)


def test_a_missing_field_is_named_in_every_format():
  for row_format, row in ROWS.values():
    for field in row:
      less = copy.deepcopy(row)
      del less[field]
      with pytest.raises(ValueError, match=f"field '{field}' is missing"):
        row_format.parse(less, 0)


@pytest.mark.parametrize(
  "number, text",
  [(27.0, "27"), (-1, "-1"), (0.5, "0.5"), (1e16, "1" + "0" * 16)],
)
def test_numbers_as_answers(number, text):
  assert fields.number_text(number) == text
