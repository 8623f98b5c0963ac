"""How a peer is asked: a line of JSON in, a line of JSON out.

Nothing here or beside it imports pure_jax: a peer's environment is its own.
"""

import importlib.metadata
import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any


def serve(handlers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
  """Answers requests until there are no more.

  Args:
    handlers: by the name that a request gives as "do"; its other fields are
      the handler's arguments.
  """
  # What libraries print must not stand between the answers.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  for line in sys.stdin:
    request = json.loads(line)
    answer = handlers[request.pop("do")](**request)
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def facts(*packages: str) -> dict[str, Any]:
  """What a result of this process depends on.

  Args:
    *packages: names whose versions are told.

  Returns:
    ``versions``, and ``peak_bytes``: most memory that the process had so far,
    on the host.
  """
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "versions": {
      "python": sys.version.split()[0],
      **{name: importlib.metadata.version(name) for name in packages},
    },
    "peak_bytes": peak * 1024,  # Linux counts kibibytes.
  }
