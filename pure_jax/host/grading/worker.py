"""The other end of a `grading_pool.GradingPool`: a script, never imported.

It gets one JSON object on its command line, says ``{"ready": true}``, then
answers each line of its standard input, a list of arguments, with one line:
``{"value": ...}`` or ``{"failure": "why"}``. Only the standard library is
imported here, and the file of the graded function is loaded by its path:
`import pure_jax` would bring jax into every worker.

A worker leaves when its input ends, so it does not outlive its parent. Should
the parent be killed while an item hangs, an alarm of the kernel ends the
worker: it needs no cooperation from whatever is running.
"""

import importlib.util
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

# The address space may grow by so many times `memory_bytes`. Python's objects
# grow by steps of a half to one of their size, so an item that is refused
# memory at this limit has used more than `memory_bytes` before, and is told
# apart from a wrong answer even where a library swallowed its MemoryError.
HEADROOM = 4


def main() -> None:
  """Serves items until the input ends."""
  options = json.loads(sys.argv[1])
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent ends its workers.
  signal.setitimer(signal.ITIMER_REAL, options["start_seconds"])
  # What is graded, and whatever it calls, finds neither of the pipes.
  requests = os.fdopen(os.dup(0), encoding="ascii")
  replies = os.fdopen(os.dup(1), "w", encoding="ascii")
  _redirect_to_nowhere(0, 1)
  function = _load(options)
  _limit_memory(options["memory_bytes"])
  _send(replies, {"ready": True})
  _redirect_to_nowhere(2)  # Until here it told the parent what went wrong.
  signal.setitimer(signal.ITIMER_REAL, 0)
  resident_at_start, _ = _memory()
  for line in requests:
    signal.setitimer(signal.ITIMER_REAL, options["alarm_seconds"])
    reply, spent = _measure(function, json.loads(line), options["memory_bytes"])
    signal.setitimer(signal.ITIMER_REAL, 0)
    # Caches of libraries may grow over many items: a fresh worker follows.
    grown = _memory()[0] - resident_at_start
    leaves = spent or grown > options["memory_bytes"]
    _send(replies, reply | {"leaves": leaves})
    if leaves:
      break
  os._exit(0)  # Nothing graded gets to run at exit.


def _load(options: dict[str, Any]) -> Callable[..., Any]:
  """The function to run, after its file's setup."""
  spec = importlib.util.spec_from_file_location("graded", options["source"])
  module = importlib.util.module_from_spec(spec)
  sys.modules["graded"] = module
  spec.loader.exec_module(module)
  if options["setup"] is not None:
    vars(module)[options["setup"]]()
  return vars(module)[options["function"]]


def _measure(
  function: Callable[..., Any], arguments: list[Any], memory_bytes: int
) -> tuple[dict[str, Any], bool]:
  """(the reply to an item, whether it used up its memory)."""
  resident, peak_before = _memory()
  try:
    reply = {"value": function(*arguments)}
    json.dumps(reply)
  except MemoryError:
    return {"failure": "out of memory"}, True
  # Whatever an item raises, SystemExit included, is its own failure. Not its
  # message: to make one of a huge expression may take for ever.
  except BaseException as error:
    reply = {"failure": f"raised {type(error).__name__}"}
  _, peak = _memory()
  if peak > peak_before and peak - resident > memory_bytes:
    return {"failure": "out of memory"}, True
  return reply, False


def _memory() -> tuple[int, int]:
  """(resident bytes, their peak); zeros where the system does not say."""
  try:
    with open("/proc/self/status", encoding="ascii") as status:
      fields = dict(line.split(":", 1) for line in status)
    kib = [int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")]
  except (OSError, KeyError):
    return 0, 0
  return kib[0] << 10, kib[1] << 10


def _limit_memory(memory_bytes: int) -> None:
  """Bounds the address space, and leaves no core files behind."""
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  try:
    with open("/proc/self/statm", encoding="ascii") as statm:
      used = int(statm.read().split()[0]) * resource.getpagesize()
  except OSError:
    used = 0
  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  limit = used + HEADROOM * memory_bytes
  if hard != resource.RLIM_INFINITY:
    limit = min(limit, hard)
  resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _redirect_to_nowhere(*descriptors: int) -> None:
  nowhere = os.open(os.devnull, os.O_RDWR)
  for descriptor in descriptors:
    os.dup2(nowhere, descriptor)
  os.close(nowhere)


def _send(replies: Any, reply: dict[str, Any]) -> None:
  replies.write(json.dumps(reply) + "\n")
  replies.flush()


if __name__ == "__main__":
  main()
