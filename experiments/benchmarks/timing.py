"""Programs that are compiled once, and their repeated, interleaved timings.

Whatever else the machine does at the time then slows all of them alike.
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.bounds import Phase
from pure_jax.runs.planning.compiler import Memory
from pure_jax.runs.planning.hlo.costs import Costs, count_costs

# Idle threads spin for a while before they sleep. The pause keeps those of one
# arm from taking the cores of the next.
PAUSE_SECONDS = 0.05
# A single repeat shows no spread.
LEAST_REPEATS = 2

_STATUS = pathlib.Path("/proc/self/status")
_CLEAR = pathlib.Path("/proc/self/clear_refs")


@dataclasses.dataclass(frozen=True)
class Compilation:
  """The compiler's results for a function.

  Attributes:
    seconds: time to trace and compile, without a cache.
    memory: memory of one call, as planned by the compiler; None if it does not
      say.
    costs: counted in the program; None on a GPU, where the program calls
      libraries for its products.
  """

  seconds: float
  memory: Memory | None
  costs: Costs | None


@dataclasses.dataclass(frozen=True)
class Arm:
  """A program that is timed repeatedly: ours, a baseline or a probe.

  Attributes:
    run: runs the program once and returns the seconds it took.
    work: amount of work in one run: tokens, or bytes or FLOPs of a probe.
    phases: the work that the method needs at least, () if it is not known.
    compilation: compilation of one program of ours; None for others, and for
      an arm of several programs whose compilation is not measured.
    reference: the results that a baseline must reproduce. For a rollout: the
      lengths [B] of its responses. For a gradient step: [loss, norm of the
      gradient]. For an iteration: an `IterationReference`.
    compared_with: the arm of ours that does the same, for a baseline and for a
      variant of ours; else None.
    baseline: for a baseline, its versions, its peak memory and how well it
      agrees with ours, complete after the runs; else None.
    ran: whether the program has run already, so that it needs no warm-up.
  """

  run: Callable[[], float]
  work: float = 0.0
  phases: Sequence[Phase] = ()
  compilation: Compilation | None = None
  reference: Any = None
  compared_with: str | None = None
  baseline: Mapping[str, Any] | None = None
  ran: bool = False


@dataclasses.dataclass(frozen=True)
class Times:
  """The timed repeats of one arm.

  Attributes:
    seconds: seconds of each repeat, in order.
    work: amount of work in one repeat.
    peak_bytes: on a CPU, peak resident memory of this process during the first
      run, warm-up included; on another device, its peak since the process
      started. None if the system does not report it.
  """

  seconds: tuple[float, ...]
  work: float
  peak_bytes: int | None = None

  @property
  def median(self) -> float:
    """Median seconds."""
    return float(np.median(self.seconds))

  @property
  def rate(self) -> float:
    """Work per second, from the median."""
    return self.work / self.median


def timed(
  function: Callable[..., Any], *arguments: Any, calls: int = 1
) -> Callable[[], float]:
  """Makes a function that returns the seconds of one call of another.

  The mean of `calls`: an accelerator runs one while the next ones are queued.
  """

  def run() -> float:
    start = time.perf_counter()
    for _ in range(calls):
      result = function(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls

  return run


def compile_call(
  function: Any,
  *arguments: Any,
  compiler_options: Mapping[str, Any] | None = None,
) -> tuple[Callable[..., Any], Compilation]:
  """Compiles a jitted function for the arguments of later calls.

  The arguments may be shapes. `compiler_options` are options of XLA.
  """
  start = time.perf_counter()
  compiled = function.lower(*arguments).compile(compiler_options)
  seconds = time.perf_counter() - start
  analysis = compiled.memory_analysis()
  memory = analysis and Memory(
    analysis.argument_size_in_bytes,
    analysis.output_size_in_bytes,
    analysis.alias_size_in_bytes,
    analysis.temp_size_in_bytes,
  )
  costs = None
  if jax.default_backend() != "gpu":
    costs = count_costs(compiled.as_text(), devices=1)
  return compiled, Compilation(seconds, memory, costs)


def time_interleaved(
  arms: Mapping[str, Arm], repeats: int, seconds: float = math.inf
) -> dict[str, Times]:
  """Times all arms in at most `repeats` rounds, each arm once per round.

  Every other round reverses the order, so that no arm always follows the same
  one. A pause precedes each run. A round before does not count; it leaves out
  arms that have run already. After `LEAST_REPEATS` rounds, none begins that
  would exceed the limit of `seconds` at the mean time of a round so far.
  """
  times, peaks = {name: [] for name in arms}, {}
  start = time.perf_counter()
  for turn in range(1 + repeats):
    warm_up, done = turn == 0, turn - 1
    if done == 0:
      start = time.perf_counter()
    elapsed = time.perf_counter() - start
    if done >= LEAST_REPEATS and elapsed * (done + 1) > seconds * done:
      break
    for name in list(arms) if turn % 2 else list(reversed(arms)):
      if warm_up and arms[name].ran:
        continue
      time.sleep(PAUSE_SECONDS)
      first = name not in peaks
      known = first and _reset_peak()
      repeat = arms[name].run()
      if first:
        peaks[name] = _peak_bytes() if known else None
      if not warm_up:
        times[name].append(repeat)
  return {
    name: Times(tuple(repeats), arms[name].work, peaks[name])
    for name, repeats in times.items()
  }


def _reset_peak() -> bool:
  """Resets the peak where possible; returns whether it can be read later."""
  if jax.default_backend() != "cpu":
    return jax.devices()[0].memory_stats() is not None
  try:
    _CLEAR.write_text("5")  # Linux: sets the peak to the present size.
  except OSError:
    return False
  return True


def _peak_bytes() -> int | None:
  """Reads the peak since the reset, or since the start of the process."""
  if jax.default_backend() != "cpu":
    return jax.devices()[0].memory_stats().get("peak_bytes_in_use")
  for line in _STATUS.read_text(encoding="utf-8").splitlines():
    if line.startswith("VmHWM:"):
      return int(line.split()[1]) * 1024
  return None
