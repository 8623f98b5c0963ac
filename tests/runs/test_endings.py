"""A script ends with a message if it can, and with a stack trace if it must."""

import errno
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax.host.data.records import DataError
from pure_jax.host.distributed import preemption
from pure_jax.runs import exit_status
from pure_jax.runs.memory import exhausted


@pytest.mark.parametrize(
  ("number", "advice"),
  [
    (errno.ENOSPC, "make room"),
    (errno.EDQUOT, "make room"),
    # A file system that was removed, or became read-only, during a run.
    (errno.EROFS, "put that right"),
    (errno.EIO, "put that right"),
    (errno.EISDIR, "put that right"),
  ],
)
def test_an_error_of_the_file_system_is_one_line(number, advice, capsys):
  reason = os.strerror(number)
  with pytest.raises(SystemExit) as ended, exit_status.report_errors():
    raise OSError(number, reason, "/run/metrics.jsonl")
  assert ended.value.code == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"error: {reason}: /run/metrics.jsonl. ")
  assert f"{advice}, and the same command continues" in line


TERABYTES = 2**43


def raise_from_a_cause():
  """As the data sets do, whose advice is about damaged files."""
  try:
    np.zeros(TERABYTES)
  except MemoryError as error:
    raise DataError("Cannot prepare the data set: remove it.") from error


def raise_while_handling():
  """As a library does that cleans up."""
  try:
    jnp.zeros((2**20, TERABYTES // 2**20), jnp.float32)
  except jax.errors.JaxRuntimeError:
    [].pop()


@pytest.mark.parametrize(
  ("exhaust", "asked"),
  [
    (lambda: np.zeros(TERABYTES), "this machine ran out when 64.0 TiB more"),
    (lambda: [0] * 10**18, "this machine ran out. "),
    (
      lambda: jnp.zeros((2**20, TERABYTES // 2**20), jnp.float32),
      "the device ran out when 32,768.00 GiB more",
    ),
    (raise_from_a_cause, "this machine ran out when 64.0 TiB more"),
    (raise_while_handling, "the device ran out when 32,768.00 GiB more"),
  ],
)
def test_memory_that_ran_out_is_one_line(exhaust, asked, capsys):
  with pytest.raises(SystemExit) as ended, exit_status.report_errors():
    exhaust()
  assert ended.value.code == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"error: the memory of {asked}")
  assert "rl.micro_batches" in line and "rl.rollout.batches" in line
  assert "the same command continues" in line


@pytest.mark.parametrize(
  ("message", "asked"),
  [
    ("Out of memory allocating 8589934592 bytes.", "8.00 GiB"),
    ("Out of memory while trying to allocate 1073741824 bytes.", "1.00 GiB"),
    ("Failed to allocate request for 32.00GiB (34359738368B)", "32.00 GiB"),
    ("Attempting to allocate 12.50G. That was not possible.", "12.50 G"),
    ("Ran out of memory in memory space hbm. Used 20.1G of 15.5G", "20.1 G"),
    ("the pool is empty", None),
  ],
)
def test_every_backend_says_how_much_was_asked_for(message, asked):
  error = jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")
  said = "" if asked is None else f" when {asked} more were asked for"
  assert f"the device ran out{said}. " in exhausted.explain(error)


def test_a_number_that_no_array_holds_is_one_line(capsys):
  with pytest.raises(SystemExit) as ended, exit_status.report_errors():
    jnp.int32(2**31)
  assert ended.value.code == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: a whole number is too large for an array")
  assert "2147483648" in line


@pytest.mark.parametrize(
  "error",
  [
    FileNotFoundError(2, "no"),
    ValueError("x"),
    OverflowError("math range error"),
    jax.errors.JaxRuntimeError("INTERNAL: a fault of XLA"),
  ],
)
def test_a_fault_of_the_program_keeps_its_stack_trace(error):
  """Nobody could find it by one line."""
  with pytest.raises(type(error)), exit_status.report_errors():
    raise error


@pytest.fixture
def regular_exit(monkeypatch):
  """An immediate exit would end the tests."""
  monkeypatch.setattr(os, "_exit", sys.exit)


@pytest.mark.usefixtures("regular_exit")
@pytest.mark.parametrize(
  ("stop", "status"),
  [(preemption.Preempted("saved"), 75), (preemption.Terminated(), 143)],
)
def test_a_second_sigterm_does_not_change_the_status(stop, status, capsys):
  """Slurm and timeout send several: 75 asks for the run to be continued."""
  handler = signal.getsignal(signal.SIGTERM)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  try:
    with (
      pytest.raises(SystemExit) as ended,
      exit_status.report_errors(),
      preemption.raise_on_sigterm(),
    ):
      raise stop
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGTERM, handler)
  assert ended.value.code == status
  (line,) = capsys.readouterr().err.splitlines()
  assert line == "saved" or line.startswith("stopped by SIGTERM")


@pytest.mark.usefixtures("regular_exit")
def test_ctrl_c_has_the_status_that_shells_report(capsys):
  with pytest.raises(SystemExit) as ended, exit_status.report_errors():
    raise KeyboardInterrupt
  assert ended.value.code == 130
  assert capsys.readouterr().err == "stopped; the same command continues\n"
