r"""Tells whether two expressions are equal, by evaluating both.

1. Numbers are evaluated to `DIGITS` digits. If these agree within `ERROR` of
   the larger one, the difference must be 0 too, in up to `MAX_DIGITS` digits of
   working precision: 10^{100}+1 is not 10^{100}. Rational numbers are compared
   exactly.
2. Expressions with symbols are equal if they agree at every one of the `points`
   at which both are defined. There the values are floating-point numbers of
   `POINT_DIGITS` digits, which have to agree within `POINT_ERROR` of the larger
   one, however small. What is 0 only by rounding is known by another, smaller
   number of digits: with these it is larger. Where the values at a point are
   integers, the two numbers are compared by rule 1. At points with negative
   values, logarithms and roots of negative numbers are undefined, so that
   \sqrt{ab} is \sqrt a \sqrt b, and \sqrt{x^2} is not x.
3. The letter i is the imaginary unit, unless another letter is upper case: it
   may be a current then, as in i^2 R.
4. Calls of unknown functions, f(2), are symbols, named by their arguments.
"""

import sympy
from sympy.core.evalf import PrecisionExhausted
from sympy.core.function import AppliedUndef

from pure_jax.host.grading.answers.points import MAX_COUNT, Point, points

DIGITS = 30
MAX_DIGITS = 300
ERROR = sympy.Rational(1, 10**20)
# At a point, values are floating-point numbers.
POINT_DIGITS = 400
POINT_ERROR = sympy.Rational(1, 10**340)
FEWER_DIGITS = 100
# A value that is only rounding shrinks by more than this with more digits.
_SHRINKS = sympy.Rational(1, 10**150)
_IMAGINARY = sympy.Symbol("i")


class UndefinedError(ValueError):
  """An expression has no finite value."""


def equal(left: sympy.Expr, right: sympy.Expr) -> bool:
  """Tells whether two expressions are equal.

  Args:
    left: an expression of `formula.read_formula`.
    right: another one.

  Returns:
    False also if neither is defined at any point.
  """
  left, right = as_complex(left, right)
  if left.has(sympy.nan, sympy.zoo) or right.has(sympy.nan, sympy.zoo):
    return False
  if left == right:
    return True
  left, right = without_calls(left), without_calls(right)
  symbols = sorted(left.free_symbols | right.free_symbols, key=str)
  if not symbols:
    return equal_numbers(left, right)
  return _equal_at_points(left, right, symbols)


def is_zero(expression: sympy.Expr) -> bool:
  """Tells whether an expression is 0.

  Args:
    expression: any expression.
  """
  return equal(expression, sympy.S.Zero)


def without_calls(expression: sympy.Expr) -> sympy.Expr:
  """Replaces calls of unknown functions by symbols.

  Args:
    expression: any expression.
  """
  calls = expression.atoms(AppliedUndef)
  return expression.xreplace(
    {call: sympy.Symbol(str(call.expand())) for call in calls}
  )


def multiple(left: sympy.Expr, right: sympy.Expr, positive: bool) -> bool:
  """Tells whether one expression is a constant multiple of another.

  Args:
    left: an expression with symbols.
    right: another one with the same symbols.
    positive: whether the constant must be positive.
  """
  symbols = sorted(left.free_symbols | right.free_symbols, key=str)
  for point, _ in points(left, right, symbols):
    first, second = _at(left, point), _at(right, point)
    try:
      values = value_of(first), value_of(second)
    except UndefinedError:
      continue
    if min(map(abs, values)) < POINT_ERROR:
      continue
    if positive and not (values[0] / values[1]).is_positive:
      return False
    return equal(left * second, right * first)
  return False


def as_complex(*expressions: sympy.Expr) -> tuple[sympy.Expr, ...]:
  """Replaces the letter i by the imaginary unit, where it is one.

  Args:
    expressions: those that are compared.
  """
  names = {s.name for e in expressions for s in e.free_symbols}
  bound = any(e.has(sympy.Sum, sympy.Product) for e in expressions)
  vectors = any(name.endswith((":i", ":j")) for name in names)
  if "i" not in names or bound or vectors:
    return expressions
  if any(c.isupper() for name in names for c in name[:1]):
    return expressions
  return tuple(e.xreplace({_IMAGINARY: sympy.I}).doit() for e in expressions)


def equal_numbers(left: sympy.Expr, right: sympy.Expr) -> bool:
  """Tells whether two expressions without symbols are the same number.

  Args:
    left: an expression without symbols.
    right: another one.
  """
  if (left.is_Rational and right.is_Rational) or left in (sympy.oo, -sympy.oo):
    return left == right
  try:
    values = value_of(left), value_of(right)
    # A difference that cancels to 0 has no digits.
    if not close(*values) and max(map(abs, values)) >= ERROR:
      return False
  except UndefinedError:
    return False
  try:
    difference = (left - right).evalf(
      5, maxn=MAX_DIGITS, strict=True, chop=False
    )
  except PrecisionExhausted:
    return True  # Nothing is left of the difference.
  except (ArithmeticError, NotImplementedError, TypeError, ValueError):
    return False
  return difference == 0


def close(
  left: sympy.Expr, right: sympy.Expr, error: sympy.Rational = ERROR
) -> bool:
  """Tells whether two floating-point numbers agree.

  Args:
    left: from `value_of`.
    right: from `value_of`.
    error: relative to the larger one.
  """
  return bool(abs(left - right) <= error * max(abs(left), abs(right)))


def value_of(expression: sympy.Expr, digits: int = DIGITS) -> sympy.Expr:
  """Evaluates an expression without symbols.

  Args:
    expression: any expression.
    digits: significant digits of the value.

  Raises:
    UndefinedError: if it has no finite value.
  """
  try:
    value = expression.evalf(digits, maxn=MAX_DIGITS)
  except (ArithmeticError, NotImplementedError, TypeError, ValueError) as error:
    raise UndefinedError(str(error)) from error
  real, imaginary = value.as_real_imag()
  if not (real.is_Number and imaginary.is_Number and value.is_finite):
    raise UndefinedError("no finite value")
  return value


def _equal_at_points(
  left: sympy.Expr, right: sympy.Expr, symbols: list[sympy.Symbol]
) -> bool:
  """Compares two expressions at every point at which both are defined."""
  compared = None
  is_complex = left.has(sympy.I) or right.has(sympy.I)
  for point, is_positive in points(left, right, symbols):
    may_be_undefined = not is_positive and not is_complex
    if may_be_undefined and any(
      _has_even_root_of_negative(side, point) for side in (left, right)
    ):
      continue
    try:
      if not _equal_at(left, right, point):
        return False
    except UndefinedError:
      continue
    compared = point
  # At one point: 10^{500}x+1 differs from 10^{500}x everywhere.
  return compared is not None and _remains_equal(left, right, compared)


def _equal_at(left: sympy.Expr, right: sympy.Expr, point: Point) -> bool:
  """Compares two expressions at a point; raises where one is undefined."""
  pair = _at(left, point), _at(right, point)
  values = [value_of(side, POINT_DIGITS) for side in pair]
  if all(map(_is_small_integer, point.values())):
    return equal_numbers(*pair)
  if close(*values, POINT_ERROR):
    return True
  return _is_rounding(left, point) and _is_rounding(right, point)


def _remains_equal(left: sympy.Expr, right: sympy.Expr, point: Point) -> bool:
  """Compares them again at a point, without the terms that both share."""
  if all(map(_is_small_integer, point.values())):
    return True  # Compared exactly.
  difference = left - right
  return _is_rounding(difference, point) or not value_of(
    _at(difference, point, FEWER_DIGITS), FEWER_DIGITS
  )


def _is_rounding(expression: sympy.Expr, point: Point) -> bool:
  """Tells whether a value is 0 but for rounding: it shrinks with more digits.

  With fewer digits it may be 0 by chance, if it is below `POINT_ERROR` with
  more.
  """
  size, fewer = (
    abs(value_of(_at(expression, point, digits), digits))
    for digits in (POINT_DIGITS, FEWER_DIGITS)
  )
  return bool(size < (_SHRINKS * fewer if fewer else POINT_ERROR))


def _is_small_integer(value: sympy.Rational) -> bool:
  """Tells whether a value stays an integer, also in exponents."""
  return bool(value.is_Integer and abs(value) <= MAX_COUNT)


def _at(
  expression: sympy.Expr, point: Point, digits: int = POINT_DIGITS
) -> sympy.Expr:
  """Puts the values of a point into an expression, as floats or integers."""
  values = {
    symbol: value if _is_small_integer(value) else sympy.Float(value, digits)
    for symbol, value in point.items()
  }
  return expression.xreplace(values).doit()


def _has_even_root_of_negative(expression: sympy.Expr, point: Point) -> bool:
  """Tells whether a root or a logarithm is of a negative number."""
  for part in sympy.preorder_traversal(expression):
    inner = None
    if part.is_Pow and not part.exp.is_integer:
      inner = part.base
    elif isinstance(part, sympy.log):
      inner = part.args[0]
    if inner is None or not inner.free_symbols:
      continue
    value = inner.xreplace(point).evalf(10)
    if not value.is_real or value < 0:
      return True
  return False
