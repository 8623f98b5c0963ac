"""The loop of a supervised stage: batches, metrics, checkpoints, resuming."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import workspace

from pure_jax.host.checkpoint import Checkpoints
from pure_jax.host.data import batches
from pure_jax.host.progress import Progress
from pure_jax.training.train import TrainState


def run_steps(
  space: workspace.Workspace,
  stage: str,
  num_steps: int,
  log_every: int,
  state: TrainState,
  update: Callable[[TrainState, np.ndarray], tuple[TrainState, Any]],
  num_examples: int,
  batch_size: int,
  tokens_per_example: float,
) -> TrainState:
  """A supervised stage: shuffled batches, metrics, checkpoints, resuming.

  Args:
    space: the run.
    stage: name of the stage and, before a "_", of its folder.
    num_steps: updates.
    log_every: updates between metric rows and checkpoints.
    state: the state at step 0.
    update: (state, indices [batch_size]) -> (state, metrics); donates state.
    num_examples: how many examples indices can name.
    batch_size: examples of an update.
    tokens_per_example: mean over the data, for the speed that is reported.

  Returns:
    The state after the last update.
  """
  cursor, first = batches.Cursor(space.settings.seed), 0
  folder = space.start / stage.split("_")[0] / f"checkpoints_{stage}"
  with Checkpoints(folder, keep_latest=1) as checkpoints:
    restored = checkpoints.restore_latest(state)
    if restored is not None:
      state, first = restored.state, restored.step
      cursor = batches.Cursor(**restored.extra["cursor"])
    space.metrics.rewind(stage, first + 1)
    with Progress(
      stage, num_steps, first, enabled=space.settings.progress
    ) as bar:
      began = time.perf_counter()
      for step in range(first, num_steps):
        indices, cursor = batches.next_batch(num_examples, batch_size, cursor)
        state, found = update(state, indices)
        bar.advance()
        if (step + 1) % log_every and step + 1 < num_steps:
          continue
        numbers = {k: float(v) for k, v in jax.device_get(found).items()}
        seconds = time.perf_counter() - began
        done = (step + 1) % log_every or log_every
        tokens = done * batch_size * tokens_per_example
        numbers["tokens_per_second"] = tokens / seconds
        space.metrics.write(stage, step + 1, numbers)
        bar.show({"loss": numbers["loss"]})
        checkpoints.save(
          step + 1, state, {"cursor": dataclasses.asdict(cursor)}
        )
        began = time.perf_counter()
  return state
