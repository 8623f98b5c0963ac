"""The worker process of a `pool.WorkerPool`: a script that is never imported.

It gets one JSON object on its command line, writes ``{"ready": true}``, then
answers each line of its standard input, a list of arguments, with one line:
``{"value": ...}`` or ``{"failure": "why"}``. It imports only the standard
library and the file of the function with what that imports, but not the
package around it.

A worker exits when its input ends. If the parent ends while an item hangs, the
parent's guard (`pure_jax/host/workers/child_guard.py`) kills the worker.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import resource
import signal
import sys
import types
from collections.abc import Callable
from typing import Any

# The address space may grow by this multiple of `memory_bytes`. An object of
# Python grows in steps of half its size to its size, so an item that fails to
# get memory at this limit has used more than `memory_bytes` before. Its peak
# shows that even if a library swallowed the MemoryError.
HEADROOM = 4


def main() -> None:
  """Answers items until the input ends."""
  options = json.loads(sys.argv[1])
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent ends its workers.
  # The function and the code that it calls must not use the pipes.
  requests = os.fdopen(os.dup(0), encoding="ascii")
  replies = os.fdopen(os.dup(1), "w", encoding="ascii")
  _redirect_to_nowhere(0, 1)
  function = _load(options)
  _limit_memory(options["memory_bytes"])
  _send(replies, {"ready": True})
  _redirect_to_nowhere(2)  # Until here the parent reads it for errors.
  resident_at_start, _ = _memory()
  for line in requests:
    reply, out_of_memory = _run_item(
      function, json.loads(line), options["memory_bytes"]
    )
    # Caches of libraries may grow over many items; then a new worker follows.
    grown = _memory()[0] - resident_at_start
    exits = out_of_memory or grown > options["memory_bytes"]
    _send(replies, reply | {"exits": exits})
    if exits:
      break
  os._exit(0)  # No exit handler of the called code runs.


def _load(options: dict[str, Any]) -> Callable[..., Any]:
  """Loads the function, and runs the setup of its file.

  The outermost package of the file is not imported, only what the file itself
  imports: `import pure_jax` would load jax into every worker.
  """
  source = pathlib.Path(options["source"])
  packages = options["module"].split(".")[:-1]
  root = source.parents[len(packages)]
  if packages:
    outermost = types.ModuleType(packages[0])
    outermost.__path__ = [str(root / packages[0])]
    sys.modules[packages[0]] = outermost
    module = importlib.import_module(options["module"])
  else:
    spec = importlib.util.spec_from_file_location("called", source)
    module = importlib.util.module_from_spec(spec)
    sys.modules["called"] = module
    spec.loader.exec_module(module)
  if options["setup"] is not None:
    vars(module)[options["setup"]]()
  return vars(module)[options["function"]]


def _run_item(
  function: Callable[..., Any], arguments: list[Any], memory_bytes: int
) -> tuple[dict[str, Any], bool]:
  """Returns (the reply to an item, whether it ran out of memory)."""
  resident, peak_before = _memory()
  try:
    reply = {"value": function(*arguments)}
    json.dumps(reply)
  except MemoryError:
    return {"failure": "out of memory"}, True
  # Whatever an item raises, SystemExit included, is its failure. The message is
  # not read: formatting a huge expression may take forever.
  except BaseException as error:
    reply = {"failure": f"raised {type(error).__name__}"}
  _, peak = _memory()
  if peak > peak_before and peak - resident > memory_bytes:
    return {"failure": "out of memory"}, True
  return reply, False


def _memory() -> tuple[int, int]:
  """Returns (resident bytes, their peak); zeros if the system has neither."""
  try:
    with open("/proc/self/status", encoding="ascii") as status:
      fields = dict(line.split(":", 1) for line in status)
    kib = [int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")]
  except (OSError, KeyError):
    return 0, 0
  return kib[0] << 10, kib[1] << 10


def _limit_memory(memory_bytes: int) -> None:
  """Limits the address space, if the system can; disables core files."""
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
  # macOS refuses it to a process that has more already.
  with contextlib.suppress(ValueError, OSError):
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
