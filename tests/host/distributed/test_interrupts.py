"""Signals that come in the middle of something take effect at its end."""

import contextlib
import signal
import subprocess
import sys
import textwrap

import pytest

from pure_jax.host.distributed import preemption


@pytest.fixture(autouse=True)
def own_handlers():
  """As a program starts; a shell's background job ignores Ctrl-C."""
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
def test_held_back_until_the_end(number, raised):
  done = []
  with (
    preemption.terminable(),
    pytest.raises(raised),
    preemption.defer_signals(),
  ):
    signal.raise_signal(number)
    done.append("all of it")
  assert done == ["all of it"]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_is_raised_once():
  """A second one, as `timeout` sends it, must not tear the cleaning up."""
  cleaned = []
  with preemption.terminable(), pytest.raises(preemption.Terminated):
    try:
      signal.raise_signal(signal.SIGTERM)
    finally:
      signal.raise_signal(signal.SIGTERM)
      cleaned.append(True)
  assert cleaned == [True]


def test_a_loop_finishes_its_step_whatever_comes():
  steps = []
  with preemption.terminable(), preemption.graceful_shutdown() as stop:
    for step in range(5):
      if step == 2:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
      steps.append(step)
      if stop.asked():
        break
  assert steps == [0, 1, 2]


def test_a_signal_before_the_loop_does_not_wait_for_it():
  with (
    pytest.raises(preemption.Terminated),
    preemption.terminable(),
    preemption.graceful_shutdown() as stop,
  ):
    assert not stop.asked()
    with preemption.graceful_shutdown():  # A loop in a loop has no say.
      pass
    signal.signal(signal.SIGTERM, preemption._terminate)
    signal.raise_signal(signal.SIGTERM)


def test_sigterm_that_other_code_turns_into_its_own_error_is_no_error():
  """As a library does that calls back: its message would say it failed."""
  with pytest.raises(preemption.Terminated), preemption.terminable():
    try:
      signal.raise_signal(signal.SIGTERM)
    except BaseException as error:
      raise ValueError("cannot train the tokenizer") from error


def test_sigterm_that_other_code_swallows_is_not_forgotten():
  begun = []
  with pytest.raises(preemption.Terminated), preemption.terminable():
    with contextlib.suppress(BaseException):
      signal.raise_signal(signal.SIGTERM)
    with preemption.graceful_shutdown():
      begun.append(True)
  assert not begun


def test_another_error_stays_itself():
  with pytest.raises(ValueError, match="mine"), preemption.terminable():
    raise ValueError("mine")


def test_a_program_keeps_its_own_handler():
  came = []

  def own(number, frame):
    came.append(number)

  signal.signal(signal.SIGTERM, own)
  with preemption.terminable(), preemption.graceful_shutdown() as stop:
    with preemption.defer_signals():
      signal.raise_signal(signal.SIGTERM)
      assert came == [signal.SIGTERM]
    assert not stop.asked()
  assert signal.getsignal(signal.SIGTERM) is own


def test_importing_changes_no_handler():
  script = textwrap.dedent(
    """
    import signal
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    from pure_jax.host.distributed import preemption as interrupts
    from pure_jax.host.checkpoints import manager as checkpoint
    after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert before == after
    """
  )
  subprocess.run([sys.executable, "-c", script], check=True)
