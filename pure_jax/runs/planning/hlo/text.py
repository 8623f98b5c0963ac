"""Parses the text of a compiled XLA program into records.

`jax.stages.Compiled.as_text()` prints computations: the entry, the bodies and
conditions of loops, and fused computations. Each is a list of instructions
with a type, an opcode, operands and attributes. The parser reads the parts
that costs depend on, in the texts of the CPU compiler and of the TPU compiler.
The TPU compiler also writes tiles and memory spaces,
``bf16[8,128]{1,0:T(8,128)(2,1)S(1)}``.
"""

import dataclasses
import functools
import math
import re

# Bits of an element of each type.
_BITS = {
  "pred": 8, "token": 0, "opaque": 0,
  "s2": 2, "s4": 4, "s8": 8, "s16": 16, "s32": 32, "s64": 64,
  "u2": 2, "u4": 4, "u8": 8, "u16": 16, "u32": 32, "u64": 64,
  "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip

_COMMENT = re.compile(r"/\*.*?\*/")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*\))?(?: -> .*)? \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"^([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_OPCODE = re.compile(r"^\s*([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")


class HLOError(ValueError):
  """The text is no compiled program, or this parser cannot read it."""


@dataclasses.dataclass(frozen=True)
class Shape:
  """The type of an array.

  Attributes:
    dtype: XLA's name of the element type, such as "bf16".
    sizes: size of each dimension; the upper bound of a dynamic dimension.
    in_hbm: whether the array is in the device's main memory. False if the
      layout names another memory space: on-chip memory of a TPU, or the host.
  """

  dtype: str
  sizes: tuple[int, ...]
  in_hbm: bool = True

  @property
  def elements(self) -> int:
    """Number of elements."""
    return math.prod(self.sizes)

  @property
  def bytes(self) -> int:
    """Bytes of all elements, without the padding of tiles."""
    return -(-self.elements * _bits(self.dtype) // 8)

  @property
  def hbm_bytes(self) -> int:
    """Bytes in main memory: 0 if the array is in another memory space."""
    return self.bytes if self.in_hbm else 0


def _bits(dtype: str) -> int:
  """Bits of one element."""
  if dtype in _BITS:
    return _BITS[dtype]
  if re.match(r"f8e\d", dtype):  # The eight-bit floats have many names.
    return 8
  if re.match(r"f4e\d", dtype):
    return 4
  raise HLOError(f"{dtype!r} is an unknown element type.")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction of a computation.

  Attributes:
    name: name of the instruction, unique within the program.
    shapes: shape of the result. A tuple has the shapes of all its arrays, and
      nested tuples are flattened in order.
    opcode: the operation, such as "dot".
    operands: names of instructions in the same computation.
    literal: text between the parentheses: a constant's value or a parameter's
      number.
    attributes: text after the parentheses.
  """

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  literal: str
  attributes: str

  def attribute(self, name: str) -> str | None:
    """Reads the text of an attribute, up to a comma outside brackets.

    Args:
      name: name of the attribute.

    Returns:
      The text after ``name=``; None if there is no such attribute.
    """
    match = re.search(rf"(?:^|[\s,]){name}=", self.attributes)
    if match is None:
      return None
    return _until_comma(self.attributes[match.end() :])

  def called(self, name: str) -> str | None:
    """Reads an attribute that names a computation.

    Args:
      name: name of the attribute, such as "body".

    Returns:
      The computation's name; None if there is no such attribute.
    """
    text = self.attribute(name)
    return None if text is None else text.strip().lstrip("%")


@dataclasses.dataclass(frozen=True)
class Computation:
  """A list of instructions.

  Attributes:
    name: name of the computation, unique within the program.
    instructions: instructions by name, in the order of the text.
    root: name of the instruction that computes the result.
  """

  name: str
  instructions: dict[str, Instruction]
  root: str

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """For each instruction, by name, the instructions that read its value."""
    users = {name: [] for name in self.instructions}
    for instruction in self.instructions.values():
      for operand in dict.fromkeys(instruction.operands):
        users[operand].append(instruction)
    return users

  def operands(self, instruction: Instruction) -> list[Instruction]:
    """Looks the operands of an instruction up.

    Args:
      instruction: an instruction of this computation.

    Returns:
      The instructions that compute its operands.
    """
    return [self.instructions[name] for name in instruction.operands]

  @functools.cached_property
  def parameters(self) -> list[Instruction]:
    """Parameters in the order of their numbers."""
    parameters = [
      instruction
      for instruction in self.instructions.values()
      if instruction.opcode == "parameter"
    ]
    return sorted(parameters, key=lambda parameter: int(parameter.literal))


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    computations: computations by name.
    entry: name of the computation that is run.
  """

  computations: dict[str, Computation]
  entry: str

  def called(self, instruction: Instruction, attribute: str) -> Computation:
    """Looks a computation up that an instruction calls.

    Args:
      instruction: an instruction with the attribute.
      attribute: name of the attribute, such as "body".

    Returns:
      The computation that the attribute names.
    """
    return self.computations[instruction.called(attribute)]


def parse(text: str) -> Program:
  """Parses the text of a program.

  Args:
    text: text from `jax.stages.Compiled.as_text`.

  Returns:
    The program.

  Raises:
    HLOError: if the text has no entry computation, a computation has no root,
      or an instruction cannot be read.
  """
  computations, entry = {}, None
  name, instructions, root = None, {}, None
  for line in text.splitlines():
    if name is None:
      header = _HEADER.match(_COMMENT.sub("", line).rstrip())
      if header is not None and not line.startswith("HloModule"):
        name, instructions, root = header[2], {}, None
        entry = name if header[1] else entry
    elif line.startswith("}"):
      if root is None:
        raise HLOError(f"The computation {name} has no root.")
      computations[name] = Computation(name, instructions, root)
      name = None
    else:
      match = _INSTRUCTION.match(line)
      if match is None:
        continue
      instructions[match[2]] = _instruction(match[2], match[3])
      root = match[2] if match[1] else root
  if entry is None:
    raise HLOError("The text has no entry computation: it is no program.")
  return Program(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
  """Parses an instruction from the text after its name."""
  text = _COMMENT.sub("", text)
  end = _closing(text) + 1 if text.startswith("(") else _type_end(text)
  opcode = _OPCODE.match(text[end:])
  if opcode is None:
    raise HLOError(f"{name} cannot be read: {text[:200]!r}.")
  rest = text[end + opcode.end() - 1 :]
  close = _closing(rest)
  inside = rest[1:close]
  has_operands = opcode[1] not in ("constant", "parameter", "iota")
  return Instruction(
    name=name,
    shapes=_shapes(text[:end]),
    opcode=opcode[1],
    operands=tuple(_NAME.findall(inside)) if has_operands else (),
    literal=inside,
    attributes=rest[close + 1 :],
  )


def _closing(text: str) -> int:
  """Position of the parenthesis that closes the first one."""
  depth = 0
  for position, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return position
  raise HLOError(f"A parenthesis is never closed: {text[:200]!r}.")


def _type_end(text: str) -> int:
  """Position at which the type of an array ends."""
  match = _ARRAY.match(text)
  if match is None:
    raise HLOError(f"No type begins here: {text[:200]!r}.")
  return match.end()


def _shapes(text: str) -> tuple[Shape, ...]:
  """Parses a type: one array, or all arrays of a tuple in order."""
  if not text.startswith("("):
    match = _ARRAY.match(text)
    dtype, sizes, layout = match[1], match[2], match[3] or ""
    space = _SPACE.search(layout)
    in_hbm = space is None or space[1] == "0"
    numbers = tuple(int(s.strip().lstrip("<=")) for s in sizes.split(",") if s)
    return (Shape(dtype, numbers, in_hbm),)
  inside, shapes = text[1:-1], []
  while inside:
    end = _closing(inside) + 1 if inside[0] == "(" else _type_end(inside)
    shapes += _shapes(inside[:end])
    inside = inside[end:].lstrip(", ")
  return tuple(shapes)


def _until_comma(text: str) -> str:
  """The text up to the first comma outside all brackets."""
  depth = 0
  for position, letter in enumerate(text):
    depth += (letter in "([{") - (letter in ")]}")
    if depth == 0 and letter == ",":
      return text[:position]
  return text
