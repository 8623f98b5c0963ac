"""The labels from which an online PRM learns."""

from collections.abc import Sequence

import jax
import numpy as np

from pure_jax.host.data.records import Problem
from pure_jax.host.distributed import global_batch
from pure_jax.runs.rl.answers import may_teach
from pure_jax.runs.rl.responses import GradedResponses, step_labels
from pure_jax.runs.run import Run
from pure_jax.training.online_prm import label_worst_steps
from pure_jax.training.score import ScoredBatch

_label_worst_steps = jax.jit(label_worst_steps)


def label_rollout(
  run: Run,
  problems: Sequence[Problem],
  graded: GradedResponses,
  batch: ScoredBatch,
) -> tuple[jax.Array, jax.Array]:
  """Labels the steps of a rollout, as `rl.online_prm.labels` says.

  Every process must call it.

  Args:
    run: the open run.
    problems: B problems.
    graded: texts and verdicts of B responses.
    batch: the responses and their scores.

  Returns:
    (labels [B, S] int32, 1 for good; their mask [B, S] bool).
  """
  rl = run.spec.settings.rl
  if rl.online_prm.labels == "steps":
    truncated = global_batch.read_everywhere(batch.rollout.truncated)
    labels = step_labels(run, problems, graded, np.asarray(truncated))
    return run.batches.put(labels)
  known = np.asarray([may_teach(problem, rl) for problem in problems])
  steps = batch.scores.steps
  # The reward of an empty step may not be the PRM's score.
  return _label_worst_steps(
    batch.scores.step_rewards,
    steps.mask & ~steps.empty,
    batch.correct,
    run.batches.put(known & graded.gradable),
  )
