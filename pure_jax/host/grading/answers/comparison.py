r"""Compares two answers whose structure has been read.

The rules, for a reference and an answer:

1. Words are equal as words; the first letter may be a capital.
2. A name is dropped if only one side has it: ``x=5`` is 5. Two names must be
   the same. Values with different names are in the order of their names:
   ``x=3,y=5`` is ``(3,5)``. Other letters than x and y, or a, b and c, must be
   written in that order.
3. Equations are equal if one is a multiple of the other, not because both have
   the same solutions, or none. For inequalities the factor must be positive.
4. Lists and sets have no order; repetition matters in lists. A list with an
   ellipsis has an order. Tuples, intervals and matrices have an order, and the
   same brackets. A column or a row is a tuple.
5. Inequalities and intervals are compared as sets of real numbers; the empty
   set equals nothing but itself. An interval is not closed at infinity.
6. Quantities are compared by `units.agree` and `numeric.equal`. A decimal of at
   least six digits and six decimals is equal to what it rounds.
7. A number in a base equals the same digits in the same base, or without one.
8. A ratio equals a proportional one, and its quotient; a time only the same
   time. A ratio of zeros has no value, and one to zero no quotient.
9. What cannot be read equals only the same text.
"""

import itertools
import re
from collections.abc import Sequence

import sympy

from pure_jax.host.grading.answers import numeric, units
from pure_jax.host.grading.answers.quantities import same_quantity
from pure_jax.host.grading.answers.reading import ELLIPSIS
from pure_jax.host.grading.answers.sets import oriented, same_set, variables
from pure_jax.host.grading.answers.structure import (
  Collection,
  InBase,
  Named,
  Node,
  Quantity,
  Ratio,
  Relation,
  Unread,
  Words,
)
from pure_jax.host.grading.answers.words import same_words


def same(reference: Node, answer: Node) -> bool:
  """Tells whether an answer equals the reference.

  Args:
    reference: from `reading.read`.
    answer: from `reading.read`.
  """
  if reference == answer:
    return True
  reference, answer = _sole_item(reference), _sole_item(answer)
  if isinstance(reference, Named) or isinstance(answer, Named):
    return _same_named(reference, answer)
  for kind, compare in (
    (Words, _same_words),
    (InBase, _same_in_base),
    (Ratio, _same_ratio),
    (Unread, _same_text),
  ):
    if isinstance(reference, kind) or isinstance(answer, kind):
      return compare(reference, answer)
  if isinstance(reference, Quantity) and isinstance(answer, Quantity):
    return same_quantity(reference, answer)
  for kind, compare in (
    (Relation, _same_relation),
    (Collection, _same_collection),
  ):
    both = isinstance(reference, kind) and isinstance(answer, kind)
    if both and compare(reference, answer):
      return True
  return same_set(reference, answer)


def _sole_item(node: Node) -> Node:
  """Returns the item of a set with one item, or the node itself."""
  is_set = isinstance(node, Collection) and node.kind == "set"
  if not is_set or len(node.items) != 1 or isinstance(node.items[0], Unread):
    return node
  return node.items[0]


def _same_text(reference: Node, answer: Node) -> bool:
  """Compares texts that cannot be read, without spaces and braces."""
  if not (isinstance(reference, Unread) and isinstance(answer, Unread)):
    return False
  left, right = (
    re.sub(r"(?<!\\)\{(\w)\}|\s", r"\1", node.text)
    for node in (reference, answer)
  )
  return left == right


def _same_words(reference: Node, answer: Node) -> bool:
  """Compares words; letters are a word if the other side is words."""
  texts = []
  for node in (reference, answer):
    if isinstance(node, Words):
      texts.append(node.text)
    elif isinstance(node, Quantity) and node.letters is not None:
      texts.append(node.letters)
    else:
      return False
  return same_words(*texts)


def _same_named(reference: Node, answer: Node) -> bool:
  """Compares values of which at least one has a name, and equations."""
  both = isinstance(reference, Named) and isinstance(answer, Named)
  same_name = both and reference.name == answer.name
  if same_name and same(reference.value, answer.value):
    return True
  left, right = _equation(reference), _equation(answer)
  if left is not None and right is not None:
    return _same_relation(left, right)
  if both:
    return False
  named, other = reference, answer
  if isinstance(answer, Named):
    named, other = answer, reference
  if isinstance(other, Relation) and named.name not in map(
    str, variables(other)
  ):
    return False
  if isinstance(reference, Named):
    return same(reference.value, answer)
  return same(reference, answer.value)


def _equation(node: Node) -> Relation | None:
  """Returns the equation of a node; None if it is none."""
  if isinstance(node, Named):
    return node.equation
  return node if isinstance(node, Relation) else None


def _same_in_base(reference: Node, answer: Node) -> bool:
  """Compares numbers of which at least one has a base."""
  digits, bases = [], set()
  for node in (reference, answer):
    if isinstance(node, InBase):
      digits.append(node.digits.lstrip("0"))
      bases.add(node.base)
    elif isinstance(node, Quantity) and node.letters is None:
      value, unit = node.parts[0]
      if not value.is_Integer or unit != units.NO_UNIT:
        return False
      digits.append(str(value))
    else:
      return False
  return digits[0] == digits[1] and len(bases) == 1


def _same_ratio(reference: Node, answer: Node) -> bool:
  """Compares ratios and times."""
  if isinstance(reference, Ratio) and isinstance(answer, Ratio):
    same_unit = (
      reference.unit.percent == answer.unit.percent
      and reference.unit.scale == answer.unit.scale
      and units.agree(reference.unit, answer.unit) is not None
    )
    if not same_unit or len(reference.items) != len(answer.items):
      return False
    if reference.is_time and answer.is_time:
      return _same_time(reference, answer)
    return not reference.is_time and _proportional(
      reference.items, answer.items
    )
  hours = _whole_hours(reference), _whole_hours(answer)
  if None not in hours:
    return _same_ratio(*hours)
  ratio, other = reference, answer
  if isinstance(answer, Ratio):
    ratio, other = answer, reference
  if not isinstance(other, Quantity) or len(ratio.items) != 2:
    return False
  value, unit = other.parts[0]
  if (reference is ratio and ratio.is_time) or unit != units.NO_UNIT:
    return False
  if ratio.unit != units.NO_UNIT or numeric.is_zero(ratio.items[1]):
    return False
  return numeric.equal(value, ratio.items[0] / ratio.items[1])


def _same_time(reference: Ratio, answer: Ratio) -> bool:
  """Compares times; a duration has no unit but that of times."""
  allowed = {"am", "pm", "time"}
  names = {
    name for time in (reference, answer) for name, _ in time.unit.dimensions
  }
  if answer.unit != reference.unit and not names <= allowed:
    return False
  same_items = reference.items == answer.items
  return same_items or _clock(reference) == _clock(answer)


def _proportional(
  left: tuple[sympy.Expr, ...], right: tuple[sympy.Expr, ...]
) -> bool:
  """Compares terms of ratios; a ratio of zeros alone is not defined."""
  zeros = [[numeric.is_zero(item) for item in items] for items in (left, right)]
  if zeros[0] != zeros[1] or all(zeros[0]):
    return False
  at = zeros[0].index(False)
  return all(
    numeric.equal(a / left[at], b / right[at])
    for a, b in zip(left, right, strict=True)
  )


def _same_collection(reference: Collection, answer: Collection) -> bool:
  """Compares lists, sets, tuples, matrices and unions by their items."""
  kinds = {reference.kind, answer.kind}
  named = [_all_names(node) for node in (reference, answer)]
  if all(named):
    if named[0] != named[1]:
      return False
    if all(len(named[0]) == len(n.items) for n in (reference, answer)):
      return kinds == {"list"} and _same_items(
        _by_name(reference), _by_name(answer)
      )
  if kinds == {"list", "both"}:
    # x > 0 and y > 0; of one variable, "and" and "or" differ.
    several = len(variables(reference)) > 1
    return several and _same_unordered(reference.items, answer.items)
  if _names(reference) or _names(answer):
    return _same_in_order_of_names(reference, answer)
  left, right = _values(reference), _values(answer)
  if kinds <= {"list", "set"}:
    if any(item == Unread(ELLIPSIS) for item in left + right):
      return _same_items(left, right)
    if "set" in kinds:
      left, right = _distinct(left), _distinct(right)
    return _same_unordered(left, right)
  if kinds in ({"union"}, {"both"}):
    return _same_unordered(left, right)
  if kinds == {"difference"}:
    return _same_items(left, right)
  if kinds in ({"tuple"}, {"row"}, {"column"}, {"matrix"}) or kinds in (
    {"tuple", "column"}, {"tuple", "row"},
  ):  # fmt: skip
    brackets = reference.brackets == answer.brackets
    return brackets and _same_items(left, right)
  return False


def _clock(time: Ratio) -> tuple[sympy.Expr, ...]:
  """Returns a time of 24 hours, if it is known to be a.m. or p.m."""
  hour, *rest = time.items
  half = _half_of_day(time)
  if half:
    hour = hour % 12 + (12 if half == "pm" else 0)
  return hour, *rest


def _half_of_day(time: Ratio) -> str | None:
  """Returns "am" or "pm"; None without them."""
  names = {name for name, _ in time.unit.dimensions}
  return next(iter(names & {"am", "pm"}), None)


def _whole_hours(node: Node) -> Ratio | None:
  """Returns 9 a.m. as 9:00 a.m., and a time as it is; None for others."""
  if isinstance(node, Ratio):
    return node if _half_of_day(node) else None
  if not isinstance(node, Quantity) or len(node.parts) != 1:
    return None
  hour, unit = node.parts[0]
  ratio = Ratio((hour, sympy.S.Zero), True, unit)
  return ratio if hour.is_Integer and _half_of_day(ratio) else None


def _values(node: Collection) -> list[Node]:
  """Returns the items, without a name that all of them or the first have."""
  items = list(node.items)
  names = [item.name for item in items if isinstance(item, Named)]
  if node.kind != "list" or not names or not isinstance(items[0], Named):
    return items
  one_letter = len({name.split("_")[0] for name in names}) == 1
  if one_letter and len(names) in (1, len(items)):
    return [i.value if isinstance(i, Named) else i for i in items]
  return items


def _all_names(node: Collection) -> set[str]:
  """Returns the names of all values of a collection."""
  return {item.name for item in node.items if isinstance(item, Named)}


def _names(node: Collection) -> list[str]:
  """Returns the names of a list of values with different names; else none.

  x_1 and x_2 are two values of x.
  """
  if node.kind != "list" or not all(isinstance(i, Named) for i in node.items):
    return []
  names = [item.name for item in node.items]
  letters = {name.split("_")[0] for name in names}
  return sorted(names) if len(letters) == len(names) else []


def _same_in_order_of_names(reference: Collection, answer: Collection) -> bool:
  """Compares values with different names, on at least one side."""
  if answer.kind == "set" or reference.kind == "set":
    return False
  names = [_names(node) for node in (reference, answer)]
  if all(names) and names[0] != names[1]:
    return False
  sides = []
  for node, known in zip((reference, answer), names, strict=True):
    items = list(node.items)
    if known:
      written = [item.name for item in items]
      if written != known and not _follow(known):
        return False
      items = _by_name(node)
    elif node.brackets != "()":
      return False
    sides.append(items)
  return _same_items(*sides)


def _follow(names: list[str]) -> bool:
  """Tells whether names are letters that follow each other, as x and y."""
  letters = [ord(name) if len(name) == 1 else 0 for name in names]
  return all(b == a + 1 for a, b in itertools.pairwise(letters))


def _same_items(left: list[Node], right: list[Node]) -> bool:
  """Compares items in their order."""
  return len(left) == len(right) and all(map(same, left, right))


def _by_name(node: Collection) -> list[Node]:
  """Returns named values in the order of their names."""
  items = sorted(node.items, key=lambda item: item.name)
  return [item.value for item in items]


def _same_unordered(left: Sequence[Node], right: Sequence[Node]) -> bool:
  """Compares items in any order."""
  if len(left) != len(right):
    return False
  rest = list(right)
  for item in left:
    match = next((at for at, o in enumerate(rest) if same(item, o)), None)
    if match is None:
      return False
    del rest[match]
  return True


def _distinct(items: list[Node]) -> list[Node]:
  """Returns the items of a set, each once."""
  distinct: list[Node] = []
  for item in items:
    if not any(same(item, other) for other in distinct):
      distinct.append(item)
  return distinct


def _same_relation(reference: Relation, answer: Relation) -> bool:
  """Compares equations and inequalities by their difference of sides."""
  left, right = oriented(reference), oriented(answer)
  if left.signs != right.signs:
    return False
  if all(map(numeric.equal, left.sides, right.sides)):
    return True
  if len(left.signs) > 1:
    return False
  first, second = (
    numeric.without_calls(r.sides[0] - r.sides[1]) for r in (left, right)
  )
  if first.free_symbols != second.free_symbols or not first.free_symbols:
    return False
  signed = left.signs[0] in ("<", "<=")
  if numeric.multiple(first, second, positive=signed):
    return True
  if signed:
    return False
  tops = [sympy.together(e).as_numer_denom()[0] for e in (first, second)]
  return numeric.multiple(*tops, positive=False)
