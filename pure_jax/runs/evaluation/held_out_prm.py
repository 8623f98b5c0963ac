"""The evaluation of a PRM in its training run, on held-out solutions."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pure_jax.host.data.records import (
  LabelledSolution,
  label_arrays,
  problem_key,
)
from pure_jax.host.distributed.global_batch import read_everywhere
from pure_jax.host.evaluation import prm_metrics
from pure_jax.host.grading import verify
from pure_jax.runs import trunk_states
from pure_jax.runs.batches import Batches
from pure_jax.runs.evaluation import labelled_solutions
from pure_jax.runs.spec import RunSpec
from pure_jax.training import supervised


def step_rewards(
  spec: RunSpec,
  batches: Batches,
  folder: pathlib.Path,
  params: Any,
  encoded: labelled_solutions.EncodedSolutions,
  limits: labelled_solutions.SolutionLimits,
) -> np.ndarray:
  """Scores solutions, through `prm.trunk_states` if the run keeps states.

  Every process must call it.

  Args:
    spec: the run's specification.
    batches: distributes batches over the devices.
    folder: the folder in which `prm.trunk_states` is, if that is relative.
    params: PRM weights.
    encoded: n solutions, at least one.
    limits: the limits they were encoded with.

  Returns:
    [n, S] float32, -1..1; meaningful where a step exists.
  """
  settings, layout = spec.settings.prm, spec.layouts.training
  pad_id = int(spec.table.pad_id)
  rewards = np.zeros((len(encoded.texts), limits.max_steps), np.float32)
  if settings.trunk_states is None:
    score = supervised.make_prm_evaluation(
      spec.prm_model, spec.prm_score_config, spec.table, layout
    )
    for chosen, batch in labelled_solutions.batches_by_length(
      encoded, limits, settings.batch_size, settings.length_multiple, pad_id
    ):
      scored = read_everywhere(score(params, batches.put(batch)))
      rewards[chosen] = scored[: len(chosen)]
    return rewards
  head, trunk = supervised.split_prm_params(params, head_only=True)
  responses = labelled_solutions.pad_solutions(
    encoded.texts, limits, pad_id, settings.length_multiple
  )
  states = trunk_states.load_or_compute(spec, batches, folder, trunk, responses)
  score = supervised.make_head_evaluation(spec.prm_model, layout)
  for first in range(0, len(rewards), settings.batch_size):
    chosen = np.arange(first, first + settings.batch_size) % len(rewards)
    scored = score(head, batches.put(states.take(chosen)))
    rewards[chosen] = read_everywhere(scored)
  return rewards


def metrics(
  rows: Sequence[LabelledSolution], rewards: np.ndarray
) -> dict[str, float | None]:
  """Computes the metrics of steps, and of choosing among solutions.

  Args:
    rows: n solutions.
    rewards: [n, S] float32, from `step_rewards`.

  Returns:
    By name; a metric is None if no step counts, or a reward is not finite.
  """
  labels, label_mask = label_arrays(
    [row.labels for row in rows], rewards.shape[1]
  )
  lengths = np.asarray([len(row.steps) for row in rows])
  exists = np.arange(rewards.shape[1]) < lengths[:, None]
  numbers: dict[str, float | None] = dict.fromkeys(prm_metrics.STEP_METRICS)
  chosen = {}
  if np.isfinite(rewards[exists]).all():
    numbers |= prm_metrics.step_metrics(rewards, labels == 1, label_mask)
    chosen = prm_metrics.best_of_n_metrics(
      [problem_key(row.problem) for row in rows],
      [row.final_correct for row in rows],
      [verify.last_number(row.steps[-1]) for row in rows],
      rewards,
      exists,
    )
  for name, metric in chosen.items():
    numbers[name] = float(metric.mean())
    numbers["problems"] = float(len(metric))
  return numbers
