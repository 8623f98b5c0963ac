"""Comparisons with a stated tolerance, as JSON."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def check(
  name: str, right: bool, measured: str, allowed: str, reason: str
) -> dict[str, Any]:
  """States that something holds or does not.

  Args:
    name: what is compared with what.
    right: whether it holds.
    measured: what was measured, in a few words.
    allowed: what may be measured.
    reason: why it must hold.

  Returns:
    A dict for the list "checks" of a piece.
  """
  return {
    "check": name,
    "right": bool(right),
    "measured": measured,
    "allowed": allowed,
    "reason": reason,
  }


def compare(
  name: str,
  value: ArrayLike,
  reference: ArrayLike,
  tolerance: float,
  reason: str,
) -> dict[str, Any]:
  """Compares two arrays by the largest difference.

  It is divided by the largest absolute value of the reference, so that values
  near 0 count as much as their neighbours. Another shape is wrong, and so is a
  value that is not finite.

  Args:
    name: what is compared with what.
    value: [...] float, the result to check.
    reference: [...] float, what it should be.
    tolerance: largest difference allowed, as a share.
    reason: why this much is allowed.

  Returns:
    A dict for the list "checks" of a piece.
  """
  value = np.asarray(value, np.float64)
  reference = np.asarray(reference, np.float64)
  difference = np.inf
  finite = np.isfinite(value).all() and np.isfinite(reference).all()
  if value.shape == reference.shape and finite:
    scale = np.abs(reference).max(initial=0.0) or 1.0
    difference = np.abs(value - reference).max(initial=0.0) / scale
  return {
    "check": name,
    "right": bool(difference <= tolerance),
    "measured": f"{difference:.1e}",
    "allowed": f"{tolerance:.0e}",
    "reason": reason,
    "difference": float(difference),
    "tolerance": tolerance,
  }
