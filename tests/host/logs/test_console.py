"""Progress on a terminal and in a log, disabled, and resumed."""

import contextlib
import io
import time

import pytest

from pure_jax.host.logs.console import Progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


@contextlib.contextmanager
def log_file():
  """Redirects stderr to a stream that is no terminal."""
  stream = io.StringIO()
  assert not stream.isatty()
  with contextlib.redirect_stderr(stream):
    yield stream


def drawn(stream):
  """Returns one line for each time the bar was drawn."""
  lines = stream.getvalue().replace("\n", "\r").split("\r")
  return [line.strip() for line in lines if line.strip()]


def test_a_log_gets_few_plain_lines_and_the_last_state(capsys):
  """A thousand fast steps must not fill a log with a thousand bars."""
  with log_file() as log, Progress("rl", 1000) as bar:
    for step in range(1000):
      bar.show({"accuracy": step / 1000, "kl_reference": 1.23456e-5})
      bar.advance()
  lines = drawn(log)
  assert len(lines) < 10  # Two, and one more every LOG_SECONDS.
  assert "rl" in lines[-1]
  assert "1000/1000" in lines[-1]
  assert "accuracy=0.999" in lines[-1]
  assert "kl_reference=1.23e-05" in lines[-1]
  text = log.getvalue()
  assert text.isascii()
  assert "\x1b" not in text
  assert text.endswith("\n")
  assert capsys.readouterr().out == ""  # Only results go to stdout.


def test_disabled_shows_nothing(capsys):
  with log_file() as log, Progress("rl", 3, enabled=False) as bar:
    for _ in range(3):
      bar.show({"loss": 1.0})
      bar.say("a sample")
      bar.advance()
  assert log.getvalue() == ""
  assert capsys.readouterr().out == ""


def test_a_resumed_run_starts_where_it_was_cut_off():
  """Counting from 0 again would end at 3/10, or show 7 steps too many."""
  with log_file() as log, Progress("sft", 10, 7) as bar:
    assert "7/10" in drawn(log)[0]
    for _ in range(3):
      bar.advance()
  assert "10/10" in drawn(log)[-1]


def test_an_error_leaves_the_count_of_what_was_done():
  stopped = pytest.raises(FloatingPointError)
  with log_file() as log, stopped, Progress("rl", 10) as bar:
    bar.advance()
    bar.advance()
    raise FloatingPointError
  assert "2/10" in drawn(log)[-1]


def test_lines_between_the_drawings_are_whole():
  with log_file() as log, Progress("rl", 2) as bar:
    bar.say("iteration 1: 3+5=? (right)\n  score +0.90  3+5=8")
    bar.advance()
  lines = [line.split("\r")[-1] for line in log.getvalue().split("\n")]
  assert "iteration 1: 3+5=? (right)" in lines
  assert "  score +0.90  3+5=8" in lines


def test_a_part_that_takes_long_is_named_when_it_begins():
  """The next step may end only minutes later."""
  stream = Terminal()
  with contextlib.redirect_stderr(stream), Progress("rl", 3) as bar:
    bar.doing("rollout")
    assert "rl, rollout" in drawn(stream)[-1] and "0/3" in drawn(stream)[-1]
    bar.doing("score")
    assert "rl, score" in drawn(stream)[-1]
  with log_file() as log, Progress("rl", 3) as bar:
    for part in ("rollout", "score", "update") * 100:
      bar.doing(part)
    bar.advance(3)
  assert len(drawn(log)) < 10
  with log_file() as log, Progress("rl", 3, enabled=False) as bar:
    bar.doing("rollout")
  assert not log.getvalue()


def test_a_terminal_is_kept_up_to_date():
  """A step is drawn if a tenth of a second has passed since the last one."""
  stream = Terminal()
  with contextlib.redirect_stderr(stream), Progress("rl", 3) as bar:
    time.sleep(0.12)
    bar.advance()
    assert "1/3" in drawn(stream)[-1]
