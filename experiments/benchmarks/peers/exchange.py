"""How a peer is asked: a line of JSON in, a line of JSON out.

Nothing here or beside it imports pure_jax: a peer's environment is its own.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import sys
import time
from typing import Any


@dataclasses.dataclass(frozen=True)
class Asked:
  """What a peer that generates is asked for.

  Attributes:
    tokens: [P, L] ids of prompts without padding.
    samples: responses of each prompt.
    new_tokens: of a response at most.
    pad_id: id that is never sampled.
    lengths: tokens after which each of the P * samples rows ends, None for
      new_tokens each.
    greedy: True takes the likeliest token, False samples at temperature 1.
  """

  tokens: list[list[int]]
  samples: int
  new_tokens: int
  pad_id: int
  lengths: list[int] | None
  greedy: bool


def serve(peer: object) -> None:
  """Answers requests until there are no more.

  Args:
    peer: whose methods are called, by the name that a request gives as "do";
      the request's other fields are the arguments.
  """
  # What libraries print must not stand between the answers.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  for line in sys.stdin:
    request = json.loads(line)
    answer = getattr(peer, request.pop("do"))(**request)
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def timed(start: float) -> dict[str, Any]:
  """What a run answers.

  Args:
    start: `time.perf_counter()` before it.

  Returns:
    ``seconds`` since then, and `facts`.
  """
  return {"seconds": time.perf_counter() - start, **facts()}


def facts(*packages: str) -> dict[str, Any]:
  """What a result of this process depends on.

  Args:
    *packages: names whose versions are told.

  Returns:
    ``versions``, and ``peak_bytes``: most memory that the process had so far,
    on the host.
  """
  return {
    "versions": {
      "python": sys.version.split()[0],
      **{name: importlib.metadata.version(name) for name in packages},
    },
    "peak_bytes": _peak_bytes(),
  }


def _peak_bytes() -> int:
  """Of this program, on Linux."""
  # What getrusage tells begins with the benchmark's, which forked the process.
  status = pathlib.Path("/proc/self/status").read_text()
  (line,) = [x for x in status.splitlines() if x.startswith("VmHWM:")]
  return int(line.split()[1]) * 1024
