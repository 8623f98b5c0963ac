"""Checkpoints that are whole, or named as damaged; that fit, or are refused.

Orbax writes the arrays: sharded, in threads of its own while training goes
on, and atomically, as a folder renamed when it is whole. Around it:

* every leaf is stored under its path, with shape and dtype in a JSON record,
  so a restore into another model says which leaf differs instead of casting;
* every file's SHA-256 is kept beside it, from before the renaming on: Orbax
  itself reads flipped bits in array data without complaint;
* a damaged newest checkpoint is named and the one before it is used;
* the config that made a checkpoint is stored in it and compared on restore,
  and so are the versions of what ran, for whoever looks for a difference.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from pure_jax.host.checkpoints import full_disk, integrity, orbax_log
from pure_jax.host.checkpoints import record as checkpoint_record
from pure_jax.host.checkpoints.leaves import abstract, key_data, named_leaves
from pure_jax.host.checkpoints.record import (
  Standing,
  make_standing,
  read_standing,
)
from pure_jax.host.checkpoints.retention import Retention
from pure_jax.host.distributed import preemption, processes

_LOG = logging.getLogger(__name__)
# What Orbax still writes times into when all else is whole; none are read.
_STAMPS = ("_CHECKPOINT_METADATA",)


class CheckpointError(RuntimeError):
  """A checkpoint that cannot be written or used; the message says why."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint read back.

  Attributes:
    step: the step it was saved at.
    state: a pytree as it was saved, on the shardings asked for.
    extra: the JSON dict saved with it.
  """

  step: int
  state: Any
  extra: dict[str, Any]


class Checkpoints:
  """The checkpoints of one folder: the latest few, and the best one.

  Saving is asynchronous: `save` returns when the arrays are copied, and they
  may be donated then; threads write them. A checkpoint is there under its
  step when it is whole, and older ones are removed after that. What goes
  wrong meanwhile is raised by the next `save`, `wait` or `close`. Use as a
  context manager, or call `close`.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep_latest: int = 2,
    best_metric: str | None = None,
    lower_is_better: bool = False,
    config: Mapping[str, Any] | None = None,
    may_differ: Sequence[str] = (),
    versions: Mapping[str, Any] | None = None,
  ):
    """Opens or creates the folder.

    Args:
      directory: the folder.
      keep_latest: how many of the newest checkpoints are kept, at least 1.
        With 1 there is none before a damaged one.
      best_metric: name of the metric whose best checkpoint is kept as well.
      lower_is_better: whether the best value of it is the smallest.
      config: stored with each checkpoint, compared on restore; JSON-like.
      may_differ: dotted names of `config` not compared.
      versions: stored with each checkpoint, JSON-like.

    Raises:
      CheckpointError: if the folder cannot be created or written.
      ValueError: if `keep_latest` is less than 1.
    """
    if keep_latest < 1:
      raise ValueError(f"keep_latest must be at least 1, got {keep_latest}.")
    self._directory = pathlib.Path(directory).absolute()
    self._best_metric = best_metric
    self._sign = -1.0 if lower_is_better else 1.0
    self._config = config
    self._may_differ = may_differ
    self._versions = versions
    self._standings: dict[int, Standing] = {}
    self._started = False  # Whether a save was.
    self._failure: CheckpointError | None = None
    retention = Retention(keep_latest, self._standing, self._goodness)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=retention,
      async_options=ocp.options.AsyncOptions(
        post_finalization_callback=self._seal
      ),
    )
    self._quiet = contextlib.ExitStack()
    self._quiet.enter_context(orbax_log.quiet())
    try:
      self._manager = ocp.CheckpointManager(self._directory, options=options)
    except OSError as error:
      self._quiet.close()
      raise self._cannot_write(error) from error

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type | None, *unused: object) -> None:
    try:
      self.close()
    except CheckpointError as error:
      if kind is None:
        raise
      _LOG.warning("%s", error)  # Not instead of what ended the run.

  def close(self) -> None:
    """Waits for the checkpoint under way, and releases the folder.

    Raises:
      CheckpointError: if that checkpoint could not be written.
    """
    try:
      self.wait()
    finally:
      with contextlib.suppress(Exception), preemption.defer_signals():
        self._manager.close()  # Says again what `wait` has said.
      self._quiet.close()

  def wait(self) -> None:
    """Waits until the checkpoint under way is on disk, as Ctrl-C then does.

    Raises:
      CheckpointError: if it could not be written.
    """
    if self._failure is not None:  # It was said.
      return
    try:
      with preemption.defer_signals():
        self._manager.wait_until_finished()
    # A thread of Orbax or TensorStore failed, with whatever they raise.
    except Exception as error:
      raise self._give_up(error) from error

  def steps(self) -> list[int]:
    """Steps that have a checkpoint, ascending; waits for one under way."""
    self.wait()
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: Any,
    extra: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    *,
    interim: bool = False,
  ) -> None:
    """Starts to write a checkpoint, whole or not at all.

    Waits for the one before. Checkpoints at `step` or later are removed
    first: they belong to a future that was abandoned when an earlier step was
    restored.

    Args:
      step: number of the step, >= 0.
      state: pytree of arrays, jax PRNG keys included.
      extra: JSON-like dict, such as the data cursor.
      metrics: numbers by name; must hold `best_metric` to count for the best.
      interim: whether this is a checkpoint out of turn, which goes when the
        next one is there and takes no other's place.

    Raises:
      CheckpointError: if the folder cannot be written, or the checkpoint
        before could not.
      ValueError: if a leaf of the state is not an array, or it has none.
      TypeError: if `extra` is not JSON-like.
    """
    leaves = named_leaves(state)
    standing = make_standing(interim, metrics)
    record = checkpoint_record.make_record(
      leaves, extra, self._config, self._versions, standing
    )
    if self._failure is not None:
      raise self._failure
    arrays = {name: key_data(leaf) for name, leaf in leaves.items()}
    self._start_anew(step)
    self._started, self._standings[step] = True, standing
    try:
      if jax.process_count() == 1:  # Others might see another number.
        needed = sum(array.nbytes for array in arrays.values())
        full_disk.check_room(self._directory, needed)
      with preemption.defer_signals():
        self._manager.save(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            record=ocp.args.JsonSave(record),
          ),
          force=True,
        )
    except OSError as error:
      raise self._give_up(error) from error

  def restore_latest(self, abstract_state: Any) -> Restored | None:
    """Reads the newest usable checkpoint.

    Args:
      abstract_state: pytree like the one saved, of arrays or of
        `jax.ShapeDtypeStruct` with the shardings to restore to; a leaf without
        sharding goes to the default device.

    Returns:
      The checkpoint, or None where the folder has none.

    Raises:
      CheckpointError: if all checkpoints are damaged, or the first usable one
        has other leaves, shapes, dtypes or another config.
    """
    return self._restore_first(self.steps()[::-1], abstract_state)

  def restore_best(self, abstract_state: Any) -> Restored | None:
    """Reads the usable checkpoint with the best `best_metric`.

    Args:
      abstract_state: as for `restore_latest`.

    Returns:
      The checkpoint, or None where no checkpoint has the metric.

    Raises:
      CheckpointError: as for `restore_latest`.
    """
    ranked = [(self._goodness(self._standing(s)), s) for s in self.steps()]
    ranked = [pair for pair in ranked if pair[0] is not None]
    order = [step for _, step in sorted(ranked, reverse=True)]
    return self._restore_first(order, abstract_state)

  def _goodness(self, standing: Standing) -> float | None:
    """The best metric, turned so that more is better; None without one."""
    value = standing.metrics.get(self._best_metric)
    return None if value is None else self._sign * value

  def _standing(self, step: int) -> Standing:
    """Of a checkpoint on disk, or on its way there."""
    if step not in self._standings:
      self._standings[step] = read_standing(self._folder(step))
    return self._standings[step]

  def _folder(self, step: int) -> pathlib.Path:
    return self._directory / str(step)

  def _unfinished(self) -> list[pathlib.Path]:
    """Folders of checkpoints that are under way, or were never finished."""
    return sorted(self._directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))

  def _seal(self) -> None:
    """Adds the checksums; Orbax calls this before it renames the folder."""
    (folder,) = self._unfinished()
    integrity.write(folder, without=_STAMPS)

  def _start_anew(self, step: int) -> None:
    """Waits for a save under way; removes what the next one takes over."""
    steps = self.steps()
    try:
      with preemption.defer_signals():
        if not self._started:
          self._remove_unfinished()  # Of processes that were killed.
        for stale in steps:
          if stale >= step:
            self._manager.delete(stale)
    except OSError as error:
      raise self._cannot_write(error) from error

  def _remove_unfinished(self) -> None:
    """Makes room again."""
    if jax.process_index() == 0:
      for folder in self._unfinished():
        shutil.rmtree(folder, ignore_errors=True)

  def _give_up(self, error: Exception) -> CheckpointError:
    """After a save failed: the folder is left as it was before."""
    orbax_log.hide_abandoned_writes()
    self._remove_unfinished()
    self._failure = self._cannot_write(error)
    return self._failure

  def _cannot_write(self, error: Exception) -> CheckpointError:
    full = full_disk.reason(error)
    todo = (
      "Choose a folder that can be created and written."
      if full is None
      else "The checkpoints there are intact: make room, and go on from them."
    )
    return CheckpointError(
      f"Cannot write checkpoints to {self._directory}: {full or error}. {todo}"
    )

  def _restore_first(
    self, steps: Sequence[int], abstract_state: Any
  ) -> Restored | None:
    """The first of `steps` that is not damaged."""
    damages = []
    for step in steps:
      try:
        restored = self._restore(step, abstract_state)
      except _DamageError as damage:
        damages.append(f"{self._folder(step)}: {damage}")
        _LOG.warning("Damaged checkpoint %s", damages[-1])
        continue
      if damages:
        _LOG.warning("Going on from the checkpoint of step %d.", step)
      return restored
    if damages:
      raise CheckpointError(
        f"No usable checkpoint in {self._directory}:\n  "
        + "\n  ".join(damages)
        + "\nRemove the folder to start anew."
      )
    return None

  def _restore(self, step: int, abstract_state: Any) -> Restored:
    """Reads one checkpoint, or raises `_DamageError` or `CheckpointError`."""
    folder = self._folder(step)
    damage = processes.broadcast_from_zero(lambda: integrity.damage(folder))
    if damage is not None:
      raise _DamageError(damage)
    with _damage_from_errors():
      record = self._manager.restore(
        step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
      )["record"]
      impls = record["key_impl"]
    wanted = named_leaves(abstract_state)
    misfit = checkpoint_record.misfit(
      record, wanted, self._config, self._may_differ
    )
    if misfit is not None:
      raise CheckpointError(f"{folder} {misfit}")
    with _damage_from_errors():
      leaves = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(
            {name: abstract(leaf) for name, leaf in wanted.items()}
          )
        ),
      )["state"]
    values = [
      jax.random.wrap_key_data(leaves[name], impl=impls[name])
      if name in impls
      else leaves[name]
      for name in wanted
    ]
    state = jax.tree.unflatten(jax.tree.structure(abstract_state), values)
    return Restored(step, state, record["extra"])


class _DamageError(Exception):
  """Files of a checkpoint are missing, cut or altered."""


@contextlib.contextmanager
def _damage_from_errors() -> Iterator[None]:
  """Turns whatever reading a broken file raises into `_DamageError`."""
  try:
    yield
  # Orbax and TensorStore raise OSError, ValueError, KeyError and bare
  # Exception for files they cannot read.
  except Exception as error:
    if jax.process_count() > 1:  # The files are whole, and others read them.
      raise CheckpointError(f"Cannot read a checkpoint: {error}") from error
    raise _DamageError(f"unreadable ({type(error).__name__})") from error
