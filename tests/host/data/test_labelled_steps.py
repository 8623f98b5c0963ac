"""Rows of stepwise files, Math-Shepherd and ProcessBench, by hand."""

import pytest

from pure_jax.host.data.formats.labelled_steps import (
  MATH_SHEPHERD,
  PROCESSBENCH,
  STEPWISE,
)


def test_stepwise_rows_keep_every_label():
  row = {
    "prompt": "q",
    "completions": ["a", " b\n\nc"],
    "labels": [False, True],
  }
  (solution,) = STEPWISE.parse(row, 4)
  assert (solution.steps, solution.labels) == (("a", "b\nc"), (0, 1))
  assert (solution.id, solution.problem, solution.answer) == (
    "stepwise/4",
    "q",
    None,
  )


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
def test_malformed_stepwise_rows_raise(changes, reason):
  row = {"prompt": "q", "completions": ["a", "b"], "labels": [True, True]}
  with pytest.raises(ValueError, match=reason):
    STEPWISE.parse(row | changes, 0)


INPUT = (
  "Two - and 3+3? Step 1: 3+3=6. ки\nStep 2: 2-6=-4 ки\nThe answer is: 4 ки"
)
LABEL = "Two - and 3+3? Step 1: 3+3=6. +\nStep 2: 2-6=-4 -\nThe answer is: 4 -"


def test_math_shepherd_labels_are_the_signs_at_the_markers():
  # The texts contain + and - too: counting signs would be wrong.
  row = {"input": INPUT, "label": LABEL, "task": "GSM8K"}
  (solution,) = MATH_SHEPHERD.parse(row, 2)
  assert solution.problem == "Two - and 3+3?"
  assert solution.steps == (
    "Step 1: 3+3=6.",
    "Step 2: 2-6=-4",
    "The answer is: 4",
  )
  assert solution.labels == (1, 0, 0)
  assert (solution.id, solution.source) == (
    "math_shepherd/2",
    "math_shepherd/gsm8k",
  )


def test_a_math_shepherd_problem_may_contain_step_1():
  row = {
    "input": "Explain Step 1: of it. Step 1: x ки ",
    "label": "Explain Step 1: of it. Step 1: x + ",
    "task": "MATH",
  }
  (solution,) = MATH_SHEPHERD.parse(row, 0)
  assert (solution.problem, solution.steps) == (
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
def test_malformed_math_shepherd_rows_raise(text, label, reason):
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
  "label, labels",
  [
    (-1, (1, 1, 1)),  # As an index, -1 would be the last step.
    (0, (0, None, None)),
    (1, (1, 0, None)),
    (2, (1, 1, 0)),
  ],
)
def test_processbench_labels_up_to_the_first_error(label, labels):
  (solution,) = PROCESSBENCH.parse(bench(label=label), 0)
  assert solution.labels == labels
  assert (
    solution.id == "processbench/gsm8k-0" and solution.final_correct is False
  )
  assert solution.generator == "some model"


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
def test_malformed_processbench_rows_raise(changes, reason):
  with pytest.raises(ValueError, match=reason):
    PROCESSBENCH.parse(bench(**changes), 0)
