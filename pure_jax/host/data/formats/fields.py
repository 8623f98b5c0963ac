"""Checked reading of the fields of a raw row.

Each function raises a ValueError that names the field if the field is missing
or has another type. Texts are stripped of white space at their ends.
"""

import math
from typing import Any

from pure_jax.host.data.formats import Row


def value(row: Row, field: str) -> Any:
  """The value of a field, which may be null.

  Args:
    row: the raw row.
    field: name of the field.

  Returns:
    The value.

  Raises:
    ValueError: if the field is missing; the message lists the row's fields.
  """
  if field not in row:
    known = ", ".join(repr(name) for name in row) or "none"
    raise ValueError(f"field {field!r} is missing; there is {known}")
  return row[field]


def text(row: Row, field: str) -> str:
  """A text that is not empty.

  Args:
    row: the raw row.
    field: name of the field.

  Returns:
    The stripped text.

  Raises:
    ValueError: if the field is missing, null, empty or not a text.
  """
  content = optional_text(row, field)
  if content is None:
    raise ValueError(f"field {field!r} is null")
  if not content:
    raise ValueError(f"field {field!r} is empty")
  return content


def optional_text(row: Row, field: str) -> str | None:
  """A text or null.

  Args:
    row: the raw row.
    field: name of the field.

  Returns:
    The stripped text, which may be empty; None for null.

  Raises:
    ValueError: if the field is missing, or neither text nor null.
  """
  content = value(row, field)
  return None if content is None else checked_text(content, f"field {field!r}")


def checked_text(content: Any, name: str) -> str:
  """Checks that a value is a text that can be stored as UTF-8.

  Args:
    content: the value.
    name: name of the value in the error message.

  Returns:
    The stripped text.

  Raises:
    ValueError: if it is not a text, or contains half a surrogate pair.
  """
  if not isinstance(content, str):
    raise ValueError(f"{name} is {_kind(content)}, not text")
  try:
    content.encode()
  except UnicodeEncodeError:
    raise ValueError(f"{name} holds half a surrogate pair") from None
  return content.strip()


def number(row: Row, field: str) -> float:
  """A finite number.

  Args:
    row: the raw row.
    field: name of the field.

  Returns:
    The number, an int or a float as in the JSON text.

  Raises:
    ValueError: if the field is missing or not a finite number.
  """
  content = value(row, field)
  if isinstance(content, bool) or not isinstance(content, int | float):
    raise ValueError(f"field {field!r} is {_kind(content)}, not a number")
  try:
    finite = math.isfinite(content)
  except OverflowError:  # An int that no float is near.
    raise ValueError(f"field {field!r} is beyond every float") from None
  if not finite:
    raise ValueError(f"field {field!r} is {content}, not a finite number")
  return content


def integer(row: Row, field: str) -> int:
  """A whole number.

  Args:
    row: the raw row.
    field: name of the field.

  Returns:
    The number.

  Raises:
    ValueError: if the field is missing or not a whole number.
  """
  content = number(row, field)
  if not isinstance(content, int):
    raise ValueError(f"field {field!r} is {content}, not a whole number")
  return content


def flag(row: Row, field: str) -> bool:
  """True or false.

  Args:
    row: the raw row.
    field: name of the field.

  Returns:
    The bool.

  Raises:
    ValueError: if the field is missing or not a bool.
  """
  content = value(row, field)
  if not isinstance(content, bool):
    raise ValueError(f"field {field!r} is {_kind(content)}, not true or false")
  return content


def items(row: Row, field: str) -> list[Any]:
  """A list.

  Args:
    row: the raw row.
    field: name of the field.

  Returns:
    The list; its items are not checked.

  Raises:
    ValueError: if the field is missing or not a list.
  """
  content = value(row, field)
  if not isinstance(content, list):
    raise ValueError(f"field {field!r} is {_kind(content)}, not a list")
  return content


def mapping(row: Row, field: str) -> Row:
  """A nested object.

  Args:
    row: the raw row.
    field: name of the field.

  Returns:
    The object, a row with fields of its own.

  Raises:
    ValueError: if the field is missing or not an object.
  """
  content = value(row, field)
  if not isinstance(content, dict):
    raise ValueError(f"field {field!r} is {_kind(content)}, not an object")
  return content


def number_text(content: float) -> str:
  """Writes a number as an answer, whole numbers without a decimal point.

  >>> number_text(27.0), number_text(0.5), number_text(-3)
  ('27', '0.5', '-3')

  Args:
    content: a finite number.

  Returns:
    Its decimal text.
  """
  return str(int(content)) if content == int(content) else repr(content)


def _kind(content: Any) -> str:
  """The JSON type of a value, for error messages."""
  kinds = {bool: "a bool", int: "a number", float: "a number", str: "text"}
  kinds |= {list: "a list", dict: "an object", type(None): "null"}
  return kinds.get(type(content), type(content).__name__)
