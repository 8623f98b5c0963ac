"""The PRM of a run whose RL updates it on rollouts."""

import dataclasses
from typing import Any

import jax
import numpy as np

from pure_jax.host.distributed import global_batch
from pure_jax.models import prm
from pure_jax.runs.rl.weights import (
  FrozenWeights,
  RLState,
  online_prm_optimizer,
)
from pure_jax.runs.spec import RunSpec
from pure_jax.training import weight_copies
from pure_jax.training.online_prm import make_prm_update
from pure_jax.training.score import PRMTexts, StepScores
from pure_jax.training.train import Metrics
from pure_jax.types import Rollout


class OnlinePRM:
  """Updates the PRM of a run, and copies it into the layout for scoring."""

  def __init__(self, spec: RunSpec):
    """Makes the functions; each is compiled when it is first called.

    Args:
      spec: the run's specification, with `rl.online_prm.every`.
    """
    self._settings = spec.settings.rl.online_prm
    self._update = make_prm_update(spec.step, online_prm_optimizer(spec))
    self._copy = weight_copies.make_compute_copy(
      prm.declare_prm(spec.prm_model),
      spec.prm_model,
      spec.layouts.training,
      spec.layouts.prm,
    )

  def is_due(self, step: int) -> bool:
    """Whether the PRM is updated in an iteration, counted from 1."""
    return step % self._settings.every == 0

  def copy(self, state: RLState) -> Any:
    """The PRM's weights for scoring, valid until the next update."""
    return self._copy(state.prm.params)

  def update(
    self,
    state: RLState,
    rollout: Rollout,
    prm_texts: PRMTexts,
    labels: tuple[jax.Array, jax.Array],
  ) -> tuple[RLState, Metrics]:
    """Updates the PRM on a rollout that it has scored.

    Args:
      state: the states; that of the PRM is donated.
      rollout: B responses.
      prm_texts: what the PRM has read of them.
      labels: of their steps, as `prm_labels.label_rollout` makes them.

    Returns:
      (the next states, metrics of `training.online_prm.make_prm_update`).
    """
    prm_state, metrics = self._update(state.prm, rollout, prm_texts, *labels)
    return state.replace(prm=prm_state), metrics


def refresh(
  online: OnlinePRM | None, step: int, state: RLState, frozen: FrozenWeights
) -> FrozenWeights:
  """Returns the weights for the iterations after `step`.

  They have a new copy of the PRM if it was updated in this iteration.

  Args:
    online: updates the PRM; None if RL does not.
    step: number of an iteration; 0 before the first one and after a restart.
    state: the states after this iteration.
    frozen: the weights that it read.
  """
  if online is None or not online.is_due(step):
    return frozen
  return dataclasses.replace(frozen, prm=online.copy(state))


def drift(scores: StepScores, before: StepScores) -> float | None:
  """The mean change of a step reward, in [0, 2]; None without a step.

  Args:
    scores: of the PRM as it is.
    before: scores of the same responses by the PRM that RL started from.
  """
  arrays = (scores.step_rewards, before.step_rewards, scores.steps.mask)
  after, before, exists = global_batch.read_everywhere(arrays)
  changes = np.abs(after.astype(float) - before)[exists]
  return float(changes.mean()) if changes.size else None
