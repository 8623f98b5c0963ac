"""How a script ends after an error or a signal: a message and a status."""

import contextlib
import errno
import os
import signal
from collections.abc import Iterator

import jax

from pure_jax.host.checkpoints import integrity
from pure_jax.host.checkpoints.checkpointer import CheckpointError
from pure_jax.host.data.records import DataError
from pure_jax.host.distributed import preemption, watchdog
from pure_jax.host.distributed.processes import (
  ProcessesError,
  exit_immediately,
)
from pure_jax.host.evaluation.alarms import AlarmError
from pure_jax.host.evaluation.record_file import RecordFileError
from pure_jax.host.huggingface import HuggingFaceError
from pure_jax.host.logs import console
from pure_jax.host.logs.metrics import MetricsError
from pure_jax.host.text.tokenization import TokenizerError
from pure_jax.host.workers.pool import PoolError
from pure_jax.runs.memory import exhausted
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.workdir import WorkdirError

# Errors in the user's input, or in a file of the run. Their messages say what
# to do, so no stack trace is printed.
USER_ERRORS = (
  ConfigError,
  CheckpointError,
  MetricsError,
  DataError,
  HuggingFaceError,
  PoolError,
  ProcessesError,
  RecordFileError,
  TokenizerError,
  WorkdirError,
  FloatingPointError,
  AlarmError,
)
# Errors of a file system that was removed, or that denies access.
_ACCESS_ERRORS = (
  *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE),
  *(errno.EISDIR, errno.ENOTDIR),
)


def _file_system_reason(error: Exception) -> str | None:
  """Returns why the file system failed, or None for a fault of the program."""
  if not isinstance(error, OSError):
    return None
  if error.errno in _ACCESS_ERRORS:
    return os.strerror(error.errno)
  return integrity.disk_full_reason(error)


def _exit_after_sigterm(status: int) -> None:
  """Ends the program; some senders repeat SIGTERM, which is now ignored."""
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  exit_immediately("", status)


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
  """Ends the program with a message and a status if the enclosed code fails.

  A fault of the program keeps its stack trace. One of several processes ends
  at once: a regular exit would wait for processes that wait for it. So does a
  process after a signal, which may have left a compilation to a thread of XLA:
  a regular exit would wait minutes for it, or crash.

  Yields:
    Nothing.
  """
  try:
    yield
  except USER_ERRORS as error:
    # A library's error may be wrapped with advice for another cause.
    console.tell(f"error: {exhausted.explain(error) or error}")
    watchdog.exit_process(1)
  except KeyboardInterrupt:
    console.tell("stopped; the same command continues")
    exit_immediately("", preemption.INTERRUPTED_STATUS)
  except preemption.Preempted as preempted:
    console.tell(preempted)
    _exit_after_sigterm(preemption.PREEMPTED_STATUS)
  except preemption.Terminated:
    console.tell(
      "stopped by SIGTERM where nothing was to be saved; the same command "
      "continues"
    )
    _exit_after_sigterm(preemption.TERMINATED_STATUS)
  except Exception as error:
    reason = _file_system_reason(error)
    if reason is not None:
      advice = (
        "put that right" if error.errno in _ACCESS_ERRORS else "make room"
      )
      console.tell(
        f"error: {reason}: {error.filename or 'a file of the run'}. What was "
        f"saved is intact: {advice}, and the same command continues."
      )
      watchdog.exit_process(1)
    reason = exhausted.explain(error)
    if reason is not None:
      console.tell(f"error: {reason}")
      watchdog.exit_process(1)
    if not jax.distributed.is_initialized():
      raise
    console.tell_traceback(type(error), error, error.__traceback__)
    watchdog.exit_process(1)
