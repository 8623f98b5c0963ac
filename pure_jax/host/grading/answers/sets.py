r"""Sets of real numbers: intervals, their unions, and solutions."""

import sympy
from sympy.core.function import AppliedUndef

from pure_jax.host.grading.answers import numeric, units
from pure_jax.host.grading.answers.structure import (
  Collection,
  Named,
  Node,
  Quantity,
  Relation,
)

_REALS = sympy.Symbol("mathbb:R")
_FLIPPED = {">": "<", ">=": "<="}


def oriented(relation: Relation) -> Relation:
  """Returns a relation with its signs turned to less than.

  Args:
    relation: any.
  """
  if not any(sign in _FLIPPED for sign in relation.signs):
    return relation
  signs = tuple(_FLIPPED.get(s, s) for s in reversed(relation.signs))
  return Relation(signs, relation.sides[::-1])


def same_set(reference: Node, answer: Node) -> bool:
  """Compares two sets of real numbers; the empty set equals none.

  Args:
    reference: the right answer.
    answer: the one that is graded.

  Returns:
    False if one of them is no set of real numbers.
  """
  if variables(reference) != variables(answer) and all(
    variables(node) for node in (reference, answer)
  ):
    return False
  sets = _as_set(reference), _as_set(answer)
  if None in sets or sympy.S.EmptySet in sets:
    return False
  return _equal(*sets)


def _equal(left: sympy.Set, right: sympy.Set) -> bool:
  """Compares two sets by the values of their ends and elements."""
  if left == right:
    return True
  if left.func != right.func or len(left.args) != len(right.args):
    return False
  if isinstance(left, sympy.Interval):
    same_kind = left.args[2:] == right.args[2:]
    return same_kind and all(map(numeric.equal, left.args[:2], right.args[:2]))
  if not isinstance(left, sympy.FiniteSet | sympy.Union):
    return False
  compare = _equal if isinstance(left, sympy.Union) else numeric.equal
  return all(any(compare(a, b) for b in right.args) for a in left.args) and (
    all(any(compare(a, b) for a in left.args) for b in right.args)
  )


def variables(node: Node) -> set[sympy.Expr]:
  """Returns the variables of the relations in a node.

  Args:
    node: from `reading.read`.
  """
  if isinstance(node, Collection):
    return set().union(*map(variables, node.items))
  if not isinstance(node, Relation):
    return set()
  return {
    part
    for side in node.sides
    for part in side.free_symbols | side.atoms(AppliedUndef)
  }


def _as_set(node: Node) -> sympy.Set | None:
  """Returns a set of real numbers; None if a node is none."""
  if isinstance(node, Relation):
    return _solutions(node)
  if isinstance(node, Quantity):
    return sympy.S.Reals if node.parts[0][0] == _REALS else None
  if not isinstance(node, Collection):
    return None
  if node.kind == "tuple" and len(node.items) == 2:
    ends = [_real(item) for item in node.items]
    if None in ends:
      return None
    return _interval(*ends, node.brackets[0] == "(", node.brackets[1] == ")")
  if node.kind in ("list", "both"):
    return _solutions_of_all(node)
  if node.kind == "union":
    parts = [_as_set(item) for item in node.items]
    return None if None in parts else sympy.Union(*parts)
  if node.kind == "difference":
    parts = [_as_set(item) for item in node.items]
    return None if None in parts else sympy.Complement(*parts)
  if node.kind == "set":
    values = [_real(item) for item in node.items]
    return None if None in values else sympy.FiniteSet(*values)
  return None


def _solutions_of_all(node: Collection) -> sympy.Set | None:
  """Returns what fulfils one of several relations, or all with *and*.

  If nothing fulfils all, *and* joins the parts: x < 2 and x > 5.
  """
  names = {str(variable) for variable in variables(node)}
  parts = []
  for item in node.items:
    if isinstance(item, Named):
      names.add(item.name)
      value = _real(item.value)
      parts.append(None if value is None else sympy.FiniteSet(value))
    else:
      parts.append(_as_set(item) if isinstance(item, Relation) else None)
  if None in parts or len(names) != 1 or not variables(node):
    return None
  common = sympy.Intersection(*parts)
  if node.kind == "both" and common != sympy.S.EmptySet:
    return common
  return sympy.Union(*parts)


def _real(node: Node) -> sympy.Expr | None:
  """Returns the value of a real number without a unit, or infinity."""
  if not isinstance(node, Quantity) or len(node.parts) > 1:
    return None
  value, unit = node.parts[0]
  return value if value.is_extended_real and unit == units.NO_UNIT else None


def _interval(
  start: sympy.Expr, end: sympy.Expr, left_open: bool, right_open: bool
) -> sympy.Set | None:
  """Returns an interval; None if it is closed at infinity or has no inside."""
  if (not left_open and start.is_infinite) or (
    not right_open and end.is_infinite
  ):
    return None
  if (start < end) != True:  # noqa: E712 (sympy's own true)
    return None
  return sympy.Interval(start, end, left_open, right_open)


def _within_distance(relation: Relation) -> sympy.Set | None:
  """Returns the solutions of |x - c| < b or > b; None for others."""
  if len(relation.signs) != 1 or relation.signs[0] not in ("<", "<="):
    return None
  at = next(
    (i for i, s in enumerate(relation.sides) if isinstance(s, sympy.Abs)), None
  )
  if at is None:
    return None
  inner, bound = relation.sides[at].args[0], relation.sides[1 - at]
  symbols = list(inner.free_symbols)
  if len(symbols) != 1 or not bound.is_positive:
    return None
  center = symbols[0] - inner
  if not center.is_extended_real:
    return None
  is_open = relation.signs[0] == "<"
  if at == 1:  # Outside.
    is_open = not is_open
  inside = _interval(center - bound, center + bound, is_open, is_open)
  if inside is None or at == 0:
    return inside
  return sympy.Complement(sympy.S.Reals, inside)


def _solutions(relation: Relation) -> sympy.Set | None:
  """Returns the solutions of a < x < b and the like; None for others."""
  relation = oriented(relation)
  distance = _within_distance(relation)
  if distance is not None:
    return distance
  symbols = [
    s for s in relation.sides if s.is_Symbol or isinstance(s, AppliedUndef)
  ]
  if len(symbols) != 1 or len(relation.sides) > 3:
    return None
  bounds = [side for side in relation.sides if side not in symbols]
  if not all(bound.is_extended_real for bound in bounds):
    return None
  at = relation.sides.index(symbols[0])
  if relation.signs == ("!=",):
    return sympy.Complement(sympy.S.Reals, sympy.FiniteSet(bounds[0]))
  if not set(relation.signs) <= {"<", "<="} or (len(bounds) == 2 and at != 1):
    return None
  start, left_open = (relation.sides[0], relation.signs[0] == "<")
  end, right_open = (relation.sides[-1], relation.signs[-1] == "<")
  if at == 0:
    start, left_open = -sympy.oo, True
  elif len(bounds) == 1:
    end, right_open = sympy.oo, True
  return _interval(start, end, left_open, right_open)
