"""Validation of records, and the split by problem."""

import hashlib

import pytest

from pure_jax.host.data.records import (
  LabelledSolution,
  Problem,
  label_arrays,
  split_by_problem,
  step_text,
)


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
def test_a_step_contains_no_blank_line(text, expected):
  assert step_text(text) == expected


@pytest.mark.parametrize(
  "make, reason",
  [
    (lambda: Problem("i", "s", " "), "problem is empty"),
    (lambda: Problem("i", "s", "q", ""), "answer is empty"),
    (
      lambda: LabelledSolution("i", "s", "q", ("a\n\nb",), (1,)),
      "step 1 is empty or",
    ),
    (
      lambda: LabelledSolution("i", "s", "q", ("a", " b"), (1, 1)),
      "step 2 is empty or",
    ),
    (
      lambda: LabelledSolution("i", "s", "q", ("a",), (-1,)),
      "labels are 1, 0 or None",
    ),
  ],
)
def test_records_without_usable_fields_raise(make, reason):
  with pytest.raises(ValueError, match=reason):
    make()


def test_the_split_of_a_problem_does_not_depend_on_other_rows():
  rows = [Problem(str(i), "s", f"problem {i % 400}") for i in range(800)]
  train, held_out = split_by_problem(rows, 4)
  # Both copies of a problem are in one split; 100 of 400 are expected to be
  # held out, with a standard deviation of 8.7.
  assert len(held_out) % 2 == 0 and 65 <= len(held_out) / 2 <= 135
  for part in (train, held_out):
    assert {i % 400 for i in part} == {i % 400 for i in part if i >= 400}
  _, alone = split_by_problem(rows[:400][::-1], 4)
  assert {rows[i].problem for i in held_out} == {
    rows[:400][::-1][i].problem for i in alone
  }
  with pytest.raises(ValueError, match="at least 2, got 1"):
    split_by_problem(rows, 1)


def test_the_split_of_a_problem_never_changes_between_versions():
  # A run that resumes with a newer version must hold out the same problems.
  texts = [f"problem {i}" for i in range(50)]
  digests = [hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts]
  numbers = [int.from_bytes(digest, "big") for digest in digests]
  rows = [Problem(str(i), "s", f" {text}\n") for i, text in enumerate(texts)]
  _, held_out = split_by_problem(rows, 4)
  assert held_out.tolist() == [i for i in range(50) if numbers[i] % 4 == 0]


def test_no_rows_are_split_into_none():
  train, held_out = split_by_problem([], 4)
  assert train.tolist() == held_out.tolist() == []


@pytest.mark.parametrize(
  ("labels", "expected"),
  [
    ([1, 0], [1, 0, None]),
    ([1, None, 0], [1, None, 0]),
    ([1, 1, 0, 1], [1, 1, 0]),  # The rest has a bad step, which is not last.
    ([1, 1, None, 1], [1, 1, 1]),
    ([1, 1, None, None], [1, 1, None]),
    ([], [None] * 3),
  ],
)
def test_labels_of_the_last_steps_are_joined(labels, expected):
  values, mask = label_arrays([labels, [0]], max_steps=3)
  pairs = zip(values[0].tolist(), mask[0].tolist(), strict=True)
  assert [value if known else None for value, known in pairs] == expected
  assert values[1].tolist() == [0, 0, 0] and mask[1].tolist() == [1, 0, 0]
