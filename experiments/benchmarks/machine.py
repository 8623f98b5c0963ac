"""A description of the machine, and probes of its peak rates."""

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

# Larger than any cache: a larger array is streamed no faster.
MOST_STREAMED_BYTES = 4 * 2**30
# Sides of the multiplied matrices. The product takes about a tenth of a second
# on two cores, and milliseconds on an accelerator, which needs large matrices
# to fill its units.
CPU_SIDE, ACCELERATOR_SIDE = 1536, 8192
# Calls of a probe on an accelerator, one after the other: one takes about a
# millisecond there, and to start it and wait for its end some percent of that.
QUEUED_CALLS = 10


def share_memory(with_baselines: bool) -> None:
  """Sets how much of a GPU's memory jax allocates, before its first array.

  With baselines it allocates as arrays need it and leaves them the rest.
  Without, it allocates 95 % at once, where jax would take 75 %.
  """
  if with_baselines:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  else:
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")


def available_bytes() -> int:
  """Reads the memory of the device; for a CPU, the memory of the machine."""
  stats = jax.devices()[0].memory_stats() or {}
  return stats.get("bytes_limit", _physical_bytes())


def _physical_bytes() -> int:
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def describe(command: list[str]) -> dict[str, Any]:
  """Describes machine, software and command (`sys.argv`), JSON-like.

  Cores are those of this process, the load is the average of the last minute,
  and the date is UTC.
  """
  return collect_versions() | {
    "processor": _processor(),
    "cores": len(os.sched_getaffinity(0)),
    "memory_bytes": _physical_bytes(),
    "load_average": os.getloadavg()[0],
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": shlex.join([pathlib.Path(sys.executable).name, *command]),
  }


def _processor() -> str:
  """The name of the processor, from Linux where possible."""
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
  except OSError:
    return platform.processor()
  for line in text.splitlines():
    if line.startswith("model name"):
      return line.partition(":")[2].strip()
  return platform.machine()


def _calls() -> int:
  """Calls of a probe that are timed together."""
  return 1 if jax.default_backend() == "cpu" else QUEUED_CALLS


def stream_probes(num_bytes: int) -> dict[str, Arm]:
  """Makes programs that read an array once: the fastest gives the bandwidth.

  Which one is fastest depends on the machine and the compiler. The array is
  as large as the weights, `num_bytes`, but at most `MOST_STREAMED_BYTES`. It
  is float32 for weights of any dtype, since a CPU would spend time on
  converting bfloat16. The work of the arms is bytes.
  """
  columns = 1024
  rows = max(1, min(num_bytes, MOST_STREAMED_BYTES) // (4 * columns))
  matrix = jnp.ones((rows, columns), jnp.float32)
  vector, size, calls = matrix[0], matrix.nbytes, _calls()

  def sums(matrix):
    return jnp.sum(matrix, axis=1)

  return {
    "row sums": Arm(timed(jax.jit(sums), matrix, calls=calls), size),
    "sum": Arm(timed(jax.jit(jnp.sum), matrix, calls=calls), size),
    "matrix times vector": Arm(
      timed(jax.jit(jnp.matmul), matrix, vector, calls=calls), size
    ),
  }


def copy_probe(num_bytes: int) -> Arm:
  """Makes a program that reads an array once and writes another one.

  The array is that of `stream_probes`, and so is its limit. The work is bytes
  read and written.
  """
  size = max(1, min(num_bytes, MOST_STREAMED_BYTES) // 4)
  vector = jnp.ones(size, jnp.float32)
  run = timed(jax.jit(lambda x: x + 1), vector, calls=_calls())
  return Arm(run, 2 * vector.nbytes)


def product_probe(dtype: str, side: int | None = None) -> Arm:
  """Makes a program that multiplies two square matrices of a dtype.

  Their numbers are random: a GPU multiplies equal ones faster than those of a
  model. Sums are float32. `side` is the number of rows; None takes one that
  suits the device. The work is FLOPs.
  """
  if side is None:
    on_cpu = jax.default_backend() == "cpu"
    side = CPU_SIDE if on_cpu else ACCELERATOR_SIDE
  left, right = (
    jax.random.normal(key, (side, side), dtype)
    for key in jax.random.split(jax.random.key(0))
  )

  def product(left, right):
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)

  run = timed(jax.jit(product), left, right, calls=_calls())
  return Arm(run, 2 * side**3)
