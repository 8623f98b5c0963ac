"""SIGTERM and Ctrl-C: when they take effect, and how a loop stops for them.

Importing this module changes no signal handler, so a program that uses the
library keeps its own. A script opts in with `raise_on_sigterm` and
`raise_on_ctrl_c`.

The exception that a handler raises can be lost: Python ignores exceptions in
callbacks of its garbage collector, of which jax has one, and a library may
catch all of them. So the handler also notes the signal: it installs `_ignore`
in its own place. `raise_received`, which loops call, raises for a noted signal.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Exit status of a run that SIGTERM stopped after it saved its state: sysexits'
# EX_TEMPFAIL, "try again later".
PREEMPTED_STATUS = 75
# Exit status that a shell reports for a program ended by SIGTERM.
TERMINATED_STATUS = 143
# Exit status that a shell reports for a program ended by Ctrl-C.
INTERRUPTED_STATUS = 130


class Terminated(BaseException):
  """SIGTERM came while there was no step to finish and no state to save."""


class Preempted(Exception):  # noqa: N818 -- a requested stop is no error
  """SIGTERM came, and the current step is finished and saved."""


_EXCEPTIONS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def _raise_once(number: int, frame: Any) -> None:
  """Raises on the first signal; later ones must not interrupt the cleanup."""
  del frame
  signal.signal(number, _ignore)
  raise _EXCEPTIONS[number]


def _note(number: int, frame: Any) -> None:
  """Notes the first signal, for `raise_received`."""
  del frame
  signal.signal(number, _ignore)


def _ignore(number: int, frame: Any) -> None:
  """Handles a signal that has come before: does nothing."""
  del number, frame


def _is_main_thread() -> bool:
  return threading.current_thread() is threading.main_thread()


def raise_received() -> None:
  """Raises again for a signal that came and did not end the script.

  Call it in loops and between them, never in a cleanup. In another thread it
  ends what that thread does for the main one. It does nothing if the program
  handles signals itself.

  Raises:
    KeyboardInterrupt: if Ctrl-C has come.
    Terminated: if SIGTERM has come and no loop finishes a step for it.
  """
  _raise_if(_noted())


def _noted() -> list[bool]:
  """Whether each signal of `_EXCEPTIONS` has come."""
  return [signal.getsignal(number) is _ignore for number in _EXCEPTIONS]


def _raise_if(noted: Sequence[bool]) -> None:
  """Raises the exception of the first signal that has come."""
  for exception, has_come in zip(_EXCEPTIONS.values(), noted, strict=True):
    if has_come:
      raise exception


class StopRequest:
  """Records whether SIGTERM has come since a loop began."""

  def __init__(self):
    """Starts without a request."""
    self._received = False
    self._reported = False

  def handle_signal(self, number: int, frame: Any) -> None:
    """Records the request; used as a signal handler."""
    del number, frame
    self._received = True

  def requested(self) -> bool:
    """Returns whether any process of the run received SIGTERM.

    Every process must call it after the same step, so that all of them stop
    there.

    Raises:
      KeyboardInterrupt: if any process of the run received Ctrl-C.
      Terminated: if SIGTERM came to one before its loop, and was lost.
    """
    received = np.array([self._received, *_noted()])
    if jax.process_count() > 1:
      received = multihost_utils.process_allgather(received).any(axis=0)
    requested, *noted = received.tolist()
    _raise_if(noted)
    self._reported |= requested
    return requested

  def is_unreported(self) -> bool:
    """Returns whether SIGTERM came after the last call of `requested`."""
    return self._received and not self._reported


@contextlib.contextmanager
def _raise_on(number: int) -> Iterator[None]:
  """Handles a signal by `_raise_once`; raises at the end if it was lost."""
  previous = signal.signal(number, _raise_once)
  try:
    yield
  # The interrupted code may have turned the exception into another one.
  except (Exception, SystemExit) as error:
    if signal.getsignal(number) is _ignore:
      raise _EXCEPTIONS[number] from error
    raise
  finally:
    received = signal.signal(number, previous) is _ignore
  if received:
    raise _EXCEPTIONS[number]


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
  """Turns SIGTERM into an exception, as Python does for Ctrl-C.

  The exception unwinds the stack, so files are closed. Nothing changes outside
  the main thread, or if the program already handles SIGTERM.

  Raises:
    Terminated: when SIGTERM comes outside `graceful_shutdown`, and at the end
      if that was lost.
  """
  default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  if not _is_main_thread() or not default:
    yield
    return
  with _raise_on(signal.SIGTERM):
    yield


@contextlib.contextmanager
def raise_on_ctrl_c() -> Iterator[None]:
  """Raises KeyboardInterrupt for the first Ctrl-C, even if it is lost once.

  A second Ctrl-C ends the process at once, whatever code is running. Nothing
  changes outside the main thread, or if Ctrl-C is ignored, as it is in a
  background job of a shell.

  Raises:
    KeyboardInterrupt: when Ctrl-C comes outside `graceful_shutdown`, and at the
      end if that was lost.
  """
  if not _is_main_thread() or not callable(signal.getsignal(signal.SIGINT)):
    yield
    return
  with (
    _exit_on_second_ctrl_c(),
    _hide_lost_exceptions(),
    _raise_on(signal.SIGINT),
  ):
    yield


@contextlib.contextmanager
def _exit_on_second_ctrl_c() -> Iterator[None]:
  """Counts Ctrl-C in a thread.

  A handler runs only when the main thread is back in Python code, minutes later
  in a long compilation. But Python writes the number of each signal to a file
  descriptor as soon as it comes, and the thread reads it.
  """
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  threading.Thread(
    target=_exit_after_two, args=(reader,), name="Ctrl-C", daemon=True
  ).start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(previous)
    os.close(writer)  # Ends the thread.


def _exit_after_two(reader: int) -> None:
  """Ends the process after two SIGINT have been read."""
  with open(reader, "rb", buffering=0) as numbers:
    count = 0
    while number := numbers.read(1):
      count += number[0] == signal.SIGINT
      if count == 2:
        # The main thread may have locked the streams of `sys`, and may have
        # left the cursor behind a progress bar.
        os.write(2, b"\nstopped at once by a second Ctrl-C\n")
        os._exit(INTERRUPTED_STATUS)


@contextlib.contextmanager
def _hide_lost_exceptions() -> Iterator[None]:
  """Hides the stack traces of lost exceptions, which are raised again."""
  show = sys.unraisablehook

  def show_others(lost: Any) -> None:
    if lost.exc_type not in _EXCEPTIONS.values():
      show(lost)

  sys.unraisablehook = show_others
  try:
    yield
  finally:
    if sys.unraisablehook is show_others:
      sys.unraisablehook = show


@contextlib.contextmanager
def _postpone(handlers: Mapping[int, Any]) -> Iterator[None]:
  """Notes signals with these handlers, and calls the handlers at the end."""
  if not _is_main_thread():
    yield
    return
  handlers = {n: h for n, h in handlers.items() if signal.getsignal(n) is h}
  try:
    for number in handlers:
      # Exchanged in one call, so that none is lost between two.
      if signal.signal(number, _note) is _ignore:
        signal.signal(number, _ignore)
    yield
  finally:
    received = [
      number
      for number, handler in handlers.items()
      if signal.signal(number, handler) is _ignore
    ]
    for number in received:
      handlers[number](number, None)


@contextlib.contextmanager
def graceful_shutdown() -> Iterator[StopRequest]:
  """Lets a loop finish its current step after SIGTERM or Ctrl-C.

  After SIGTERM the loop saves the step. After Ctrl-C it ends without a save, at
  the next check.

  It needs an enclosing `raise_on_sigterm`, and `raise_on_ctrl_c` for Ctrl-C. A
  loop that takes too long to reach its next check is killed by the sender's
  SIGKILL; its last checkpoint survives that.

  Yields:
    The request that the loop checks after each step.

  Raises:
    KeyboardInterrupt: at the end, if Ctrl-C came; at the start, if an earlier
      one was lost.
    Terminated: at the end, if SIGTERM came after the last check; at the start,
      if an earlier one was lost.
  """
  stop = StopRequest()
  raise_received()
  with _postpone({signal.SIGINT: _raise_once}):
    handler = signal.getsignal(signal.SIGTERM)
    if not _is_main_thread() or handler is not _raise_once:
      yield stop
      return
    if signal.signal(signal.SIGTERM, stop.handle_signal) is _ignore:
      stop.handle_signal(signal.SIGTERM, None)
    try:
      yield stop
    finally:
      signal.signal(signal.SIGTERM, _raise_once)
    if stop.is_unreported():
      _raise_once(signal.SIGTERM, None)


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
  with (
    # Ctrl-C of a program that leaves it to Python, such as a notebook.
    _postpone({signal.SIGINT: signal.default_int_handler}),
    _postpone({signal.SIGINT: _raise_once, signal.SIGTERM: _raise_once}),
  ):
    yield
