"""What a loop of updates keeps, where it goes on, and how it ends early.

A checkpoint holds the train state (parameters, optimizer, counters), the data
cursor, the config, versions, and the metrics that tell which is the best. It
needs no more. There is no generator whose state would have to be kept: a key
follows from (seed, stage, step), of which the cursor and the checkpoint have
the first and the last. And the KL coefficient is a constant of the config.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pure_jax.host.checkpoints.manager import Checkpoints
from pure_jax.host.data import batches
from pure_jax.host.distributed import preemption
from pure_jax.host.logs.batch_dump import dump_batch
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.folder import MAY_DIFFER_FROM_START
from pure_jax.runs.run import Run
from pure_jax.training.train import TrainState


class StageCheckpoints:
  """The checkpoints of one stage. A context manager: closing waits for them."""

  def __init__(
    self,
    run: Run,
    stage: str,
    folder: pathlib.Path,
    total: int,
    *,
    keep_latest: int = 2,
    best_metric: str | None = None,
    may_differ: Sequence[str] = MAY_DIFFER_FROM_START,
  ):
    """Opens or creates the folder.

    Args:
      run: the open run.
      stage: its name in metrics.
      folder: where the checkpoints are.
      total: updates of the stage.
      keep_latest: how many of the newest are kept; 2, so that a damaged one
        has one before it.
      best_metric: the metric whose best checkpoint is kept as well.
      may_differ: fields of the config in which a resumed run may differ.
    """
    record = workdirs.read_record(run.folder.path)
    self._run = run
    self._stage = stage
    self._folder = folder
    self._total = total
    self._max_skipped = min(run.spec.settings.rl.max_skipped_updates, total)
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

  def resume(self, state: TrainState) -> tuple[TrainState, int, batches.Cursor]:
    """Where to go on.

    Args:
      state: the state at step 0, on this run's mesh, which may have another
        shape than the one before; donated.

    Returns:
      (the state, updates done, the data cursor).

    Raises:
      CheckpointError: if there are checkpoints but none can be used.
      FloatingPointError: if the stage came to its end on updates that were
        all skipped.
    """
    if not self._checkpoints.steps():
      return state, 0, batches.Cursor(self._run.spec.settings.seed)
    wanted = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state,
    )
    for leaf in jax.tree.leaves(state):
      leaf.delete()  # There is not always room for two.
    restored = self._checkpoints.restore_latest(wanted)
    skipped = int(restored.state.skipped_in_a_row)
    if restored.step >= self._total and skipped >= self._max_skipped:
      raise FloatingPointError(self._failure(restored.step, skipped))
    cursor = batches.Cursor(**restored.extra["cursor"])
    return restored.state, restored.step, cursor

  def save(
    self,
    step: int,
    state: TrainState,
    cursor: batches.Cursor,
    metrics: Mapping[str, float] | None = None,
    *,
    regular: bool,
  ) -> None:
    """Starts to write a checkpoint.

    Args:
      step: updates done.
      state: after them.
      cursor: after their data.
      metrics: of an evaluation of this state, if there was one.
      regular: whether an uninterrupted run saves here too.
    """
    extra = {"cursor": dataclasses.asdict(cursor)}
    self._checkpoints.save(step, state, extra, metrics, interim=not regular)

  def stop(self, step: int) -> None:
    """Ends the run that was asked to, once the checkpoint is on disk.

    Args:
      step: of the checkpoint saved last.

    Raises:
      Preempted: always.
    """
    self._checkpoints.wait()
    raise preemption.Preempted(
      f"stopped by SIGTERM after step {step} of {self._stage}, which is saved "
      f"in {self._folder / str(step)}; the same command continues"
    )

  def is_failing(self, found: Mapping[str, Any]) -> bool:
    """Whether too many updates in a row were skipped; waits for the last.

    Args:
      found: metrics of the last update.
    """
    return int(found["skipped_in_a_row"]) >= self._max_skipped

  def fail(
    self,
    step: int,
    found: Mapping[str, Any],
    batch: Any,
    facts: Mapping[str, Any],
  ) -> None:
    """Ends a run that learns nothing, with what is needed to see why.

    Args:
      step: of the checkpoint saved last, after the last update.
      found: metrics of that update.
      batch: its arrays.
      facts: JSON-like, kept beside them.

    Raises:
      FloatingPointError: always.
    """
    self._checkpoints.wait()
    path = dump_nonfinite(self._run, self._stage, step, batch, facts)
    message = self._failure(step, int(found["skipped_in_a_row"]))
    raise FloatingPointError(f"{message} The last batch is in {path}.")

  def _failure(self, step: int, skipped: int) -> str:
    return (
      f"{self._stage}, step {step}: {skipped} updates in a row had a loss or "
      "gradient that was not finite; all were skipped, and the state is saved "
      f"in {self._folder / str(step)}. The same command tries the batches that "
      "follow, if there are any. If that does not help, try a lower learning "
      "rate in another workdir; if it happens from the first step on, look for "
      "weights that are not finite in what the stage starts from."
    )


def dump_nonfinite(
  run: Run,
  stage: str,
  step: int,
  batch: Any,
  facts: Mapping[str, Any],
) -> pathlib.Path:
  """Keeps a batch that gave numbers that are not finite.

  Args:
    run: the open run.
    stage: name of the stage.
    step: of the update, from 1.
    batch: its arrays.
    facts: JSON-like, kept beside them.

  Returns:
    The file. See `pure_jax.host.logs.batch_dump` for how to read it.
  """
  path = run.folder.path / "nonfinite" / f"{stage}_{step}.npz"
  dump_batch(path, batch, {"stage": stage, "step": step, **facts})
  return path
