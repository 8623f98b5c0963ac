"""Arithmetic on text, by hand and compared with Python."""

from fractions import Fraction

import numpy as np
import pytest

from pure_jax.host.data.formats.calculator import (
  agrees,
  evaluate,
  rounds,
)


@pytest.mark.parametrize(
  "expression, expected",
  [
    ("16-3-4", 9),  # 17 if it were read from the right.
    ("100/10/5", 2),
    ("2+3*4", 14),
    ("(2+3)*4", 20),
    ("-3+-(4-1)", -6),
    ("2 * -3", -6),
    (".5*8", 4),
    ("2.*3", 6),
    ("0.1+0.2", Fraction(3, 10)),
    ("1,050+10,440,000", 10_441_050),
    ("50%*8", 4),
    ("2+150%", Fraction(7, 2)),
    ("(10+40)%", Fraction(1, 2)),
    (" ( 1 ) ", 1),
    # Not arithmetic.
    ("", None),
    ("()", None),
    ("2x", None),
    ("5+2(3)", None),
    ("150 000", None),
    ("1,05", None),
    ("1,0500", None),
    ("12345,678", None),
    ("8:40-6:00", None),
    ("560//10", None),
    ("2**100", None),
    ("1e5", None),
    ("3+", None),
    ("(3", None),
    ("3)", None),
    (".", None),
    ("1/0", None),
    ("1/(2-2)", None),
    ("¾*4", None),
    ("٣+1", None),  # An Arabic-Indic digit.
    ("__import__('os')", None),
    ("(" * 100_000, None),
  ],
)
def test_expressions_by_hand(expression, expected):
  assert evaluate(expression) == expected


def test_random_expressions_have_the_value_python_gives_them():
  rng = np.random.default_rng(0)

  def grow(depth):
    """(text, the same with exact numbers for Python)."""
    if depth == 0 or rng.random() < 0.2:
      number = str(rng.integers(1, 100) / rng.choice([1, 10, 100]))
      return number, f"Fraction('{number}')"
    (left, exact_left), (right, exact_right) = grow(depth - 1), grow(depth - 1)
    operator = "+-*/"[rng.integers(4)]
    text, exact = left + operator + right, exact_left + operator + exact_right
    if rng.random() < 0.5:
      text, exact = f"({text})", f"({exact})"
    return ("-" + text, "-" + exact) if rng.random() < 0.1 else (text, exact)

  seen = 0
  for _ in range(500):
    text, exact = grow(4)
    try:
      expected = eval(exact, {"Fraction": Fraction})
    except ZeroDivisionError:
      expected = None
    assert len(text) > 200 or evaluate(text) == expected, text
    seen += len(text) <= 200
  assert seen > 450


@pytest.mark.parametrize(
  "expression, result, expected",
  [
    ("2/3", "0.67", True),
    ("2/3", "0.66", True),
    ("2/3", "0.65", False),
    ("2/3", "0.6666666666666666", True),
    ("4.20+9.45+1.35", "14.999999999999998", True),
    ("0.1*7", "0.7000000000000001", True),
    ("1000/12", "83.33333333333333", True),
    ("300/1.6666666666666667", "180.0", True),
    ("15/2", "7.5", True),
    ("15/2", "8", False),  # A whole number is exact.
    ("15/2", "8.0", False),
    ("19.5/4", "5", False),
    ("3*3", "9.90", False),
    ("2-1", "1.50", False),
    ("3/4", "3/4", True),
    ("1,050+1", "1,051", True),
    ("2-5", "-3.0", True),
  ],
)
def test_results_may_be_rounded_at_their_last_decimal_place(
  expression, result, expected
):
  assert agrees(evaluate(expression), result) is expected


def test_a_number_off_by_a_unit_of_its_last_place_is_not_rounded():
  assert not rounds(Fraction(1, 2), "0.6") and not rounds(Fraction(1), "2")
  assert rounds(Fraction(9, 5), "1") and rounds(Fraction(9, 5), "2")
