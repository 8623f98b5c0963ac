"""Ctrl-C and SIGTERM where something must first come to its end.

Nothing here is in force unless asked for: a program that imports the library
keeps its own handlers.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Exit statuses. The first is sysexits' "try again later": all is saved. The
# second is what a shell says of a program that SIGTERM ended.
SAVED_STATUS = 75
TERMINATED_STATUS = 143


class Terminated(BaseException):
  """SIGTERM came where there was nothing to bring to an end."""


class Preempted(Exception):  # noqa: N818 -- no error: what was asked for
  """SIGTERM came, and what was under way is finished and saved."""


class StopRequest:
  """Whether SIGTERM has come since a loop began."""

  def __init__(self):
    """It has not."""
    self._came = False

  def note(self, number: int, frame: Any) -> None:
    """Keeps in mind that it has; more of them change nothing.

    Args:
      number: of the signal.
      frame: where the program was.
    """
    del number, frame
    self._came = True

  def asked(self) -> bool:
    """Whether to stop here: whether any process was asked to.

    Where there are several processes they all must call it together, for
    they must all stop after the same step.
    """
    if jax.process_count() == 1:
      return self._came
    return bool(multihost_utils.process_allgather(np.array(self._came)).any())


def _terminate(number: int, frame: Any) -> None:
  """Raises once: what is torn down after it must not be torn again."""
  del frame
  signal.signal(number, _ignore)
  raise Terminated


def _ignore(number: int, frame: Any) -> None:
  del number, frame


@contextlib.contextmanager
def terminable() -> Iterator[None]:
  """Makes SIGTERM an exception, as Ctrl-C is, so that files are closed.

  Does nothing outside the main thread, or where SIGTERM is not left to its
  default.

  Yields:
    Nothing.

  Raises:
    Terminated: when SIGTERM comes, but inside `graceful_shutdown`.
  """
  in_main = threading.current_thread() is threading.main_thread()
  if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
    yield
    return
  signal.signal(signal.SIGTERM, _terminate)
  try:
    yield
  except Exception as error:
    # Whatever was running may have made another error of it.
    if signal.getsignal(signal.SIGTERM) is _ignore:
      raise Terminated from error
    raise
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def graceful_shutdown() -> Iterator[StopRequest]:
  """Lets a loop finish its step and save it when SIGTERM comes.

  In force inside `terminable` alone. A loop that takes too long to ask is
  killed in the end, which its last checkpoint survives as well.

  Yields:
    What the loop asks after each step.

  Raises:
    Terminated: at the beginning, if SIGTERM came before and got lost.
  """
  stop = StopRequest()
  in_main = threading.current_thread() is threading.main_thread()
  handler = signal.getsignal(signal.SIGTERM)
  if in_main and handler is _ignore:
    raise Terminated  # It came before, and whatever was running ate it.
  if not in_main or handler is not _terminate:
    yield stop
    return
  signal.signal(signal.SIGTERM, stop.note)
  try:
    yield stop
  finally:
    signal.signal(signal.SIGTERM, _terminate)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
  """Lets what is inside come to its end before a signal takes effect.

  Python raises KeyboardInterrupt in the middle of any statement of the main
  thread, and `terminable` does so for SIGTERM. Orbax, torn out of a save so,
  complains at exit of a closed event loop. Does nothing in other threads, or
  where a program handles the signal in its own way.

  Yields:
    Nothing.

  Raises:
    KeyboardInterrupt: at the end, if Ctrl-C came meanwhile.
    Terminated: at the end, if SIGTERM came meanwhile.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  raising = {
    number: handler
    for number, handler in (
      (signal.SIGINT, signal.default_int_handler),
      (signal.SIGTERM, _terminate),
    )
    if signal.getsignal(number) is handler
  }
  came = []
  for number in raising:
    signal.signal(number, lambda number, frame: came.append(number))
  try:
    yield
  finally:
    for number, handler in raising.items():
      signal.signal(number, handler)
  for number in came:
    signal.raise_signal(number)
