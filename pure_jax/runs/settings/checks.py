"""Checks that all settings share; a ValueError says what a value must be."""

from typing import Any


def at_least_one(settings: Any, names: str) -> None:
  """Raises ValueError unless every count is positive.

  Args:
    settings: a dataclass.
    names: names of its counts, separated by spaces.
  """
  for name in names.split():
    if getattr(settings, name) < 1:
      raise ValueError(
        f"{name} must be at least 1, got {getattr(settings, name)}."
      )


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
  """Raises ValueError, with the choices, unless value is one of them.

  Args:
    name: name of the field.
    value: its value.
    allowed: the choices.
  """
  if value not in allowed:
    raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")
