"""Memory: what a case holds at least, and what this process held at most."""

import dataclasses
import os
import pathlib

import jax

from benchmarks.cases import Case
from benchmarks.programs import Options
from benchmarks.timing import Arm
from pure_jax.models import policy
from pure_jax.models.params import count_params

# A weight that is trained, its gradient and two moments, in float32.
_TRAINED = 16
_STORED = 4

_STATUS = pathlib.Path("/proc/self/status")
_CLEAR = pathlib.Path("/proc/self/clear_refs")


def available_bytes() -> int:
  """Of the device, or of the machine where that is what a device has.

  Returns:
    The number.
  """
  found = jax.devices()[0].memory_stats() or {}
  physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return found.get("bytes_limit", physical)


def least_bytes(case: Case, options: Options) -> int:
  """Weights, gradients and moments that are there at the same time.

  Args:
    case: suite and model.
    options: how the model runs.

  Returns:
    The number: what goes through the model is not counted.
  """
  count = count_params(policy.declare_policy(options.model(case.model)))
  # In float32 a copy for products is the weights themselves.
  copies = 1 if options.itemsize != _STORED else 0
  frozen = 2 * options.itemsize
  of_weight = {
    "rollout": options.itemsize,
    "score": options.itemsize + frozen,
    "update": _TRAINED,
    "credit": _TRAINED,
    "prm": _TRAINED,
    # As stored, as products read them, and in int8.
    "precision": _STORED + options.itemsize + 1,
    "iteration": _TRAINED + frozen + copies * options.itemsize,
  }
  return count * of_weight.get(case.suite, 0)


def why_not(case: Case, options: Options, available: int) -> str | None:
  """Why a case cannot be measured here.

  Args:
    case: suite and model.
    options: how the model runs.
    available: bytes.

  Returns:
    A sentence, None where it may fit.
  """
  needed = least_bytes(case, options)
  if needed <= available:
    return None
  return (
    f"not measured: weights, with gradients and moments where they are "
    f"trained, are {needed / 1e9:,.1f} GB, there are {available / 1e9:,.1f} GB"
  )


class Peak:
  """Most memory that this process had during a call.

  Attributes:
    bytes: on the host of a CPU, whose memory is the device's, during that
      call; on another device since the process started. None where the system
      does not tell.
  """

  def __init__(self):
    self.bytes: int | None = None

  def noting(self, arm: Arm) -> Arm:
    """An arm whose first call is looked at.

    Args:
      arm: what is repeated.

    Returns:
      The same arm.
    """

    def seconds() -> float:
      if self.bytes is not None:
        return arm.seconds()
      known = _reset()
      taken = arm.seconds()
      self.bytes = _peak() if known else None
      return taken

    return dataclasses.replace(arm, seconds=seconds)


def _reset() -> bool:
  """Begins to look for a peak; says whether one will be known."""
  if jax.default_backend() != "cpu":
    return jax.devices()[0].memory_stats() is not None
  try:
    _CLEAR.write_text("5")  # Linux: the peak of resident memory is the present.
  except OSError:
    return False
  return True


def _peak() -> int | None:
  """Bytes since the reset, or since the start on what has none."""
  if jax.default_backend() != "cpu":
    return jax.devices()[0].memory_stats().get("peak_bytes_in_use")
  for line in _STATUS.read_text(encoding="utf-8").splitlines():
    if line.startswith("VmHWM:"):
      return int(line.split()[1]) * 1024
  return None
