"""The loop of a supervised stage: batches, metrics, checkpoints, resuming."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pure_jax.host.data import batches
from pure_jax.host.distributed import preemption
from pure_jax.host.logs.progress import Progress
from pure_jax.runs.run import Run
from pure_jax.runs.stage_checkpoints import StageCheckpoints
from pure_jax.training.train import TrainState


def run_steps(
  run: Run,
  stage: str,
  num_steps: int,
  log_every: int,
  state: TrainState,
  make_batch: Callable[[np.ndarray], Any],
  update: Callable[[TrainState, Any], tuple[TrainState, Any]],
  num_examples: int,
  batch_size: int,
  tokens_per_example: float,
) -> TrainState:
  """A supervised stage: shuffled batches, metrics, checkpoints, resuming.

  Args:
    run: the open run.
    stage: name of the stage and, before a "_", of its folder.
    num_steps: updates.
    log_every: updates between metric rows and checkpoints.
    state: the state at step 0.
    make_batch: indices [batch_size] -> arrays on the devices.
    update: (state, batch) -> (state, metrics); donates state.
    num_examples: how many examples indices can name.
    batch_size: examples of an update.
    tokens_per_example: mean over the data, for the speed that is reported.

  Returns:
    The state after the last update.

  Raises:
    FloatingPointError: if `rl.max_skipped_updates` updates in a row, or all
      of the stage, were not finite; state and batch are saved.
    Preempted: after SIGTERM, once the step under way is saved.
  """
  folder = run.folder.start / stage.split("_")[0] / f"checkpoints_{stage}"
  with StageCheckpoints(run, stage, folder, num_steps) as kept:
    state, first, cursor = kept.resume(state)
    run.folder.metrics.rewind(stage, first + 1)
    bar = Progress(stage, num_steps, first, enabled=run.shows_progress)
    with bar, preemption.graceful_shutdown() as stop:
      began, logged = time.perf_counter(), first
      for step in range(first + 1, num_steps + 1):
        indices, cursor = batches.next_batch(num_examples, batch_size, cursor)
        batch = make_batch(indices)
        state, found = update(state, batch)
        failing, stopping = kept.is_failing(found), stop.asked()
        bar.advance()
        logs = step % log_every == 0 or step == num_steps
        if logs:
          numbers = {k: float(v) for k, v in jax.device_get(found).items()}
          tokens = (step - logged) * batch_size * tokens_per_example
          numbers["tokens_per_second"] = tokens / (time.perf_counter() - began)
          run.folder.metrics.write(stage, step, numbers)
          bar.show({"loss": numbers["loss"]})
        elif not failing and not stopping:
          continue
        kept.save(step, state, cursor, regular=logs)
        if failing:
          kept.fail(step, found, batch, {"rows": indices.tolist()})
        if stopping or stop.asked():
          kept.stop(step)
        began, logged = time.perf_counter(), step
  return state
