"""Extractors, verdicts, real responses, hostile answers."""

import json
import time

import hostile_answers
import pytest
import real_data

from pure_jax.host.data.records import Problem
from pure_jax.host.grading import verify
from pure_jax.host.grading.verify import Verdict, boxed, gsm8k_hash, last_number
from pure_jax.host.workers.pool import Outcome


@pytest.fixture(scope="module")
def pool():
  with verify.open_pool(timeout_seconds=3.0, memory_bytes=256 << 20) as pool:
    yield pool


@pytest.mark.parametrize(
  "response, answer",
  [
    (r"\boxed{6}", "6"),
    (r"\boxed{5} or \boxed{6}", "6"),  # The last, not the first.
    (r"\boxed{\frac{1}{2}} }", r"\frac{1}{2}"),  # Not to the last brace.
    (r"\boxed{{6}}", "{6}"),
    (r"\boxed{}", ""),
    # Empty boxes behind the answer are no answer.
    (r"\boxed{5}, which I put within \boxed{}.", "5"),
    (r"\boxed{5} \boxed{ } \boxed{}", "5"),
    (r"\boxed{ } \boxed{}", ""),
    (r"\boxed{} \boxed{5} \boxed{", None),
    (r"\boxed {6}", "6"),
    ("\\boxed\n{6}", "6"),
    ("\\boxed{1\n2}", "1\n2"),
    (r"\boxed{\boxed{5}}", "5"),
    # Braces that TeX prints do not nest.
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
    (r"\boxed{1 \\}", r"1 \\"),  # A line break, then the end.
    (r"\boxed{1 \}", None),
    # Cut inside its last answer: the first box is not its answer.
    (r"\boxed{5}, no: \boxed{6", None),
    (r"\boxed{6", None),
    (r"\boxed{", None),
    (r"\boxed", None),
    (r"\fbox{6}", None),
    ("boxed{6}", None),
    ("6", None),
    ("", None),
  ],
)
def test_boxed_returns_the_last_box_with_balanced_braces(response, answer):
  assert boxed(response) == answer


@pytest.mark.parametrize(
  "response, answer",
  [
    ("48/2 = <<48/2=24>>24\n#### 24", "24"),
    ("#### 1,234\n", "1,234"),
    ("####-5", "-5"),
    ("#### 5 \nSo it is 6.", "5"),
    ("#### 5\n#### 6", "6"),
    ("##### 7", "7"),  # One more is a heading that ends in the mark.
    ("####", None),
    ("#### \n5", None),
    ("### 5", None),
    ("", None),
  ],
)
def test_gsm8k_hash_returns_the_text_after_the_mark(response, answer):
  assert gsm8k_hash(response) == answer


@pytest.mark.parametrize(
  "response, answer",
  [
    ("It is 42.", "42"),
    ("1, 2 and 3", "3"),
    ("$1,234.50", "1,234.50"),
    ("1,23", "23"),  # No thousands: a list.
    ("1,2345", "2345"),
    ("12,345,678 km", "12,345,678"),
    ("3-5", "5"),  # Not -5.
    ("x-5", "5"),
    (")-5", "5"),
    ("3 - 5", "5"),
    ("3 -5", "-5"),
    ("= -5", "-5"),
    ("is \u22125.5!", "\u22125.5"),
    ("(-5)", "-5"),
    ("50%", "50"),
    ("3/4", "4"),
    (".5", ".5"),
    ("version 1.2.3", "3"),
    ("6.02e23", "6.02e23"),
    ("2e", "2"),
    ("Room A7", "7"),
    ("٤٢", None),  # Digits that int() takes, and no grader compares.
    ("five", None),
    ("", None),
  ],
)
def test_last_number_returns_the_last_number_of_a_text(response, answer):
  assert last_number(response) == answer


def test_extractors_are_tried_in_order_and_blank_answers_are_none():
  both = "#### 5\nso \\boxed{6}, or 7"
  assert verify.first_of(both, [boxed, gsm8k_hash, last_number]) == "6"
  assert verify.first_of(both, [gsm8k_hash, boxed, last_number]) == "5"
  assert verify.first_of("\\boxed{ } 7", [boxed, last_number]) == "7"
  assert verify.first_of("\\boxed{ 7 }", [boxed]) == "7"
  assert verify.first_of("\\boxed{ } 7", [boxed]) is None
  assert verify.first_of("7", []) is None


@pytest.mark.parametrize(
  "part", ["\\boxed{", "\\boxed", "{", "}", "#", "1", "1,", "-", ".", "\\", " "]
)
def test_extraction_takes_time_linear_in_the_text(part):
  """A quadratic scan of 300 kB would take minutes."""
  text = part * (300_000 // len(part))
  start = time.process_time()
  for extract in (boxed, gsm8k_hash, last_number):
    extract(text)
    extract("\\boxed{" + text)
  assert time.process_time() - start < 5


def test_each_response_has_a_verdict(pool):
  responses = [
    r"\boxed{\frac12}",
    r"\boxed{0.4}",
    "It is 0.5.",
    r"\boxed{}",
    r"\boxed{0.5" + "x" * verify.MAX_RESPONSE_CHARS + "}",
    "x" * verify.MAX_RESPONSE_CHARS + r"\boxed{0.5}",
  ]
  verdicts = verify.grade(pool, responses, ["0.5"] * 6)
  assert verdicts == [
    Verdict(correct=True, answer=r"\frac12"),
    Verdict(correct=False, answer="0.4"),
    Verdict(correct=False, answer=None),
    Verdict(correct=False, answer=None),
    Verdict(correct=False, answer=None),  # Its box starts before what is read.
    Verdict(correct=True, answer="0.5"),
  ]
  has_answer = [verdict.has_answer for verdict in verdicts]
  assert has_answer == [True, True, False, False, False, True]
  assert verify.verdict_counts(verdicts) == {
    "items": 6, "correct": 2, "wrong": 1, "no_answer": 3, "timed_out": 0,
    "crashed": 0,
  }  # fmt: skip
  assert verify.grade(pool, [], []) == []
  with pytest.raises(ValueError, match="2 responses and 1 references"):
    verify.grade(pool, ["a", "b"], ["1"])


def test_a_reference_determines_how_it_is_compared(pool):
  def problem(**fields):
    return Problem(id="1", source="own", problem="?", **fields)

  references = [
    verify.reference_of(problem(answer="221,8", several_answers=True)),
    verify.reference_of(problem(answer="4.2", tolerance=0.1)),
    verify.reference_of(problem(withheld_answer="7")),
    "7",
  ]
  responses = [r"\boxed{8, 221}", r"\boxed{4.3}", r"\boxed{7}", r"\boxed{6}"]
  verdicts = verify.grade(pool, responses, references)
  assert [v.correct for v in verdicts] == [True, True, True, False]
  assert verify.reference_of(problem()) is None
  # The answer for training comes before the withheld one.
  both = problem(answer="1", withheld_answer="2")
  assert verify.reference_of(both) == verify.Reference("1")


def test_unfinished_comparisons_are_counted_apart_from_wrong_answers():
  counts = verify.verdict_counts(
    [
      Verdict(correct=False, answer="9^9", timed_out=True),
      Verdict(correct=False, answer="1", failure="out of memory"),
      Verdict(correct=False, answer="2"),
      Verdict(correct=True, answer="3"),
    ]
  )
  assert counts == {
    "items": 4, "correct": 1, "wrong": 1, "no_answer": 0, "timed_out": 1,
    "crashed": 1,
  }  # fmt: skip
  assert set(verify.verdict_counts([]).values()) == {0}


# (row, response): why the verdict differs from the reference grader's.
EXPLAINED = {
  (36, 7): "The answer is 10000, the reference answer 10{,}000. The same "
  "number: the reference grader does not read the braces.",
}


def test_agreement_with_the_reference_grader(pool):
  path = real_data.require("graders/math_cot_even.jsonl")
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  pairs = [(r, i) for r, row in enumerate(rows) for i in range(8)]
  verdicts = verify.grade(
    pool,
    [rows[r]["responses"][i] for r, i in pairs],
    [rows[r]["answer"] for r, _ in pairs],
  )
  expected = [rows[r]["reference_correct"][i] for r, i in pairs]
  differ = {
    pair: verdict
    for pair, verdict, right in zip(pairs, verdicts, expected, strict=True)
    if verdict.correct != right
  }
  assert differ.keys() == EXPLAINED.keys()
  assert len(pairs) == 400 and len(differ) <= 1
  assert differ[36, 7] == Verdict(correct=True, answer="10000")
  # A constant verdict would not agree so often.
  assert sum(expected) == 351
  counts = verify.verdict_counts(verdicts)
  assert counts["timed_out"] == counts["crashed"] == 0


def test_reference_answers_of_gsm8k_are_extracted_and_equal_themselves(pool):
  path = real_data.require("gsm8k/test.jsonl")
  rows = [json.loads(line) for line in path.read_text().splitlines()][:200]
  texts = [row["answer"] for row in rows]
  answers = [gsm8k_hash(text) for text in texts]
  # In this file the last number is the answer: an oracle for both.
  assert answers == [last_number(text) for text in texts]
  verdicts = verify.grade(pool, texts, answers, [gsm8k_hash])
  assert all(verdict.correct for verdict in verdicts)
  shifted = [*answers[1:], answers[0]]
  verdicts = verify.grade(pool, texts, shifted, [gsm8k_hash])
  same = [a == b for a, b in zip(answers, shifted, strict=True)]
  assert [verdict.correct for verdict in verdicts] == same


@pytest.mark.parametrize(
  ("answers", "count"),
  [
    (hostile_answers.some_answers, 240),
    pytest.param(hostile_answers.hostile_answers, 260, marks=pytest.mark.slow),
  ],
)
def test_hostile_answers_are_graded_and_nothing_is_executed(
  tmp_path, answers, count
):
  """None hangs, none raises, none is right, no file appears."""
  hostile = list(answers(str(tmp_path / "executed")))
  assert len(hostile) == len(set(hostile)) >= count
  innocent = [r"\boxed{\frac{7}{2}}"]
  responses = [f"\\boxed{{{answer}}}" for answer in hostile]
  responses += hostile + innocent
  extractors = [boxed, last_number]
  start = time.monotonic()
  with verify.open_pool(timeout_seconds=0.5, memory_bytes=256 << 20) as pool:
    verdicts = verify.grade(
      pool, responses, ["3.5"] * len(responses), extractors
    )
  counts = verify.verdict_counts(verdicts)
  assert [r for r, v in zip(responses, verdicts, strict=True) if v.correct] == (
    innocent
  )
  assert list(tmp_path.iterdir()) == []
  # Nothing raises or crashes. Where numbers swell, memory may run out before
  # the time does; nowhere else.
  swelling = {*hostile_answers.towers(), *hostile_answers.heavy_mathematics()}
  failures = {
    (answer, verdict.failure)
    for answer, verdict in zip(hostile * 2, verdicts, strict=False)
    if verdict.failure is not None
  }
  assert failures <= {(answer, "out of memory") for answer in swelling}
  # Limits hold: a hang costs its limit and the start of a worker.
  assert 0 < counts["timed_out"] < 60, counts
  assert time.monotonic() - start < 10 + 2 * counts["timed_out"]


def test_a_worker_keeps_its_limits_on_answers_of_megabytes(pool):
  """`grade` cuts responses; a worker does not rely on that."""
  answers = [
    *(text for text in hostile_answers.long_ones() if len(text) > 900_000),
    "(" * 500_000 + "1" + ")" * 500_000,
    "\\frac{1}{" * 100_000 + "2" + "}" * 100_000,
    "3.5" + " " * 1_000_000 + "+ 0",
  ]
  assert len(answers) == 12
  items = [(answer, "3.5", False, None) for answer in answers]
  right = ("\\frac{7}{2}", "3.5", False, None)
  mixed = [item for hostile in items for item in (hostile, right)]
  outcomes = pool.run(mixed)
  assert outcomes[:-2:2] == [Outcome(value=False)] * (len(items) - 1)
  # The last is short without its spaces, and right.
  assert outcomes[-2] == Outcome(value=True)
  assert outcomes[1::2] == [Outcome(value=True)] * len(items)
