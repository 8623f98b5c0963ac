"""Parses the text of a compiled XLA program into records.

`jax.stages.Compiled.as_text()` prints computations: the entry, the bodies and
conditions of loops, and fused computations. Each is a list of instructions
with a type, an opcode, operands and attributes. What an instruction reads or
calls stands before it. The parser reads the parts that costs depend on, in the
texts of the CPU compiler and of the TPU compiler. The TPU compiler also writes
tiles and memory spaces, ``bf16[8,128]{1,0:T(8,128)(2,1)S(1)}``.
"""

import dataclasses
import functools
import math
import re

_COMMENT = re.compile(r"/\*.*?\*/")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*\))?(?: -> .*)? \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_BITS = re.compile(r"(?:[sufc]|bf)(\d+)")  # s32, bf16, f8e4m3fn
_SPACE = re.compile(r"S\((\d+)\)")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")  # Types hold no such text.
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(\w+)=%([\w.\-]+)")


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
  if dtype in ("token", "opaque"):
    return 0
  if dtype == "pred":
    return 8
  match = _BITS.match(dtype)
  if match is None:
    raise HLOError(f"{dtype!r} is an unknown element type.")
  return int(match[1])


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
  """One instruction of a computation; equal to itself only.

  Attributes:
    name: name of the instruction, unique within the program.
    shapes: shape of the result. A tuple has the shapes of all its arrays, and
      nested tuples are flattened in order.
    opcode: the operation, such as "dot".
    operands: instructions whose results it reads.
    literal: text between the parentheses: a constant's value or a parameter's
      number.
    attributes: text after the parentheses.
    called: computations that it calls, by attribute, such as "body".
    branches: computations of which a conditional calls one.
    users: instructions that read its result.
  """

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple["Instruction", ...]
  literal: str
  attributes: str
  called: dict[str, "Computation"]
  branches: tuple["Computation", ...]
  users: list["Instruction"] = dataclasses.field(default_factory=list)

  def attribute(self, name: str) -> str | None:
    """Reads the text after ``name=``, up to a comma outside brackets."""
    match = re.search(rf"(?:^|[\s,]){name}=", self.attributes)
    if match is None:
      return None
    text, depth = self.attributes[match.end() :], 0
    for position, letter in enumerate(text):
      depth += (letter in "([{") - (letter in ")]}")
      if depth == 0 and letter == ",":
        return text[:position]
    return text


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
  """A list of instructions.

  Attributes:
    name: name of the computation, unique within the program.
    instructions: instructions by name, in the order of the text.
    root: the instruction that computes the result.
  """

  name: str
  instructions: dict[str, Instruction]
  root: Instruction

  @functools.cached_property
  def parameters(self) -> list[Instruction]:
    """Parameters in the order of their numbers."""
    parameters = [
      instruction
      for instruction in self.instructions.values()
      if instruction.opcode == "parameter"
    ]
    return sorted(parameters, key=lambda parameter: int(parameter.literal))


def parse(text: str) -> Computation:
  """Parses the text of a program.

  Args:
    text: text from `jax.stages.Compiled.as_text`.

  Returns:
    The computation that is run, the entry.

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
      instruction = _instruction(match[2], match[3], instructions, computations)
      instructions[match[2]] = instruction
      root = instruction if match[1] else root
  if entry is None:
    raise HLOError("The text has no entry computation: it is no program.")
  return computations[entry]


def _instruction(
  name: str,
  text: str,
  before: dict[str, Instruction],
  computations: dict[str, Computation],
) -> Instruction:
  """Parses an instruction from the text after its name."""
  text = _COMMENT.sub("", text)
  opcode = _OPCODE.search(text)
  if opcode is None:
    raise HLOError(f"{name} cannot be read: {text[:200]!r}.")
  rest = text[opcode.end() - 1 :]
  close = _closing(rest)
  inside, attributes = rest[1:close], rest[close + 1 :]
  operands, branches = (), ()
  if opcode[1] not in ("constant", "parameter", "iota"):
    operands = tuple(before[operand] for operand in _NAME.findall(inside))
  if opcode[1] == "conditional":
    called = _NAME.findall(attributes)
    branches = tuple(computations[n] for n in called if n in computations)
  instruction = Instruction(
    name=name,
    shapes=_shapes(text[: opcode.start()]),
    opcode=opcode[1],
    operands=operands,
    literal=inside,
    attributes=attributes,
    called={
      attribute: computations[called]
      for attribute, called in _CALLED.findall(attributes)
      if called in computations
    },
    branches=branches,
  )
  for operand in dict.fromkeys(operands):
    operand.users.append(instruction)
  return instruction


def _closing(text: str) -> int:
  """Position of the parenthesis that closes the first one."""
  depth = 0
  for position, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return position
  raise HLOError(f"A parenthesis is never closed: {text[:200]!r}.")


def _shapes(text: str) -> tuple[Shape, ...]:
  """Parses a type: one array, or all arrays of a tuple in order."""
  shapes = []
  for dtype, sizes, layout in _ARRAY.findall(text):
    space = _SPACE.search(layout)
    numbers = tuple(int(s.strip().lstrip("<=")) for s in sizes.split(",") if s)
    shapes.append(Shape(dtype, numbers, space is None or space[1] == "0"))
  if not shapes and text.strip("() "):
    raise HLOError(f"No type begins here: {text[:200]!r}.")
  return tuple(shapes)
