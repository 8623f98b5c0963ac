"""How often the loops of a compiled XLA program run.

The CPU compiler writes trip counts into the text. The TPU compiler does not.
Its trip counts are derived from the loop: the condition ``i + a < n``, the
first value of ``i``, and the number that the body adds to it.
"""

import dataclasses
import enum
import re

from pure_jax.runs.planning.hlo.text import Instruction

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


# The arguments of a fused computation, by parameter.
_Arguments = dict[Instruction, _Affine | None]


def read_loop(loop: Instruction) -> Loop:
  """Derives the trip count of a loop.

  Args:
    loop: an instruction with opcode "while".

  Returns:
    The loop with its trip count.
  """
  known = _KNOWN.search(loop.attributes)
  if known is not None:
    return Loop(loop.name, int(known[1]), LoopEnd.COUNTED)
  root, arguments = loop.called["condition"].root, {}
  if root.opcode == "fusion":
    arguments = _arguments(root, {})
    root = root.called["calls"].root
  comparisons, ends = (root,), LoopEnd.COUNTED
  if root.opcode == "and":
    comparisons, ends = root.operands, LoopEnd.EARLY
  for comparison in comparisons:
    trips = _trips(loop, comparison, arguments)
    if trips is not None:
      return Loop(loop.name, trips, ends)
  return Loop(loop.name, 1, LoopEnd.UNKNOWN)


def _trips(
  loop: Instruction, comparison: Instruction, arguments: _Arguments
) -> int | None:
  """Trips until a counter reaches its limit; None for another comparison."""
  if comparison.opcode != "compare":
    return None
  left, right = (_affine(x, arguments) for x in comparison.operands)
  direction = comparison.attribute("direction")
  if left is None or right is None:
    return None
  if left.index is None and right.index is not None:
    left, right = right, left
    direction = {"GT": "LT", "GE": "LE"}.get(direction, "")
  if left.index is None or right.index is not None:
    return None
  limit = right.offset - left.offset + (direction == "LE")
  start = _element(loop.operands[0], left.index, None)
  step = _element(loop.called["body"].root, left.index, left.index)
  if direction not in ("LT", "LE") or start is None or not step:
    return None
  return max(0, -(-(limit - start) // step))


def _element(
  values: Instruction, position: int, index: int | None
) -> int | None:
  """Offset of a tuple's element from the loop's value at that index."""
  if values.opcode != "tuple":
    return None
  value = _affine(values.operands[position], {})
  return value.offset if value is not None and value.index == index else None


def _affine(instruction: Instruction, arguments: _Arguments) -> _Affine | None:
  """Reads an instruction as an `_Affine`; None if it is none."""
  if instruction in arguments:
    return arguments[instruction]
  operands = instruction.operands
  if instruction.opcode == "constant":
    is_number = re.fullmatch(r"-?\d+", instruction.literal.strip())
    return _Affine(None, int(instruction.literal)) if is_number else None
  if instruction.opcode == "get-tuple-element":
    index = int(instruction.attribute("index"))
    if operands[0].opcode == "parameter":
      return _Affine(index, 0)
    if operands[0].opcode == "fusion":
      results = operands[0].called["calls"].root
      if results.opcode == "tuple":
        inner = _arguments(operands[0], arguments)
        return _affine(results.operands[index], inner)
    return None
  if instruction.opcode == "fusion":
    inner = _arguments(instruction, arguments)
    return _affine(instruction.called["calls"].root, inner)
  if instruction.opcode in _SAME:
    return _affine(operands[0], arguments)
  if instruction.opcode == "add":
    terms = [_affine(operand, arguments) for operand in operands]
    if None in terms or all(term.index is not None for term in terms):
      return None
    index = next((t.index for t in terms if t.index is not None), None)
    return _Affine(index, sum(term.offset for term in terms))
  return None


def _arguments(fusion: Instruction, outer: _Arguments) -> _Arguments:
  """The arguments of a fusion's computation."""
  parameters = fusion.called["calls"].parameters
  return {
    parameter: _affine(operand, outer)
    for parameter, operand in zip(parameters, fusion.operands, strict=True)
  }
