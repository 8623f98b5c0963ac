"""How often the loops of a compiled XLA program run.

The CPU compiler writes trip counts into the text. The TPU compiler does not.
Its trip counts are derived from the loop: the condition ``i + a < n``, the
first value of ``i``, and the number that the body adds to it.
"""

import dataclasses
import enum
import re

from pure_jax.runs.planning.hlo.text import Computation, Instruction, Program

_KNOWN = re.compile(r"known_trip_count\W+n\W+(\d+)")
# These operations do not change the value of a number.
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start")


class LoopEnd(enum.StrEnum):
  """How well the trip count of a loop is known."""

  COUNTED = "counted"
  """The loop runs exactly `Loop.trips` times."""
  EARLY = "early"
  """The loop runs at most so often: its condition also reads data."""
  UNKNOWN = "unknown"
  """The count was not recognised. The body is counted once."""


@dataclasses.dataclass(frozen=True)
class Loop:
  """A loop of a program.

  Attributes:
    name: name of its instruction.
    trips: how often the body runs each time the loop is reached.
    ends: how well that number is known.
  """

  name: str
  trips: int
  ends: LoopEnd


@dataclasses.dataclass(frozen=True)
class _Affine:
  """An integer `values[index] + offset`, where `values` are the loop's values.

  Without an index, the integer is the constant `offset`.
  """

  index: int | None
  offset: int


@dataclasses.dataclass(frozen=True)
class _While:
  """A ``while`` instruction and the computations around it."""

  program: Program
  computation: Computation
  instruction: Instruction

  def start(self, index: int) -> int | None:
    """Value of an element before the first trip; None if not constant."""
    values = self.computation.operands(self.instruction)[0]
    if values.opcode != "tuple":
      return None
    value = _affine(self.program, self.computation, values.operands[index], {})
    return value.offset if value is not None and value.index is None else None

  def step(self, index: int) -> int | None:
    """The number that a trip adds to an element; None if not constant."""
    body = self.program.called(self.instruction, "body")
    root = body.instructions[body.root]
    if root.opcode != "tuple":
      return None
    value = _affine(self.program, body, root.operands[index], {})
    if value is None or value.index != index:
      return None
    return value.offset


def read_loop(
  program: Program, computation: Computation, instruction: Instruction
) -> Loop:
  """Derives the trip count of a loop.

  Args:
    program: the whole program.
    computation: computation that holds the loop.
    instruction: the loop, an instruction with opcode "while".

  Returns:
    The loop with its trip count.
  """
  known = _KNOWN.search(instruction.attributes)
  if known is not None:
    return Loop(instruction.name, int(known[1]), LoopEnd.COUNTED)
  loop = _While(program, computation, instruction)
  scope, values = program.called(instruction, "condition"), {}
  root = scope.instructions[scope.root]
  if root.opcode == "fusion":
    values = _argument_values(program, scope, root, {})
    scope = program.called(root, "calls")
    root = scope.instructions[scope.root]
  comparisons, ends = [root], LoopEnd.COUNTED
  if root.opcode == "and":
    comparisons, ends = scope.operands(root), LoopEnd.EARLY
  for comparison in comparisons:
    trips = _trips(loop, scope, comparison, values)
    if trips is not None:
      return Loop(instruction.name, trips, ends)
  return Loop(instruction.name, 1, LoopEnd.UNKNOWN)


def _trips(
  loop: _While,
  scope: Computation,
  comparison: Instruction,
  values: dict[str, _Affine | None],
) -> int | None:
  """Trips until a counter reaches its limit; None for another comparison."""
  if comparison.opcode != "compare":
    return None
  left, right = (
    _affine(loop.program, scope, name, values) for name in comparison.operands
  )
  direction = comparison.attribute("direction")
  if left is None or right is None:
    return None
  if left.index is None and right.index is not None:
    left, right = right, left
    direction = {"GT": "LT", "GE": "LE"}.get(direction, "")
  if left.index is None or right.index is not None:
    return None
  limit = right.offset - left.offset + (direction == "LE")
  start, step = loop.start(left.index), loop.step(left.index)
  if direction not in ("LT", "LE") or start is None or not step:
    return None
  return max(0, -(-(limit - start) // step))


def _affine(
  program: Program,
  scope: Computation,
  name: str,
  values: dict[str, _Affine | None],
) -> _Affine | None:
  """Reads an instruction as an `_Affine`; None if it is none.

  `values` are the arguments of a fused computation, by parameter name.
  """
  if name in values:
    return values[name]
  instruction = scope.instructions[name]
  if instruction.opcode == "constant":
    is_number = re.fullmatch(r"-?\d+", instruction.literal.strip())
    return _Affine(None, int(instruction.literal)) if is_number else None
  if instruction.opcode == "get-tuple-element":
    source = scope.operands(instruction)[0]
    index = int(instruction.attribute("index"))
    if source.opcode == "parameter":
      return _Affine(index, 0)
    if source.opcode == "fusion":
      return _fused_affine(program, scope, source, index, values)
    return None
  if instruction.opcode == "fusion":
    return _fused_affine(program, scope, instruction, None, values)
  if instruction.opcode in _SAME:
    return _affine(program, scope, instruction.operands[0], values)
  if instruction.opcode == "add":
    terms = [_affine(program, scope, n, values) for n in instruction.operands]
    if None in terms or all(term.index is not None for term in terms):
      return None
    index = next((t.index for t in terms if t.index is not None), None)
    return _Affine(index, sum(term.offset for term in terms))
  return None


def _fused_affine(program, scope, fusion, index, values):
  """Reads a fusion's result, or one of its results, as an `_Affine`."""
  fused = program.called(fusion, "calls")
  name = fused.root
  if index is not None:
    root = fused.instructions[name]
    if root.opcode != "tuple":
      return None
    name = root.operands[index]
  arguments = _argument_values(program, scope, fusion, values)
  return _affine(program, fused, name, arguments)


def _argument_values(program, scope, fusion, values):
  """The arguments of a fusion's computation, by parameter name."""
  parameters = program.called(fusion, "calls").parameters
  return {
    parameter.name: _affine(program, scope, operand, values)
    for parameter, operand in zip(parameters, fusion.operands, strict=True)
  }
