"""Exact arithmetic on text: what a calculator annotation claims.

Expressions are parsed here and never handed to an interpreter: + - * / ,
brackets, decimals, thousands separators, per cent.
"""

import re
from fractions import Fraction

MAX_LENGTH = 200  # Of an expression; brackets nest no deeper than that.
FLOAT_ERROR = Fraction(1, 10**9)  # Relative.

# ASCII: "\d" alone would read digits of every script.
_NUMBER = re.compile(
  r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+(?!,?\d))?(?:\.\d*)?", re.ASCII
)
_SIGNED = re.compile(
  r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+", re.ASCII
)


class _UnreadableError(ValueError):
  """Text that is no arithmetic."""


def evaluate(expression: str) -> Fraction | None:
  """The value of an arithmetic expression.

  >>> evaluate("2*(3 + 1,000)/4"), evaluate("50%*8"), evaluate("2x"),
  (Fraction(1003, 2), Fraction(4, 1), None)

  Args:
    expression: any text.

  Returns:
    Its exact value; None where it is no arithmetic, divides by zero, or is
    longer than `MAX_LENGTH`.
  """
  if len(expression) > MAX_LENGTH:
    return None
  try:
    value, rest = _sum(expression.strip())
  except (_UnreadableError, ZeroDivisionError):
    return None
  return None if rest else value


def read_number(text: str) -> Fraction | None:
  """A decimal number, thousands separators allowed.

  Args:
    text: nothing but the number.

  Returns:
    Its value, None where the text is anything else.
  """
  if not _SIGNED.fullmatch(text):
    return None
  return Fraction(text.replace(",", ""))


def rounds(value: Fraction, written: str) -> bool:
  """Whether a written number is a value, rounded up or down at its last place.

  >>> rounds(Fraction(2, 3), "0.66"), rounds(Fraction(2, 3), "0.7")
  (True, True)
  >>> rounds(Fraction(2, 3), "1"), rounds(Fraction(2, 3), "0.65")
  (True, False)

  Args:
    value: what it should be.
    written: a decimal number.

  Returns:
    Whether they differ by less than one unit of the last place written, or
    by no more than a float's error.
  """
  number = read_number(written)
  if number is None:
    return False
  places = len(written.partition(".")[2])
  return abs(value - number) < Fraction(1, 10**places) or _close(value, number)


def agrees(value: Fraction, side: str) -> bool:
  """Whether the last side of an equation is the value of another side.

  Args:
    value: of the other side.
    side: an expression.

  Returns:
    Whether they are equal; a decimal fraction may be rounded, a whole number
    may not.
  """
  other = evaluate(side)
  if other is None:
    return False
  decimal = "." in side and _SIGNED.fullmatch(side.strip()) is not None
  return _close(value, other) or (decimal and rounds(value, side.strip()))


def _close(value: Fraction, other: Fraction) -> bool:
  """Equal, but for a float's error."""
  return abs(value - other) <= FLOAT_ERROR * abs(value)


def _sum(text: str) -> tuple[Fraction, str]:
  """Value of the longest sum at the start of a text, and the rest."""
  value, text = _product(text)
  while text and text[0] in "+-":
    other, rest = _product(text[1:].lstrip())
    value = value + other if text[0] == "+" else value - other
    text = rest
  return value, text


def _product(text: str) -> tuple[Fraction, str]:
  """The same for products and quotients."""
  value, text = _factor(text)
  while text and text[0] in "*/":
    other, rest = _factor(text[1:].lstrip())
    value = value * other if text[0] == "*" else value / other
    text = rest
  return value, text


def _factor(text: str) -> tuple[Fraction, str]:
  """The same for a number or a bracket, signed, with per cent signs."""
  if text[:1] in ("-", "+"):
    value, rest = _factor(text[1:].lstrip())
    return (-value if text[0] == "-" else value), rest
  if text[:1] == "(":
    value, rest = _sum(text[1:].lstrip())
    if rest[:1] != ")":
      raise _UnreadableError
    rest = rest[1:].lstrip()
  else:
    found = _NUMBER.match(text)
    digits = found[0].replace(",", "") if found else ""
    if digits in ("", "."):
      raise _UnreadableError
    value, rest = Fraction(digits), text[len(found[0]) :].lstrip()
  while rest[:1] == "%":
    value, rest = value / 100, rest[1:].lstrip()
  return value, rest
