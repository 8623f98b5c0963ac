"""Programs that are compiled once and then run repeatedly."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks import bounds
from benchmarks.cases import Case
from benchmarks.models import Options
from benchmarks.timing import Arm
from pure_jax.runs.planning.compiler import Memory
from pure_jax.runs.planning.hlo.costs import Costs, count_costs


@dataclasses.dataclass(frozen=True)
class Compilation:
  """The compiler's results for a function.

  Attributes:
    seconds: time to trace and compile, without a cache.
    memory: memory of one call, as planned by the compiler.
    costs: counted in the program; None on a GPU, where the program calls
      libraries for its products.
  """

  seconds: float
  memory: Memory
  costs: Costs | None


@dataclasses.dataclass(frozen=True)
class Program:
  """One arm of a case: a program of ours, ready to be timed.

  Attributes:
    arm: runs the program once; its work is tokens.
    phases: the work that the method needs at least, () if no bound is known.
    compilation: compilation of the program; None if it is several programs
      whose compilation is not measured.
    reference: the results that a baseline must reproduce. For a rollout: the
      lengths [B] of its responses. For a gradient step: [loss, norm of the
      gradient]. For an iteration: an `IterationReference`.
    variant_of: name of the arm that does the same in another way; None for the
      first of its kind, with which baselines are compared.
  """

  arm: Arm
  phases: Sequence[bounds.Phase]
  compilation: Compilation | None
  reference: Any = None
  variant_of: str | None = None


def compile_call(
  function: Any, *arguments: Any
) -> tuple[Callable[..., Any], Compilation]:
  """Compiles a jitted function for its arguments.

  Args:
    function: made by `jax.jit`.
    *arguments: of the later calls.

  Returns:
    The compiled function, and its compilation.
  """
  start = time.perf_counter()
  compiled = function.lower(*arguments).compile()
  seconds = time.perf_counter() - start
  analysis = compiled.memory_analysis()
  memory = Memory(
    analysis.argument_size_in_bytes,
    analysis.output_size_in_bytes,
    analysis.alias_size_in_bytes,
    analysis.temp_size_in_bytes,
  )
  costs = None
  if jax.default_backend() != "gpu":
    costs = count_costs(compiled.as_text(), devices=1)
  return compiled, Compilation(seconds, memory, costs)


_COMPILED: dict[Any, tuple[Callable[..., Any], Compilation]] = {}


def compile_once(
  name: str,
  case: Case,
  options: Options,
  make: Callable[[], Any],
  *arguments: Any,
) -> tuple[Callable[..., Any], Compilation]:
  """Compiles a function that several suites use, in the first of them.

  Args:
    name: name of the function. Together with the case's sizes and the options
      it must determine the program.
    case: the sizes; its suite is ignored.
    options: how the models run.
    make: makes the jitted function.
    *arguments: arguments of the later calls; the shapes are always the same.

  Returns:
    The same as `compile_call`.
  """
  model = options.model(case.model)
  key = name, dataclasses.replace(case, suite=""), options, model
  if key not in _COMPILED:
    _COMPILED[key] = compile_call(make(), *arguments)
  return _COMPILED[key]
