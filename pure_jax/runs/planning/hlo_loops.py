"""How often the loops of a compiled XLA program run.

The CPU compiler writes a known trip count down; the TPU compiler does not, so
it is read from the loop itself: a condition ``i + a < n``, the value that i
starts from, and the step of the body.
"""

import dataclasses
import re

from pure_jax.runs.planning.hlo_text import Computation, Instruction, Program

_KNOWN = re.compile(r"known_trip_count\W+n\W+(\d+)")
# Through these a number stays what it is.
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start")


@dataclasses.dataclass(frozen=True)
class _Affine:
  """A number that is element `index` of the loop's values, plus `offset`.

  Without an index it is `offset` itself.
  """

  index: int | None
  offset: int


def trips(
  program: Program, computation: Computation, loop: Instruction
) -> tuple[int, str]:
  """The trip count of a loop.

  Args:
    program: all of it.
    computation: that the loop stands in.
    loop: an instruction with opcode "while".

  Returns:
    (count, "counted"); (the most there can be, "early") where the condition
    asks for more than the count; (1, "unknown") where none was found.
  """
  condition = program.computations[loop.called("condition")]
  body = program.computations[loop.called("body")]
  root = condition.instructions[condition.root]
  known = _KNOWN.search(loop.attributes)
  if known is not None:
    return int(known[1]), "counted"
  ends = "counted"
  compares = [root]
  if root.opcode in ("and", "fusion"):
    ends = "early" if root.opcode == "and" else ends
    compares = [condition.instructions[name] for name in root.operands]
    if root.opcode == "fusion":
      return _fused_trips(program, computation, loop, condition, body, root)
  for compare in compares:
    found = _count(program, computation, loop, body, condition, compare, {})
    if found is not None:
      return found, ends
  return 1, "unknown"


def _fused_trips(program, computation, loop, condition, body, root):
  """Trip count of a loop whose condition is one fusion."""
  fused = program.computations[root.called("calls")]
  values = {
    parameter.name: _affine(program, condition, operand, {})
    for parameter, operand in zip(fused.parameters, root.operands, strict=True)
  }
  inner, ends = fused.instructions[fused.root], "counted"
  compares = [inner]
  if inner.opcode == "and":
    ends = "early"
    compares = [fused.instructions[name] for name in inner.operands]
  for compare in compares:
    found = _count(program, computation, loop, body, fused, compare, values)
    if found is not None:
      return found, ends
  return 1, "unknown"


def _count(program, computation, loop, body, where, compare, values):
  """Trips until a comparison of a counter with a constant fails, or None."""
  if compare.opcode != "compare":
    return None
  left, right = (
    _affine(program, where, name, values) for name in compare.operands
  )
  direction = compare.attribute("direction")
  if left is None or right is None:
    return None
  if left.index is None and right.index is not None:
    left, right = right, left
    direction = {"GT": "LT", "GE": "LE"}.get(direction, "")
  if left.index is None or right.index is not None:
    return None
  limit = right.offset - left.offset + (direction == "LE")
  start = _start(program, computation, loop, left.index)
  step = _step(program, body, left.index)
  if direction not in ("LT", "LE") or start is None or not step:
    return None
  return max(0, -(-(limit - start) // step))


def _start(program, computation, loop, index) -> int | None:
  """What an element of the loop's values is at first."""
  values = computation.instructions[loop.operands[0]]
  if values.opcode != "tuple":
    return None
  found = _affine(program, computation, values.operands[index], {})
  return found.offset if found is not None and found.index is None else None


def _step(program, body, index) -> int | None:
  """What a trip adds to an element of the loop's values."""
  root = body.instructions[body.root]
  if root.opcode != "tuple":
    return None
  found = _affine(program, body, root.operands[index], {})
  if found is None or found.index != index:
    return None
  return found.offset


def _affine(
  program: Program,
  where: Computation,
  name: str,
  values: dict[str, _Affine | None],
) -> _Affine | None:
  """A number as a sum of an element of the loop's values and a constant."""
  if name in values:
    return values[name]
  instruction = where.instructions[name]
  if instruction.opcode == "constant":
    is_number = re.fullmatch(r"-?\d+", instruction.literal.strip())
    return _Affine(None, int(instruction.literal)) if is_number else None
  if instruction.opcode == "get-tuple-element":
    source = where.instructions[instruction.operands[0]]
    index = int(instruction.attribute("index"))
    if source.opcode == "parameter":
      return _Affine(index, 0)
    if source.opcode == "fusion":
      return _fused_affine(program, where, source, index, values)
    return None
  if instruction.opcode == "fusion":
    return _fused_affine(program, where, instruction, None, values)
  if instruction.opcode in _SAME:
    return _affine(program, where, instruction.operands[0], values)
  if instruction.opcode == "add":
    parts = [_affine(program, where, n, values) for n in instruction.operands]
    if None in parts or all(part.index is not None for part in parts):
      return None
    index = next((p.index for p in parts if p.index is not None), None)
    return _Affine(index, sum(part.offset for part in parts))
  return None


def _fused_affine(program, where, fusion, index, values):
  """A result of a fusion as such a sum."""
  fused = program.computations[fusion.called("calls")]
  inside = {
    parameter.name: _affine(program, where, operand, values)
    for parameter, operand in zip(
      fused.parameters, fusion.operands, strict=True
    )
  }
  name = fused.root
  if index is not None:
    root = fused.instructions[name]
    if root.opcode != "tuple":
      return None
    name = root.operands[index]
  return _affine(program, fused, name, inside)
