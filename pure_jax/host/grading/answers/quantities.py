r"""Compares values with their units, per cent signs and rounded decimals."""

import fractions

import sympy

from pure_jax.host.grading.answers import numeric, units
from pure_jax.host.grading.answers.structure import Node, Quantity

MIN_DECIMALS = 6  # Of a decimal that rounds a value.
MIN_DIGITS = 6
# A float written out, 0.30000000000000004, equals the decimal next to it.
FLOAT_DIGITS = 15
_FLOAT_ERROR = sympy.Rational(1, 10**12)


def added(nodes: list[Node]) -> Quantity | None:
  """Returns 2 hours and 30 minutes as one quantity; None for other lists.

  Args:
    nodes: the items of a list without commas.
  """
  parts: list[tuple[sympy.Expr, units.Unit]] = []
  for node in nodes:
    if not isinstance(node, Quantity) or len(node.parts) != 1:
      return None
    unit = node.parts[0][1]
    if not unit.in_table or (
      parts
      and (
        unit.dimensions != parts[-1][1].dimensions
        or unit.factor >= parts[-1][1].factor
      )
    ):
      return None
    parts.append(node.parts[0])
  return Quantity(tuple(parts)) if parts[0][1].dimensions else None


def same_quantity(reference: Quantity, answer: Quantity) -> bool:
  """Compares two values with their units.

  Args:
    reference: the right value.
    answer: the one that is graded.
  """
  totals = _total(reference), _total(answer)
  if None in totals:
    return len(reference.parts) == len(answer.parts) and all(
      same_quantity(Quantity((left,)), Quantity((right,)))
      for left, right in zip(reference.parts, answer.parts, strict=True)
    )
  (right, right_unit), (value, unit) = totals
  return any(
    numeric.equal(right, value * factor)
    or _rounds(reference, right, value * factor)
    or (factor == 1 and _rounds(answer, value, right))
    for factor in _factors(right_unit, unit, right, value)
  )


def _total(
  quantity: Quantity,
) -> tuple[sympy.Expr, units.Unit] | None:
  """Adds the parts of a quantity; None if they measure different things."""
  if len(quantity.parts) == 1:
    return quantity.parts[0]
  first = quantity.parts[0][1]
  if not first.dimensions or any(
    unit.dimensions != first.dimensions or unit.percent
    for _, unit in quantity.parts
  ):
    return None
  sizes = [
    value * _rational(unit.factor * unit.scale / first.factor)
    for value, unit in quantity.parts
  ]
  sign = -1 if sizes[0].is_negative else 1
  total = sizes[0] + sign * sympy.Add(*sizes[1:])
  return total, units.Unit(
    first.dimensions, first.factor, fractions.Fraction(1), first.percent,
    first.in_table,
  )  # fmt: skip


def _factors(
  reference: units.Unit, answer: units.Unit, right: sympy.Expr,
  value: sympy.Expr,
) -> list[sympy.Expr]:  # fmt: skip
  """Returns the numbers by which an answer's value may be multiplied."""
  factors = []
  if answer.percent and not reference.percent and answer.dimensions:
    return []
  factor = units.agree(reference, answer)
  in_radians = units.is_angle(answer) and right.has(sympy.pi)
  if factor is not None and (reference.dimensions or not in_radians):
    factors.append(_rational(factor * answer.scale / reference.scale))
  degree = 180 / sympy.pi
  if units.is_angle(reference) and (
    units.is_angle(answer, radians=True)
    or (answer == units.NO_UNIT and value.has(sympy.pi))
  ):
    factors.append(degree / _rational(reference.factor))
  if units.is_angle(answer) and (
    units.is_angle(reference, radians=True)
    or (reference == units.NO_UNIT and right.has(sympy.pi))
  ):
    factors.append(_rational(answer.factor) / degree)
  if reference.percent and not answer.percent:
    factors += [100 * factor for factor in factors]
  elif answer.percent and not reference.percent:
    hundredths = [factor / 100 for factor in factors]
    is_large = value.is_comparable and abs(value) > 1
    factors = hundredths + (factors if is_large else [])
  return factors


def _rounds(quantity: Quantity, decimal: sympy.Expr, value: sympy.Expr) -> bool:
  """Tells whether a decimal is a value, rounded to enough digits."""
  decimals = quantity.decimals
  if decimals is None or not (value.is_number and value.is_comparable):
    return False
  error = abs(value - decimal)
  is_float = quantity.digits >= FLOAT_DIGITS and value.is_integer is not True
  if is_float and bool(error <= _FLOAT_ERROR * min(abs(value), 10**3)):
    return True
  if decimals < MIN_DECIMALS or quantity.digits < MIN_DIGITS:
    return False
  return bool(error <= sympy.Rational(1, 2) / 10**decimals)


def _rational(value: fractions.Fraction) -> sympy.Rational:
  return sympy.Rational(value.numerator, value.denominator)
