"""Responses of an evaluation as solutions with labelled steps, by hand."""

import pytest

from pure_jax.host.data.formats import responses
from pure_jax.host.data.records import DataError, Problem

ROW = {
  "benchmark": "gsm8k",
  "problem": "gsm8k/7",
  "sample": 2,
  "text": "First, 2 + 3 = 5.\n\nThen 5 * 2 = 11.\n \n\nSo it is \\boxed{11}.\n",
  "correct": False,
}
PROBLEMS = [
  Problem(id=f"gsm8k/{number}", source="gsm8k", problem=f"Problem {number}?")
  for number in (7, 8)
]


def parsed(**changes):
  return responses.RESPONSES.parse(ROW | changes, 0)


def test_steps_end_at_blank_lines_and_have_the_labels_of_their_equations():
  (solution,) = parsed()
  assert solution.steps == (
    "First, 2 + 3 = 5.",
    "Then 5 * 2 = 11.",
    "So it is \\boxed{11}.",
  )
  assert solution.labels == (1, 0, None)
  assert solution.final_correct is False
  (solution,) = responses.with_problems([solution], PROBLEMS, "file")
  assert solution.problem == "Problem 7?"


def test_a_response_without_text_is_left_out():
  assert parsed(text=" \n\n ") == []


def test_samples_are_compared_without_the_greedy_response():
  rows = [*parsed(sample=None), *parsed(), *parsed(sample=3)]
  made = responses.with_problems(rows, PROBLEMS, "file")
  assert [row.generator for row in made] == ["sample 2", "sample 3"]
  (alone,) = responses.with_problems(rows[:1], PROBLEMS, "file")
  assert alone.problem == "Problem 7?"


def test_responses_to_other_problems_raise():
  rows = [*parsed(), *parsed(problem="math500/x")]
  with pytest.raises(DataError, match=r"file lacks 1 problems .* math500/x"):
    responses.with_problems(rows, PROBLEMS, "file")


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    ({"text": None}, "'text' is null, not text"),
    ({"correct": 1}, "'correct' is a number, not true or false"),
    ({"sample": 0.5}, "'sample' is 0.5, not a whole number"),
    ({"problem": ""}, "'problem' is empty"),
  ],
)
def test_malformed_rows_raise(changes, reason):
  with pytest.raises(ValueError, match=reason):
    parsed(**changes)
