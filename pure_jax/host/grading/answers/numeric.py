r"""Tells whether two expressions are equal, by evaluating both.

1. Numbers are evaluated to `DIGITS` digits. If these agree within `ERROR` of
   the larger one, the difference must be 0 too, in up to `MAX_DIGITS` digits of
   working precision: 10^{100}+1 is not 10^{100}. Rational numbers are compared
   exactly.
2. Expressions with symbols are evaluated at fixed points, where each symbol has
   a value of its own, to `POINT_DIGITS` digits: equal if they agree at every
   point at which both are defined. Letters of counts (n, k, m) have integer
   values. At points with negative values, logarithms and roots of negative
   numbers are undefined, so that \sqrt{ab} is \sqrt a \sqrt b, and \sqrt{x^2}
   is not x.
3. The letter i is the imaginary unit, unless another letter is upper case: it
   may be a current then, as in i^2 R.
4. Calls of unknown functions, f(2), are symbols, named by their arguments.
"""

import hashlib
from collections.abc import Iterator

import sympy
from sympy.core.evalf import PrecisionExhausted
from sympy.core.function import AppliedUndef

DIGITS = 30
MAX_DIGITS = 300
ERROR = sympy.Rational(1, 10**20)
NUM_POINTS = 6
# At a point, values are floating-point numbers.
POINT_DIGITS = 60
POINT_ERROR = sympy.Rational(1, 10**40)
# For floor and ceiling, which hide differences at most points.
NUM_ROUNDING_POINTS = 40
_COUNTS = set("nkm")
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
  if left == right:
    return True
  left, right = without_calls(left), without_calls(right)
  symbols = sorted(left.free_symbols | right.free_symbols, key=str)
  if not symbols:
    return equal_numbers(left, right)
  return _equal_at_points(left, right, symbols)


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
  for point, _ in _points(symbols):
    first, second = left.xreplace(point).doit(), right.xreplace(point).doit()
    try:
      values = value_of(first), value_of(second)
    except UndefinedError:
      continue
    if close(values[0], sympy.S.Zero) or close(values[1], sympy.S.Zero):
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
    if not close(value_of(left), value_of(right)):
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
    error: relative to the larger one. Two numbers below it agree, since a
      difference that cancels to 0 has no digits.
  """
  size = max(abs(left), abs(right))
  return bool(abs(left - right) <= error * size) or bool(size < error)


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
  compared = 0
  rounds = left.has(sympy.floor, sympy.ceiling) or right.has(
    sympy.floor, sympy.ceiling
  )
  count = NUM_ROUNDING_POINTS if rounds else NUM_POINTS
  is_complex = left.has(sympy.I) or right.has(sympy.I)
  for point, is_positive in _points(symbols, count):
    pair = left.xreplace(point).doit(), right.xreplace(point).doit()
    may_be_undefined = not is_positive and not is_complex
    if may_be_undefined and any(
      _has_even_root_of_negative(side, point) for side in (left, right)
    ):
      continue
    try:
      values = [value_of(value, POINT_DIGITS) for value in pair]
    except UndefinedError:
      continue
    if not close(*values, POINT_ERROR):
      return False
    compared += 1
  return compared > 0


def _points(
  symbols: list[sympy.Symbol], count: int = NUM_POINTS
) -> Iterator[tuple[dict[sympy.Symbol, sympy.Expr], bool]]:
  """Yields points, each with whether all its values are positive.

  The values depend only on the name of a symbol and the number of the point.
  """
  for number in range(count):
    is_positive = number % 2 == 0
    point = {}
    for symbol in symbols:
      digest = hashlib.sha256(f"{number} {symbol.name}".encode()).digest()
      if symbol.name in _COUNTS:
        alone = len(symbols) == 1
        step = number if alone else number // 2 + digest[0] % 7
        point[symbol] = sympy.Integer(3 + step)
        continue
      size = sympy.Rational(1 + int.from_bytes(digest[:2]) % 3989, 1009)
      negative = not is_positive and (digest[2] % 2 or len(symbols) == 1)
      if count == NUM_ROUNDING_POINTS and number % 5 == 0:
        size = sympy.ceiling(size)  # Rounding may differ at integers only.
      point[symbol] = sympy.Float(-size if negative else size, POINT_DIGITS)
    yield point, is_positive


def _has_even_root_of_negative(
  expression: sympy.Expr, point: dict[sympy.Symbol, sympy.Expr]
) -> bool:
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
