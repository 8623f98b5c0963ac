"""Compiles the stages of a step and reads memory and costs of the result.

Memory is the compiler's own answer. FLOPs, bytes and collectives are counted
in the compiled program (`runs.planning.hlo`).
"""

import dataclasses
import gzip
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from pure_jax.rollout.engine import Engine
from pure_jax.runs.planning.engine_calls import EngineCall, call_programs
from pure_jax.runs.planning.hlo.costs import NO_COSTS, Costs, count_costs
from pure_jax.runs.planning.programs import (
  Stage,
  device_bytes,
  with_shardings,
)

_GIVEN = re.compile(r"([\d.]+)([KMGT]?)\) exceeds available")
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a program on one device, as the compiler lays them out.

  Attributes:
    arguments: bytes of the arguments.
    outputs: bytes of the outputs.
    aliased: bytes of outputs that reuse the memory of donated arguments.
    temporaries: bytes of everything in between.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int

  @property
  def total(self) -> int:
    """Bytes in use while the program runs."""
    return self.arguments + self.outputs - self.aliased + self.temporaries


@dataclasses.dataclass(frozen=True)
class CompiledStage:
  """The compiler's results for a stage, or for one program of a stage.

  Attributes:
    name: name of the stage or the program.
    seconds: seconds of tracing and compiling.
    memory: memory of the program; None if the compiler refused it for lack of
      memory.
    needed_bytes: memory that a refused program needs, if the message says so.
    costs: costs of one run on one device; None if the compiler refused.
    refusal: first line of the compiler's message; None if it compiled.
    held_bytes: bytes of the stage's arrays that stay in memory while the
      program runs though they are not among its arguments.
    programs: the programs of a stage with several; `memory` is then that of
      the largest.
  """

  name: str
  seconds: float
  memory: Memory | None = None
  needed_bytes: float | None = None
  costs: Costs | None = None
  refusal: str | None = None
  held_bytes: int = 0
  programs: tuple["CompiledStage", ...] = ()

  @property
  def total_bytes(self) -> float | None:
    """Memory in use while it runs; None if it is unknown."""
    used = self.needed_bytes if self.memory is None else self.memory.total
    return None if used is None else used + self.held_bytes


class _OutOfMemoryError(Exception):
  """The compiler has refused a program of an engine."""


def compile_stage(
  stage: Stage, devices: int, path: pathlib.Path | None = None
) -> CompiledStage:
  """Compiles a stage, which is one program or several, and counts its costs.

  Args:
    stage: the stage.
    devices: number of devices that run it.
    path: gzip file for the text of the compiled program; None to write none.
      If the stage has several programs, the name of each is added.

  Returns:
    The compiler's results. With several programs, the memory is that of the
    largest, or of the one that the compiler refused, and the costs are those
    of a rollout in which all responses have their full length.
  """
  function, arguments = stage.function, stage.arguments
  if not isinstance(function, Engine):
    return _compile(stage.name, function, arguments, devices, path)[0]
  programs: list[CompiledStage] = []
  costs: Costs | None = NO_COSTS

  def compile_call(call: EngineCall) -> Any:
    nonlocal costs
    call_path = path and path.with_name(
      path.name.replace(".txt", f"_{call.name}.txt")
    )
    compiled, outputs = _compile(
      call.name, call.function, call.arguments, devices, call_path
    )
    # The costs of a call are part of the stage's costs.
    held = device_bytes(call.held)
    programs.append(dataclasses.replace(compiled, costs=None, held_bytes=held))
    if outputs is None:
      raise _OutOfMemoryError
    costs = costs.plus(compiled.costs, call.times)
    return outputs

  try:
    call_programs(function, arguments, compile_call)
    reported = max(programs, key=lambda program: program.total_bytes)
  except _OutOfMemoryError:
    reported, costs = programs[-1], None
  return dataclasses.replace(
    reported,
    name=stage.name,
    seconds=sum(program.seconds for program in programs),
    costs=costs,
    programs=tuple(programs),
  )


def _compile(
  name: str,
  function: Callable[..., Any],
  arguments: tuple[Any, ...],
  devices: int,
  path: pathlib.Path | None,
) -> tuple[CompiledStage, Any]:
  """Compiles a program and counts its costs.

  Returns also the abstract outputs with their shardings; None if the compiler
  refuses the program for lack of memory.
  """
  start = time.monotonic()
  try:
    lowered = function.lower(*arguments)
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    refused = CompiledStage(
      name,
      time.monotonic() - start,
      needed_bytes=_needed_bytes(str(error)),
      refusal=" ".join(str(error).splitlines()[0].split()),
    )
    return refused, None
  seconds = time.monotonic() - start
  analysis, text = compiled.memory_analysis(), compiled.as_text()
  if path is not None:
    path.write_bytes(gzip.compress(text.encode()))
  memory = Memory(
    analysis.argument_size_in_bytes,
    analysis.output_size_in_bytes,
    analysis.alias_size_in_bytes,
    analysis.temp_size_in_bytes,
  )
  costs = count_costs(text, devices)
  outputs = with_shardings(lowered.out_info, compiled.output_shardings)
  return CompiledStage(name, seconds, memory, costs=costs), outputs


def _needed_bytes(message: str) -> float | None:
  """Reads the memory that a refused program needs, if the message says so."""
  match = _GIVEN.search(message) or _USED.search(message)
  return None if match is None else float(match[1]) * _UNITS[match[2]]
