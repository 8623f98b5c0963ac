"""Exact arithmetic on text, to check the calculator annotations of GSM8K.

It has its own parser for + - * /, brackets, decimals, thousands separators and
per cent, because text of a data set must not reach `eval`.
"""

import re
from fractions import Fraction

MAX_LENGTH = 200  # Characters of an expression. It also bounds the recursion.
FLOAT_ERROR = Fraction(1, 10**9)  # Relative.

# ASCII: otherwise "\d" matches the digits of every script.
_NUMBER = re.compile(
  r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+(?!,?\d))?(?:\.\d*)?", re.ASCII
)
_SIGNED = re.compile(
  r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+", re.ASCII
)


class _UnreadableError(ValueError):
  """The text is not arithmetic."""


def evaluate(expression: str) -> Fraction | None:
  """Returns the exact value of an arithmetic expression.

  None if it is not arithmetic, divides by zero, or is longer than `MAX_LENGTH`.

  >>> evaluate("2*(3 + 1,000)/4"), evaluate("50%*8"), evaluate("2x"),
  (Fraction(1003, 2), Fraction(4, 1), None)

  Args:
    expression: any text.
  """
  if len(expression) > MAX_LENGTH:
    return None
  try:
    value, rest = _sum(expression.strip())
  except (_UnreadableError, ZeroDivisionError):
    return None
  return None if rest else value


def read_number(text: str) -> Fraction | None:
  """Returns the value of a decimal number; None if the text is not one.

  Args:
    text: the number alone; it may have thousands separators.
  """
  if not _SIGNED.fullmatch(text):
    return None
  return Fraction(text.replace(",", ""))


def rounds(value: Fraction, written: str) -> bool:
  """Whether a number is a value rounded up or down at the number's last place.

  >>> rounds(Fraction(2, 3), "0.66"), rounds(Fraction(2, 3), "0.7")
  (True, True)
  >>> rounds(Fraction(2, 3), "1"), rounds(Fraction(2, 3), "0.65")
  (True, False)

  Args:
    value: the exact value.
    written: a decimal number, right if it differs by less than one unit of its
      last place, or by no more than `FLOAT_ERROR`.
  """
  number = read_number(written)
  if number is None:
    return False
  places = len(written.partition(".")[2])
  return abs(value - number) < Fraction(1, 10**places) or _close(value, number)


def agrees(value: Fraction, side: str) -> bool:
  """Whether the last side of an equation is the value of another side.

  Args:
    value: the value of the other side.
    side: the last side, an expression. It may be rounded if it is a decimal
      fraction, but not if it is a whole number.
  """
  other = evaluate(side)
  if other is None:
    return False
  decimal = "." in side and _SIGNED.fullmatch(side.strip()) is not None
  return _close(value, other) or (decimal and rounds(value, side.strip()))


def _close(value: Fraction, other: Fraction) -> bool:
  """Whether two values are equal up to `FLOAT_ERROR`."""
  return abs(value - other) <= FLOAT_ERROR * abs(value)


def _sum(text: str) -> tuple[Fraction, str]:
  """(value of the longest sum at the start of a text, rest of the text)."""
  value, text = _product(text)
  while text and text[0] in "+-":
    other, rest = _product(text[1:].lstrip())
    value = value + other if text[0] == "+" else value - other
    text = rest
  return value, text


def _product(text: str) -> tuple[Fraction, str]:
  """As `_sum`, for products and quotients."""
  value, text = _factor(text)
  while text and text[0] in "*/":
    other, rest = _factor(text[1:].lstrip())
    value = value * other if text[0] == "*" else value / other
    text = rest
  return value, text


def _factor(text: str) -> tuple[Fraction, str]:
  """As `_sum`, for a number or bracket with its sign and per cent signs."""
  if text[:1] in ("-", "+"):
    value, rest = _factor(text[1:].lstrip())
    return (-value if text[0] == "-" else value), rest
  if text[:1] == "(":
    value, rest = _sum(text[1:].lstrip())
    if rest[:1] != ")":
      raise _UnreadableError
    rest = rest[1:].lstrip()
  else:
    match = _NUMBER.match(text)
    digits = match[0].replace(",", "") if match else ""
    if digits in ("", "."):
      raise _UnreadableError
    value, rest = Fraction(digits), text[len(match[0]) :].lstrip()
  while rest[:1] == "%":
    value, rest = value / 100, rest[1:].lstrip()
  return value, rest
