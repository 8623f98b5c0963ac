"""How a raw row becomes records, and the reading of its fields.

A format is a plain value: a name, a version, a parser. Whoever changes what a
parser returns raises its version, for prepared data is found by it.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from pure_jax.host.data.records import LabelledSolution, Problem

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Format:
  """How the rows of a kind of file are read.

  Attributes:
    name: of the data set, so letters, digits and underscores.
    version: raised with every change of what `parse` returns.
    record: `Problem` or `LabelledSolution`.
    parse: (raw row, its number from 0 within the split) -> records; none
      where the row is to be left out. A ValueError says what is wrong.
    options: whatever else decides what `parse` returns, as text.
  """

  name: str
  version: int
  record: type[Problem] | type[LabelledSolution]
  parse: Callable[[Row, int], list[Any]]
  options: str = ""

  def __post_init__(self):
    """Refuses a name that no folder can have everywhere."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", self.name):
      raise ValueError(
        f"The name of a format is letters, digits and _, not {self.name!r}."
      )


def value(row: Row, field: str) -> Any:
  """What a field holds, null included.

  Args:
    row: the raw row.
    field: its name.

  Returns:
    The value.

  Raises:
    ValueError: naming the field that is missing, and those that are there.
  """
  if field not in row:
    known = ", ".join(repr(name) for name in row) or "none"
    raise ValueError(f"field {field!r} is missing; there is {known}")
  return row[field]


def text(row: Row, field: str) -> str:
  """A text that must be there.

  Args:
    row: the raw row.
    field: its name.

  Returns:
    The text, without white space around it; not empty.

  Raises:
    ValueError: naming the field that is missing, empty or no text.
  """
  found = optional_text(row, field)
  if found is None:
    raise ValueError(f"field {field!r} is null")
  if not found:
    raise ValueError(f"field {field!r} is empty")
  return found


def optional_text(row: Row, field: str) -> str | None:
  """A text or null.

  Args:
    row: the raw row.
    field: its name; it must be there.

  Returns:
    The text, without white space around it, or None.

  Raises:
    ValueError: naming the field that is missing or neither text nor null.
  """
  found = value(row, field)
  return None if found is None else checked_text(found, f"field {field!r}")


def checked_text(found: Any, what: str) -> str:
  """A text that can be stored.

  Args:
    found: what was found.
    what: what it is, for the error.

  Returns:
    The text, without white space around it.

  Raises:
    ValueError: if it is no text, or holds half a surrogate pair.
  """
  if not isinstance(found, str):
    raise ValueError(f"{what} is {_kind(found)}, not text")
  try:
    found.encode()
  except UnicodeEncodeError:
    raise ValueError(f"{what} holds half a surrogate pair") from None
  return found.strip()


def number(row: Row, field: str) -> float:
  """A number as JSON has it.

  Args:
    row: the raw row.
    field: its name.

  Returns:
    The int or float.

  Raises:
    ValueError: naming the field that is missing or not a finite number.
  """
  found = value(row, field)
  if isinstance(found, bool) or not isinstance(found, int | float):
    raise ValueError(f"field {field!r} is {_kind(found)}, not a number")
  try:
    finite = math.isfinite(found)
  except OverflowError:  # An int that no float is near.
    raise ValueError(f"field {field!r} is beyond every float") from None
  if not finite:
    raise ValueError(f"field {field!r} is {found}, not a finite number")
  return found


def integer(row: Row, field: str) -> int:
  """A whole number.

  Args:
    row: the raw row.
    field: its name.

  Returns:
    The number.

  Raises:
    ValueError: naming the field that is missing or not a whole number.
  """
  found = number(row, field)
  if not isinstance(found, int):
    raise ValueError(f"field {field!r} is {found}, not a whole number")
  return found


def flag(row: Row, field: str) -> bool:
  """True or false.

  Args:
    row: the raw row.
    field: its name.

  Returns:
    The bool.

  Raises:
    ValueError: naming the field that is missing or not a bool.
  """
  found = value(row, field)
  if not isinstance(found, bool):
    raise ValueError(f"field {field!r} is {_kind(found)}, not true or false")
  return found


def items(row: Row, field: str) -> list[Any]:
  """A list.

  Args:
    row: the raw row.
    field: its name.

  Returns:
    The list, of whatever it holds.

  Raises:
    ValueError: naming the field that is missing or not a list.
  """
  found = value(row, field)
  if not isinstance(found, list):
    raise ValueError(f"field {field!r} is {_kind(found)}, not a list")
  return found


def mapping(row: Row, field: str) -> Row:
  """An object with fields of its own.

  Args:
    row: the raw row.
    field: its name.

  Returns:
    The object.

  Raises:
    ValueError: naming the field that is missing or not an object.
  """
  found = value(row, field)
  if not isinstance(found, dict):
    raise ValueError(f"field {field!r} is {_kind(found)}, not an object")
  return found


def number_text(found: float) -> str:
  """A number as an answer: whole ones without a decimal point.

  >>> number_text(27.0), number_text(0.5), number_text(-3)
  ('27', '0.5', '-3')

  Args:
    found: a finite number.

  Returns:
    Its decimal text.
  """
  return str(int(found)) if found == int(found) else repr(found)


def _kind(found: Any) -> str:
  """What JSON calls a value."""
  kinds = {bool: "a bool", int: "a number", float: "a number", str: "text"}
  kinds |= {list: "a list", dict: "an object", type(None): "null"}
  return kinds.get(type(found), type(found).__name__)
