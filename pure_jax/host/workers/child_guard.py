"""Kills child processes when their parent ends, however the parent ends.

A guard is a small process that reads a pipe to which only the parent writes.
When the parent ends, by SIGKILL too, the system closes the pipe, and the guard
kills the children, whatever they are doing: a hung call of C runs no thread
and no signal handler of Python. It works on every POSIX system. (Linux can
signal a child by itself, but does so when the *thread* that started it ends,
and does not signal what the child has started.)

This file is also the program of the guard.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable


def add(pid: int) -> None:
  """Has a child killed when this process ends.

  Args:
    pid: the child. If it leads a process group, the whole group is killed,
      even if the child itself has ended before.
  """
  _tell(f"+{pid}\n")


def remove(pid: int) -> None:
  """Forgets a child, because another process may get its number.

  Args:
    pid: a child for which `add` was called, and which has ended.
  """
  _tell(f"-{pid}\n")


# The pipe to the guard, once there is one. Of two threads that start one at the
# same time, both use the first.
_pipes: list[int] = []


def _tell(line: str) -> None:
  if not _pipes:
    _pipes.append(_start_guard())
  with contextlib.suppress(BrokenPipeError):  # Somebody killed the guard.
    os.write(_pipes[0], line.encode())


def _leave_guard() -> None:
  """Lets a fork, which may live longer, have a guard of its own."""
  while _pipes:
    os.close(_pipes.pop())


os.register_at_fork(after_in_child=_leave_guard)


def _start_guard() -> int:
  """Starts the guard of this process; returns the writing end of its pipe."""
  # A program that this process starts does not inherit `writing`.
  reading, writing = os.pipe()
  os.posix_spawn(
    sys.executable,
    # Without the user's settings and packages: it starts in milliseconds.
    [sys.executable, "-I", "-S", __file__],
    os.environ,
    file_actions=[
      (os.POSIX_SPAWN_DUP2, reading, 0),
      (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
      (os.POSIX_SPAWN_DUP2, 1, 2),
    ],
    setsigmask=[signal.SIGINT],  # Until it has left the terminal.
  )
  os.close(reading)
  return writing


def main(lines: Iterable[str]) -> None:
  """Keeps track of the children; when the lines end, kills those left.

  Args:
    lines: "+PID" for each call of `add`, "-PID" for each of `remove`.
  """
  os.setsid()  # Ctrl-C and a closed terminal do not end the guard.
  os.chdir("/")
  pids = set()
  for line in lines:
    change = pids.add if line[0] == "+" else pids.discard
    change(int(line[1:]))
  for pid in pids:
    try:
      os.killpg(pid, signal.SIGKILL)
    except OSError:  # It leads no group.
      with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
  main(sys.stdin)
