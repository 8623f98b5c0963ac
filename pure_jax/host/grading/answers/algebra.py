"""Operations on numbers that stay unevaluated if the result would be huge."""

from collections.abc import Callable
from typing import Any

import sympy

# A power or a factorial with more bits or a larger argument stays unevaluated.
MAX_BITS = 50_000
MAX_FACTORIAL = 5_000
FUNCTIONS: dict[str, Callable[..., Any]] = {
  "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot,
  "sec": sympy.sec, "csc": sympy.csc, "arcsin": sympy.asin,
  "arccos": sympy.acos, "arctan": sympy.atan, "arccot": sympy.acot,
  "sinh": sympy.sinh, "cosh": sympy.cosh, "tanh": sympy.tanh,
  "coth": sympy.coth, "exp": sympy.exp, "ln": sympy.log,
  "arsinh": sympy.asinh, "arcosh": sympy.acosh, "artanh": sympy.atanh,
}  # fmt: skip
LOGARITHMS = ("log", "lg")  # To base 10 without a subscript.
SEVERAL = {"max": sympy.Max, "min": sympy.Min}


class UnreadableError(ValueError):
  """The text is no formula that this reader knows."""


def number(token: str) -> sympy.Expr:
  """Returns the exact value of a decimal number.

  Args:
    token: digits, with at most one point, and commas between thousands.
  """
  return sympy.Rational(token.replace(",", "").rstrip("."))


def quotient(top: sympy.Expr, bottom: sympy.Expr) -> sympy.Expr:
  """Returns a quotient.

  Args:
    top: the dividend.
    bottom: the divisor.

  Raises:
    UnreadableError: if the divisor is 0.
  """
  if bottom.is_zero:
    raise UnreadableError("division by zero")
  return top / bottom


def power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
  """Returns a power; one with too many digits stays unevaluated.

  Args:
    base: any expression.
    exponent: any expression.
  """
  huge = not (base.is_Number or exponent.is_Number) and (
    base.is_number and exponent.is_number
  )
  if base.is_Rational and exponent.is_Rational:
    bits = max(int(base.p).bit_length(), int(base.q).bit_length())
    huge = bits * abs(exponent) > MAX_BITS
  elif base.is_Rational and exponent.is_number:
    huge = not exponent.is_comparable or exponent.has(sympy.Pow)
  return sympy.Pow(base, exponent, evaluate=not huge)


def factorial(value: sympy.Expr) -> sympy.Expr:
  """Returns a factorial; one of a large number stays unevaluated.

  Args:
    value: any expression.
  """
  huge = value.is_number and not (
    value.is_Rational and abs(value) <= MAX_FACTORIAL
  )
  return sympy.factorial(value, evaluate=not huge)


def binomial(top: sympy.Expr, bottom: sympy.Expr) -> sympy.Expr:
  """Returns a binomial coefficient; one of a large number stays unevaluated.

  Args:
    top: any expression.
    bottom: any expression.
  """
  huge = top.is_number and not (top.is_Rational and abs(top) <= MAX_FACTORIAL)
  return sympy.binomial(top, bottom, evaluate=not huge)


def of_several(name: str, values: list[sympy.Expr]) -> sympy.Expr:
  """Returns a maximum, minimum, greatest divisor or least multiple.

  Args:
    name: "max", "min", "gcd" or "lcm".
    values: one or more.

  Raises:
    UnreadableError: for a divisor or a multiple of other than integers.
  """
  if name in SEVERAL:
    return SEVERAL[name](*values)
  if not all(value.is_Integer for value in values):
    # Also powers that stay unevaluated, for which sympy would compile code.
    raise UnreadableError(f"{name} of no integers")
  function = sympy.igcd if name == "gcd" else sympy.ilcm
  return sympy.Integer(function(*map(int, values)))
