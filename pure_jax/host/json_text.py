"""Reads JSON with every fault as a ValueError; writes strict JSON.

Files may be damaged or untrusted. `json.loads` raises a RecursionError for
deeply nested brackets and reads NaN, which strict JSON does not have.
`json.dumps` writes NaN, or raises for it after hours of work.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

MAX_DEPTH = 100
_DECODER = json.JSONDecoder()
_TOO_DEEP = f"its arrays and objects are nested more than {MAX_DEPTH} deep"


def parse(text: str | bytes, *, finite: bool = False) -> Any:
  """Reads a text of JSON, as `json.loads` does.

  Args:
    text: the text; bytes are UTF-8.
    finite: whether NaN, Infinity and numbers beyond float64 are faults.

  Returns:
    Dicts, lists, texts, numbers, bools and None.

  Raises:
    ValueError: if it is not JSON, or if arrays and objects are nested more than
      `MAX_DEPTH` deep, so that a recursive function could not follow.

  >>> parse('{"step": 3}')
  {'step': 3}
  """
  if isinstance(text, bytes):
    text = text.decode()
  hooks = {}
  if finite:
    hooks = {"parse_constant": _refuse, "parse_float": _finite_float}
  try:
    value = json.loads(text, **hooks)
  except RecursionError:
    raise ValueError(_TOO_DEEP) from None
  if text.count("[") + text.count("{") > MAX_DEPTH:
    _check_depth(value)
  return value


def parse_start(text: str, start: int) -> tuple[Any, int]:
  """Reads the value at an index of a text that goes on after it.

  Args:
    text: the text.
    start: index of the value's first character.

  Returns:
    (the value, the index after it).

  Raises:
    ValueError: as `parse`.

  >>> parse_start('[1],[2]', 4)
  ([2], 7)
  """
  try:
    value, end = _DECODER.raw_decode(text, start)
  except RecursionError:
    raise ValueError(_TOO_DEEP) from None
  if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH:
    _check_depth(value)
  return value, end


def dump(data: Any, indent: int | None = None) -> str:
  """Writes strict JSON, NaN and infinity as null.

  Args:
    data: as `to_json` takes it.
    indent: spaces of a level; None writes one line.

  Raises:
    TypeError: for a value that JSON does not know.

  >>> dump({"auc": float("nan")})
  '{"auc": null}'
  """
  return json.dumps(to_json(data), indent=indent, allow_nan=False)


def to_json(value: Any) -> Any:
  """Returns a value as JSON has it, NaN and infinity as null.

  Args:
    value: text, a real number of any array library, None, or mappings,
      sequences and arrays of them.

  Raises:
    TypeError: for any other value.
  """
  if value is None or isinstance(value, str | bool | int):
    return value
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {name: to_json(item) for name, item in value.items()}
  if isinstance(value, bytes):
    raise TypeError(f"JSON has no bytes, got {value!r}.")
  if isinstance(value, Sequence):
    return [to_json(item) for item in value]
  array = np.asarray(value)
  if array.ndim:
    return [to_json(item) for item in array]
  scalar = array.item()
  if isinstance(scalar, bool | int | str):
    return scalar
  if array.dtype.kind in "cO":
    raise TypeError(f"JSON has no {type(value).__name__}, got {value!r}.")
  return to_json(float(scalar))


def _refuse(name: str) -> NoReturn:
  """Raises for a number that strict JSON does not know."""
  raise ValueError(f"{name} is not a number of JSON")


def _finite_float(digits: str) -> float:
  """Returns a number, which must not be too large for float64."""
  number = float(digits)
  if not math.isfinite(number):
    raise ValueError(f"{digits} is beyond every float64")
  return number


def _check_depth(value: Any) -> None:
  """Raises a ValueError for a value that is nested too deeply."""
  level = [value]
  for _ in range(MAX_DEPTH + 1):
    level = [item for item in level if isinstance(item, dict | list)]
    if not level:
      return
    level = [
      item
      for container in level
      for item in (
        container.values() if isinstance(container, dict) else container
      )
    ]
  raise ValueError(_TOO_DEEP)
