"""Signals take effect at the end of what must not be interrupted."""

import concurrent.futures
import ctypes
import itertools
import os
import runpy
import signal
import sys
import threading
import time
from unittest import mock

import lost_signals
import numpy as np
import pytest

from pure_jax.host.distributed import preemption

EVERY_SIGNAL = pytest.mark.parametrize(
  ("number", "raised"),
  [
    (signal.SIGINT, KeyboardInterrupt),
    (signal.SIGTERM, preemption.Terminated),
  ],
)
EVERY_LOSS = pytest.mark.parametrize("lose", lost_signals.WAYS)


@pytest.fixture(autouse=True)
def default_handlers():
  """Handlers as a program starts: a shell's background job ignores Ctrl-C."""
  before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
  signal.signal(signal.SIGINT, signal.default_int_handler)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@EVERY_SIGNAL
def test_a_deferred_signal_is_raised_at_the_end(number, raised):
  done = []
  with (
    pytest.raises(raised),
    preemption.raise_on_sigterm(),
    preemption.defer_signals(),
  ):
    signal.raise_signal(number)
    done.append("all of it")
  assert done == ["all of it"]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_is_raised_once():
  """A second one, as `timeout` sends it, must not interrupt the cleanup."""
  cleaned = []
  with pytest.raises(preemption.Terminated), preemption.raise_on_sigterm():
    try:
      signal.raise_signal(signal.SIGTERM)
    finally:
      signal.raise_signal(signal.SIGTERM)
      cleaned.append(True)
  assert cleaned == [True]


def test_a_loop_finishes_its_step_after_sigterm():
  steps = []
  with preemption.raise_on_sigterm(), preemption.graceful_shutdown() as stop:
    for step in range(5):
      if step == 2:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
      steps.append(step)
      if stop.requested():
        break
  assert steps == [0, 1, 2]


@EVERY_LOSS
def test_a_loop_ends_after_the_step_in_which_ctrl_c_came(lose):
  """Even where the code that it interrupts ignores exceptions."""
  steps = []
  with (
    pytest.raises(KeyboardInterrupt),
    preemption.raise_on_ctrl_c(),
    preemption.raise_on_sigterm(),
    preemption.graceful_shutdown() as stop,
  ):
    for step in range(5):
      if step == 2:
        lose(signal.SIGINT)
      steps.append(step)
      assert not stop.requested()
  assert steps == [0, 1, 2]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_of_one_process_ends_the_loops_of_all(monkeypatch):
  """Otherwise the others would wait for it in their next collective."""

  def gather(own):
    assert own.tolist() == [False] * 3
    other = np.array([False, True, False])
    return np.stack([own, other])

  monkeypatch.setattr(preemption.jax, "process_count", lambda: 2)
  monkeypatch.setattr(preemption.multihost_utils, "process_allgather", gather)
  with pytest.raises(KeyboardInterrupt):
    preemption.StopRequest().requested()


@EVERY_LOSS
@EVERY_SIGNAL
def test_a_lost_signal_is_raised_by_the_next_check(lose, number, raised, capfd):
  done = []
  with (
    pytest.raises(raised),
    preemption.raise_on_ctrl_c(),
    preemption.raise_on_sigterm(),
  ):
    preemption.raise_received()
    lose(number)
    done.append("until the check")
    preemption.raise_received()
    done.append("after it")
  assert done == ["until the check"]
  assert capfd.readouterr().err == ""  # No "Exception ignored in".


@EVERY_LOSS
@EVERY_SIGNAL
def test_a_lost_signal_is_raised_at_the_end(lose, number, raised):
  """Otherwise the script would say that all is well."""
  with (
    pytest.raises(raised),
    preemption.raise_on_ctrl_c(),
    preemption.raise_on_sigterm(),
  ):
    lose(number)


@EVERY_LOSS
@EVERY_SIGNAL
def test_a_lost_signal_decides_how_a_script_ends(lose, number, raised):
  """absl calls sys.exit, and the error may have come from the signal."""
  for ending in (SystemExit(0), ValueError("from a callback")):
    with (
      pytest.raises(raised),
      preemption.raise_on_ctrl_c(),
      preemption.raise_on_sigterm(),
    ):
      lose(number)
      raise ending


@EVERY_LOSS
@EVERY_SIGNAL
def test_a_lost_signal_lets_no_loop_begin(lose, number, raised):
  began = []
  with (
    pytest.raises(raised),
    preemption.raise_on_ctrl_c(),
    preemption.raise_on_sigterm(),
  ):
    lose(number)
    with preemption.graceful_shutdown():
      began.append(True)
  assert not began


@EVERY_LOSS
@EVERY_SIGNAL
def test_a_lost_signal_in_a_save_is_raised_after_it(lose, number, raised):
  saved = []
  with (
    pytest.raises(raised),
    preemption.raise_on_ctrl_c(),
    preemption.raise_on_sigterm(),
    preemption.defer_signals(),
  ):
    lose(number)
    saved.append(True)
  assert saved


def _lost_at_line(moment, number, context):
  """Loses a signal before a line of `context`; whether it has as many."""
  lines = itertools.count()

  def trace(frame, event, argument):
    del argument
    if frame.f_code.co_filename != preemption.__file__:
      return None
    if event == "line" and next(lines) == moment:
      lost_signals.in_code_that_swallows(number)
    return trace

  before = sys.gettrace()
  sys.settrace(trace)
  try:
    with context():
      pass
  finally:
    sys.settrace(before)
  return next(lines) > moment


@pytest.mark.parametrize(
  "context", [preemption.graceful_shutdown, preemption.defer_signals]
)
@EVERY_SIGNAL
def test_a_signal_lost_while_handlers_change_is_raised(context, number, raised):
  moments = itertools.count()
  lost = True
  while lost:
    moment = next(moments)
    try:
      with preemption.raise_on_ctrl_c(), preemption.raise_on_sigterm():
        lost = _lost_at_line(moment, number, context)
      assert not lost, moment
    except raised:
      pass
  assert moment > 20


def test_the_cleanup_after_ctrl_c_is_not_interrupted_by_the_same():
  """A save that is waited for, while KeyboardInterrupt unwinds the stack."""
  done = []
  with pytest.raises(KeyboardInterrupt), preemption.raise_on_ctrl_c():
    try:
      signal.raise_signal(signal.SIGINT)
    finally:
      with preemption.defer_signals():
        done.append("waited")
      done.append("closed")
  assert done == ["waited", "closed"]


def test_a_check_in_another_thread_ends_its_work_too():
  """Otherwise the main thread would wait for it."""
  with (
    pytest.raises(KeyboardInterrupt),
    preemption.raise_on_ctrl_c(),
    concurrent.futures.ThreadPoolExecutor(1) as threads,
  ):
    lost_signals.in_code_that_swallows(signal.SIGINT)
    work = threads.submit(preemption.raise_received)
  assert isinstance(work.exception(), KeyboardInterrupt)


def test_a_second_ctrl_c_ends_a_loop(capfd):
  """Which otherwise waits for the end of the step."""
  ended = threading.Event()
  with (
    mock.patch.object(os, "_exit", lambda status: ended.set()),
    pytest.raises(KeyboardInterrupt),
    preemption.raise_on_ctrl_c(),
    preemption.raise_on_sigterm(),
    preemption.graceful_shutdown(),
  ):
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert not ended.wait(0.1)
    signal.raise_signal(signal.SIGINT)
    assert ended.wait(60)
  assert capfd.readouterr().err == "\nstopped at once by a second Ctrl-C\n"


def test_a_second_ctrl_c_ends_code_that_does_not_return_to_python():
  """Such as a long compilation: here a mutex that is locked twice."""
  library, mutex = ctypes.CDLL(None), (ctypes.c_char * 256)()
  in_a_minute = (ctypes.c_long * 2)(int(time.time()) + 60, 0)
  statuses = []

  def end(status):
    statuses.append(status)
    library.pthread_mutex_unlock(mutex)

  def press():
    for _ in range(2):
      time.sleep(0.05)
      assert not statuses
      os.kill(os.getpid(), signal.SIGINT)

  library.pthread_mutex_lock(mutex)
  with (
    mock.patch.object(os, "_exit", end),
    pytest.raises(KeyboardInterrupt),
    preemption.raise_on_ctrl_c(),
  ):
    threading.Thread(target=press).start()
    library.pthread_mutex_timedlock(mutex, in_a_minute)
  assert statuses == [130]


def test_ctrl_c_that_a_shell_ignores_stays_ignored():
  """A background job, whose terminal interrupts another one."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with preemption.raise_on_ctrl_c(), preemption.defer_signals():
    signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_script_leaves_no_trace_in_the_process():
  hook, descriptor = sys.unraisablehook, signal.set_wakeup_fd(-1)
  before = set(threading.enumerate())  # Others may be about to end.
  with preemption.raise_on_ctrl_c():
    (thread,) = set(threading.enumerate()) - before
  thread.join(60)
  assert not thread.is_alive()
  assert sys.unraisablehook is hook
  assert descriptor == signal.set_wakeup_fd(-1) == -1
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_after_the_last_check_of_a_loop_is_raised_at_its_end():
  """The next stage would begin without it."""
  with (
    pytest.raises(preemption.Terminated),
    preemption.raise_on_sigterm(),
    preemption.graceful_shutdown() as stop,
  ):
    assert not stop.requested()
    signal.raise_signal(signal.SIGTERM)


def test_sigterm_outside_a_loop_is_raised_at_once():
  with pytest.raises(preemption.Terminated), preemption.raise_on_sigterm():
    with preemption.graceful_shutdown() as stop:
      with preemption.graceful_shutdown() as inner:
        signal.raise_signal(signal.SIGTERM)
      # The outer loop alone stops.
      assert stop.requested() and not inner.requested()
    signal.raise_signal(signal.SIGTERM)


def test_sigterm_that_other_code_turns_into_its_own_error_stays_sigterm():
  """A library that calls back may wrap it and say that it failed."""
  with pytest.raises(preemption.Terminated), preemption.raise_on_sigterm():
    try:
      signal.raise_signal(signal.SIGTERM)
    except BaseException as error:
      raise ValueError("cannot train the tokenizer") from error


def test_an_unrelated_error_is_unchanged():
  with pytest.raises(ValueError, match="own"), preemption.raise_on_sigterm():
    raise ValueError("own")


def test_a_program_keeps_its_own_handler():
  received = []

  def handler(number, frame):
    received.append(number)

  signal.signal(signal.SIGTERM, handler)
  with preemption.raise_on_sigterm(), preemption.graceful_shutdown() as stop:
    with preemption.defer_signals():
      signal.raise_signal(signal.SIGTERM)
      assert received == [signal.SIGTERM]
    assert not stop.requested()
  assert signal.getsignal(signal.SIGTERM) is handler


def test_importing_changes_no_handler():
  numbers = (signal.SIGINT, signal.SIGTERM)
  before = [signal.getsignal(number) for number in numbers]
  runpy.run_path(preemption.__file__)
  assert [signal.getsignal(number) for number in numbers] == before
