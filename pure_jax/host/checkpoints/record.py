"""What a checkpoint says about itself, as JSON beside its arrays."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pure_jax.host.checkpoints.leaves import describe, is_key


@dataclasses.dataclass(frozen=True)
class Standing:
  """What decides whether a checkpoint stays.

  Attributes:
    interim: whether it was made out of turn.
    metrics: numbers by name, those that are finite.
  """

  interim: bool = False
  metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


def make_standing(
  interim: bool, metrics: Mapping[str, float] | None
) -> Standing:
  """The standing of a checkpoint that is to be written.

  Args:
    interim: whether it is out of turn.
    metrics: numbers by name, numpy's and jax's too, or None.
  """
  numbers = {name: float(value) for name, value in (metrics or {}).items()}
  finite = {name: x for name, x in numbers.items() if math.isfinite(x)}
  return Standing(interim, finite)


def read_standing(folder: str | os.PathLike) -> Standing:
  """The standing of a checkpoint on disk.

  Args:
    folder: of the checkpoint.

  Returns:
    Its standing; that of a regular one without metrics where its record
    cannot be read, which a restore will find out and name.
  """
  path = pathlib.Path(folder) / "record" / "metadata"
  try:
    record = json.loads(path.read_text(encoding="utf-8"))
    return Standing(**record["standing"])
  except (OSError, ValueError, KeyError, TypeError):
    return Standing()


def make_record(
  leaves: Mapping[str, Any],
  extra: Mapping[str, Any] | None,
  config: Mapping[str, Any] | None,
  versions: Mapping[str, Any] | None,
  standing: Standing,
) -> dict[str, Any]:
  """What is stored with a state.

  Args:
    leaves: the state's arrays by name.
    extra: JSON-like dict, such as the data cursor.
    config: the run's, JSON-like.
    versions: of what ran, JSON-like.
    standing: of the checkpoint.

  Returns:
    The record, strictly JSON.

  Raises:
    TypeError: for what JSON does not know.
    ValueError: for NaN or infinity.
  """
  record = {
    "leaves": {name: describe(leaf) for name, leaf in leaves.items()},
    "key_impl": {
      name: str(jax.random.key_impl(leaf))
      for name, leaf in leaves.items()
      if is_key(leaf)
    },
    "config": config,
    "versions": versions,
    "extra": dict(extra or {}),
    "standing": dataclasses.asdict(standing),
  }
  return json.loads(json.dumps(record, allow_nan=False))


def misfit(
  record: Mapping[str, Any],
  wanted: Mapping[str, Any],
  config: Mapping[str, Any] | None,
  may_differ: Sequence[str],
) -> str | None:
  """Why a checkpoint is not the one that is wanted.

  Args:
    record: the checkpoint's.
    wanted: arrays or their shapes and dtypes, by name.
    config: the present one; None compares none.
    may_differ: dotted names of it not compared.

  Returns:
    What differs, field by field; None where it fits.
  """
  if config is not None and record["config"] is not None:
    differing = config_differences(record["config"], config, may_differ)
    if differing:
      return "was made with another config:\n  " + "\n  ".join(differing)
  differing = config_differences(
    {"leaves": record["leaves"]},
    {"leaves": {name: describe(leaf) for name, leaf in wanted.items()}},
  )
  if differing:
    return "does not fit the state to restore:\n  " + "\n  ".join(differing)
  return None


def config_differences(
  stored: Mapping[str, Any],
  current: Mapping[str, Any],
  may_differ: Sequence[str] = (),
) -> list[str]:
  """Fields in which two nested configs differ, as readable lines.

  Args:
    stored: the earlier config, JSON-like.
    current: the present config, JSON-like; tuples equal lists.
    may_differ: dotted names to leave out; a group's name covers its fields.

  Returns:
    One line for each differing field, sorted: ``rl.credit: was 'sum', is now
    'min'``. Empty where the configs agree.

  >>> config_differences({"rl": {"k": 8}}, {"rl": {"k": 4}})
  ['rl.k: was 8, is now 4']
  """
  before, after = _flatten(stored), _flatten(current)
  lines = []
  for name in sorted({*before, *after}):
    free = any(name == n or name.startswith(f"{n}.") for n in may_differ)
    if free or before.get(name, _ABSENT) == after.get(name, _ABSENT):
      continue
    was = repr(before[name]) if name in before else "absent"
    now = repr(after[name]) if name in after else "absent"
    lines.append(f"{name}: was {was}, is now {now}")
  return lines


_ABSENT = object()


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
  """A nested mapping as one level of dotted names, values as JSON has them."""
  if not isinstance(config, Mapping) or (prefix and not config):
    return {prefix: json.loads(json.dumps(config))}
  flat = {}
  for name, value in config.items():
    flat |= _flatten(value, f"{prefix}.{name}" if prefix else str(name))
  return flat
