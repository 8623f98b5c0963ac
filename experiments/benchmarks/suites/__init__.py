"""The suites: each times one stage of training.

A suite calls the functions that a run calls, those of `pure_jax.training`, on
weights of the case's shape that are random or read from a folder.
"""

from benchmarks.cases import Suite
from benchmarks.suites.iteration import iteration_arms
from benchmarks.suites.rollout import rollout_arms
from benchmarks.suites.training import (
  packing_arms,
  prm_arms,
  score_arms,
  update_arms,
)

# Bytes of a trained weight, its gradient and two moments, in float32.
_TRAINED = 16
_STATE = 12  # Without the gradient.


def _iteration_bytes(itemsize: int) -> int:
  """The trained policy, its copy for rollouts, a reference and a PRM."""
  # In float32 the weights themselves serve as the copy.
  copy = 0 if itemsize == 4 else itemsize
  return _TRAINED + copy + 2 * itemsize


# In the order of "all".
SUITES = {
  suite.name: suite
  for suite in (
    Suite(
      "rollout",
      rollout_arms,
      lambda itemsize: itemsize,
      stops=True,
      all_samples=True,
    ),
    Suite("score", score_arms, lambda itemsize: 3 * itemsize),
    Suite("update", update_arms, lambda itemsize: _TRAINED, compares=True),
    # Each of three arms keeps a state.
    Suite(
      "packing",
      packing_arms,
      lambda itemsize: _TRAINED + 2 * _STATE,
      compares=True,
    ),
    # A PRM is trained on the whole batch at once, so the backward pass keeps
    # the activations of all rows.
    Suite("prm", prm_arms, lambda itemsize: _TRAINED, most_rows=8),
    Suite(
      "iteration", iteration_arms, _iteration_bytes, stops=True, compares=True
    ),
  )
}
