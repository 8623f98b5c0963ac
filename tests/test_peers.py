"""A process whose partner is gone says so and ends, whatever it waits for."""

import pathlib
import time

import pytest
import several

from pure_jax.host import processes

SCRIPT = pathlib.Path(__file__).parent / "several_rows.py"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_in_its_own_words(victim):
  """By itself jax takes 100 s where the second died, and aborts: status -6."""
  started = several.start(SCRIPT, f"dies:{victim}")
  assert started[victim].wait(timeout=120) == -9
  began = time.monotonic()
  status, _, stderr = several.finish(started)[1 - victim]
  assert time.monotonic() - began < 30
  assert status == processes.LOST_STATUS
  assert f"process {victim} died; nothing can go on" in stderr
  assert "the same command" in stderr and "Traceback" not in stderr


def test_a_process_that_failed_in_its_own_words_ends_the_other():
  started = several.start(SCRIPT, "fails:1")
  assert started[1].wait(timeout=120) == 3
  status, _, stderr = several.finish(started)[0]
  assert status == processes.LOST_STATUS
  assert "process 1 ended with an error, which its log tells" in stderr
