"""Bytes that the collectives of a compiled XLA program send."""

import dataclasses
import math
import re

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

  def plus(self, other: "Collective", times: float) -> "Collective":
    """Adds another sum so many times."""
    return Collective(
      self.count + times * other.count,
      self.payload_bytes + times * other.payload_bytes,
      self.sent_bytes + times * other.sent_bytes,
    )


def read_collective(
  computation: Computation, instruction: Instruction, devices: int
) -> dict[str, Collective]:
  """Reads the bytes that one run of a collective exchanges.

  Args:
    computation: computation that holds the instruction.
    instruction: any instruction.
    devices: number of devices that run the program.

  Returns:
    The bytes by kind. {} if the instruction is no collective, or continues
    one that another instruction has started.
  """
  kind = instruction.opcode.removesuffix("-start")
  if kind not in COLLECTIVES or _is_continued(instruction):
    return {}
  exchanged = _exchanged(instruction, kind, devices)
  if computation.name.startswith("all-reduce-scatter"):
    # The TPU compiler's name of an all-reduce of which each device keeps a
    # slice.
    kind = "reduce-scatter"
    exchanged = dataclasses.replace(
      exchanged, sent_bytes=exchanged.sent_bytes / 2
    )
  return {kind: exchanged}


def _exchanged(instruction: Instruction, kind: str, devices: int) -> Collective:
  """Bytes of one run of a collective of a known kind."""
  operand_bytes = sum(
    shape.bytes for operand in instruction.operands for shape in operand.shapes
  )
  if kind == "collective-permute":
    pairs = instruction.attribute("source_target_pairs") or ""
    sends = "{" in pairs.strip("{}")
    return Collective(1, operand_bytes, operand_bytes if sends else 0)
  # The groups of a mesh end with braces and may hold commas outside brackets.
  groups = re.search(
    r"replica_groups=(mesh\[.*?\}|\S+)", instruction.attributes
  )
  size = _group_size(groups and groups[1], devices)
  payload = operand_bytes * size if kind == "all-gather" else operand_bytes
  passes = 2 if kind == "all-reduce" else 1
  return Collective(1, payload, passes * payload * (size - 1) / size)


def _is_continued(instruction: Instruction) -> bool:
  """Whether another instruction has started this collective.

  The TPU compiler spreads a collective over several fusions. It writes the
  collective into each of them with the same chain_id. The first one starts it.
  """
  if "chain_id=" not in instruction.attributes:
    return False
  return not any(
    "AsyncCollectiveStart" in user.attributes for user in instruction.users
  )


def _group_size(groups: str | None, devices: int) -> int:
  """Counts the devices that exchange with each other.

  ``replica_groups`` are written as "{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]" or
  "mesh['a'=2,'b'=4] {'a'}"; without groups all devices exchange.
  """
  text = (groups or "").strip()
  if text.startswith("mesh"):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", text))
    spanned = re.search(r"\{([^}]*)\}$", text)
    # A group may span a part of an axis: 'b':(2)4 is 4 devices.
    axes = re.findall(
      r"'(\w+)'(?::\(\d+\)(\d+))?", spanned[1] if spanned else ""
    )
    return math.prod(int(part or sizes[name]) for name, part in axes)
  tiled = re.match(r"\[(\d+),(\d+)\]", text)
  if tiled is not None:
    return int(tiled[2])
  first = re.search(r"\{([\d,]+)\}", text)
  return devices if first is None else first[1].count(",") + 1
