"""A script ends in a sentence where it can, and in a trace where it must."""

import errno
import os
import subprocess
import sys
import textwrap

import pytest
from checkout import EXPERIMENTS

from pure_jax.runs import exit_status


@pytest.mark.parametrize(
  ("number", "todo"),
  [
    (errno.ENOSPC, "make room"),
    (errno.EDQUOT, "make room"),
    # A file system that went away, or came back read-only, under a run.
    (errno.EROFS, "put that right"),
    (errno.EIO, "put that right"),
    (errno.EISDIR, "put that right"),
  ],
)
def test_what_the_system_refuses_is_a_sentence(number, todo, capsys):
  said = os.strerror(number)
  with pytest.raises(SystemExit) as ended, exit_status.report_errors():
    raise OSError(number, said, "/run/metrics.jsonl")
  assert ended.value.code == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"error: {said}: /run/metrics.jsonl. ")
  assert f"{todo}, and the same command continues" in line


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no"), ValueError("x")])
def test_a_fault_of_the_program_is_not_hushed(error):
  """Said in a sentence, nobody could find it."""
  with pytest.raises(type(error)), exit_status.report_errors():
    raise error


def test_a_second_sigterm_does_not_change_the_status():
  """Slurm and timeout send several: 75 asks for the run to be continued."""
  script = textwrap.dedent(
    f"""
    import atexit, os, signal, sys
    sys.path.insert(0, {str(EXPERIMENTS)!r})
    from pure_jax.runs import exit_status as endings
    from pure_jax.host.distributed import preemption as interrupts
    atexit.register(os.kill, os.getpid(), signal.SIGTERM)
    with endings.report_errors(), interrupts.raise_on_sigterm():
      raise interrupts.Preempted('saved')
    """
  )
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (75, "saved\n")
