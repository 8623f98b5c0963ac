"""Signals take effect at the end of what must not be interrupted."""

import contextlib
import runpy
import signal

import pytest

from pure_jax.host.distributed import preemption


@pytest.fixture(autouse=True)
def default_handlers():
  """Handlers as a program starts: a shell's background job ignores Ctrl-C."""
  before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
  signal.signal(signal.SIGINT, signal.default_int_handler)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize(
  ("number", "raised"),
  [
    (signal.SIGINT, KeyboardInterrupt),
    (signal.SIGTERM, preemption.Terminated),
  ],
)
def test_a_deferred_signal_is_raised_at_the_end(number, raised):
  done = []
  with (
    preemption.raise_on_sigterm(),
    pytest.raises(raised),
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
  with preemption.raise_on_sigterm(), pytest.raises(preemption.Terminated):
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


def test_a_loop_ends_after_the_step_in_which_ctrl_c_came():
  """Even where the code that it interrupts ignores exceptions."""
  steps = []
  with (
    preemption.raise_on_sigterm(),
    pytest.raises(KeyboardInterrupt),
    preemption.graceful_shutdown() as stop,
  ):
    for step in range(5):
      with contextlib.suppress(BaseException):
        if step == 2:
          signal.raise_signal(signal.SIGINT)
      steps.append(step)
      assert not stop.requested()
  assert steps == [0, 1, 2]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_the_step():
  done = []
  with (
    preemption.raise_on_sigterm(),
    pytest.raises(KeyboardInterrupt),
    preemption.graceful_shutdown(),
  ):
    signal.raise_signal(signal.SIGINT)
    done.append("after the first")
    signal.raise_signal(signal.SIGINT)
    done.append("after the second")
  assert done == ["after the first"]


def test_ctrl_c_after_the_last_check_is_raised_at_the_end():
  with (
    preemption.raise_on_sigterm(),
    pytest.raises(KeyboardInterrupt),
    preemption.graceful_shutdown() as stop,
  ):
    assert not stop.requested()
    signal.raise_signal(signal.SIGINT)


def test_sigterm_outside_a_loop_is_raised_at_once():
  with preemption.raise_on_sigterm(), pytest.raises(preemption.Terminated):
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


def test_sigterm_that_other_code_swallows_ends_the_next_loop():
  started = []
  with pytest.raises(preemption.Terminated), preemption.raise_on_sigterm():
    with contextlib.suppress(BaseException):
      signal.raise_signal(signal.SIGTERM)
    with preemption.graceful_shutdown():
      started.append(True)
  assert not started


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
