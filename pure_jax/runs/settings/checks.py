"""Checks that settings share: ValueError says what a value must be."""

from typing import Any

from pure_jax.host.data.formats.named import find_format

# Of a format in `MAPPED`: field of a record -> field of the file.
Fields = dict[str, str] | None


def at_least_one(settings: Any, names: str) -> None:
  """Raises ValueError unless each of the named counts is positive."""
  for name in names.split():
    if getattr(settings, name) < 1:
      raise ValueError(
        f"{name} must be at least 1, got {getattr(settings, name)}."
      )


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
  """Raises ValueError with the choices unless value is one of them."""
  if value not in allowed:
    raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")


def check_format(
  prefix: str, name: str, fields: Fields, allowed: tuple[str, ...]
) -> None:
  """Raises ValueError unless a format and its mapping of fields can be used."""
  one_of(f"{prefix}format", name, allowed)
  try:
    find_format(name, fields)
  except ValueError as error:
    raise ValueError(f"{prefix}fields: {error}") from error
