"""Parsers of public formats: rules by hand, counts and spots on real files."""

import collections
import copy
import re

import pytest
import real_data

from pure_jax.host.data import formats, mapped_format
from pure_jax.host.data.problem_formats import (
  AIME24,
  AMC23,
  GSM8K,
  MATH8K,
  MATH500,
  MINERVA_MATH,
  OLYMPIADBENCH,
)
from pure_jax.host.data.records import (
  Problem,
  Steps,
  problem_key,
  split_by_problem,
  step_text,
)
from pure_jax.host.data.sources import read_rows
from pure_jax.host.data.step_formats import (
  MATH_SHEPHERD,
  PROCESSBENCH,
  STEPWISE,
)


def parse_file(row_format, name):
  path = real_data.require(name)
  return [
    record
    for number, raw in enumerate(read_rows(path))
    for record in row_format.parse(raw.row, number)
  ]


# ===== Real files of problems =====


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
  # Never both: training on a withheld answer would end the 10 % setting.
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


def test_olympiadbench_answers_lose_dollars_and_keep_their_conditions():
  rows = parse_file(OLYMPIADBENCH, "benchmarks/olympiadbench.jsonl")
  found = {row.id.removeprefix("olympiadbench/"): row for row in rows}
  assert sum(row.several_answers for row in rows) == 94
  assert sum(row.unit is not None for row in rows) == 8
  assert not any("$" in row.answer for row in rows)
  assert found["1606"].answer == "2"
  assert found["1664"].answer == "69,84" and found["1664"].several_answers
  assert found["2349"].answer == "221,8"  # "$221,$8$" in the file.
  assert found["1970"].answer == r"(-\infty, 0) \cup\{1\}"  # "$...$." there.
  assert (found["2592"].answer, found["2592"].unit) == ("4.2", "%")
  assert found["2592"].tolerance == 0.1
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


# ===== Problems by hand =====

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
def test_malformed_problems_say_what_is_wrong(name, changes, reason):
  row_format, row = ROWS[name]
  with pytest.raises(ValueError, match=reason):
    row_format.parse(row | changes, 0)


def test_a_missing_field_is_named_in_every_format():
  optional = {"math8k": set(), "olympiad": set()}
  for name, (row_format, row) in ROWS.items():
    for field in row.keys() - optional.get(name, set()):
      less = copy.deepcopy(row)
      del less[field]
      with pytest.raises(ValueError, match=f"field '{field}' is missing"):
        row_format.parse(less, 0)


@pytest.mark.parametrize(
  "number, text",
  [(27.0, "27"), (-1, "-1"), (0.5, "0.5"), (1e16, "1" + "0" * 16)],
)
def test_numbers_as_answers(number, text):
  assert formats.number_text(number) == text


# ===== Labelled steps by hand =====


def test_stepwise_rows_keep_every_label():
  row = {
    "prompt": "q",
    "completions": ["a", " b\n\nc"],
    "labels": [False, True],
  }
  (found,) = STEPWISE.parse(row, 4)
  assert (found.steps, found.labels) == (("a", "b\nc"), (0, 1))
  assert (found.id, found.problem, found.answer) == ("stepwise/4", "q", None)


@pytest.mark.parametrize(
  "changes, reason",
  [
    # A rating of 0 is neutral; read as a bool it would be bad.
    ({"labels": [1, 0]}, "label 1 is neither true nor false; ratings"),
    ({"labels": [None, True]}, "label None is neither"),
    ({"labels": [True]}, "2 steps, 1 labels"),
    ({"completions": ["a", ""]}, "step 2 is empty"),
    ({"completions": ["a", None]}, "step 2 is null, not text"),
    ({"completions": [], "labels": []}, "there is no step"),
    ({"completions": "ab"}, "'completions' is text, not a list"),
    ({"prompt": ""}, "'prompt' is empty"),
  ],
)
def test_malformed_stepwise_rows(changes, reason):
  row = {"prompt": "q", "completions": ["a", "b"], "labels": [True, True]}
  with pytest.raises(ValueError, match=reason):
    STEPWISE.parse(row | changes, 0)


INPUT = (
  "Two - and 3+3? Step 1: 3+3=6. ки\nStep 2: 2-6=-4 ки\nThe answer is: 4 ки"
)
LABEL = "Two - and 3+3? Step 1: 3+3=6. +\nStep 2: 2-6=-4 -\nThe answer is: 4 -"


def test_math_shepherd_signs_are_found_where_the_markers_are():
  # The texts hold + and - of their own: counting signs would not do.
  row = {"input": INPUT, "label": LABEL, "task": "GSM8K"}
  (found,) = MATH_SHEPHERD.parse(row, 2)
  assert found.problem == "Two - and 3+3?"
  assert found.steps == ("Step 1: 3+3=6.", "Step 2: 2-6=-4", "The answer is: 4")
  assert found.labels == (1, 0, 0)
  assert (found.id, found.source) == ("math_shepherd/2", "math_shepherd/gsm8k")


def test_math_shepherd_problems_may_speak_of_steps():
  row = {
    "input": "Explain Step 1: of it. Step 1: x ки ",
    "label": "Explain Step 1: of it. Step 1: x + ",
    "task": "MATH",
  }
  (found,) = MATH_SHEPHERD.parse(row, 0)
  assert (found.problem, found.steps) == (
    "Explain Step 1: of it.",
    ("Step 1: x",),
  )


@pytest.mark.parametrize(
  "text, label, reason",
  [
    ("q Step 1: a", "q Step 1: a", "does not end with the marker"),
    ("q Step 1: a ки b", "q Step 1: a + b", "does not end with the marker"),
    ("q Step 1: a ки", "q Step 1: a ки", "not field 'input' with"),
    ("q Step 1: a ки", "q Step 1: b +", "not field 'input' with"),
    ("q Step 1: a ки", "q Step 1: a", "not field 'input' with"),
    ("q Step 1: a ки", "q Step 1: a + +", "goes on after its last sign"),
    ("q ки Step 1: a ки", "q + Step 1: a +", "no 'Step 1:' before"),
    ("Step 1: a ки", "Step 1: a +", "the problem is empty"),
    ("q Step 1: a ки ки", "q Step 1: a + +", "step 2 is empty"),
  ],
)
def test_malformed_math_shepherd_rows(text, label, reason):
  row = {"input": text, "label": label, "task": "MATH"}
  with pytest.raises(ValueError, match=reason):
    MATH_SHEPHERD.parse(row, 0)


def bench(**changes):
  row = {
    "id": "gsm8k-0",
    "generator": "some model",
    "problem": "q",
    "steps": ["a", "b", "c"],
    "final_answer_correct": False,
    "label": 1,
  }
  return row | changes


@pytest.mark.parametrize(
  "label, labels, first_error",
  [
    (-1, (1, 1, 1), None),  # As an index, -1 would be the last step.
    (0, (0, None, None), 0),
    (1, (1, 0, None), 1),
    (2, (1, 1, 0), 2),
  ],
)
def test_processbench_labels_up_to_the_first_error(label, labels, first_error):
  (found,) = PROCESSBENCH.parse(bench(label=label), 0)
  assert (found.labels, found.first_error) == (labels, first_error)
  assert found.id == "processbench/gsm8k-0" and found.final_correct is False
  assert found.generator == "some model"


@pytest.mark.parametrize(
  "changes, reason",
  [
    ({"label": 3}, "label 3 is neither -1 nor one of 3 steps"),
    ({"label": -2}, "label -2 is neither"),
    ({"label": None}, "'label' is null, not a number"),
    ({"label": True}, "'label' is a bool"),
    ({"final_answer_correct": "yes"}, "is text, not true or false"),
  ],
)
def test_malformed_processbench_rows(changes, reason):
  with pytest.raises(ValueError, match=reason):
    PROCESSBENCH.parse(bench(**changes), 0)


# ===== A mapping of the user's =====


def test_a_mapping_reads_any_field_of_a_problem():
  mapping = {
    "id": "n",
    "problem": "q",
    "answer": "a",
    "level": "l",
    "tolerance": "t",
    "several_answers": "s",
    "subject": "topic",
  }
  kind = mapped_format.make_format(Problem, mapping, source="own")
  row = {"n": 7, "q": " q ", "a": 0.5, "l": 3, "t": 1, "s": True, "topic": ""}
  (found,) = kind.parse(row, 0)
  expected = Problem("7", "own", "q", "0.5", None, True, 1.0, level=3)
  assert found == expected
  row |= dict.fromkeys(["a", "l", "t", "topic"])
  (found,) = kind.parse(row, 0)
  assert found == Problem("7", "own", "q", several_answers=True)


def test_a_mapping_reads_steps_with_and_without_labels():
  mapping = {"problem": "q", "steps": "s", "labels": "l", "final_correct": "f"}
  kind = mapped_format.make_format(Steps, mapping, source="own")
  row = {"q": "q", "s": ["a", "b", "c", "d", "e"], "f": None}
  (found,) = kind.parse(row | {"l": [True, False, None, 1, 0]}, 3)
  assert found.labels == (1, 0, None, 1, 0)
  assert (found.id, found.source, found.final_correct) == ("own/3", "own", None)
  del mapping["labels"]
  kind = mapped_format.make_format(Steps, mapping, source="own")
  (found,) = kind.parse(row, 0)
  assert found.labels == (None,) * 5


@pytest.mark.parametrize(
  "row, reason",
  [
    ({"q": "q", "s": ["a"], "l": [-1]}, "label -1 is not true, false, 1, 0"),
    ({"q": "q", "s": ["a"], "l": [1.0]}, r"label 1\.0 is not true"),
    ({"q": "q", "s": ["a"], "l": [[1]]}, r"label \[1\] is not true"),
    ({"q": "q", "s": ["a"], "l": [1, 1]}, "1 steps, 2 labels"),
    ({"q": "q", "s": ["a"]}, "field 'l' is missing"),
    ({"q": None, "s": ["a"], "l": [1]}, "field 'q' is null"),
    ({"q": 7, "s": ["a"], "l": [1]}, "field 'q' is a number, not text"),
  ],
)
def test_rows_that_do_not_fit_a_mapping(row, reason):
  mapping = {"problem": "q", "steps": "s", "labels": "l"}
  kind = mapped_format.make_format(Steps, mapping, source="own")
  with pytest.raises(ValueError, match=reason):
    kind.parse(row, 0)


@pytest.mark.parametrize(
  "record, mapping, words",
  [
    (Problem, {"problem": "q", "anwser": "a"}, r"Unknown: \['anwser'\]"),
    (Problem, {"answer": "a"}, r"missing: \['problem'\]"),
    (Steps, {"problem": "q"}, r"missing: \['steps'\]"),
    (Steps, {"problem": "q", "steps": "s", "level": "l"}, r"\['level'\]"),
    (Problem, {"problem": "q", "source": "s"}, r"Unknown: \['source'\]"),
  ],
)
def test_mappings_of_fields_that_do_not_exist(record, mapping, words):
  with pytest.raises(ValueError, match=words):
    mapped_format.make_format(record, mapping, source="own")


# ===== Records =====


@pytest.mark.parametrize(
  "text, expected",
  [
    ("a\n\nb", "a\nb"),
    (" a \n \t\n\n b\n", "a\nb"),
    ("a\nb", "a\nb"),
    ("a\n  b", "a\n  b"),  # One line break keeps its indentation.
    ("\n\n", ""),
    ("a\r\n\r\nb", "a\nb"),
  ],
)
def test_a_step_holds_no_blank_line(text, expected):
  assert step_text(text) == expected


@pytest.mark.parametrize(
  "make, reason",
  [
    (lambda: Problem("i", "s", " "), "problem is empty"),
    (lambda: Problem("i", "s", "q", ""), "answer is empty"),
    (lambda: Steps("i", "s", "q", ("a\n\nb",), (1,)), "step 1 is empty or"),
    (lambda: Steps("i", "s", "q", ("a", " b"), (1, 1)), "step 2 is empty or"),
    (lambda: Steps("i", "s", "q", ("a",), (-1,)), "labels are 1, 0 or None"),
  ],
)
def test_records_that_nothing_could_be_done_with(make, reason):
  with pytest.raises(ValueError, match=reason):
    make()


def test_the_split_of_a_problem_does_not_depend_on_its_neighbours():
  rows = [Problem(str(i), "s", f"problem {i % 400}") for i in range(800)]
  train, held_out = split_by_problem(rows, 4)
  # Both copies of a problem go the same way; 100 of 400 are expected, with a
  # standard deviation of 8.7.
  assert len(held_out) % 2 == 0 and 65 <= len(held_out) / 2 <= 135
  for part in (train, held_out):
    assert {i % 400 for i in part} == {i % 400 for i in part if i >= 400}
  _, alone = split_by_problem(rows[:400][::-1], 4)
  assert {rows[i].problem for i in held_out} == {
    rows[:400][::-1][i].problem for i in alone
  }
  with pytest.raises(ValueError, match="at least 2, got 1"):
    split_by_problem(rows, 1)
