"""GSM8K solutions labelled by arithmetic: the rules, and the real file."""

import collections
from fractions import Fraction

import pytest
import real_data

from pure_jax.host.data.formats import gsm8k_steps, problems
from pure_jax.host.data.formats.gsm8k_steps import _check, label_solution
from pure_jax.host.data.records import problem_key, split_by_problem
from pure_jax.host.data.sources import read_rows


@pytest.mark.parametrize(
  "line, verdict",
  [
    ("no annotation: 3+4=8", None),
    ("3 + 4 = <<3+4=7>>7 eggs", True),
    ("3 + 4 = $<<3+4=7>>7.", True),
    ("3 + 4 = <<3+4=8>>8 eggs", False),
    ("3 + 4 = <<3+4=7>>8 eggs", False),  # The number in the text is wrong.
    ("<<3+4=7>>7 and <<1+1=3>>3", False),
    ("<<3+x=7>>7 and <<1+1=2>>2", None),
    ("<<3+x=7>>7 and <<1+1=3>>3", False),
    ("<<5*2/5=2.0=2.0>>2", True),
    ("<<5*2/5=2.5=2.0>>2", False),
    ("<<83.33>>83.33", None),
    ("10 / 3 = <<10/3=3.3333333333333335>>3 elves", True),
    ("580/110 = <<580/110=5.2727272727272725>>5.27 bags", True),
    ("60 - 208 = $<<60-208=-148>>148 more", True),
    ("<<1*5=5>>", True),  # Nothing written after it.
    ("<<30000*50=1500000.0>>150,000", False),
    ("<<350000*5/100=17500.0>>17 500.", True),
    ("<<1+2=3>>3 500-calorie meals", True),
    ("<<3/4=3/4>>3/4", True),
    ("<<1/4=0.25>>25% of it", True),
    ("<<3*10=30>>.3 hundred", True),
    ("<<1500000+1700000=3200000>>3.2 million", True),
    ("<<1500000+1700000=3200000>>3,2 million", True),
    ("<<3*4=12>>12k", True),
    ("<<2*35=70>>70kg", True),
    ("<<2*35=70>>71kg", False),
  ],
)
def test_verdicts_on_lines_by_hand(line, verdict):
  assert _check(line).verdict is verdict


# 16-3-4 = 9, 9*2 = 18.
REFERENCE = ["16-3-4 = <<16-3-4=9>>9 eggs.", "9*2 = $<<9*2=18>>18.", "A: 18"]
NINE, EIGHTEEN = REFERENCE[:2]
ELEVEN = "9+2 = <<9+2=11>>11"
SEVEN = "3+4 = <<3+4=7>>7 eggs are eaten."
FALSE = "16-3 = <<16-3=12>>12"
UNREAD = "x = <<x=9>>9"
PLAIN = "Janet sells the rest."


@pytest.mark.parametrize(
  "lines, expected, with_departures",
  [
    # Right solutions: lines without annotations and other paths are good, false
    # annotations are bad.
    ([NINE, EIGHTEEN, "A: 18"], [1, 1, 1], None),
    ([PLAIN, SEVEN, EIGHTEEN, "A: $18"], [1, 1, 1, 1], None),
    ([UNREAD, EIGHTEEN, "A: 18.0"], [None, 1, 1], None),
    ([NINE, FALSE, EIGHTEEN, "A: 18"], [1, 0, None, None], None),
    # Wrong solutions: lines are good if the reference computes the same, up to
    # a departure.
    ([NINE, ELEVEN, "A: 11"], [1, None, 0], [1, 0, None]),
    ([ELEVEN, NINE, "A: 9"], [None, None, 0], [0, None, None]),
    ([PLAIN, NINE, PLAIN, "A: 9"], [None, 1, None, 0], None),
    ([UNREAD, NINE, ELEVEN, "A: 11"], [None, None, None, 0], None),
    ([NINE, FALSE, "A: 12"], [1, 0, None], None),
    ([ELEVEN, FALSE, "A: 12"], [None, 0, None], [0, None, None]),
    # Only a final answer, and a final answer that is not a number.
    (["A: 18"], [1], None),
    (["A: 17"], [0], None),
    ([NINE, "A: 10+John's age"], [1, 0], None),
    # Cut off: without a final answer the solution is not right.
    ([NINE, ELEVEN], [1, None], [1, 0]),
    ([NINE, EIGHTEEN], [1, 1], None),
    ([NINE, "18"], [1, None], None),
  ],
)
def test_labels_of_a_solution_by_hand(lines, expected, with_departures):
  assert label_solution(lines, REFERENCE) == expected
  labels = label_solution(lines, REFERENCE, departures=True)
  assert labels == (with_departures or expected)


@pytest.mark.parametrize(
  ("lines", "expected"),
  [
    ([NINE, ELEVEN, "A: 11"], [1, 0, 0]),
    ([NINE, FALSE, PLAIN, "A: 12"], [1, 0, None, 0]),
    ([NINE, FALSE, EIGHTEEN, "A: 18"], [1, 0, None, None]),  # A right one.
    ([NINE, ELEVEN, PLAIN], [1, 0, None]),  # Cut off: it has no answer.
  ],
)
def test_a_wrong_answer_after_a_bad_step_is_bad_if_answers_are_labelled(
  lines, expected
):
  labels = label_solution(lines, REFERENCE, departures=True, answers=True)
  assert labels == expected


def raw_row(**changes):
  right = {"is_correct": True, "solution": f"{NINE}\n{EIGHTEEN}\nA: 18"}
  row = {"question": "Eggs?", "ground_truth": "\n".join(REFERENCE)}
  return row | dict.fromkeys(gsm8k_steps.GENERATORS, right) | changes


def test_a_row_makes_four_solutions_without_annotations():
  wrong = {"is_correct": False, "solution": f"{ELEVEN}\nA: 11"}
  rows = gsm8k_steps.make_format().parse(
    raw_row(**{"175b_finetuning": wrong}), 7
  )
  assert [row.generator for row in rows] == list(gsm8k_steps.GENERATORS)
  assert [row.final_correct for row in rows] == [True, True, False, True]
  assert rows[0].id == "gsm8k_steps/7/6b_finetuning"
  assert rows[0].steps == ("16-3-4 = 9 eggs.", "9*2 = $18.", "A: 18")
  assert (rows[2].steps, rows[2].labels) == (("9+2 = 11", "A: 11"), (None, 0))
  assert {row.answer for row in rows} == {"18"}


@pytest.mark.parametrize(
  "changes, reason",
  [
    ({"6b_finetuning": None}, "'6b_finetuning' is null, not an object"),
    ({"ground_truth": NINE}, "last line of 'ground_truth'"),
    ({"ground_truth": "A: nine"}, "'nine' is not a number"),
    (
      {"6b_finetuning": {"is_correct": True, "solution": "A: 17"}},
      "6b_finetuning: 'is_correct' is True, the final answer is not",
    ),
    (
      {"6b_finetuning": {"is_correct": True, "solution": "x\n\nA: 18"}},
      "step 2 is empty",
    ),
  ],
)
def test_malformed_rows_raise(changes, reason):
  with pytest.raises(ValueError, match=reason):
    gsm8k_steps.make_format().parse(raw_row(**changes), 0)


@pytest.fixture(scope="module")
def raw():
  path = real_data.require("gsm8k/example_model_solutions.jsonl")
  return [raw.row for raw in read_rows(path)]


@pytest.fixture(scope="module")
def real(raw):
  parse = gsm8k_steps.make_format().parse
  return [row for i, row in enumerate(raw) for row in parse(row, i)]


def counts(rows):
  """Numbers of steps that are good, bad and not labelled."""
  labels = collections.Counter(label for row in rows for label in row.labels)
  return labels[1], labels[0], labels[None]


def test_real_solutions_come_to_the_counts_reported(real):
  assert len(real) == 5_276 and sum(len(r.steps) for r in real) == 23_141
  # 2,001 is also what the file's own is_correct says, 11 have no final line.
  assert sum(row.final_correct for row in real) == 2_001
  assert sum(not r.steps[-1].startswith("A: ") for r in real) == 11
  assert counts(real) == (10_520, 3_269, 9_352)
  right = [row for row in real if row.final_correct]
  wrong = [row for row in real if not row.final_correct]
  assert counts(right) == (8_118, 3, 6)
  assert counts(wrong) == (2_402, 3_266, 9_346)


def test_the_four_real_solutions_of_a_problem_share_its_key(real):
  keys = [problem_key(row.problem) for row in real]
  assert keys[::4] == keys[1::4] == keys[2::4] == keys[3::4]
  assert len({*keys}) == 1_319


def test_real_bad_steps_are_the_last_labelled(real):
  for row in real:
    if 0 in row.labels:
      after = row.labels[row.labels.index(0) + 1 :]
      assert not any(label is not None for label in after)


def test_departures_add_errors_within_real_solutions(raw, real):
  parse = gsm8k_steps.make_format(departures=True).parse
  departed = [row for i, row in enumerate(raw) for row in parse(row, i)]
  inner = [
    sum(0 in row.labels[:-1] for row in rows) for rows in (real, departed)
  ]
  assert inner == [76, 3_077]
  assert counts(departed)[1] == 3_274  # The other 197 are final answers.
  parse = gsm8k_steps.make_format(departures=True, answers=True).parse
  answered = [row for i, row in enumerate(raw) for row in parse(row, i)]
  assert counts(answered)[:2] == (10_520, 6_342)
  for before, after in zip(real, departed, strict=True):
    if before.final_correct:
      assert before == after
    assert sum(label == 1 for label in before.labels) == sum(
      label == 1 for label in after.labels
    )


def test_a_share_of_right_steps_departs(raw):
  # Departures are a guess: steps of right solutions depart as well.
  departed = annotated = 0
  for row in raw:
    reference = row["ground_truth"].split("\n")
    known = [result for line in reference for result in _check(line).results]
    known.append(Fraction(reference[-1][3:].replace(",", "")))
    for generator in gsm8k_steps.GENERATORS:
      if not row[generator]["is_correct"]:
        continue
      for line in row[generator]["solution"].split("\n")[:-1]:
        results = _check(line).results
        annotated += bool(results)
        departed += any(
          min(abs(result - other) for other in known) > Fraction(5, 1000)
          for result in results
        )
  assert 0.11 < departed / annotated < 0.13


def test_real_reference_solutions_are_true():
  # The calculator agrees with people: no annotation of 7,473 worked solutions
  # is false. Two contain // and have no verdict.
  path = real_data.require("gsm8k/train.jsonl")
  seen = collections.Counter(
    line.verdict
    for raw in read_rows(path)
    for line in map(_check, raw.row["answer"].split("\n"))
    if line.annotated
  )
  assert seen[None] == 2 and seen[True] > 20_000
  assert seen[False] == 0


def test_all_solutions_of_a_real_problem_are_in_one_split(real):
  train, held_out = split_by_problem(real, 8)
  assert sorted([*train, *held_out]) == list(range(len(real)))
  assert not {real[i].problem for i in train} & {
    real[i].problem for i in held_out
  }
  assert len(held_out) % 4 == 0 and 500 < len(held_out) < 800
  # Another file with the same problems has the same split.
  path = real_data.require("gsm8k/test.jsonl")
  parse = problems.GSM8K.parse
  tests = [parse(raw.row, i)[0] for i, raw in enumerate(read_rows(path))]
  _, held_out_tests = split_by_problem(tests, 8)
  assert {tests[i].problem for i in held_out_tests} == {
    real[i].problem for i in held_out
  }
