"""Reads JSON that others wrote: whatever is wrong with it is a ValueError."""

import json
from typing import Any

MAX_DEPTH = 100


def parse(text: str | bytes) -> Any:
  """Reads a text of JSON, as `json.loads` does.

  Args:
    text: the text; bytes are UTF-8.

  Returns:
    Dicts, lists, texts, numbers, bools and None. NaN and Infinity, which strict
    JSON does not know, are floats.

  Raises:
    ValueError: if it is not JSON, if arrays and objects are nested more than
      `MAX_DEPTH` deep, or if a text has half of a surrogate pair, which no file
      can hold.

  >>> parse('{"step": 3}')
  {'step': 3}
  """
  try:
    value = json.loads(text if isinstance(text, str) else text.decode())
  except RecursionError:
    raise ValueError(_TOO_DEEP) from None
  brackets = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
  if sum(map(text.count, brackets)) > MAX_DEPTH:
    _check_depth(value)
  escape = b"\\u" if isinstance(text, bytes) else "\\u"
  if escape in text:
    _check_texts(value)
  return value


_TOO_DEEP = f"its arrays and objects are nested more than {MAX_DEPTH} deep"


def _check_depth(value: Any) -> None:
  """Raises a ValueError for what a recursive function could not follow."""
  level = [value]
  for _ in range(MAX_DEPTH + 1):
    containers = [item for item in level if isinstance(item, dict | list)]
    level = [
      item
      for container in containers
      for item in (
        container.values() if isinstance(container, dict) else container
      )
    ]
    if not containers:
      return
  raise ValueError(_TOO_DEEP)


def _check_texts(value: Any) -> None:
  """Raises a ValueError for a text that UTF-8 cannot hold."""
  try:
    json.dumps(value, ensure_ascii=False).encode()
  except UnicodeEncodeError as error:
    half = error.object[error.start]
    raise ValueError(f"a text has half of a surrogate pair, {half!r}") from None
