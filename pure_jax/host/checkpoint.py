"""Checkpoints that are whole, or named as damaged; that fit, or are refused.

Orbax writes the arrays, atomically and sharded. Around it:

* every leaf is stored under its path, with shape and dtype in a JSON record,
  so a restore into another model says which leaf differs instead of casting;
* every file's SHA-256 is kept beside it: Orbax itself reads flipped bits in
  array data without complaint;
* a damaged newest checkpoint is named and the one before it is used;
* the config that made a checkpoint is stored in it and compared on restore.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from pure_jax.host import checksums, interrupts
from pure_jax.host.leaves import (
  abstract,
  describe,
  is_key,
  key_data,
  named_leaves,
)
from pure_jax.host.workdir import config_differences

_LOG = logging.getLogger(__name__)


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

  Saving is synchronous: when `save` returns the checkpoint is on disk. Use as
  a context manager, or call `close`.
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
  ):
    """Opens or creates the folder.

    Args:
      directory: the folder.
      keep_latest: how many of the newest checkpoints are kept, at least 1.
      best_metric: name of the metric whose best checkpoint is kept as well.
      lower_is_better: whether the best value of it is the smallest.
      config: stored with each checkpoint, compared on restore; JSON-like.
      may_differ: dotted names of `config` not compared.

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
    policies = [preservation_policy.LatestN(keep_latest)]
    if best_metric is not None:
      policies.append(
        preservation_policy.BestN(
          get_metric_fn=self._goodness,
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
      best_fn=self._goodness if best_metric is not None else None,
      enable_async_checkpointing=False,
    )
    try:
      with _quiet():
        self._manager = ocp.CheckpointManager(self._directory, options=options)
    except OSError as error:
      raise self._cannot_write(error) from error

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def close(self) -> None:
    """Releases the folder."""
    with _quiet():
      self._manager.close()

  def steps(self) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: Any,
    extra: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Writes a checkpoint, whole or not at all. Ctrl-C waits for its end.

    Checkpoints at `step` or later are removed first: they belong to a future
    that was abandoned when an earlier step was restored.

    Args:
      step: number of the step, >= 0.
      state: pytree of arrays, jax PRNG keys included.
      extra: JSON-like dict, such as the data cursor.
      metrics: numbers by name; must hold `best_metric` to count for the best.

    Raises:
      CheckpointError: if the folder cannot be written.
      ValueError: if a leaf of the state is not an array, or it has none.
      TypeError: if `extra` is not JSON-like.
    """
    leaves = named_leaves(state)
    record = {
      "leaves": {name: describe(leaf) for name, leaf in leaves.items()},
      "key_impl": {
        name: str(jax.random.key_impl(leaf))
        for name, leaf in leaves.items()
        if is_key(leaf)
      },
      "config": self._config,
      "extra": dict(extra or {}),
    }
    record = json.loads(json.dumps(record, allow_nan=False))
    has_metric = metrics is not None and self._best_metric in metrics
    try:
      with _quiet(), interrupts.held_back():
        for stale in self.steps():
          if stale >= step:
            self._manager.delete(stale)
        self._manager.save(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardSave(
              {name: key_data(leaf) for name, leaf in leaves.items()}
            ),
            record=ocp.args.JsonSave(record),
          ),
          metrics={k: float(v) for k, v in metrics.items()}
          if has_metric
          else None,
          force=True,
        )
        if jax.process_index() == 0:
          checksums.write(self._folder(step))
    except OSError as error:
      raise self._cannot_write(error) from error

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
    ranked = []
    for step in self.steps():
      with _quiet():
        metrics = self._manager.metrics(step) or {}
      if self._best_metric in metrics:
        ranked.append((self._goodness(metrics), step))
    order = [step for _, step in sorted(ranked, reverse=True)]
    return self._restore_first(order, abstract_state)

  def _goodness(self, metrics: Mapping[str, float]) -> float:
    """The best metric, turned so that more is better."""
    return self._sign * metrics[self._best_metric]

  def _folder(self, step: int) -> pathlib.Path:
    return self._directory / str(step)

  def _cannot_write(self, error: OSError) -> CheckpointError:
    return CheckpointError(
      f"Cannot write checkpoints to {self._directory}: {error}. Choose a "
      "folder that can be created and written, on a disk with room."
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
    damage = checksums.damage(folder)
    if damage is not None:
      raise _DamageError(damage)
    with _damage_from_errors():
      record = self._manager.restore(
        step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
      )["record"]
      stored, impls = record["leaves"], record["key_impl"]
    if self._config is not None and record["config"] is not None:
      differing = config_differences(
        record["config"], self._config, self._may_differ
      )
      if differing:
        raise CheckpointError(
          f"{folder} was made with another config:\n  " + "\n  ".join(differing)
        )
    wanted = named_leaves(abstract_state)
    differing = config_differences(
      {"leaves": stored},
      {"leaves": {name: describe(leaf) for name, leaf in wanted.items()}},
    )
    if differing:
      raise CheckpointError(
        f"{folder} does not fit the state to restore:\n  "
        + "\n  ".join(differing)
      )
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
    structure = jax.tree.structure(abstract_state)
    return Restored(
      step, jax.tree.unflatten(structure, values), record["extra"]
    )


def save_tree(
  path: str | os.PathLike,
  tree: Any,
  extra: Mapping[str, Any] | None = None,
) -> None:
  """Saves what a stage leaves behind, such as the weights of a policy.

  Args:
    path: a folder; a tree saved there before is replaced once this one is
      whole.
    tree: pytree of arrays.
    extra: JSON-like dict kept beside it.

  Raises:
    CheckpointError: if the folder cannot be written.
  """
  with Checkpoints(path, keep_latest=1) as checkpoints:
    step = max(checkpoints.steps(), default=-1) + 1
    checkpoints.save(step, tree, extra)


def load_tree(path: str | os.PathLike, abstract_tree: Any) -> Any:
  """Loads what `save_tree` saved, exactly.

  Args:
    path: the folder.
    abstract_tree: pytree of arrays or of `jax.ShapeDtypeStruct` with the
      shardings to restore to.

  Returns:
    The tree.

  Raises:
    CheckpointError: if the folder holds no such tree, or a damaged one.
  """
  missing = f"There is no saved tree in {os.fspath(path)}."
  if not pathlib.Path(path).is_dir():
    raise CheckpointError(missing)
  with Checkpoints(path, keep_latest=1) as checkpoints:
    restored = checkpoints.restore_latest(abstract_tree)
  if restored is None:
    raise CheckpointError(missing)
  return restored.state


class _DamageError(Exception):
  """Files of a checkpoint are missing, cut or altered."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides the progress notes Orbax sends to absl's logger."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(level)


@contextlib.contextmanager
def _damage_from_errors() -> Iterator[None]:
  """Turns whatever reading a broken file raises into `_DamageError`."""
  try:
    with _quiet():
      yield
  # Orbax and TensorStore raise OSError, ValueError, KeyError and bare
  # Exception for files they cannot read.
  except Exception as error:
    raise _DamageError(f"unreadable ({type(error).__name__})") from error
