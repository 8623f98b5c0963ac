"""Units: their factors against sympy's, and which text is one."""

import fractions

import pytest
import sympy.physics.units as known
from sympy.physics.units import convert_to

from pure_jax.host.grading.answers import units

# (our word, sympy's unit, sympy's base unit)
KNOWN = (
  *((word, getattr(known, name), known.meter) for word, name in (
    ("mm", "millimeter"), ("cm", "centimeter"), ("km", "kilometer"),
    ("inches", "inch"), ("feet", "foot"), ("ft", "foot"), ("yards", "yard"),
    ("miles", "mile"), ("nm", "nanometer"), ("dm", "decimeter"),
  )),
  *((word, getattr(known, name), known.second) for word, name in (
    ("minutes", "minute"), ("min", "minute"), ("hours", "hour"),
    ("hr", "hour"), ("days", "day"), ("ms", "millisecond"),
  )),
  *((word, getattr(known, name), known.kilogram) for word, name in (
    ("grams", "gram"), ("g", "gram"), ("pounds", "pound"), ("mg", "milligram"),
  )),
  ("liters", known.liter, known.meter),
  ("ml", known.milliliter, known.meter),
)  # fmt: skip


@pytest.mark.parametrize("word, unit, base", KNOWN)
def test_factors_are_those_of_sympy(word, unit, base):
  (expected,) = convert_to(unit, base).as_coeff_Mul()[:1]
  factor = units.unit_of(f"\\text{{ {word}}}").factor
  assert factor == fractions.Fraction(int(expected.p), int(expected.q))


@pytest.mark.parametrize(
  "text, pairs",
  [
    ("5", [("5", "")]),
    (r"5\text{ cm}", [("5", r"\text{ cm}")]),
    (r"\$5", [("5", r"\$")]),
    (r"-\$5", [("-5", r"\$")]),
    (r"\$50\text{ profit}", [("50", r"\$\text{ profit}")]),
    (
      r"2\text{ h }30\text{ min}",
      [("2", r"\text{ h }"), ("30", r"\text{ min}")],
    ),
    (r"5\text{ m}/\text{s}", [("5", r"\text{ m}/\text{s}")]),
    (r"5\text{ cm}^2", [("5", r"\text{ cm}^2")]),
    (r"30^\circ 15'", [("30", r"^\circ"), ("15", "'")]),
    (r"\text{about }5", [(r"\text{about }5", "")]),
    ("2s", [("2s", "")]),
    (r"(3\text{ cm})", [(r"(3\text{ cm})", "")]),
  ],
)
def test_values_and_their_units(text, pairs):
  assert units.split_quantity(text) == pairs


def test_bare_words_are_units_if_they_are_known_or_the_other_side_has_them():
  def marked(text, *others):
    return units.mark_bare_units(text, frozenset(others))

  assert marked("15 cm") == r"15\text{cm}"
  assert marked("15 square feet") == r"15\text{square feet}"
  for text in ("2s", "2ab", "5 or more", "2mg", "x cm", "cm", r"\pi r", "2 m"):
    assert marked(text) == text
  assert marked("2 m", "m") == r"2\text{m}"
  assert marked("2 widgets", "widgets", "widget") == r"2\text{widgets}"


def test_units_agree_if_they_measure_the_same():
  def factor(reference, answer):
    return units.agree(units.unit_of(reference), units.unit_of(answer))

  assert factor(r"\text{km}", r"\text{m}") == fractions.Fraction(1, 1000)
  assert factor(r"\text{m}", r"\text{s}") is None
  assert factor(r"\text{m}", r"\text{m}^2") is None
  assert factor(r"\text{m}^2", r"\text{square m}") == 1
  assert factor(r"\text{mph}", r"\text{miles per hour}") == 1
  assert factor(r"\text{m}/\text{s}", r"\text{s}/\text{m}") is None
  assert factor("", r"\text{cm}") == 1
  assert factor("", r"\text{widgets}") is None
  assert factor(r"\text{widgets}", "") == 1
  assert factor(r"\text{a.m.}", r"\text{p.m.}") is None
  assert factor(r"\text{profit}", r"\text{loss}") is None
  assert factor(r"\$", r"\text{cents}") == fractions.Fraction(1, 100)
  assert factor(r"\$", "£") is None
  assert units.unit_of(r"\text{million dollars}").scale == 10**6
