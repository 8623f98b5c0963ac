"""How a script ends where it cannot go on: in a sentence, with a status."""

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator

import jax
from run_settings import ConfigError

from pure_jax.host import full_disk, interrupts, peers
from pure_jax.host.checkpoint import CheckpointError
from pure_jax.host.contract import TokenizerError
from pure_jax.host.data.records import DataError
from pure_jax.host.grading_pool import PoolError
from pure_jax.host.huggingface import HuggingFaceError
from pure_jax.host.metrics import MetricsError
from pure_jax.host.processes import ProcessesError
from pure_jax.host.responses import ResponsesError
from pure_jax.host.workdir import WorkdirError

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
  ResponsesError,
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
  peers.leave(status)


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
    print(f"error: {error}", file=sys.stderr)
    peers.leave(1)
  except KeyboardInterrupt:
    print("stopped; the same command continues", file=sys.stderr)
    peers.leave(130)  # What a shell says of a program that SIGINT ended.
  except interrupts.Preempted as preempted:
    print(preempted, file=sys.stderr)
    _leave_stopped(interrupts.SAVED_STATUS)
  except interrupts.Terminated:
    print(
      "stopped by SIGTERM where nothing was to be saved; the same command "
      "continues",
      file=sys.stderr,
    )
    _leave_stopped(interrupts.TERMINATED_STATUS)
  except Exception as error:
    refusal = _refusal(error)
    if refusal is not None:
      todo = "put that right" if error.errno in _REFUSALS else "make room"
      print(
        f"error: {refusal}: {error.filename or 'a file of the run'}. What was "
        f"saved is intact: {todo}, and the same command continues.",
        file=sys.stderr,
      )
      peers.leave(1)
    if not jax.distributed.is_initialized():
      raise
    traceback.print_exc()
    peers.leave(1)
