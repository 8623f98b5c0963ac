"""Checked reading of the fields of a raw row.

Each function raises a ValueError that names the field if the field is missing
or has another type. Texts are stripped of white space at their ends.
"""

import math
from typing import Any, TypeVar

from pure_jax.host.data.formats import Row

_Kind = TypeVar("_Kind", bool, list, dict)
_WANTED = {bool: "true or false", list: "a list", dict: "an object"}
# The JSON types of values, for error messages.
_NAMES = {bool: "a bool", int: "a number", float: "a number", str: "text"}
_NAMES |= {list: "a list", dict: "an object", type(None): "null"}


def value(row: Row, field: str) -> Any:
  """Returns the value of a field, which may be null.

  Args:
    row: the raw row.
    field: name of the field. The error lists those that the row has.
  """
  if field not in row:
    known = ", ".join(repr(name) for name in row) or "none"
    raise ValueError(f"field {field!r} is missing; there is {known}")
  return row[field]


def typed(row: Row, field: str, kind: type[_Kind]) -> _Kind:
  """Returns a bool, a list or an object (a row with fields of its own).

  Args:
    row: the raw row.
    field: name of the field.
    kind: bool, list or dict. Items of a list or an object are not checked.
  """
  content = value(row, field)
  if not isinstance(content, kind):
    raise ValueError(
      f"field {field!r} is {_name(content)}, not {_WANTED[kind]}"
    )
  return content


def text(row: Row, field: str) -> str:
  """Returns a text that is neither null nor empty.

  Args:
    row: the raw row.
    field: name of the field.
  """
  content = optional_text(row, field)
  if not content:
    raise ValueError(
      f"field {field!r} is {'null' if content is None else 'empty'}"
    )
  return content


def optional_text(row: Row, field: str) -> str | None:
  """Returns a text, which may be empty; None for null.

  Args:
    row: the raw row.
    field: name of the field.
  """
  content = value(row, field)
  return None if content is None else checked_text(content, f"field {field!r}")


def checked_text(content: Any, name: str) -> str:
  """Returns a value, stripped, if it is a text that UTF-8 can store.

  Args:
    content: the value.
    name: its name in the error message.

  Raises:
    ValueError: if it is not a text, or contains half a surrogate pair.
  """
  if not isinstance(content, str):
    raise ValueError(f"{name} is {_name(content)}, not text")
  try:
    content.encode()
  except UnicodeEncodeError:
    raise ValueError(f"{name} holds half a surrogate pair") from None
  return content.strip()


def number(row: Row, field: str) -> float:
  """Returns a finite number, an int or a float as in the JSON text.

  Args:
    row: the raw row.
    field: name of the field.
  """
  content = value(row, field)
  if isinstance(content, bool) or not isinstance(content, int | float):
    raise ValueError(f"field {field!r} is {_name(content)}, not a number")
  try:
    finite = math.isfinite(content)
  except OverflowError:  # An int that no float is near.
    raise ValueError(f"field {field!r} is beyond every float") from None
  if not finite:
    raise ValueError(f"field {field!r} is {content}, not a finite number")
  return content


def integer(row: Row, field: str) -> int:
  """Returns a whole number.

  Args:
    row: the raw row.
    field: name of the field.
  """
  content = number(row, field)
  if not isinstance(content, int):
    raise ValueError(f"field {field!r} is {content}, not a whole number")
  return content


def number_text(content: float) -> str:
  """Writes a number as an answer, whole numbers without a decimal point.

  >>> number_text(27.0), number_text(0.5), number_text(-3)
  ('27', '0.5', '-3')

  Args:
    content: a finite number.
  """
  return str(int(content)) if content == int(content) else repr(content)


def _name(content: Any) -> str:
  return _NAMES.get(type(content), type(content).__name__)
