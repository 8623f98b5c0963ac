"""Requests and answers between the benchmark and a script: a line of JSON each.

Nothing in this folder imports pure_jax: a script runs in an environment of its
own.
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
class GenerationRequest:
  """A batch to generate.

  Attributes:
    tokens: [P, L] ids of prompts without padding.
    samples: responses of each prompt.
    new_tokens: most tokens of a response.
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
  return {
    "seconds": time.perf_counter() - start,
    "peak_bytes": _peak_bytes(),
  }


def _peak_bytes() -> int:
  """Peak resident memory of this program, on Linux."""
  # getrusage would include the benchmark, which forked this process.
  status = pathlib.Path("/proc/self/status").read_text()
  (line,) = [x for x in status.splitlines() if x.startswith("VmHWM:")]
  return int(line.split()[1]) * 1024
