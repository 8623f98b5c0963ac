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

from pure_jax.runs.planning.engine_calls import EngineCall, call_programs
from pure_jax.runs.planning.hlo.costs import (
  NO_COSTS,
  Costs,
  add_costs,
  count_costs,
)
from pure_jax.runs.planning.programs import EngineStage, Stage, device_bytes

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
    if self.memory is not None:
      return self.memory.total + self.held_bytes
    if self.needed_bytes is not None:
      return self.needed_bytes + self.held_bytes
    return None


class _OutOfMemoryError(Exception):
  """The compiler has refused a program of an engine."""


def compile_stage(
  stage: Stage | EngineStage, devices: int, path: pathlib.Path | None = None
) -> CompiledStage:
  """Compiles a stage, which is one program or several, and counts its costs.

  Args:
    stage: the stage.
    devices: number of devices that run it.
    path: gzip file for the text of the compiled program; None to write none.
      If the stage has several programs, the name of each is added.

  Returns:
    The compiler's results.
  """
  if isinstance(stage, EngineStage):
    return _compile_engine(stage, devices, path)
  compiled, _ = compile_program(
    stage.name, stage.function, stage.arguments, devices, path
  )
  return compiled


def compile_program(
  name: str,
  function: Callable[..., Any],
  arguments: tuple[Any, ...],
  devices: int,
  path: pathlib.Path | None = None,
) -> tuple[CompiledStage, Any]:
  """Lowers and compiles a program and counts its costs.

  Args:
    name: name of the program.
    function: a jitted function.
    arguments: its abstract arguments.
    devices: number of devices that run it.
    path: gzip file for the text of the compiled program; None to write none.

  Returns:
    The compiler's results, and the abstract outputs with their shardings. If
    the compiler refuses the program for lack of memory, the outputs are None.
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
      needed_bytes=needed_bytes(str(error)),
      refusal=" ".join(str(error).splitlines()[0].split()),
    )
    return refused, None
  seconds = time.monotonic() - start
  analysis, text = compiled.memory_analysis(), compiled.as_text()
  if path is not None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))
  memory = Memory(
    analysis.argument_size_in_bytes,
    analysis.output_size_in_bytes,
    analysis.alias_size_in_bytes,
    analysis.temp_size_in_bytes,
  )
  outputs = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    lowered.out_info,
    compiled.output_shardings,
  )
  costs = count_costs(text, devices)
  return CompiledStage(name, seconds, memory, costs=costs), outputs


def needed_bytes(message: str) -> float | None:
  """Reads the memory that a refused program needs.

  >>> needed_bytes("temporaries (600.5G) exceeds available HBM (95.74G).")
  644781965312.0

  Args:
    message: the compiler's message.

  Returns:
    The bytes; None if the message names no number.
  """
  match = _GIVEN.search(message) or _USED.search(message)
  return None if match is None else float(match[1]) * _UNITS[match[2]]


def _compile_engine(
  stage: EngineStage, devices: int, path: pathlib.Path | None
) -> CompiledStage:
  """Compiles the programs of an engine, up to one that is refused.

  The memory is that of the largest program. The costs are those of a rollout
  in which all responses have their full length.
  """
  programs: list[CompiledStage] = []
  costs: Costs | None = NO_COSTS

  def compile_call(call: EngineCall) -> Any:
    nonlocal costs
    call_path = path and path.with_name(
      path.name.replace(".txt", f"_{call.name}.txt")
    )
    compiled, outputs = compile_program(
      call.name, call.function, call.arguments, devices, call_path
    )
    # The costs of a call are part of the stage's costs.
    programs.append(
      dataclasses.replace(
        compiled, costs=None, held_bytes=device_bytes(call.held)
      )
    )
    if outputs is None:
      raise _OutOfMemoryError
    costs = add_costs(costs, compiled.costs, call.times)
    return outputs

  try:
    call_programs(stage, compile_call)
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
