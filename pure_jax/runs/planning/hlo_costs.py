"""What a compiled XLA program costs a device: products, memory, network.

XLA's own cost analysis counts the body of a loop once. Here every instruction
is counted as often as it runs: loops are followed with their trip counts,
which are read from their conditions. Three sums come out, for one device:

* FLOPs of matrix products (``dot`` and ``convolution``), two per multiply-add.
  Elementwise work is left out: it does not run on the matrix unit.
* Bytes read from and written to the device's main memory by the instructions
  between which values are kept there. What a fusion holds inside costs
  nothing; of an array that is only sliced, the slice counts; an update in
  place counts the update. Tile padding is not counted.
* Collectives by kind, with the bytes that leave a device in a ring.
"""

import dataclasses
import re
from collections.abc import Iterator

from pure_jax.runs.planning import hlo_loops, hlo_products
from pure_jax.runs.planning.hlo_text import (
  Computation,
  Instruction,
  Program,
  parse,
)

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)

# No work of their own: names of values, or waiting for what was counted when
# it began. Loops, calls and branches are followed instead.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast",
  "after-all", "partition-id", "replica-id", "opt-barrier", "while", "call",
  "conditional", "domain", "add-dependency",
}  # fmt: skip
_SLICES = ("slice", "dynamic-slice", "gather")
_UPDATES = ("dynamic-update-slice", "scatter")
# Through these a fused value stays the same elements.
_VIEWS = ("bitcast", "convert", "copy", "reshape", "transpose")


@dataclasses.dataclass(frozen=True)
class Collective:
  """Exchanges of one kind.

  Attributes:
    count: how often one runs.
    payload_bytes: of the whole arrays exchanged: what an all-gather gives, a
      reduce-scatter or all-reduce takes.
    sent_bytes: that leave one device, in a ring over g devices: payload
      (g - 1) / g, twice that for an all-reduce.
  """

  count: float = 0.0
  payload_bytes: float = 0.0
  sent_bytes: float = 0.0

  def __add__(self, other: "Collective") -> "Collective":
    """Both."""
    return Collective(
      self.count + other.count,
      self.payload_bytes + other.payload_bytes,
      self.sent_bytes + other.sent_bytes,
    )


@dataclasses.dataclass(frozen=True)
class Loop:
  """A loop of the program.

  Attributes:
    name: of its instruction.
    trips: times the body is counted for each time the loop is reached.
    ends: "counted" after exactly so many trips, "early" after at most so many
      (its condition also asks for data), "unknown" where no count was found
      and the body is counted once.
  """

  name: str
  trips: int
  ends: str


@dataclasses.dataclass(frozen=True)
class Costs:
  """What one run of a program costs one device.

  Attributes:
    flops: of matrix products.
    hbm_bytes: read from and written to main memory.
    collectives: by kind, those that occur.
    loops: every loop, in the order they are met.
  """

  flops: float
  hbm_bytes: float
  collectives: dict[str, Collective]
  loops: tuple[Loop, ...]

  @property
  def sent_bytes(self) -> float:
    """Bytes that leave a device, all kinds together."""
    return sum(kind.sent_bytes for kind in self.collectives.values())


def count(text: str, devices: int) -> Costs:
  """Counts a compiled program.

  Args:
    text: as `jax.stages.Compiled.as_text` gives it.
    devices: that it runs on.

  Returns:
    Its costs for one device.

  Raises:
    HLOError: if the text cannot be read.
  """
  program = parse(text)
  total = _Total(program, devices)
  total.add(program.computations[program.entry], 1.0)
  return Costs(
    total.flops, total.hbm_bytes, total.collectives, tuple(total.loops)
  )


class _Total:
  """Sums over a program while it is walked."""

  def __init__(self, program: Program, devices: int):
    self.program, self.devices = program, devices
    self.flops = self.hbm_bytes = 0.0
    self.collectives: dict[str, Collective] = {}
    self.loops: list[Loop] = []

  def add(self, computation: Computation, times: float) -> None:
    """Counts a computation whose values live in memory."""
    for instruction in computation.instructions.values():
      self._add_products(computation, instruction, times)
      self.hbm_bytes += times * self._moved(computation, instruction)
      if instruction.opcode == "while":
        loop = hlo_loops.trips(self.program, computation, instruction)
        self.loops.append(Loop(instruction.name, *loop))
        for part in ("condition", "body"):
          self.add(self._called(instruction, part), times * loop[0])
      elif instruction.opcode == "conditional":
        self._add_branches(instruction, times)
      elif instruction.opcode == "fusion":
        self._add_fused(self._called(instruction, "calls"), times)
      elif instruction.opcode in ("call", "call-start", "async-start"):
        has_calls = instruction.called("calls") is not None
        name = "calls" if has_calls else "to_apply"
        self.add(self._called(instruction, name), times)

  def _called(self, instruction: Instruction, attribute: str) -> Computation:
    """The computation that an attribute names."""
    return self.program.computations[instruction.called(attribute)]

  def _add_branches(self, instruction: Instruction, times: float) -> None:
    """Counts the branch with the most products, for any may be taken."""
    attributes = (
      "branch_computations",
      "true_computation",
      "false_computation",
    )
    texts = [instruction.attribute(name) or "" for name in attributes]
    names = re.findall(r"%([\w.\-]+)", " ".join(texts))
    totals = []
    for name in names:
      total = _Total(self.program, self.devices)
      total.add(self.program.computations[name], times)
      totals.append(total)
    most = max(totals, key=lambda total: (total.flops, total.hbm_bytes))
    self.flops += most.flops
    self.hbm_bytes += most.hbm_bytes
    self.loops += most.loops
    for kind, found in most.collectives.items():
      self._add_collective(kind, found)

  def _add_fused(self, computation: Computation, times: float) -> None:
    """Counts products and collectives inside a fusion."""
    for instruction in computation.instructions.values():
      self._add_products(computation, instruction, times)
      if instruction.opcode == "fusion":
        self._add_fused(self._called(instruction, "calls"), times)

  def _add_products(
    self, computation: Computation, instruction: Instruction, times: float
  ) -> None:
    """Counts an instruction's products and what it exchanges."""
    flops = hlo_products.flops(computation, instruction)
    self.flops += times * flops
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES and not _is_continued(computation, instruction):
      found = self._exchange(computation, instruction, kind)
      if computation.name.startswith("all-reduce-scatter"):
        # A TPU's name for an all-reduce of which each device keeps a slice.
        kind = "reduce-scatter"
        found = dataclasses.replace(found, sent_bytes=found.sent_bytes / 2)
      self._add_collective(
        kind,
        Collective(
          times * found.count,
          times * found.payload_bytes,
          times * found.sent_bytes,
        ),
      )

  def _add_collective(self, kind: str, found: Collective) -> None:
    """Adds to a kind's sum."""
    self.collectives[kind] = self.collectives.get(kind, Collective()) + found

  def _exchange(
    self, computation: Computation, instruction: Instruction, kind: str
  ) -> Collective:
    """One run of a collective."""
    taken = sum(
      shape.bytes
      for name in instruction.operands
      for shape in computation.instructions[name].shapes
    )
    if kind == "collective-permute":
      pairs = instruction.attribute("source_target_pairs") or ""
      return Collective(1, taken, taken if "{" in pairs.strip("{}") else 0)
    # A mesh ends with braces, and may hold commas outside brackets.
    groups = re.search(
      r"replica_groups=(mesh\[.*?\}|\S+)", instruction.attributes
    )
    size = group_size(groups and groups[1], self.devices)
    payload = taken * size if kind == "all-gather" else taken
    passes = 2 if kind == "all-reduce" else 1
    return Collective(1, payload, passes * payload * (size - 1) / size)

  def _moved(self, computation: Computation, instruction: Instruction) -> int:
    """Bytes of main memory that one run of an instruction touches."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
      return 0
    operands = [computation.instructions[name] for name in instruction.operands]
    if opcode == "fusion":
      return self._moved_by_fusion(operands, instruction)
    written = sum(shape.hbm_bytes for shape in instruction.shapes)
    if opcode == "copy-start":  # (destination, source, a flag)
      return sum(shape.hbm_bytes for shape in instruction.shapes[:2])
    if opcode == "slice-start":  # ((sources), destination, a flag)
      source, target = instruction.shapes[0], instruction.shapes[-2]
      return target.hbm_bytes + (target.bytes if source.in_hbm else 0)
    if opcode in ("call-start", "async-start"):
      return 0
    if opcode in _SLICES:
      source = operands[0].shapes[0]
      return written + (instruction.shapes[0].bytes if source.in_hbm else 0)
    if opcode in _UPDATES:
      update = operands[1 if opcode == "dynamic-update-slice" else -1]
      within = instruction.shapes[0].in_hbm
      return update.shapes[0].hbm_bytes + within * update.shapes[0].bytes
    if opcode.removesuffix("-start") in COLLECTIVES and opcode[-6:] == "-start":
      written = max(shape.hbm_bytes for shape in instruction.shapes)
    read = sum(s.hbm_bytes for operand in operands for s in operand.shapes)
    return written + read

  def _moved_by_fusion(
    self, operands: list[Instruction], fusion: Instruction
  ) -> int:
    """Bytes of main memory that a fusion reads and writes."""
    fused, moved = self._called(fusion, "calls"), 0
    for parameter, operand in zip(fused.parameters, operands, strict=True):
      for shape in operand.shapes:
        if shape.in_hbm:
          used = self._used(fused, parameter)
          moved += shape.bytes if used is None else min(used, shape.bytes)
    results = self._results(fused)
    if len(results) != len(fusion.shapes):
      return moved + sum(shape.hbm_bytes for shape in fusion.shapes)
    for result, shape in zip(results, fusion.shapes, strict=True):
      written = shape.bytes if result is None else min(result, shape.bytes)
      moved += written if shape.in_hbm else 0
    return moved

  def _results(self, fused: Computation) -> list[int | None]:
    """Bytes written for each result of a fusion, None for all of it."""
    root = fused.instructions[fused.root]
    names = root.operands if root.opcode == "tuple" else (root.name,)
    written = []
    for name in names:
      result = fused.instructions[name]
      while result.opcode in _VIEWS:
        result = fused.instructions[result.operands[0]]
      if result.opcode == "fusion" and len(result.shapes) == 1:
        written += self._results(self._called(result, "calls"))[:1]
      elif result.opcode in _UPDATES:
        at = 1 if result.opcode == "dynamic-update-slice" else -1
        written.append(fused.instructions[result.operands[at]].shapes[0].bytes)
      else:
        written.append(None)
    return written

  def _used(self, fused: Computation, value: Instruction) -> int | None:
    """Bytes of a fused value that are read, None for all of them."""
    if value.name == fused.root:
      return None
    used = 0
    for user in fused.users[value.name]:
      first = user.operands[0] == value.name
      if user.opcode in _SLICES and first:
        used += user.shapes[0].bytes
      elif user.opcode in _UPDATES and first:
        continue  # In place: what is not updated is not touched.
      elif user.opcode in _VIEWS or user.opcode == "fusion":
        for inside in self._passed_on(fused, value, user):
          if inside is None:
            return None
          used += inside
      else:
        return None
    return used

  def _passed_on(self, fused, value, user) -> Iterator[int | None]:
    """What the users of a view, or the inside of a fusion, read of a value."""
    if user.opcode in _VIEWS:
      yield self._used(fused, user)
      return
    inner = self._called(user, "calls")
    for parameter, operand in zip(inner.parameters, user.operands, strict=True):
      if operand == value.name:
        yield self._used(inner, parameter)


def _is_continued(computation: Computation, instruction: Instruction) -> bool:
  """Whether this is a later part of an exchange already counted.

  A TPU spreads an exchange over several fusions, and the collective stands in
  each of them under one chain_id: the first begins it.
  """
  if "chain_id=" not in instruction.attributes:
    return False
  users = computation.users[instruction.name]
  return not any("AsyncCollectiveStart" in user.attributes for user in users)


def group_size(groups: str | None, devices: int) -> int:
  """Devices that exchange with each other.

  >>> group_size("{{0,1,2,3},{4,5,6,7}}", 8), group_size("[2,4]<=[8]", 8)
  (4, 4)
  >>> group_size("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", 8)
  2

  Args:
    groups: the text of ``replica_groups``, in any of the forms above; empty
      or None for all devices.
    devices: of the program.

  Returns:
    The size of a group.
  """
  text = (groups or "").strip()
  if text.startswith("mesh"):
    sizes = {name: int(size) for name, size in re.findall(
      r"'(\w+)'=(\d+)", text)}  # fmt: skip
    size = 1
    for name, part in _mesh_axes(text):
      size *= part or sizes[name]
    return size
  tiled = re.match(r"\[(\d+),(\d+)\]", text)
  if tiled is not None:
    return int(tiled[2])
  first = re.search(r"\{([\d,]+)\}", text)
  return devices if first is None else first[1].count(",") + 1


def _mesh_axes(text: str) -> Iterator[tuple[str, int | None]]:
  """Axes of a mesh that a group spans, with the part of each: None is all."""
  named = re.search(r"\{([^}]*)\}$", text)
  if named is not None:
    for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[1]):
      yield name, int(part) if part else None
