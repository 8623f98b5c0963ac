"""The checkpoints of one stage of a run.

A checkpoint holds the train state (parameters, optimizer, counters), the data
cursor, the config, versions, and the metrics that rank it. No generator state
is kept: random keys follow from (seed, stream, step), and the KL coefficient is
a constant of the config.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pure_jax.host.checkpoints.checkpointer import Checkpoints
from pure_jax.host.data.batches import Cursor
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.folder import MAY_DIFFER_FROM_START
from pure_jax.runs.run import Run
from pure_jax.training.train import TrainState


class StageCheckpoints:
  """Saves and restores one stage. Leaving the context waits for saves."""

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

  def resume(self, state: TrainState) -> tuple[TrainState, int, Cursor]:
    """Restores the latest checkpoint.

    Args:
      state: the state at step 0, on this run's mesh, which may have another
        shape than the one before; donated.

    Returns:
      (the state, updates done, the data cursor); without a checkpoint, their
      values at step 0.
    """
    if not self._checkpoints.steps():
      return state, 0, Cursor(self._seed)
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state,
    )
    for leaf in jax.tree.leaves(state):
      leaf.delete()  # There is not always room for two.
    restored = self._checkpoints.restore_latest(abstract)
    cursor = Cursor(**restored.extra["cursor"])
    return restored.state, restored.step, cursor

  def save(
    self,
    step: int,
    state: TrainState,
    cursor: Cursor,
    metrics: Mapping[str, float] | None = None,
    *,
    regular: bool,
  ) -> None:
    """Starts to write a checkpoint.

    Args:
      step: updates done.
      state: the state after these updates.
      cursor: the data cursor after these updates.
      metrics: metrics of an evaluation of this state, if there was one.
      regular: whether an uninterrupted run saves here too.
    """
    extra = {"cursor": dataclasses.asdict(cursor)}
    self._checkpoints.save(step, state, extra, metrics, interim=not regular)

  def wait(self) -> None:
    """Waits until the checkpoint saved last is on disk."""
    self._checkpoints.wait()
