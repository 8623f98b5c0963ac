"""Bytes that a compiled XLA program moves to and from main memory.

Values between instructions are kept in memory. Values inside a fusion are not.
If an instruction slices an array, the slice counts, not the array. If it
updates an array in place, the update counts.
"""

from pure_jax.runs.planning.hlo.collectives import COLLECTIVES
from pure_jax.runs.planning.hlo.text import Computation, Instruction

# These move nothing themselves. They name values or wait for an instruction
# that is counted where it starts. Bodies of loops, calls and branches are
# counted on their own.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast",
  "after-all", "partition-id", "replica-id", "opt-barrier", "while", "call",
  "conditional", "domain", "add-dependency", "call-start", "async-start",
}  # fmt: skip
_SLICES = ("slice", "dynamic-slice", "gather")
# The operand of an update in place that is written.
_UPDATES = {"dynamic-update-slice": 1, "scatter": -1}
# A fused value keeps its elements through these operations.
_VIEWS = ("bitcast", "convert", "copy", "reshape", "transpose")


def moved_bytes(instruction: Instruction) -> int:
  """Counts the bytes of main memory that one run of an instruction touches.

  Args:
    instruction: an instruction of a computation whose values are in memory.

  Returns:
    Bytes read and written.
  """
  opcode, operands = instruction.opcode, instruction.operands
  if opcode in _FREE or opcode.endswith(("-done", "-update")):
    return 0
  if opcode == "fusion":
    return _moved_by_fusion(instruction)
  written = sum(shape.hbm_bytes for shape in instruction.shapes)
  if opcode == "copy-start":  # (destination, source, a flag)
    return sum(shape.hbm_bytes for shape in instruction.shapes[:2])
  if opcode == "slice-start":  # ((sources), destination, a flag)
    source, target = instruction.shapes[0], instruction.shapes[-2]
    return target.hbm_bytes + (target.bytes if source.in_hbm else 0)
  if opcode in _SLICES:
    source = operands[0].shapes[0]
    return written + (instruction.shapes[0].bytes if source.in_hbm else 0)
  if opcode in _UPDATES:
    update = operands[_UPDATES[opcode]].shapes[0]
    in_hbm = instruction.shapes[0].in_hbm
    return update.hbm_bytes + (update.bytes if in_hbm else 0)
  if opcode in {f"{kind}-start" for kind in COLLECTIVES}:
    written = max(shape.hbm_bytes for shape in instruction.shapes)
  read = sum(s.hbm_bytes for operand in operands for s in operand.shapes)
  return written + read


def _moved_by_fusion(fusion: Instruction) -> int:
  """Bytes of main memory that a fusion reads and writes."""
  fused, moved = fusion.called["calls"], 0
  for parameter, operand in zip(fused.parameters, fusion.operands, strict=True):
    read = _read_bytes(fused, parameter)
    for shape in operand.shapes:
      if shape.in_hbm:
        moved += shape.bytes if read is None else min(read, shape.bytes)
  results = _written_bytes(fused)
  if len(results) != len(fusion.shapes):
    return moved + sum(shape.hbm_bytes for shape in fusion.shapes)
  for written, shape in zip(results, fusion.shapes, strict=True):
    if shape.in_hbm:
      moved += shape.bytes if written is None else min(written, shape.bytes)
  return moved


def _written_bytes(fused: Computation) -> list[int | None]:
  """Bytes that a fusion writes to each of its results; None for all of it."""
  root, written = fused.root, []
  for result in root.operands if root.opcode == "tuple" else [root]:
    while result.opcode in _VIEWS:
      result = result.operands[0]
    if result.opcode == "fusion" and len(result.shapes) == 1:
      written += _written_bytes(result.called["calls"])[:1]
    elif result.opcode in _UPDATES:
      update = result.operands[_UPDATES[result.opcode]]
      written.append(update.shapes[0].bytes)
    else:
      written.append(None)
  return written


def _read_bytes(fused: Computation, value: Instruction) -> int | None:
  """Bytes of a fused value that are read; None for all of them."""
  if value is fused.root:
    return None
  reads = []
  for user in value.users:
    is_first = user.operands[0] is value
    if user.opcode in _SLICES and is_first:
      reads.append(user.shapes[0].bytes)
    elif user.opcode in _UPDATES and is_first:
      continue  # An update in place does not touch the rest of the array.
    elif user.opcode in _VIEWS:
      reads.append(_read_bytes(fused, user))
    elif user.opcode == "fusion":
      inner = user.called["calls"]
      reads += [
        _read_bytes(inner, parameter)
        for parameter, operand in zip(
          inner.parameters, user.operands, strict=True
        )
        if operand is value
      ]
    else:
      return None
  return None if None in reads else sum(reads)
