"""How a script ends where it cannot go on: in a sentence, with a status."""

import contextlib
import errno
import os
import signal
import traceback
from collections.abc import Iterator

import jax

from pure_jax.host.checkpoints import full_disk
from pure_jax.host.checkpoints.manager import CheckpointError
from pure_jax.host.data.records import DataError
from pure_jax.host.distributed import preemption, watchdog
from pure_jax.host.distributed.processes import ProcessesError
from pure_jax.host.evaluation.record_file import RecordFileError
from pure_jax.host.grading.pool import PoolError
from pure_jax.host.huggingface import HuggingFaceError
from pure_jax.host.logs import console
from pure_jax.host.logs.metrics import MetricsError
from pure_jax.host.text.tokenization import TokenizerError
from pure_jax.runs.settings.run import ConfigError
from pure_jax.runs.workdir import WorkdirError

# What is wrong with what the user gave, or found on the way. The message says
# all there is to say.
EXPECTED = (
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
)
# What a system says of files that it took away, or does not give.
_REFUSALS = (
  *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE),
  *(errno.EISDIR, errno.ENOTDIR),
)


def _refusal(error: Exception) -> str | None:
  """Why a file could not be written or read, where that is no fault of ours."""
  if not isinstance(error, OSError):
    return None
  if error.errno in _REFUSALS:
    return os.strerror(error.errno)
  return full_disk.reason(error)


def _leave_stopped(status: int) -> None:
  """Ends the program after SIGTERM, of which some senders send several."""
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  watchdog.leave(status)


@contextlib.contextmanager
def in_a_sentence() -> Iterator[None]:
  """Ends the program where what is inside cannot go on.

  A fault of the program is shown as Python does. One of several processes ends
  at once, for at exit it would wait for those that wait for it.

  Yields:
    Nothing.
  """
  try:
    yield
  except EXPECTED as error:
    console.tell(f"error: {error}")
    watchdog.leave(1)
  except KeyboardInterrupt:
    console.tell("stopped; the same command continues")
    watchdog.leave(130)  # What a shell says of a program that SIGINT ended.
  except preemption.Preempted as preempted:
    console.tell(preempted)
    _leave_stopped(preemption.SAVED_STATUS)
  except preemption.Terminated:
    console.tell(
      "stopped by SIGTERM where nothing was to be saved; the same command "
      "continues"
    )
    _leave_stopped(preemption.TERMINATED_STATUS)
  except Exception as error:
    refusal = _refusal(error)
    if refusal is not None:
      todo = "put that right" if error.errno in _REFUSALS else "make room"
      console.tell(
        f"error: {refusal}: {error.filename or 'a file of the run'}. What was "
        f"saved is intact: {todo}, and the same command continues."
      )
      watchdog.leave(1)
    if not jax.distributed.is_initialized():
      raise
    traceback.print_exc()
    watchdog.leave(1)
