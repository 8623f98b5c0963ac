r"""The points at which expressions with symbols are compared.

Each symbol has a value of its own at a point, which depends only on its name
and the number of the point. Values have few binary digits, so that they are
exact at any precision. In turn:

1. Two points of small positive values, and two of large ones: larger than the
   numbers in the expressions, such as the 5 of |x-5|.
2. For each symbol a small and a large point at which it alone is negative. So
   |r|s is not rs, but a root that holds several symbols stays undefined.
3. If a part has pieces (an absolute value, a maximum, a rounding),
   `NUM_PIECE_POINTS` points of all sizes and signs; a fifth are integers.

The letters n, k and m are numbers like any other, but integers where a part
needs them: factorials, binomial coefficients, sums, products and (-1)^n, and if
both sides round parts of them, as \lfloor n/2\rfloor. They are positive then if
there are factorials, binomial coefficients, sums or products.
"""

import hashlib
from collections.abc import Iterator

import sympy

# Floor, ceiling and absolute values hide differences at most points.
NUM_PIECE_POINTS = 40
MAX_COUNT = 11  # Larger values of 2^{2^n} have too many digits.
_COUNTS = set("nkm")
_MAX_SIZE = 10**9
_PIECES = (
  sympy.floor, sympy.ceiling, sympy.Abs, sympy.Max, sympy.Min, sympy.sign
)  # fmt: skip
_OF_COUNTS = (sympy.factorial, sympy.binomial, sympy.Sum, sympy.Product)
Point = dict[sympy.Symbol, sympy.Rational]


def points(
  left: sympy.Expr, right: sympy.Expr, symbols: list[sympy.Symbol]
) -> Iterator[tuple[Point, bool]]:
  """Yields points, each with whether all its values are positive.

  Args:
    left: an expression.
    right: another one.
    symbols: the symbols of both, one or more.
  """
  large = _size(left, right)
  counted = any(side.has(*_OF_COUNTS) for side in (left, right))
  sides = left, right
  whole = counted or any(map(_alternates, sides)) or all(map(_rounds, sides))
  signs: list[tuple[int, set[sympy.Symbol]]] = [
    (1, set()), (1, set()), (large, set()), (large, set())
  ]  # fmt: skip
  signs += [(size, {s}) for s in symbols for size in (1, large)]
  has_pieces = left.has(*_PIECES) or right.has(*_PIECES)
  if has_pieces:
    signs += [
      ((1, large, 4)[number % 3], _negatives(number, symbols))
      for number in range(NUM_PIECE_POINTS)
    ]
  for number, (size, negative) in enumerate(signs):
    point = {}
    for symbol in symbols:
      digest = hashlib.sha256(f"{number} {symbol.name}".encode()).digest()
      value = sympy.Rational(int.from_bytes(digest[:2]) % 4096 | 1, 1024) * size
      if whole and symbol.name in _COUNTS:
        value = sympy.Integer(1 + (number + digest[0] % 3) % MAX_COUNT)
      elif has_pieces and number % 5 == 0:
        value = sympy.ceiling(value)  # Roundings may differ at integers only.
      may_be_negative = not (counted and symbol.name in _COUNTS)
      is_negative = symbol in negative and may_be_negative
      point[symbol] = -value if is_negative else value
    yield point, not any(value < 0 for value in point.values())


def _negatives(number: int, symbols: list[sympy.Symbol]) -> set[sympy.Symbol]:
  """Returns the symbols that are negative at a point; all at each fourth."""
  digests = {
    s: hashlib.sha256(f"{s.name} {number}".encode()).digest() for s in symbols
  }
  return {s for s in symbols if number % 4 == 0 or digests[s][0] % 2}


def _size(left: sympy.Expr, right: sympy.Expr) -> int:
  """Returns a number larger than those in the expressions, up to a limit."""
  numbers = {
    abs(number)
    for number in left.atoms(sympy.Rational) | right.atoms(sympy.Rational)
  }
  sizes = [int(number) for number in numbers if number < _MAX_SIZE]
  return 8 * max([4, *sizes])


def _alternates(expression: sympy.Expr) -> bool:
  """Tells whether it has powers of negative numbers, such as (-1)^n."""
  return any(
    power.base.is_number
    and not power.base.is_nonnegative
    and power.exp.free_symbols
    for power in expression.atoms(sympy.Pow)
  )


def _rounds(expression: sympy.Expr) -> bool:
  """Tells whether it rounds fractions of counts, and no integers."""
  counts = {
    symbol: sympy.Symbol(symbol.name, integer=True)
    for symbol in expression.free_symbols
    if symbol.name in _COUNTS
  }
  rounded = [
    part.args[0].xreplace(counts)
    for part in expression.atoms(sympy.floor, sympy.ceiling)
  ]
  return bool(rounded) and all(
    part.free_symbols and not part.is_integer for part in rounded
  )
