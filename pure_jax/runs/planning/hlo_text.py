"""The text of a compiled XLA program as records: what `hlo_costs` counts.

`jax.stages.Compiled.as_text()` prints computations (the entry, loop bodies and
conditions, fused computations), each a list of instructions with a type, an
opcode, operands and attributes. This reads as much of it as costs need, of
the CPU compiler's text and of the TPU compiler's; the latter adds layouts with
tiles and memory spaces, ``bf16[8,128]{1,0:T(8,128)(2,1)S(1)}``.
"""

import dataclasses
import functools
import math
import re

# Bits of an element.
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
  """A text that is not a compiled program, or not one that is understood."""


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array's type.

  Attributes:
    dtype: XLA's name, such as "bf16".
    sizes: of the dimensions; a bound where a dimension is dynamic.
    in_hbm: False where the layout names another memory than the device's
      main one: on-chip memory on a TPU, or the host's.
  """

  dtype: str
  sizes: tuple[int, ...]
  in_hbm: bool = True

  @property
  def elements(self) -> int:
    """How many."""
    return math.prod(self.sizes)

  @property
  def bytes(self) -> int:
    """Of all elements, without the padding of tiles."""
    return -(-self.elements * _bits(self.dtype) // 8)

  @property
  def hbm_bytes(self) -> int:
    """Its bytes, 0 where it is in another memory."""
    return self.bytes if self.in_hbm else 0


def _bits(dtype: str) -> int:
  """Bits of an element of a type."""
  if dtype in _BITS:
    return _BITS[dtype]
  if re.match(r"f8e\d", dtype):  # The eight-bit floats have many names.
    return 8
  if re.match(r"f4e\d", dtype):
    return 4
  raise HLOError(f"{dtype!r} is no element type that is known here.")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique within the program.
    shapes: of the result; a tuple's arrays, nested ones in order.
    opcode: such as "dot".
    operands: names of instructions of the same computation.
    literal: what stands between the parentheses, for constants and parameters.
    attributes: the rest of the line.
  """

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  literal: str
  attributes: str

  def attribute(self, name: str) -> str | None:
    """What ``name=`` is followed by, up to a comma outside brackets.

    Args:
      name: of the attribute.

    Returns:
      Its text, None where the instruction has no such attribute.
    """
    found = re.search(rf"(?:^|[\s,]){name}=", self.attributes)
    if found is None:
      return None
    return _until_comma(self.attributes[found.end() :])

  def called(self, name: str) -> str | None:
    """The computation that an attribute names, None without one.

    Args:
      name: of the attribute, such as "body".

    Returns:
      The computation's name.
    """
    text = self.attribute(name)
    return None if text is None else text.strip().lstrip("%")


@dataclasses.dataclass(frozen=True)
class Computation:
  """A list of instructions.

  Attributes:
    name: unique within the program.
    instructions: in the order of the text, by name.
    root: name of the one whose value is the result.
  """

  name: str
  instructions: dict[str, Instruction]
  root: str

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Instructions that read a value, by its name."""
    found = {name: [] for name in self.instructions}
    for instruction in self.instructions.values():
      for operand in dict.fromkeys(instruction.operands):
        found[operand].append(instruction)
    return found

  @functools.cached_property
  def parameters(self) -> list[Instruction]:
    """Its parameters, by their number."""
    found = [i for i in self.instructions.values() if i.opcode == "parameter"]
    return sorted(found, key=lambda i: int(i.literal))


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    computations: by name.
    entry: name of the one that is run.
  """

  computations: dict[str, Computation]
  entry: str


def parse(text: str) -> Program:
  """Reads a program.

  Args:
    text: as `jax.stages.Compiled.as_text` gives it.

  Returns:
    The program.

  Raises:
    HLOError: for text without an entry, or an instruction that cannot be
      read; the message shows it.
  """
  computations, entry = {}, None
  name, lines, root = None, {}, None
  for line in text.splitlines():
    if name is None:
      header = _HEADER.match(_COMMENT.sub("", line).rstrip())
      if header is not None and not line.startswith("HloModule"):
        name, lines, root = header[2], {}, None
        entry = name if header[1] else entry
    elif line.startswith("}"):
      if root is None:
        raise HLOError(f"The computation {name} has no root.")
      computations[name] = Computation(name, lines, root)
      name = None
    else:
      found = _INSTRUCTION.match(line)
      if found is None:
        continue
      lines[found[2]] = _instruction(found[2], found[3])
      root = found[2] if found[1] else root
  if entry is None:
    raise HLOError("The text has no entry computation: it is no program.")
  return Program(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
  """One instruction, from what follows its name."""
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
  """Position of the parenthesis that closes the first character."""
  depth = 0
  for position, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return position
  raise HLOError(f"A parenthesis is never closed: {text[:200]!r}.")


def _type_end(text: str) -> int:
  """Where the type of an array ends."""
  found = _ARRAY.match(text)
  if found is None:
    raise HLOError(f"No type begins here: {text[:200]!r}.")
  return found.end()


def _shapes(text: str) -> tuple[Shape, ...]:
  """Arrays of a type, those of a tuple in order."""
  if not text.startswith("("):
    found = _ARRAY.match(text)
    dtype, sizes, layout = found[1], found[2], found[3] or ""
    space = _SPACE.search(layout)
    in_hbm = space is None or space[1] == "0"
    numbers = tuple(int(s.strip().lstrip("<=")) for s in sizes.split(",") if s)
    return (Shape(dtype, numbers, in_hbm),)
  inside, found = text[1:-1], []
  while inside:
    end = _closing(inside) + 1 if inside[0] == "(" else _type_end(inside)
    found += _shapes(inside[:end])
    inside = inside[end:].lstrip(", ")
  return tuple(found)


def _until_comma(text: str) -> str:
  """The text up to a comma that is outside all brackets."""
  depth = 0
  for position, letter in enumerate(text):
    depth += (letter in "([{") - (letter in ")]}")
    if depth == 0 and letter == ",":
      return text[:position]
  return text
