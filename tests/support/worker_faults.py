"""Functions that hang, crash or swell in a worker, as an answer might.

Workers load this file by its path, as they load `host.grading.equivalence`.
"""

import os
import resource
import sys
import time


def echo(value):
  return value


def pid_after(seconds):
  time.sleep(seconds)
  return os.getpid()


def act(what, argument=None):
  """Does what must harm no other item."""
  if what == "return":
    return argument
  if what == "sleep":
    time.sleep(60)
  if what == "spin":
    while True:
      pass
  if what == "hold the lock":  # One long call of C: no signal handler runs.
    return len(str(9 ** (9**9)))
  if what == "exit":
    os._exit(argument)
  if what == "signal":
    os.kill(os.getpid(), argument)
  if what == "sys.exit":
    sys.exit(0)
  if what == "raise":
    raise ValueError("no message of an item is read")
  if what == "recurse":
    return act("recurse")
  if what == "swell":
    rows = []
    while True:
      rows.append(bytearray(1 << 20))
  if what == "swell and say nothing":  # As a library that catches everything.
    try:
      act("swell")
    except Exception:
      return False
  if what == "swell for a moment":
    return len(bytearray(argument))
  if what == "print":
    print("{}", flush=True)
    os.write(1, b"no json\n")
    os.write(2, b"x" * (1 << 20))  # More than a pipe holds.
    return sys.stdin.read()
  if what == "not json":
    return {1, 2}
  if what == "start a child":
    child = os.fork()
    if child:
      with open(argument, "w") as file:
        file.write(str(child))
    time.sleep(60)
  raise AssertionError(what)


def die_at_start():
  print("the reason", file=sys.stderr, flush=True)
  os._exit(3)


def raise_at_start():
  raise RuntimeError("nothing to work with")


def note_the_start():
  os.environ["GRADING_SETUP"] = "done"


def refuse_to_limit_memory():
  """Does as a system that limits no address space."""
  limit = resource.setrlimit

  def limit_others(kind, limits):
    if kind == resource.RLIMIT_AS:
      raise ValueError("current limit exceeds maximum limit")
    limit(kind, limits)

  resource.setrlimit = limit_others


def setup_was_done():
  return os.environ.get("GRADING_SETUP")


def loaded_packages():
  return sorted({name.split(".")[0] for name in sys.modules})
