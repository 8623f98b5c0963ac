"""Loops of updates: checkpoints, early ends, the loop of supervised stages."""

import dataclasses
import enum
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

import jax
import numpy as np

from pure_jax.host.checkpoints import record as records
from pure_jax.host.checkpoints.checkpointer import Checkpoints
from pure_jax.host.data.batches import Cursor, next_batch
from pure_jax.host.distributed import preemption
from pure_jax.host.logs.console import Progress
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.folder import MAY_DIFFER_FROM_START
from pure_jax.runs.run import Run
from pure_jax.training.train import Metrics, TrainState


class StageCheckpoints:
  """Saves and restores one stage. Leaving the context waits for saves.

  A checkpoint holds the train state (parameters, optimizer, counters, the KL
  coefficient if it is adapted), that of a critic too, the data cursor, the
  config, versions, and the metrics that rank it. It holds no generator state:
  random keys follow from (seed, stream, step).
  """

  def __init__(
    self,
    run: Run,
    folder: pathlib.Path,
    *,
    keep_latest: int = 2,
    best_metric: str | None = None,
    may_differ: Sequence[str] = MAY_DIFFER_FROM_START,
  ):
    """Opens or creates the folder.

    Args:
      run: the open run.
      folder: where the checkpoints are.
      keep_latest: how many of the newest checkpoints to keep; 2, so that a
        damaged one has a predecessor.
      best_metric: the metric whose best checkpoint is kept as well.
      may_differ: config fields in which a resumed run may differ.
    """
    record = workdirs.read_record(run.folder.path)
    self.folder = folder
    self._seed = run.spec.settings.seed
    self._checkpoints = Checkpoints(
      folder,
      keep_latest=keep_latest,
      best_metric=best_metric,
      config=record["config"],
      may_differ=may_differ,
      versions=record["versions"][-1],
    )

  def __enter__(self) -> "StageCheckpoints":
    return self

  def __exit__(self, *error: Any) -> None:
    self._checkpoints.__exit__(*error)

  def resume(self, state: Any) -> tuple[Any, int, Cursor]:
    """Restores the latest checkpoint: (state, updates done, data cursor).

    The state given is that at step 0, on this run's mesh, which may have
    another shape than the one before; it is donated. Without a checkpoint, the
    values at step 0 come back. Raises a CheckpointError if there are
    checkpoints but none can be used, and a FloatingPointError if a value at
    step 0 is not finite.
    """
    steps = self._checkpoints.steps()
    if not steps:
      self._check_start(state)
      return state, 0, Cursor(self._seed)
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state,
    )
    for leaf in jax.tree.leaves(state):
      leaf.delete()  # There is not always room for two.
    restored = self._checkpoints.restore_latest(abstract)
    if restored.step == steps[-1]:
      self._checkpoints.remove_superseded()
    cursor = Cursor(**restored.extra["cursor"])
    return restored.state, restored.step, cursor

  def _check_start(self, state: Any) -> None:
    """Raises FloatingPointError, with names, for a state that is not finite.

    Every update from there would be skipped.
    """
    bad = records.find_not_finite(records.named_leaves(state))
    if bad is not None:
      raise FloatingPointError(
        f"{self.folder} is not trained from a state that is {bad}. Check the "
        "model or the workdir that the stage starts from."
      )

  def save(
    self,
    step: int,
    state: Any,
    cursor: Cursor,
    metrics: Mapping[str, float | None] | None = None,
    *,
    regular: bool,
  ) -> None:
    """Starts to write a checkpoint of the state after a number of updates.

    `metrics` are those of an evaluation of this state, if there was one.
    `regular` says whether an uninterrupted run saves here too.
    """
    extra = {"cursor": dataclasses.asdict(cursor)}
    self._checkpoints.save(step, state, extra, metrics, interim=not regular)

  def regular_steps(self) -> list[int]:
    """The steps, ascending, at which an uninterrupted run saves as well."""
    return self._checkpoints.steps(regular=True)

  def remove_after(self, step: int) -> None:
    """Removes the checkpoints of later steps; every process must call it."""
    self._checkpoints.remove_after(step)

  def wait(self) -> None:
    """Waits until the checkpoint saved last is on disk."""
    self._checkpoints.wait()


class StopReason(enum.Enum):
  """Why a loop of updates ends before its last step."""

  SKIPPED_UPDATES = enum.auto()
  SIGTERM = enum.auto()


@dataclasses.dataclass(frozen=True)
class StopConditions:
  """Decides whether a loop of updates ends before its last step.

  A loop ends after too many skipped updates in a row, and after SIGTERM, but by
  no metric of held-out data. It first saves its state:

    reason = stop.reason(metrics, shutdown)
    if is_regular or reason is not None:
      checkpoints.save(...)
      stop.end(reason, shutdown, ...)

  Attributes:
    run: the open run.
    stage: name of the stage.
    total: steps of the stage.
    checkpoints: checkpoints of the stage.
    updates: updates of the stage; more than steps if RL has mini-batches or
      epochs, fewer in the warm-up of a critic. Within a step a loop does not
      end.
    critic_updates: updates of RL's critic; 0 without one.
  """

  run: Run
  stage: str
  total: int
  checkpoints: StageCheckpoints
  updates: int
  critic_updates: int = 0

  def check_resumed(
    self, step: int, state: TrainState, critic: TrainState | None = None
  ) -> None:
    """Raises FloatingPointError if a finished stage ended on skipped updates.

    Then the stage has no updates left, and as many of its last ones were
    skipped as end a loop.
    """
    skipped = {"skipped_in_a_row": state.skipped_in_a_row}
    if critic is not None:
      skipped["critic_skipped_in_a_row"] = critic.skipped_in_a_row
    too_many = self._too_many_skipped(skipped)
    if step >= self.total and too_many:
      raise FloatingPointError(self._failure(step, too_many))

  def reason(
    self, metrics: Metrics, shutdown: preemption.StopRequest
  ) -> StopReason | None:
    """Decides after a step whether the loop ends; waits for its updates.

    Every process must call it once per step.
    """
    too_many = self._too_many_skipped(metrics)
    # Before any return, because every process takes part in it.
    terminated = shutdown.requested()
    if too_many:
      return StopReason.SKIPPED_UPDATES
    return StopReason.SIGTERM if terminated else None

  def end(
    self,
    reason: StopReason | None,
    shutdown: preemption.StopRequest,
    step: int,
    metrics: Metrics,
    batch: Any,
    facts: Mapping[str, Any],
  ) -> None:
    """Ends the loop if there is a reason, once its checkpoint is on disk.

    Every process must call it after each save, with the step, the metrics and
    the batch of the last update. Without a reason only SIGTERM during the save
    ends it. The batch and JSON-like facts are saved after too many skipped
    updates.

    Raises:
      FloatingPointError: if too many updates in a row were skipped.
      Preempted: after SIGTERM.
    """
    if reason is None and shutdown.requested():
      reason = StopReason.SIGTERM
    if reason is None:
      return
    self.checkpoints.wait()
    match reason:
      case StopReason.SKIPPED_UPDATES:
        path = self.run.folder.dump_batch(self.stage, step, batch, facts)
        message = self._failure(step, self._too_many_skipped(metrics))
        raise FloatingPointError(f"{message} The last batch is in {path}.")
      case StopReason.SIGTERM:
        saved = self.checkpoints.folder / str(step)
        raise preemption.Preempted(
          f"stopped by SIGTERM after step {step} of {self.stage}, which is "
          f"saved in {saved}; the same command continues"
        )
      case _:
        assert_never(reason)

  def _too_many_skipped(self, metrics: Metrics) -> int:
    """The latest updates that were skipped if they end the loop, else 0.

    Policy and critic are counted separately: an update of one does not reset
    the count of the other. An iteration has the metrics of one or of both.
    """
    most = self.run.spec.settings.rl.max_skipped_updates
    counts = [
      (int(metrics[name]), min(most, updates))
      for name, updates in (
        ("skipped_in_a_row", self.updates),
        ("critic_skipped_in_a_row", self.critic_updates),
      )
      if name in metrics
    ]
    return max(
      (skipped for skipped, limit in counts if skipped >= limit), default=0
    )

  def _failure(self, step: int, skipped: int) -> str:
    return (
      f"{self.stage}, step {step}: {skipped} updates in a row had a loss, "
      "gradient or update that was not finite; all were skipped, and the state "
      f"is saved in {self.checkpoints.folder / str(step)}. The same command "
      "tries the batches that follow, if there are any. If that does not help, "
      "try a lower learning rate in another workdir; if it happens from the "
      "first step on, look for weights that are not finite in what the stage "
      "starts from."
    )


@dataclasses.dataclass(frozen=True)
class SupervisedStage:
  """A supervised stage: its update and its data.

  Attributes:
    name: name of the stage; the text before a "_" is the name of its folder.
    num_steps: updates.
    log_every: updates between rows of metrics and checkpoints.
    num_examples: number of examples.
    batch_size: examples of an update.
    tokens_per_example: mean over the data, for the logged speed.
    make_batch: indices [batch_size] -> arrays on the devices.
    update: (state, batch) -> (state, metrics); donates state.
  """

  name: str
  num_steps: int
  log_every: int
  num_examples: int
  batch_size: int
  tokens_per_example: float
  make_batch: Callable[[np.ndarray], Any]
  update: Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def stage_folder(run: Run, name: str) -> pathlib.Path:
  """The folder of the checkpoints of a supervised stage.

  Args:
    run: the open run.
    name: name of the stage.
  """
  return run.folder.start / name.split("_")[0] / f"checkpoints_{name}"


def run_stage(
  run: Run, stage: SupervisedStage, state: TrainState
) -> TrainState:
  """Runs a supervised stage: shuffled batches, metrics, checkpoints, resuming.

  Args:
    run: the open run.
    stage: the stage.
    state: the state at step 0.

  Returns:
    The state after the last update.

  Raises:
    FloatingPointError: if `rl.max_skipped_updates` updates in a row, or all
      of the stage, were not finite; state and batch are saved.
    Preempted: after SIGTERM, once the current step is saved.
  """
  name, num_steps = stage.name, stage.num_steps
  with StageCheckpoints(run, stage_folder(run, name)) as checkpoints:
    stop = StopConditions(run, name, num_steps, checkpoints, num_steps)
    state, done, cursor = checkpoints.resume(state)
    stop.check_resumed(done, state)
    run.folder.metrics.rewind(name, done + 1)
    bar = Progress(name, num_steps, done, enabled=run.shows_progress)
    with bar, preemption.graceful_shutdown() as shutdown:
      start, last_saved = time.perf_counter(), done
      for step in range(done + 1, num_steps + 1):
        indices, cursor = next_batch(
          stage.num_examples, stage.batch_size, cursor
        )
        batch = stage.make_batch(indices)
        state, metrics = stage.update(state, batch)
        reason = stop.reason(metrics, shutdown)
        bar.advance()
        is_regular = step % stage.log_every == 0 or step == num_steps
        if not is_regular and reason is None:
          continue
        if is_regular:
          row = {k: float(v) for k, v in jax.device_get(metrics).items()}
          examples = (step - last_saved) * stage.batch_size
          seconds = time.perf_counter() - start
          row["tokens_per_second"] = (
            examples * stage.tokens_per_example / seconds
          )
          run.folder.metrics.write(name, step, row)
          bar.show({"loss": row["loss"]})
        checkpoints.save(step, state, cursor, regular=is_regular)
        facts = {"rows": indices.tolist()}
        stop.end(reason, shutdown, step, metrics, batch, facts)
        start, last_saved = time.perf_counter(), step
  return state
