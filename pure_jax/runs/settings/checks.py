"""Checks that all settings share; a ValueError says what a value must be."""

from collections.abc import Sequence
from typing import Any


class ConfigError(ValueError):
  """A config that cannot be run; the message says which field and why."""


def at_least(least: int, settings: Any, names: str) -> None:
  """Raises ValueError if a number is smaller; None is accepted.

  Args:
    least: smallest value.
    settings: a dataclass.
    names: names of its numbers, separated by spaces.
  """
  for name in names.split():
    value = getattr(settings, name)
    if value is not None and value < least:
      raise ValueError(f"{name} must be at least {least}, got {value}.")


def one_of(settings: Any, names: str, allowed: Sequence[str]) -> None:
  """Raises ValueError, with the choices, for any other text; None is accepted.

  Args:
    settings: a dataclass.
    names: names of its texts, or tuples of texts, separated by spaces.
    allowed: the choices.
  """
  for name in names.split():
    value = getattr(settings, name)
    for text in value if isinstance(value, tuple) else (value,):
      if text is not None and text not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {text!r}.")
