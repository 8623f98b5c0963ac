"""Options of Orbax: names and preservation of checkpoints, and its logging."""

import contextlib
import dataclasses
import datetime
import functools
import logging
import pathlib
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_manager import CheckpointInfo
from orbax.checkpoint.checkpoint_managers import (
  AnyPreservationPolicy,
  BestN,
  LatestN,
  PreservationContext,
  PreservationPolicy,
)
from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from pure_jax.host.checkpoints.record import CheckpointMetrics

_INCOMPLETE = re.compile(rf"[0-9]+{re.escape(TMP_DIR_SUFFIX)}.*")


def preservation_policy(
  keep_latest: int,
  best_metric: str | None,
  metrics_of: Callable[[int], CheckpointMetrics],
) -> PreservationPolicy:
  """Preserves the newest checkpoint, the latest regular ones and the best one.

  An interim checkpoint, which a preempted run leaves between two regular ones,
  is preserved while it is the newest. It does not count as regular: the
  checkpoints of a run do not depend on how often it was preempted.

  Args:
    keep_latest: how many of the newest regular checkpoints are preserved.
    best_metric: name of a metric; the checkpoint with its largest value is
      preserved, the later one if two are equal. None ranks no checkpoint.
    metrics_of: step -> metrics of its checkpoint.
  """

  def regular(step: int) -> Mapping[str, float] | None:
    metrics = metrics_of(step)
    return None if metrics.interim else metrics.values

  def ranked(step: int) -> Mapping[str, float] | None:
    values = metrics_of(step).values
    return values if best_metric in values else None

  best = BestN(get_metric_fn=lambda values: values[best_metric], n=1)
  return AnyPreservationPolicy(
    [
      LatestN(1),
      _SubsetPolicy(LatestN(keep_latest), regular),
      _SubsetPolicy(best, ranked),
    ]
  )


def superseded(policy: PreservationPolicy, steps: Sequence[int]) -> list[int]:
  """Returns the steps whose checkpoints a policy does not preserve.

  Args:
    policy: result of `preservation_policy`.
    steps: the steps of all checkpoints, ascending.
  """
  infos = [CheckpointInfo(step, datetime.datetime.min, None) for step in steps]
  decisions = policy.should_preserve(infos, context=PreservationContext())
  return [s for s, keep in zip(steps, decisions, strict=True) if not keep]


def is_incomplete(path: pathlib.Path) -> bool:
  """Whether a path is a checkpoint being written, or one never completed.

  Args:
    path: any file or folder; only its name counts.
  """
  return _INCOMPLETE.fullmatch(path.name) is not None


@dataclasses.dataclass(frozen=True)
class _SubsetPolicy:
  """Applies a policy to some checkpoints only, with the metrics of our record.

  Orbax's own metrics file would do for an undamaged folder. But Orbax reads it
  when it opens the folder, and a damaged one makes the whole folder unusable.

  Attributes:
    policy: Orbax's.
    metrics_of: step -> metrics handed to the policy, or None to leave the
      checkpoint out.
  """

  policy: PreservationPolicy
  metrics_of: Callable[[int], Mapping[str, float] | None]

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: PreservationContext
  ) -> list[bool]:
    """Implements Orbax's protocol; `checkpoints` are ascending by step."""
    subset = [
      dataclasses.replace(info, metrics=metrics)
      for info in checkpoints
      if (metrics := self.metrics_of(info.step)) is not None
    ]
    decisions = self.policy.should_preserve(subset, context=context)
    preserved = {
      info.step for info, keep in zip(subset, decisions, strict=True) if keep
    }
    return [info.step in preserved for info in checkpoints]


class _StepFolder(ocp.path.step.Metadata):
  """The folder of a step, whose time is that of the folder."""

  @property
  def commit_timestamp_nsecs(self) -> None:
    """None, so that `commit_timestamp` asks the file system."""
    return


class StepNames:
  """Orbax's standard names of the folders of steps: 0, 1, 2 ...

  Orbax's own class reads a time from a file of every step, and one damaged file
  makes all steps unusable. This class reads none: nothing needs the time.
  """

  def __init__(self):
    self._standard = ocp.path.step.standard_name_format()

  def build_name(self, step: int) -> str:
    """Implements Orbax's protocol."""
    return self._standard.build_name(step)

  def find_all(self, base_path: Any) -> Iterator[_StepFolder]:
    """Implements Orbax's protocol."""
    for folder in self._standard.find_all(base_path):
      yield _StepFolder(folder.step, folder.path)

  def find_step(self, base_path: Any, step: int) -> _StepFolder:
    """Implements Orbax's protocol."""
    folder = self._standard.find_step(base_path, step)
    return _StepFolder(folder.step, folder.path)


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
  """Hides the messages of Orbax in absl's logger, including its threads'.

  It logs progress, and stack traces of errors that it raises as well.
  """

  def is_not_orbax(record: logging.LogRecord) -> bool:
    # A filter of this call only, which another call does not remove.
    return _is_not_orbax(record)

  _hide_traces_of_threads()
  logger = logging.getLogger("absl")
  logger.addFilter(is_not_orbax)
  try:
    yield
  finally:
    logger.removeFilter(is_not_orbax)


def hide_abandoned_writes() -> None:
  """Hides, from now on, the errors of writes that nobody waits for any more.

  After one write of a checkpoint has failed and its error was raised, the
  other writes fail for the same reason. Each would log a stack trace, possibly
  after the folder was closed.
  """
  logging.getLogger("absl").addFilter(_is_not_orbax)
  logging.getLogger("asyncio").addFilter(_is_not_abandoned)


def _is_not_orbax(record: logging.LogRecord) -> bool:
  return "orbax" not in pathlib.Path(record.pathname).parts


def _is_not_abandoned(record: logging.LogRecord) -> bool:
  return "exception was never retrieved" not in record.getMessage()


@functools.cache
def _hide_traces_of_threads() -> None:
  """Hides, once and for good, stack traces of errors that are raised as well.

  When a write fails, Orbax's threads print the error that they raise again in
  the waiting thread. TensorStore's callbacks then print that an event loop is
  closed.
  """
  thread_hook, unraisable_hook = threading.excepthook, sys.unraisablehook

  def filtered_thread_hook(args: Any) -> None:
    if not type(args.thread).__module__.startswith("orbax."):
      thread_hook(args)

  def filtered_unraisable_hook(args: Any) -> None:
    error = f"{args.exc_type.__name__}: {args.exc_value}"
    if error != "RuntimeError: Event loop is closed":
      unraisable_hook(args)

  threading.excepthook = filtered_thread_hook
  sys.unraisablehook = filtered_unraisable_hook
