"""Requests and answers between the benchmark and a script: a line of JSON each.

Nothing in this folder imports pure_jax: a script runs in an environment of its
own. Its object has the methods `load`, which reads folders of weights,
`prepare`, `run`, which is timed, and others that the benchmark calls by name.
"""

import importlib.metadata
import json
import os
import pathlib
import sys
import time
from typing import Any


def serve(script: object) -> None:
  """Calls the methods of `script` that requests name, until the input ends."""
  # The output of libraries goes to stderr, not between the answers.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  for line in sys.stdin:
    request = json.loads(line)
    answer = getattr(script, request["method"])(**request["arguments"])
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def versions(*packages: str) -> dict[str, Any]:
  """Returns the ``versions`` of Python and of packages, by name."""
  named = {name: importlib.metadata.version(name) for name in packages}
  return {"versions": {"python": sys.version.split()[0], **named}}


def timed(start: float) -> dict[str, Any]:
  """Returns the ``seconds`` since `start` and the ``peak_bytes`` of memory."""
  seconds = time.perf_counter() - start
  # getrusage would include the benchmark, which forked this process.
  status = pathlib.Path("/proc/self/status").read_text()
  (line,) = [x for x in status.splitlines() if x.startswith("VmHWM:")]
  return {"seconds": seconds, "peak_bytes": int(line.split()[1]) * 1024}
