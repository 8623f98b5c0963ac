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

  Raises:
    FloatingPointError: if `rl.max_skipped_updates` updates in a row, or all
      of the stage, were not finite; the last checkpoint stays as it is.
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
        skipped = int(numbers["skipped_in_a_row"])
        if skipped >= min(space.settings.rl.max_skipped_updates, num_steps):
          raise FloatingPointError(
            f"{stage}, step {step + 1}: {skipped} updates in a row had a loss "
            "or gradient that was not finite; all were skipped, and the last "
            "checkpoint is intact. Try a lower learning rate in another "
            "workdir; if it happens from the first step on, look for weights "
            "that are not finite in what the stage starts from."
          )
        checkpoints.save(
          step + 1, state, {"cursor": dataclasses.asdict(cursor)}
        )
        began = time.perf_counter()
  return state
