"""Checks of a scored batch before the policy is updated on it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pure_jax.host.data.records import Problem
from pure_jax.host.distributed import global_batch
from pure_jax.runs.run import Run
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.training.score import ScoredBatch


def check_finite(
  run: Run, step: int, problems: Sequence[Problem], batch: ScoredBatch
) -> None:
  """Checks step rewards before they reach the policy.

  Args:
    run: the open run.
    step: number of the iteration.
    problems: B problems.
    batch: scored responses.

  Raises:
    FloatingPointError: if a step reward is not finite; the batch is saved.
  """
  rewards = global_batch.read_everywhere(batch.scores.step_rewards)
  bad = ~np.isfinite(rewards).all(axis=1)
  if bad.any():
    path = run.folder.dump_batch("rl", step, batch, batch_facts(problems))
    raise FloatingPointError(
      f"Iteration {step}: the PRM's step rewards of {bad.sum()} of "
      f"{bad.size} responses are not finite, first in row {bad.argmax()}. "
      f"The batch is in {path}. The policy was not updated; the last "
      "checkpoint is intact. Check the PRM's weights."
    )


def check_drift(run: Run, step: int, drift: jax.Array | None) -> None:
  """Checks the sampler's log-probs if the update uses them as the policy's.

  Args:
    run: the open run.
    step: number of the iteration.
    drift: [] their largest difference; None if it was not measured.

  Raises:
    ConfigError: if it is beyond `rl.old_logp.tolerance`.
  """
  rl = run.spec.settings.rl
  if rl.old_logp.source == "score" or drift is None:
    return
  if not float(drift) <= rl.old_logp.tolerance:
    raise ConfigError(
      f"Iteration {step}: the sampler's log-probs are up to {float(drift):.3g} "
      "nats off the policy's, and rl.old_logp.source='sampled' allows only "
      f"rl.old_logp.tolerance={rl.old_logp.tolerance}. The "
      "policy was not updated; the last checkpoint is intact. The same command "
      "continues from there with --config.rl.old_logp.source=score."
    )


def batch_facts(problems: Sequence[Problem]) -> dict[str, Any]:
  """Collects the facts that are saved with the arrays of a batch.

  Args:
    problems: B problems.

  Returns:
    Their texts.
  """
  return {"problems": [problem.problem for problem in problems]}
