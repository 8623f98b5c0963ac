"""Memory: the least that a case needs, and the peak that it reached."""

import dataclasses
import os
import pathlib

import jax

from benchmarks.cases import Case, Suite
from benchmarks.models import Options
from benchmarks.timing import Arm
from pure_jax.models import policy
from pure_jax.models.params import count_params

_STATUS = pathlib.Path("/proc/self/status")
_CLEAR = pathlib.Path("/proc/self/clear_refs")


def available_bytes() -> int:
  """Reads the memory of the device; for a CPU, the memory of the machine.

  Returns:
    The number of bytes.
  """
  stats = jax.devices()[0].memory_stats() or {}
  physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return stats.get("bytes_limit", physical)


def least_bytes(case: Case, suite: Suite, options: Options) -> int:
  """Counts the weights, gradients and moments that exist at the same time.

  Args:
    case: names the model.
    suite: suite of the case.
    options: how the model runs.

  Returns:
    The number of bytes, without activations.
  """
  declared = policy.declare_policy(options.model(case.model))
  return count_params(declared) * suite.bytes_per_weight(options.itemsize)


def why_not(
  case: Case, suite: Suite, options: Options, available: int
) -> str | None:
  """Explains why a case does not fit.

  Args:
    case: names the model.
    suite: suite of the case.
    options: how the model runs.
    available: bytes of memory.

  Returns:
    A sentence, or None if the weights fit.
  """
  needed = least_bytes(case, suite, options)
  if needed <= available:
    return None
  return (
    f"not measured: weights, with gradients and moments where they are "
    f"trained, are {needed / 1e9:,.1f} GB, there are {available / 1e9:,.1f} GB"
  )


class Peak:
  """The peak memory of an arm's first call.

  Attributes:
    bytes: on a CPU, peak resident memory of this process during that call; on
      another device, its peak since the process started. None until the call,
      and if the system does not report it.
  """

  def __init__(self):
    self.bytes: int | None = None

  def record(self, arm: Arm) -> Arm:
    """Wraps an arm so that its first call sets `bytes`.

    Args:
      arm: the arm.

    Returns:
      An arm that does the same.
    """

    def seconds() -> float:
      if self.bytes is not None:
        return arm.seconds()
      known = _reset_peak()
      elapsed = arm.seconds()
      self.bytes = _peak_bytes() if known else None
      return elapsed

    return dataclasses.replace(arm, seconds=seconds)


def _reset_peak() -> bool:
  """Resets the peak where possible; returns whether it can be read later."""
  if jax.default_backend() != "cpu":
    return jax.devices()[0].memory_stats() is not None
  try:
    _CLEAR.write_text("5")  # Linux: sets the peak to the present size.
  except OSError:
    return False
  return True


def _peak_bytes() -> int | None:
  """Reads the peak since the reset, or since the start of the process."""
  if jax.default_backend() != "cpu":
    return jax.devices()[0].memory_stats().get("peak_bytes_in_use")
  for line in _STATUS.read_text(encoding="utf-8").splitlines():
    if line.startswith("VmHWM:"):
      return int(line.split()[1]) * 1024
  return None
