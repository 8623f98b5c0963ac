"""Saves and restores checkpoints that are whole and fit the run.

Orbax writes the arrays: sharded, in its own threads while training goes on,
and atomically, as a folder that is renamed in the end. This module adds:

* Every leaf is stored under its path, with shape and dtype in a JSON record. A
  restore into another model names the leaf that differs instead of casting it.
* Every file has a SHA-256, written before the folder is renamed. Orbax itself
  reads flipped bits in array data without an error.
* No NaN or infinity is saved; a checkpoint with one counts as damaged.
* If the newest checkpoint is damaged, the one before it is restored.
* Config and package versions are stored; the config is compared on restore.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from pure_jax.host.checkpoints import integrity, orbax_options
from pure_jax.host.checkpoints import record as records
from pure_jax.host.distributed import preemption, processes

_LOG = logging.getLogger(__name__)
# Orbax writes times into it after the checksums; nothing reads them.
_UNCHECKED_FILES = ("_CHECKPOINT_METADATA",)


class CheckpointError(RuntimeError):
  """A checkpoint that cannot be written or restored; the message says why."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """A restored checkpoint.

  Attributes:
    step: the step it was saved at.
    state: the pytree that was saved, with the requested shardings.
    extra: the JSON dict saved with it.
  """

  step: int
  state: Any
  extra: dict[str, Any]


class _DamageError(Exception):
  """Files of a checkpoint are missing or altered, or a value is not finite."""


class Checkpoints:
  """The checkpoints of one folder: the latest few, and the best one.

  Saving is asynchronous: `save` returns once the arrays are copied, so they
  may be donated, and threads write the copies. A checkpoint appears under its
  step when it is complete; only then are older ones removed. An error of a
  thread is raised by the next `save`, `wait` or `close`. Use this class as a
  context manager, or call `close`.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep_latest: int = 2,
    best_metric: str | None = None,
    config: Mapping[str, Any] | None = None,
    may_differ: Sequence[str] = (),
    versions: Mapping[str, Any] | None = None,
  ):
    """Opens or creates the folder.

    Args:
      directory: the folder.
      keep_latest: how many of the newest checkpoints are preserved, at least
        1. With 1 there is nothing to fall back on if that one is damaged.
      best_metric: name of a metric; the checkpoint with its largest value is
        preserved as well.
      config: stored with each checkpoint, compared on restore; JSON-like.
      may_differ: dotted names of `config` that are not compared.
      versions: stored with each checkpoint, JSON-like.

    Raises:
      CheckpointError: if the folder cannot be created or written.
      ValueError: if `keep_latest` is less than 1.
    """
    if keep_latest < 1:
      raise ValueError(f"keep_latest must be at least 1, got {keep_latest}.")
    self._directory = pathlib.Path(directory).absolute()
    self._best_metric = best_metric
    self._config = config
    self._may_differ = may_differ
    self._versions = versions
    self._metrics: dict[int, records.CheckpointMetrics] = {}
    self._has_saved = False
    self._failure: CheckpointError | None = None
    self._policy = orbax_options.preservation_policy(
      keep_latest, best_metric, self._metrics_of
    )
    options = ocp.CheckpointManagerOptions(
      step_name_format=orbax_options.StepNames(),
      preservation_policy=self._policy,
      async_options=ocp.options.AsyncOptions(
        post_finalization_callback=self._write_checksums
      ),
    )
    self._quiet = contextlib.ExitStack()
    self._quiet.enter_context(orbax_options.quiet_logging())
    try:
      self._orbax = ocp.CheckpointManager(self._directory, options=options)
    except OSError as error:
      self._quiet.close()
      raise self._write_error(error) from error

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type | None, *unused: object) -> None:
    try:
      self.close()
    except CheckpointError as error:
      if kind is None:
        raise
      _LOG.warning("%s", error)  # Must not replace the error that ends the run.

  def close(self) -> None:
    """Waits for the current save, and closes the folder.

    Raises:
      CheckpointError: if the checkpoint could not be written.
    """
    try:
      self.wait()
    finally:
      # Orbax raises the error of `wait` again.
      with contextlib.suppress(Exception), preemption.defer_signals():
        self._orbax.close()
      self._quiet.close()

  def wait(self) -> None:
    """Waits until the current save is on disk; Ctrl-C waits for it as well.

    Raises:
      CheckpointError: if the checkpoint could not be written.
    """
    if self._failure is not None:  # It was raised before.
      return
    try:
      with preemption.defer_signals():
        self._orbax.wait_until_finished()
    # Threads of Orbax and TensorStore raise errors of many types.
    except Exception as error:
      raise self._abandon_save(error) from error

  def steps(self, *, regular: bool = False) -> list[int]:
    """Waits for the current save; returns the steps of checkpoints, ascending.

    `regular` leaves out interim ones. Raises CheckpointError if a save failed.
    """
    self.wait()
    steps = sorted(self._orbax.all_steps())
    return [x for x in steps if not (regular and self._metrics_of(x).interim)]

  def save(
    self,
    step: int,
    state: Any,
    extra: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float | None] | None = None,
    *,
    interim: bool = False,
  ) -> None:
    """Starts to save a checkpoint, after waiting for the previous save.

    Checkpoints at `step` or later are removed first: they belong to a run that
    was abandoned when an earlier step was restored.

    Args:
      step: number of the step, >= 0.
      state: pytree of arrays, jax PRNG keys included.
      extra: JSON-like dict, such as the data cursor.
      metrics: numbers by name, of which the finite ones count; None has no
        value. A checkpoint without `best_metric` is never the best.
      interim: whether an uninterrupted run would not save here. The checkpoint
        is removed after the next one, and no regular one is removed for it.

    Raises:
      CheckpointError: if a value of the state is not finite, or if this
        checkpoint or the previous one cannot be written.
      ValueError: if a leaf of the state is not an array, or it has none.
      TypeError: if `extra` is not JSON-like.
    """
    leaves = records.named_leaves(state)
    not_finite = records.find_not_finite(leaves)
    if not_finite is not None:
      raise CheckpointError(
        f"{self._folder(step)} is not saved, because its state is "
        f"{not_finite}. Checkpoints of earlier steps are intact."
      )
    checkpoint_metrics = records.checkpoint_metrics(
      metrics or {}, interim=interim
    )
    record = records.make_record(
      leaves, extra, self._config, self._versions, checkpoint_metrics
    )
    if self._failure is not None:
      raise self._failure
    arrays = {name: records.stored_array(leaf) for name, leaf in leaves.items()}
    self._remove_obsolete(step)
    self._has_saved, self._metrics[step] = True, checkpoint_metrics
    try:
      # Processes may see different numbers, and all must decide the same.
      if jax.process_count() == 1:
        num_bytes = sum(array.nbytes for array in arrays.values())
        integrity.check_free_space(self._directory, num_bytes)
      with preemption.defer_signals():
        self._orbax.save(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            record=ocp.args.JsonSave(record),
          ),
          force=True,
        )
    except OSError as error:
      raise self._abandon_save(error) from error

  def remove_superseded(self) -> None:
    """Removes checkpoints that are not to be kept after the newest one.

    A process killed right after a save has not. Call it after a restore.
    """
    self._delete(orbax_options.superseded(self._policy, self.steps()))

  def remove_after(self, step: int) -> None:
    """Removes the checkpoints of later steps; every process must call it."""
    self._delete([other for other in self.steps() if other > step])

  def _delete(self, steps: Sequence[int]) -> None:
    with preemption.defer_signals():
      for step in steps:
        self._orbax.delete(step)

  def restore_latest(self, abstract_state: Any) -> Restored | None:
    """Restores the newest undamaged checkpoint; None if the folder has none.

    Args:
      abstract_state: pytree like the saved state, of arrays or of
        `jax.ShapeDtypeStruct` with the shardings to restore to. A leaf without
        a sharding is placed on the default device.

    Raises:
      CheckpointError: if all checkpoints are damaged, or if the newest
        undamaged one has other leaves, shapes, dtypes or another config.
    """
    return self._restore_first(self.steps()[::-1], abstract_state)

  def restore_best(self, abstract_state: Any) -> Restored | None:
    """Restores the undamaged checkpoint with the largest `best_metric`.

    Of two equal ones it is the later. Otherwise as `restore_latest`. None if no
    checkpoint has the metric.
    """
    rank_keys = [
      (values[self._best_metric], step)
      for step in self.steps()
      if self._best_metric in (values := self._metrics_of(step).values)
    ]
    best_first = [step for _, step in sorted(rank_keys, reverse=True)]
    return self._restore_first(best_first, abstract_state)

  def _metrics_of(self, step: int) -> records.CheckpointMetrics:
    """Returns the metrics of a checkpoint that is saved or being saved."""
    if step not in self._metrics:
      self._metrics[step] = records.read_metrics(self._folder(step))
    return self._metrics[step]

  def _folder(self, step: int) -> pathlib.Path:
    return self._directory / str(step)

  def _incomplete_folders(self) -> list[pathlib.Path]:
    """Returns folders that are being written, or were never completed."""
    paths = self._directory.glob("*")
    return sorted(filter(orbax_options.is_incomplete, paths))

  def _write_checksums(self) -> None:
    """Adds the checksums; Orbax calls this before it renames the folder."""
    (folder,) = self._incomplete_folders()
    integrity.write_checksums(folder, exclude=_UNCHECKED_FILES)

  def _remove_obsolete(self, step: int) -> None:
    """Removes checkpoints at `step` and later, and those of killed processes.

    Orbax could remove incomplete folders when it opens the directory, but a
    script that only reads must not remove what a running one is writing.
    """
    steps = self.steps()
    try:
      with preemption.defer_signals():
        if not self._has_saved:
          self._remove_incomplete()
        self._delete([other for other in steps if other >= step])
    except OSError as error:
      raise self._write_error(error) from error

  def _remove_incomplete(self) -> None:
    if jax.process_index() == 0:
      for folder in self._incomplete_folders():
        shutil.rmtree(folder, ignore_errors=True)

  def _abandon_save(self, error: Exception) -> CheckpointError:
    """Cleans up after a failed save; returns the error to raise."""
    orbax_options.hide_abandoned_writes()
    self._remove_incomplete()
    self._failure = self._write_error(error)
    return self._failure

  def _write_error(self, error: Exception) -> CheckpointError:
    """Says why checkpoints cannot be written, and what to do."""
    disk_full = integrity.disk_full_reason(error)
    advice = (
      "Choose a folder that can be created and written."
      if disk_full is None
      else "The checkpoints there are intact: make room, and go on from them."
    )
    return CheckpointError(
      f"Cannot write checkpoints to {self._directory}: {disk_full or error}. "
      f"{advice}"
    )

  def _restore_first(
    self, steps: Sequence[int], abstract_state: Any
  ) -> Restored | None:
    """Restores the first undamaged checkpoint of `steps`."""
    damaged = []
    for step in steps:
      try:
        restored = self._restore(step, abstract_state)
      except _DamageError as damage:
        damaged.append(f"{self._folder(step)}: {damage}")
        _LOG.warning("Damaged checkpoint %s", damaged[-1])
        continue
      if damaged:
        _LOG.warning("Going on from the checkpoint of step %d.", step)
      return restored
    if damaged:
      raise CheckpointError(
        f"No usable checkpoint in {self._directory}:\n  "
        + "\n  ".join(damaged)
        + "\nRemove the folder to start anew."
      )
    return None

  def _restore(self, step: int, abstract_state: Any) -> Restored:
    """Restores one checkpoint; raises `DamageError` or `CheckpointError`."""
    folder = self._folder(step)
    damage = processes.broadcast_from_zero(
      lambda: integrity.find_damage(folder)
    )
    if damage is not None:
      raise _DamageError(damage)
    record = self._read(step, record=ocp.args.JsonRestore())["record"]
    leaves = records.named_leaves(abstract_state)
    mismatch = records.find_mismatch(
      record, leaves, self._config, self._may_differ
    )
    if mismatch is not None:
      raise CheckpointError(f"{folder} {mismatch}")
    shapes = {name: records.stored_shape(leaf) for name, leaf in leaves.items()}
    arrays = self._read(step, state=ocp.args.StandardRestore(shapes))["state"]
    not_finite = records.find_not_finite(arrays)
    if not_finite is not None:
      raise _DamageError(not_finite)
    for name, impl in record["key_impl"].items():
      arrays[name] = jax.random.wrap_key_data(arrays[name], impl=impl)
    state = jax.tree.unflatten(
      jax.tree.structure(abstract_state), [arrays[name] for name in leaves]
    )
    return Restored(step, state, record["extra"])

  def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
    """Reads items of a checkpoint; any error is damage."""
    try:
      return self._orbax.restore(step, args=ocp.args.Composite(**items))
    # Orbax and TensorStore raise OSError, ValueError, KeyError and bare
    # Exception for files they cannot read.
    except Exception as error:
      # Other processes may have read theirs: a single process must not fall
      # back.
      if jax.process_count() > 1:
        raise CheckpointError(f"Cannot read a checkpoint: {error}") from error
      raise _DamageError(f"unreadable ({type(error).__name__})") from error
