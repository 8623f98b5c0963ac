"""SIGTERM and Ctrl-C: when they take effect, and how a loop stops for them.

Importing this module changes no signal handler, so a program that uses the
library keeps its own. A script opts in with `raise_on_sigterm`.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Exit status of a run that SIGTERM stopped after it saved its state: sysexits'
# EX_TEMPFAIL, "try again later".
PREEMPTED_STATUS = 75
# Exit status that a shell reports for a program ended by SIGTERM.
TERMINATED_STATUS = 143


class Terminated(BaseException):
  """SIGTERM came while there was no step to finish and no state to save."""


class Preempted(Exception):  # noqa: N818 -- a requested stop is no error
  """SIGTERM came, and the current step is finished and saved."""


class StopRequest:
  """Records whether SIGTERM or Ctrl-C has come since a loop began."""

  def __init__(self):
    """Starts without a request."""
    self._received = False
    self._interrupted = False

  def handle_signal(self, number: int, frame: Any) -> None:
    """Records the request; used as a signal handler."""
    del number, frame
    self._received = True

  def handle_interrupt(self, number: int, frame: Any) -> None:
    """Records Ctrl-C; used as a signal handler. A second Ctrl-C raises.

    Raised at once, KeyboardInterrupt can be lost: Python ignores exceptions in
    callbacks of its garbage collector, and jax has one.
    """
    del number, frame
    if self._interrupted:
      raise KeyboardInterrupt
    self._interrupted = True

  def raise_if_interrupted(self) -> None:
    """Raises KeyboardInterrupt if Ctrl-C has come."""
    if self._interrupted:
      raise KeyboardInterrupt

  def requested(self) -> bool:
    """Returns whether any process of the run received SIGTERM.

    Every process must call it after the same step, so that all of them stop
    there.

    Raises:
      KeyboardInterrupt: if this process received Ctrl-C.
    """
    self.raise_if_interrupted()
    if jax.process_count() == 1:
      return self._received
    received = multihost_utils.process_allgather(np.array(self._received))
    return bool(received.any())


def _raise_terminated(number: int, frame: Any) -> None:
  """Raises on the first signal and ignores later ones during the cleanup."""
  del frame
  signal.signal(number, _ignore)
  raise Terminated


def _ignore(number: int, frame: Any) -> None:
  del number, frame


def _is_main_thread() -> bool:
  return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
  """Turns SIGTERM into an exception, as Python does for Ctrl-C.

  The exception unwinds the stack, so files are closed. Nothing changes outside
  the main thread, or if the program already handles SIGTERM.

  Raises:
    Terminated: when SIGTERM comes outside `graceful_shutdown`.
  """
  default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  if not _is_main_thread() or not default:
    yield
    return
  signal.signal(signal.SIGTERM, _raise_terminated)
  try:
    yield
  except Exception as error:
    # The interrupted code may have turned Terminated into another error.
    if signal.getsignal(signal.SIGTERM) is _ignore:
      raise Terminated from error
    raise
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def graceful_shutdown() -> Iterator[StopRequest]:
  """Lets a loop finish its current step after SIGTERM or Ctrl-C.

  After SIGTERM the loop saves the step. After Ctrl-C it ends without a save; a
  second Ctrl-C ends it within the step.

  It needs an enclosing `raise_on_sigterm`. A loop that takes too long to reach
  its next check is killed by the sender's SIGKILL; its last checkpoint
  survives that.

  Yields:
    The request that the loop checks after each step.

  Raises:
    KeyboardInterrupt: at the end, if Ctrl-C came after the last check.
    Terminated: at the start, if an earlier SIGTERM was swallowed.
  """
  stop = StopRequest()
  handler = signal.getsignal(signal.SIGTERM)
  if _is_main_thread() and handler is _ignore:
    raise Terminated
  if not _is_main_thread() or handler is not _raise_terminated:
    yield stop
    return
  signal.signal(signal.SIGTERM, stop.handle_signal)
  interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
  if interrupts:
    signal.signal(signal.SIGINT, stop.handle_interrupt)
  try:
    yield stop
  finally:
    signal.signal(signal.SIGTERM, _raise_terminated)
    if interrupts:
      signal.signal(signal.SIGINT, signal.default_int_handler)
  stop.raise_if_interrupted()


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
  """Delays Ctrl-C and SIGTERM until the enclosed code has finished.

  Otherwise Python raises in the middle of any statement of the main thread,
  and an interrupted save makes Orbax complain at exit about a closed event
  loop. Nothing changes in other threads, or for a signal that the program
  handles itself.

  Raises:
    KeyboardInterrupt: at the end, if Ctrl-C came meanwhile.
    Terminated: at the end, if SIGTERM came meanwhile.
  """
  if not _is_main_thread():
    yield
    return
  handlers = {
    number: handler
    for number, handler in (
      (signal.SIGINT, signal.default_int_handler),
      (signal.SIGTERM, _raise_terminated),
    )
    if signal.getsignal(number) is handler
  }
  received = []
  for number in handlers:
    signal.signal(number, lambda number, frame: received.append(number))
  try:
    yield
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
  for number in received:
    signal.raise_signal(number)
