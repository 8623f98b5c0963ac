r"""Equations in the text of a step: what is read, and what is left alone."""

import collections
import json

import pytest
import real_data

from pure_jax.host.data.formats import equations, problems


@pytest.mark.parametrize(
  ("text", "verdicts"),
  [
    ("48/2=24", [True]),
    ("Natalia sold 48 / 2 = 24 clips in May.", [True]),
    (r"In May: \( 48 \div 2 = 24 \) clips", [True]),
    (r"\[ 48 \times 2 = \boxed{96} \]", [True]),
    ("48 × 2 = $96", [True]),
    ("2 x 0.5 = 1.0 bolts", [True]),
    (r"\frac{48}{2} = 24", [True]),
    (r"Cost: \(\frac{1}{2} \times \$10 = \$5.\)", [True]),
    (r"\$1{,}000 + \$80 = \$1{,}080.", [True]),
    ("16 - 3 - 4 = 9 eggs, and 9 * 2 = **19**", [True, False]),
    ("1. 48 / 2 = 24\n- 24 + 48 = 71", [True, False]),
    ("Total = 3 + 4 = 7", [True]),
    ("10 / 3 = 3.33", [True]),
    ("10 / 3 = 3.4", [True]),  # Rounded up.
    ("10 / 3 = 3.5", [False]),
    ("10 / 3 = 3", [False]),  # A whole number is exact.
    ("12 / 48 * 100 = 25%", [True]),
    ("12 / 48 = 25%", [True]),
    ("20% of 50 = 0.2 * 50 = 10", [True]),
    ("3 * 4 = 12 + 2 = 14", [False]),  # All sides are equal, or none is.
    ("5 = 2 + 4", [False]),
    ("(2 + 3) * 4 = 20", [True]),
  ],
)
def test_equations_that_are_read(text, verdicts):
  assert equations.equation_verdicts(text) == verdicts
  assert equations.label_step(text) == int(all(verdicts))


@pytest.mark.parametrize(
  "text",
  [
    "",
    "She has 5 apples.",
    "x = 5",
    "So the total is = 24",
    # The first side goes on to the left.
    "half of 10 + 2 = 7",
    "5 times 4 + 2 = 22",
    "the sum of 3 and 4 + 1 = 8",
    "x + 4 = 7",
    "2x + 3 = 7",
    "3^2 + 1 = 10",
    r"\sqrt{16} + 2 = 6",
    "profit - 3 = 2",
    "5 apples + 3 apples = 8 apples",
    "√16 + 1 = 5",
    "the 20 = 4 * 6 rule",
    # The last side goes on to the right, or is rounded.
    "3 + 4 = 7x",
    "2 * 3 = 6 million",
    "2 + 3 = 6k",
    "90 / 60 = 1 hour 30 minutes",
    "90 / 60 = 1 hour and 30 minutes",
    "7 / 2 = 3 remainder 1",
    "7 / 2 = 3 (rounded down)",
    "3 * 0.25 = 75 cents",
    # Not the arithmetic that it looks like.
    "2**3 = 9",
    "3:30 + 2 = 5:30",
    "14 / 1/2 = 28",
    "2 1/2 + 1 = 4",
    "5 / 0 = 1",
    "3 ≠ 2 + 2",
    "3 <= 2 + 2",
    "1 == 2 + 3",
    r"1 \text{ hour} = 60 + 1 \text{ minutes}",
  ],
)
def test_what_may_be_misread_has_no_verdict(text):
  assert equations.label_step(text) is None


@pytest.mark.parametrize("text", ["=" * 5000, "1+" * 5000 + "1=1", "(" * 9000])
def test_long_texts_are_read_in_time(text):
  assert equations.label_step(text) is None


def test_nearly_every_equation_of_reference_solutions_is_true():
  """They are right, but for slips: what is misread would count as false."""
  labels = collections.Counter()
  with real_data.require("gsm8k/test.jsonl").open() as file:
    for line in file:
      solution = problems.strip_annotations(json.loads(line)["answer"])
      labels.update(map(equations.label_step, solution.split("\n")))
  assert labels[1] > 3000
  assert labels[0] <= 5
