"""Tolerances of a small training step, each with its reason."""

from collections.abc import Mapping

from accelerator.small_step import PRM_MODEL

# Largest difference by dtype and quantity, as a share of the largest value, and
# why.
_SUMS = "sums of float32 in another order, through {n} layers"
_ROUNDED = "factors have 8 bits (2^-9 = 2e-3 each), through {n} layers"
_STORED = "weights up to 4 in float32, 2e-7 of them, by the rate 1e-3"
TOLERANCES: Mapping[str, Mapping[str, tuple[float, str]]] = {
  "float32": {
    "log-probs": (1e-5, _SUMS),
    "rewards": (1e-5, _SUMS),
    "loss": (1e-5, "a mean of log-probs"),
    "gradient": (2e-5, _SUMS + " and back"),
    "update": (1e-3, _STORED),
  },
  "bfloat16": {
    "log-probs": (1e-2, _ROUNDED),
    "rewards": (5e-2, _ROUNDED),
    "loss": (5e-2, "a mean of log-probs"),
    "gradient": (5e-2, _ROUNDED + " and back"),
    # Moments and weights are float32 here too.
    "update": (1e-3, _STORED),
  },
}


def tolerance(dtype: str, quantity: str) -> tuple[float, str]:
  """The largest difference allowed and its reason."""
  allowed, reason = TOLERANCES[dtype][quantity]
  return allowed, reason.format(n=PRM_MODEL.num_layers)
