"""Compares lower bounds of needed memory with the memory that is available.

A need counts arrays that certainly exist at one time, from sizes alone, in
Python's integers. So a run that could fit is never stopped. A run that passes
may still run out of memory, see `exhausted.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pure_jax.host.machine_memory import machine_bytes
from pure_jax.parallel.sharding import Layout
from pure_jax.runs.settings.checks import ConfigError

# Counts of tokens and indices of arrays are int32.
LARGEST_COUNT = 2**31 - 1
# More than any device or machine has; the limit if the memory is unknown.
MOST_BYTES = 2**50
_NAMED_FIELDS = 4  # Fields that a message says to lower, at most.


@dataclasses.dataclass(frozen=True)
class Need:
  """Bytes that certain arrays take at least.

  Attributes:
    what: the arrays, for messages.
    num_bytes: on one device, or on the host.
    fields: the settings that determine them, such as "rl.prompts". A message
      leaves out those that are 0 or None, as an unused group is.
    on_host: whether they are in the memory of the host.
  """

  what: str
  num_bytes: int
  fields: tuple[str, ...] = ()
  on_host: bool = False


def check_count(
  settings: Any, what: str, rows: int, columns: int, fields: Sequence[str]
) -> None:
  """Validates that the entries of an array can be counted.

  Args:
    settings: the settings that have the fields.
    what: the array, for the message.
    rows: its rows.
    columns: its columns, such as the tokens of a row.
    fields: the settings that determine the two, see `Need`.

  Raises:
    ConfigError: if there are too many.
  """
  if rows * columns <= LARGEST_COUNT:
    return
  largest, advice = _to_lower(settings, fields)
  raise ConfigError(
    f"{largest} is too large: {what} has {rows} rows of {columns} columns, "
    f"{rows * columns:.3g} entries, and they are counted in 32 bits, up to "
    f"{LARGEST_COUNT}. {advice}"
  )


def check_stage(
  settings: Any, stage: str, needs: Sequence[Need], layout: Layout
) -> None:
  """Validates that memory has room for what a stage needs at the same time.

  Args:
    settings: the settings that have the fields of the needs.
    stage: the stage, for the message.
    needs: what it needs at least.
    layout: the devices. CPU devices share the memory of the machine.

  Raises:
    ConfigError: if there is too little memory; it names the field behind the
      largest need.
  """
  local = list(layout.mesh.local_devices)
  on_devices = [need for need in needs if not need.on_host]
  on_host = [need for need in needs if need.on_host]
  if local[0].platform == "cpu":
    on_host += [
      dataclasses.replace(need, num_bytes=need.num_bytes * len(local))
      for need in on_devices
    ]
  else:
    limits = [_limit(device) for device in local]
    known = [limit for limit in limits if limit is not None]
    check_bytes(
      settings, stage, on_devices, min(known, default=None), "a device"
    )
  check_bytes(settings, stage, on_host, machine_bytes(), "this machine")


def check_bytes(
  settings: Any,
  stage: str,
  needs: Sequence[Need],
  limit: int | None,
  owner: str,
) -> None:
  """Validates that the needs of a stage do not exceed a limit.

  Args:
    settings: the settings that have the fields of the needs.
    stage: the stage, for the message.
    needs: what it needs at least, at the same time.
    limit: bytes; None if unknown.
    owner: the device or machine that has them, for the message.

  Raises:
    ConfigError: if they do; it names the field behind the largest need.
  """
  total = sum(need.num_bytes for need in needs)
  if total <= (MOST_BYTES if limit is None else limit):
    return
  largest = max(needs, key=lambda need: need.num_bytes)
  part = ""
  if stage != largest.what:
    part = f", the largest part for {largest.what}"
  has = f"{owner} has {_gib(MOST_BYTES if limit is None else limit)}"
  if limit is None:
    has = f"no machine has more than {_gib(MOST_BYTES)}"
  field, advice = _to_lower(settings, largest.fields)
  raise ConfigError(
    f"{field} needs more memory than there is: {stage} takes at least "
    f"{_gib(total)}{part}, and {has}. {advice}"
  )


def _limit(device) -> int | None:
  """The bytes of a device; None if its backend does not say."""
  return (device.memory_stats() or {}).get("bytes_limit") or None


def _to_lower(settings: Any, fields: Sequence[str]) -> tuple[str, str]:
  """The field with the largest number, and which fields to lower."""
  sizes = {}
  for field in fields:
    value = settings
    for name in field.split("."):
      value = None if value is None else getattr(value, name)
    if value:
      sizes[field] = value
  if not sizes:
    advice = "Take a smaller model, adapters (rl.lora.rank) or more devices."
    return "The model", advice
  names = sorted(sizes, key=lambda name: -sizes[name])[:_NAMED_FIELDS]
  *others, last = names
  advice = f"{', '.join(others)} or {last}" if others else last
  return f"{names[0]}={sizes[names[0]]}", f"Lower {advice}."


def _gib(num_bytes: int) -> str:
  """Bytes in GiB as text, in scientific notation from a million GiB on."""
  gib = num_bytes / 2**30
  return f"{gib:,.1f} GiB" if gib < 1e6 else f"{gib:.2e} GiB"
