"""Rows of the speed pieces: programs that are compiled together, then timed.

The benchmark's own suites compile what they measure one after the other, and
keep the weights of all arms at once. The check has minutes, so it compiles the
programs of a piece in threads, from the shapes of their weights alone, and then
runs them in turn on one copy of the weights. Timing, bounds and fields of a row
are the benchmark's.
"""

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from benchmarks.bounds import Phase, Rates
from benchmarks.cases import BenchmarkError, Case
from benchmarks.machine import available_bytes
from benchmarks.results import Line
from benchmarks.suites.training import check_applied
from benchmarks.timing import Arm, Compilation, compile_call, time_interleaved

from accelerator.machine import device_answers
from accelerator.pieces import Context
from pure_jax.runs.memory import exhausted

REPEATS = 3
# The repeats of a row end after this many seconds, but not before the second.
ROW_SECONDS = 6.0
# A program is not started with less time left than this.
LEAST_SECONDS = 3.0

# Times of tiny programs mean nothing: LLVM's optimiser would take most of the
# check's time on a CPU.
_QUICK_COMPILATION = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}

# The weights of a program, such as (policy,) or (state, base).
Weights = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """A jitted function whose time is one row.

  Attributes:
    name: the row's name.
    case: sizes and options.
    function: the jitted function.
    arguments: weights -> the arguments of the function. It also takes the
      shapes of weights.
    work: tokens of a call, those that `unit` says.
    unit: which tokens the work counts: "new tokens" or "tokens".
    phases: the work that the method needs at least.
    trains: whether the first of the weights is a train state, which the
      function takes over and returns first, with metrics.
  """

  name: str
  case: Case
  function: Callable[..., Any]
  arguments: Callable[[Weights], tuple[Any, ...]]
  work: int
  unit: str
  phases: Sequence[Phase]
  trains: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
  """The time of a program, or why there is none.

  Attributes:
    name: name of the program.
    case: its case.
    unit: which tokens are counted.
    line: its times and bounds; None if it did not run.
    why: why it did not run, a sentence; "" if it did.
    expected: whether the reason lies in the device, not in the program.
  """

  name: str
  case: Case
  unit: str = ""
  line: Line | None = None
  why: str = ""
  expected: bool = True

  @property
  def seconds(self) -> float:
    """Median seconds; infinity if the program did not run."""
    return float("inf") if self.line is None else self.line.times.median


@dataclasses.dataclass(frozen=True)
class Group:
  """Programs that read the same weights.

  Attributes:
    make_weights: draws the weights. It is also traced for their shapes.
    programs: the programs in the order of their rows; a `Row` for one that
      cannot even be made.
  """

  make_weights: Callable[[], Weights]
  programs: Sequence[Program | Row]


def program_or_why(
  make: Callable[[str, Case], Program], name: str, case: Case
) -> Program | Row:
  """Makes a program, or the row that says why this device cannot run it."""
  try:
    return make(name, case)
  except ValueError as error:  # Of `Kernels`: it is for other devices.
    return Row(name, case, why=str(error))


def measure(
  context: Context, rates: Rates, groups: Sequence[Group]
) -> list[Row]:
  """Compiles all programs, then times those of each group in order.

  Args:
    context: what the piece is told.
    rates: of this machine, for the bounds.
    groups: the programs.

  Returns:
    A row for each program, in order. A program that does not fit into memory,
    or that fails, costs its own row alone.
  """
  options = _QUICK_COMPILATION if context.tiny else None
  compiled = _compile_together(groups, options)
  rows, broken = [], ""
  for group in groups:
    weights = _SharedWeights(group.make_weights)
    for program in group.programs:
      if broken and isinstance(program, Program):
        row = Row(program.name, program.case, program.unit, why=broken)
      elif isinstance(program, Program):
        outcome = compiled[program]
        row = _measure_program(context, rates, program, outcome, weights)
      else:
        row = program
      rows.append(row)
      if not row.expected and not device_answers():
        broken = f"The device computes no more: see {row.name}."
    weights.release()  # The rows keep their programs.
  return rows


def why_not(error: BaseException) -> tuple[str, bool]:
  """Says why a program did not run, and whether that was to be expected.

  Args:
    error: what it raised.

  Returns:
    (a sentence, True if memory did not suffice or the device lacks what the
    program needs).
  """
  memory = exhausted.explain(error, "Take fewer rows, or a larger device.")
  if memory is not None:
    return memory, True
  lines = str(error).strip().splitlines() or ["no message"]
  if isinstance(error, BenchmarkError):
    return lines[0], True
  return f"it failed: {type(error).__name__}: {lines[0]}"[:300], False


class _SharedWeights:
  """Weights that the programs of a group use in turn, drawn when needed."""

  def __init__(self, make_weights: Callable[[], Weights]):
    self._make_weights = make_weights
    self._current: Weights | None = None

  def take(self) -> Weights:
    """Hands the weights over: a program that fails does not give them back."""
    weights = self._current or jax.block_until_ready(self._make_weights())
    self._current = None
    return weights

  def give_back(self, weights: Weights) -> None:
    """Takes the weights for the next program."""
    self._current = weights

  def release(self) -> None:
    """Frees the weights."""
    self._current = None


class _Call:
  """Runs a compiled program once, as an arm of the benchmark does."""

  def __init__(
    self,
    program: Program,
    compiled: Callable[..., Any],
    weights: _SharedWeights,
  ):
    self._program, self._compiled = program, compiled
    self._weights = weights
    # Loss and gradient norm of the first update.
    self.reference: tuple[float, float] | None = None

  def __call__(self) -> float:
    """Returns the seconds of the call."""
    program, weights = self._program, self._weights.take()
    arguments = program.arguments(weights)
    start = time.perf_counter()
    result = jax.block_until_ready(self._compiled(*arguments))
    seconds = time.perf_counter() - start
    if program.trains:
      state, metrics = result
      check_applied(program.case, metrics)
      if self.reference is None:
        loss, norm = metrics["policy_loss"], metrics["grad_norm"]
        self.reference = float(loss), float(norm)
      weights = state, *weights[1:]
    self._weights.give_back(weights)
    return seconds


def _compile_together(
  groups: Sequence[Group], options: Mapping[str, Any] | None
) -> Mapping[Program, tuple[Any, Compilation] | Exception]:
  """Compiles all programs in threads, from shapes; an error is a result."""
  shapes = [jax.eval_shape(group.make_weights) for group in groups]
  cores = len(os.sched_getaffinity(0))
  with concurrent.futures.ThreadPoolExecutor(max_workers=cores) as pool:
    waiting = {
      program: pool.submit(_compile, program, weights, options)
      for group, weights in zip(groups, shapes, strict=True)
      for program in group.programs
      if isinstance(program, Program)
    }
    return {program: future.result() for program, future in waiting.items()}


def _compile(
  program: Program, weights: Weights, options: Mapping[str, Any] | None
) -> tuple[Any, Compilation] | Exception:
  try:
    return compile_call(
      program.function, *program.arguments(weights), compiler_options=options
    )
  except Exception as error:  # The others may compile.
    return error


def _measure_program(
  context: Context,
  rates: Rates,
  program: Program,
  compiled: tuple[Any, Compilation] | Exception,
  weights: _SharedWeights,
) -> Row:
  """Times a program, or says why not."""
  row = Row(program.name, program.case, program.unit)
  if isinstance(compiled, Exception):
    why, expected = why_not(compiled)
    return dataclasses.replace(row, why=why, expected=expected)
  if context.seconds_left() < LEAST_SECONDS:
    return dataclasses.replace(row, why="The time of the piece was over.")
  call, compilation = compiled
  needed, available = _needed_bytes(compilation), available_bytes()
  if needed > available:
    why = (
      f"It needs {needed / 1e9:,.1f} GB, and the device has "
      f"{available / 1e9:,.1f} GB."
    )
    return dataclasses.replace(row, why=why)
  run = _Call(program, call, weights)
  arm = Arm(run, program.work, program.phases, compilation)
  try:
    times = time_interleaved({program.name: arm}, REPEATS, ROW_SECONDS)
  except Exception as error:  # The other rows may still tell something.
    why, expected = why_not(error)
    return dataclasses.replace(row, why=why, expected=expected)
  arm = dataclasses.replace(arm, reference=run.reference)
  line = Line(program.name, arm, times[program.name], rates)
  return dataclasses.replace(row, line=line)


def _needed_bytes(compilation: Compilation) -> int:
  """Memory of a call; 0 if the compiler does not say, so that it is tried."""
  return 0 if compilation.memory is None else compilation.memory.total
