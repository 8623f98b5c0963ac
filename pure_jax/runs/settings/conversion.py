"""From a ConfigDict to frozen dataclasses: the only place that reads one.

A config file fills a `ml_collections.ConfigDict`; `settings_from_config` turns
it into `Settings` or another dataclass. An unknown, missing, mistyped or
impossible value raises `ConfigError` with a message. Dataclasses of settings
and of the library nest freely: each validates itself as it is made.
"""

import dataclasses
import difflib
import math
import types
import typing
from typing import Any, TypeVar

import numpy as np

from pure_jax.runs.settings.checks import ConfigError
from pure_jax.runs.settings.roll_backs import check_roll_backs
from pure_jax.runs.settings.run import Settings
from pure_jax.settings import SEEDS, Seed

_Kind = TypeVar("_Kind")

# Magnitudes that float32 holds in full precision. Most devices round smaller
# ones to 0; larger ones are infinite.
_LEAST, _MOST = (float(x) for x in (np.finfo("f4").tiny, np.finfo("f4").max))


def settings_from_config(config: Any, kind: type[_Kind] = Settings) -> _Kind:
  """Validates a whole config and freezes it.

  Args:
    config: a ConfigDict or dict with every field of `kind` that has no
      default.
    kind: the dataclass to make; a training run's by default.

  Raises:
    ConfigError: naming the field, what is wrong and what to do.
  """
  values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
  built = _build(kind, values, "config")
  _check_derived(values, built, "config")
  if isinstance(built, Settings):
    try:
      check_roll_backs(built)
    except ValueError as error:
      raise ConfigError(f"config: {error}") from error
  return built


def _build(kind: type, values: Any, path: str) -> Any:
  """One dataclass from a dict of the same fields."""
  if not isinstance(values, dict):
    raise ConfigError(f"{path} must be a group of fields, got {values!r}.")
  fields = {field.name: field for field in dataclasses.fields(kind)}
  for name in values:
    if name not in fields:
      close = difflib.get_close_matches(name, fields, 1)
      hint = f"; did you mean {close[0]!r}?" if close else "."
      raise ConfigError(f"{path}.{name} is not a field of this config{hint}")
  types_ = typing.get_type_hints(kind)
  made = {}
  for name, field in fields.items():
    if name not in values:
      if field.default is dataclasses.MISSING:
        raise ConfigError(f"{path}.{name} is missing.")
      continue
    made[name] = _convert(types_[name], values[name], f"{path}.{name}")
  try:
    built = kind(**made)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f"{path}: {error}") from error
  for name, value in made.items():
    if isinstance(value, float) and value and not _LEAST <= abs(value) <= _MOST:
      raise ConfigError(
        f"{path}.{name} must be 0 or have a magnitude of {_LEAST:.1e} to "
        f"{_MOST:.1e}, as float32 has, got {value}."
      )
  return built


def _check_derived(values: dict, built: Any, path: str) -> None:
  """Raises if settings replaced a given value by one that they derive."""
  for name, value in values.items():
    result = getattr(built, name)
    if dataclasses.is_dataclass(result):
      _check_derived(value, result, f"{path}.{name}")
    elif isinstance(value, int | float) and value != result:
      raise ConfigError(
        f"{path}.{name} follows from other fields, which make it {result}: "
        f"leave it out in place of {value}."
      )


def _convert(kind: Any, value: Any, path: str) -> Any:
  """Converts a value to its declared type; only ints are accepted as floats."""
  if isinstance(kind, types.UnionType):
    if value is None and type(None) in typing.get_args(kind):
      return None
    kind = next(k for k in typing.get_args(kind) if k is not type(None))
  if dataclasses.is_dataclass(kind):
    return _build(kind, value, path)
  if typing.get_origin(kind) is dict:
    if not isinstance(value, dict):
      raise ConfigError(f"{path} must be a group, got {value!r}.")
    item = typing.get_args(kind)[1]
    return {k: _convert(item, v, f"{path}.{k}") for k, v in value.items()}
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, tuple | list):
      raise ConfigError(f"{path} must be a tuple, got {value!r}.")
    item = typing.get_args(kind)[0]
    return tuple(_convert(item, v, f"{path}[{i}]") for i, v in enumerate(value))
  is_seed = kind is Seed
  kind = int if is_seed else kind
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value) if abs(value) <= _MOST else math.inf
  elif isinstance(value, int):
    _check_32_bits(value, path, is_seed)
  if isinstance(value, float) and not math.isfinite(value):
    raise ConfigError(f"{path} must be a finite number, got {value}.")
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ConfigError(
      f"{path} must be {kind.__name__}, got {value!r:.80} "
      f"({type(value).__name__})."
    )
  return value


def _check_32_bits(value: int, path: str, is_seed: bool) -> None:
  """Raises for a whole number that arrays cannot hold."""
  number = str(value) if value.bit_length() < 100 else "a longer number"
  if is_seed and not 0 <= value < SEEDS:
    raise ConfigError(
      f"{path} must be at least 0 and below 2**32, got {number}: jax keeps the "
      "lower 32 bits of a seed, so it would repeat the run of another seed."
    )
  if not is_seed and not -(2**31) <= value < 2**31:
    raise ConfigError(
      f"{path} must fit into 32 bits, from -2**31 to 2**31 - 1, as the counts "
      f"and indices of arrays do, got {number}."
    )
