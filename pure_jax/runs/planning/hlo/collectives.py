"""Bytes that the collectives of a compiled XLA program send."""

import dataclasses
import math
import re
from collections.abc import Iterator

from pure_jax.runs.planning.hlo.text import Computation, Instruction

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """Sum over the collectives of one kind.

  Attributes:
    count: how often a collective of this kind runs.
    payload_bytes: bytes of the whole arrays: the result of an all-gather, the
      operand of a reduce-scatter or an all-reduce.
    sent_bytes: bytes that leave one device in a ring of g devices, which is
      payload (g - 1) / g, and twice as much for an all-reduce.
  """

  count: float = 0.0
  payload_bytes: float = 0.0
  sent_bytes: float = 0.0

  def __add__(self, other: "Collective") -> "Collective":
    """Adds two sums."""
    return Collective(
      self.count + other.count,
      self.payload_bytes + other.payload_bytes,
      self.sent_bytes + other.sent_bytes,
    )

  def __rmul__(self, times: float) -> "Collective":
    """Counts everything several times."""
    return Collective(
      times * self.count,
      times * self.payload_bytes,
      times * self.sent_bytes,
    )


def read_collective(
  computation: Computation, instruction: Instruction, devices: int
) -> tuple[str, Collective] | None:
  """Reads the bytes that one run of a collective exchanges.

  Args:
    computation: computation that holds the instruction.
    instruction: any instruction.
    devices: number of devices that run the program.

  Returns:
    The kind and the bytes. None if the instruction is no collective, or
    continues one that another instruction has started.
  """
  kind = instruction.opcode.removesuffix("-start")
  if kind not in COLLECTIVES or _is_continued(computation, instruction):
    return None
  exchanged = _exchanged(computation, instruction, kind, devices)
  if computation.name.startswith("all-reduce-scatter"):
    # The TPU compiler's name of an all-reduce of which each device keeps a
    # slice.
    return "reduce-scatter", dataclasses.replace(
      exchanged, sent_bytes=exchanged.sent_bytes / 2
    )
  return kind, exchanged


def _exchanged(
  computation: Computation, instruction: Instruction, kind: str, devices: int
) -> Collective:
  """Bytes of one run of a collective of a known kind."""
  operand_bytes = sum(
    shape.bytes
    for operand in computation.operands(instruction)
    for shape in operand.shapes
  )
  if kind == "collective-permute":
    pairs = instruction.attribute("source_target_pairs") or ""
    sends = "{" in pairs.strip("{}")
    return Collective(1, operand_bytes, operand_bytes if sends else 0)
  # The groups of a mesh end with braces and may hold commas outside brackets.
  groups = re.search(
    r"replica_groups=(mesh\[.*?\}|\S+)", instruction.attributes
  )
  size = group_size(groups and groups[1], devices)
  payload = operand_bytes * size if kind == "all-gather" else operand_bytes
  passes = 2 if kind == "all-reduce" else 1
  return Collective(1, payload, passes * payload * (size - 1) / size)


def _is_continued(computation: Computation, instruction: Instruction) -> bool:
  """Whether another instruction has started this collective.

  The TPU compiler spreads a collective over several fusions. It writes the
  collective into each of them with the same chain_id. The first one starts it.
  """
  if "chain_id=" not in instruction.attributes:
    return False
  users = computation.users[instruction.name]
  return not any("AsyncCollectiveStart" in user.attributes for user in users)


def group_size(groups: str | None, devices: int) -> int:
  """Counts the devices that exchange with each other.

  >>> group_size("{{0,1,2,3},{4,5,6,7}}", 8), group_size("[2,4]<=[8]", 8)
  (4, 4)
  >>> group_size("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", 8)
  2

  Args:
    groups: text of ``replica_groups`` in any of the forms above; empty or
      None if all devices form one group.
    devices: number of devices that run the program.

  Returns:
    The size of a group.
  """
  text = (groups or "").strip()
  if text.startswith("mesh"):
    sizes = {
      name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", text)
    }
    return math.prod(part or sizes[name] for name, part in _mesh_axes(text))
  tiled = re.match(r"\[(\d+),(\d+)\]", text)
  if tiled is not None:
    return int(tiled[2])
  first = re.search(r"\{([\d,]+)\}", text)
  return devices if first is None else first[1].count(",") + 1


def _mesh_axes(text: str) -> Iterator[tuple[str, int | None]]:
  """Axes of a mesh that a group spans, each with its part: None is all."""
  named = re.search(r"\{([^}]*)\}$", text)
  if named is not None:
    for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[1]):
      yield name, int(part) if part else None
