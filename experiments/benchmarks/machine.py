"""What the machine is, and probes of what it can do."""

import datetime
import os
import pathlib
import platform
import shlex
import sys
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import Arm, timed
from pure_jax.runs.workdir import collect_versions

# Larger than any cache; a larger model is streamed no faster.
MOST_STREAMED_BYTES = 4 * 2**30
# Sides of a product: about a tenth of a second on two cores, and milliseconds
# on an accelerator, whose units smaller ones do not fill.
CPU_SIDE, ACCELERATOR_SIDE = 1536, 8192


def share_memory(with_peers: bool) -> None:
  """Says how much of a GPU's memory is ours, before the first array is made.

  Args:
    with_peers: True leaves what our arrays do not take; else nearly all of it
      is taken at once, where jax takes three quarters.
  """
  if with_peers:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  else:
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")


def describe(command: list[str]) -> dict[str, Any]:
  """Where, when and with what something is measured.

  Args:
    command: its words, `sys.argv`.

  Returns:
    A JSON-like dict: versions as `collect_versions` gives them, processor,
    cores of this process, bytes of memory, the load of the last minute, the
    date (UTC) and the command.
  """
  pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
  return collect_versions() | {
    "processor": _processor(),
    "cores": len(os.sched_getaffinity(0)),
    "memory_bytes": pages * size,
    "load_average": os.getloadavg()[0],
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": shlex.join([pathlib.Path(sys.executable).name, *command]),
  }


def _processor() -> str:
  """Its name, as Linux knows it."""
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
  except OSError:
    return platform.processor()
  for line in text.splitlines():
    if line.startswith("model name"):
      return line.partition(":")[2].strip()
  return platform.machine()


def stream_probes(num_bytes: int) -> dict[str, Arm]:
  """Ways to read an array once, of which the fastest tells the bandwidth.

  Which one that is depends on the machine and the compiler. The array is of
  float32 whatever the weights are: bytes are bytes, and a CPU that has to
  convert bfloat16 first would be slower than its memory.

  Args:
    num_bytes: of the array, as many as the weights have; at most
      `MOST_STREAMED_BYTES` of them are streamed.

  Returns:
    Arms by name; `work` is the number of bytes.
  """
  columns = 1024
  rows = max(1, min(num_bytes, MOST_STREAMED_BYTES) // (4 * columns))
  matrix = jnp.ones((rows, columns), jnp.float32)
  vector, size = matrix[0], matrix.nbytes

  def sums(matrix):
    return jnp.sum(matrix, axis=1)

  return {
    "row sums": Arm(timed(jax.jit(sums), matrix), size),
    "sum": Arm(timed(jax.jit(jnp.sum), matrix), size),
    "matrix times vector": Arm(
      timed(jax.jit(jnp.matmul), matrix, vector), size
    ),
  }


def product_probe(dtype: str, side: int | None = None) -> Arm:
  """A product of two square matrices.

  Args:
    dtype: of the matrices; sums are float32.
    side: rows and columns; None takes what suits the device.

  Returns:
    The arm; `work` is the number of FLOPs.
  """
  if side is None:
    on_cpu = jax.default_backend() == "cpu"
    side = CPU_SIDE if on_cpu else ACCELERATOR_SIDE
  matrix = jnp.full((side, side), 0.5, dtype)

  def product(left, right):
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)

  return Arm(timed(jax.jit(product), matrix, matrix), 2 * side**3)
