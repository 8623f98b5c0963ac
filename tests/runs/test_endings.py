"""A script ends with a message if it can, and with a stack trace if it must."""

import errno
import os
import signal
import sys

import pytest

from pure_jax.host.distributed import preemption
from pure_jax.runs import exit_status


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


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no"), ValueError("x")])
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
