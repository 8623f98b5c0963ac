"""Checks that settings share; a ValueError says what a value must be."""

from typing import Any

from pure_jax.host.data.formats.named import find_format

# Mapping of fields, for the formats in `MAPPED`: field of a record -> field of
# the file.
Fields = dict[str, str] | None


def at_least_one(settings: Any, names: str) -> None:
  """Raises ValueError unless every count is positive.

  Args:
    settings: a dataclass.
    names: of its counts, separated by spaces.
  """
  for name in names.split():
    if getattr(settings, name) < 1:
      raise ValueError(
        f"{name} must be at least 1, got {getattr(settings, name)}."
      )


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
  """Raises ValueError, with the choices, unless value is one of them.

  Args:
    name: of the field.
    value: its value.
    allowed: the choices.
  """
  if value not in allowed:
    raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")


def check_format(
  prefix: str, name: str, fields: Fields, allowed: tuple[str, ...]
) -> None:
  """Raises ValueError unless a file of this format can be read.

  Args:
    prefix: of the names of the two fields, such as "train_".
    name: of the format.
    fields: its mapping of fields, None for formats without one.
    allowed: names of formats.
  """
  one_of(f"{prefix}format", name, allowed)
  try:
    find_format(name, fields)
  except ValueError as error:
    raise ValueError(f"{prefix}fields: {error}") from error
