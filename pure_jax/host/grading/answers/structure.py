"""Records of the structure of an answer, from `reading` for `comparison`."""

import dataclasses

import sympy

from pure_jax.host.grading.answers import units


@dataclasses.dataclass(frozen=True)
class Words:
  """An answer of words, in their case."""

  text: str


@dataclasses.dataclass(frozen=True)
class Quantity:
  """A value, or the sum of several, with units.

  Attributes:
    parts: (value, unit); only the first may have symbols, and then no unit.
    decimals: if it is a decimal number, the digits behind its point; else None.
    digits: the significant digits of that number.
    letters: its text if it has only letters; else None.
  """

  parts: tuple[tuple[sympy.Expr, units.Unit], ...]
  decimals: int | None = None
  digits: int = 0
  letters: str | None = None

  @property
  def has_symbols(self) -> bool:
    """Whether its value has symbols."""
    return any(value.free_symbols for value, _ in self.parts)


@dataclasses.dataclass(frozen=True)
class Collection:
  """Several values.

  Attributes:
    kind: "list", "both" (inequalities that hold together), "set", "tuple",
      "row", "column", "matrix", "union" or "difference", of two sets.
    items: the values; rows of a matrix are collections of kind "row".
    brackets: of a tuple with two items, which may be an interval.
  """

  kind: str
  items: tuple["Node", ...]
  brackets: str = "()"


@dataclasses.dataclass(frozen=True)
class Named:
  """A value with a name: x = 5, f(x) = x^2, x in A."""

  name: str
  value: "Node"
  equation: "Relation | None"


@dataclasses.dataclass(frozen=True)
class Relation:
  """A chain of relations.

  Attributes:
    signs: each "=", "<", "<=", ">", ">=" or "!=".
    sides: one more than signs.
  """

  signs: tuple[str, ...]
  sides: tuple[sympy.Expr, ...]


@dataclasses.dataclass(frozen=True)
class InBase:
  """Digits in a base."""

  digits: str
  base: int


@dataclasses.dataclass(frozen=True)
class Ratio:
  """Values with colons between them: 3:4, or the time 4:30."""

  items: tuple[sympy.Expr, ...]
  is_time: bool
  unit: units.Unit


@dataclasses.dataclass(frozen=True)
class Unread:
  """A text that has another structure; equal only to the same text."""

  text: str


Node = (
  Words | Quantity | Collection | Named | Relation | InBase | Ratio | Unread
)
