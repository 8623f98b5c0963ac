"""Costs of a compiled XLA program on one device: FLOPs, memory and network.

XLA's own cost analysis counts the body of a loop once. Here every instruction
is counted as often as it runs: loops are walked with their trip counts. There
are three sums, each for one device:

* FLOPs of matrix products (``dot`` and ``convolution``). Elementwise work does
  not run on the matrix unit and is left out.
* Bytes read from and written to the device's main memory, without the padding
  of tiles.
* Bytes that collectives send, by kind.
"""

import dataclasses
import re

from pure_jax.runs.planning.hlo.collectives import Collective, read_collective
from pure_jax.runs.planning.hlo.loops import Loop, read_loop
from pure_jax.runs.planning.hlo.products import product_flops
from pure_jax.runs.planning.hlo.text import (
  Computation,
  Instruction,
  Program,
  parse,
)
from pure_jax.runs.planning.hlo.traffic import moved_bytes

_BRANCHES = ("branch_computations", "true_computation", "false_computation")


@dataclasses.dataclass(frozen=True)
class Costs:
  """Costs of one run of a program on one device.

  Attributes:
    flops: FLOPs of matrix products.
    hbm_bytes: bytes read from and written to main memory.
    collectives: collectives by kind; kinds that do not occur are left out.
    loops: all loops, in the order in which they are reached.
  """

  flops: float
  hbm_bytes: float
  collectives: dict[str, Collective]
  loops: tuple[Loop, ...]

  @property
  def sent_bytes(self) -> float:
    """Bytes that leave a device, over all kinds of collectives."""
    return sum(kind.sent_bytes for kind in self.collectives.values())


NO_COSTS = Costs(0.0, 0.0, {}, ())


def count_costs(text: str, devices: int) -> Costs:
  """Counts the costs of a compiled program.

  Args:
    text: text from `jax.stages.Compiled.as_text`.
    devices: number of devices that run the program.

  Returns:
    The costs of one device.

  Raises:
    HLOError: if the text cannot be read.
  """
  program = parse(text)
  total = _Total(program, devices)
  total.add(program.computations[program.entry], 1.0)
  return Costs(
    total.flops, total.hbm_bytes, total.collectives, tuple(total.loops)
  )


def add_costs(total: Costs, costs: Costs, times: float) -> Costs:
  """Adds the costs of a program that runs several times.

  Args:
    total: costs so far.
    costs: costs of one run of the program.
    times: how often it runs.

  Returns:
    The sum.
  """
  collectives = dict(total.collectives)
  for kind, collective in costs.collectives.items():
    before = collectives.get(kind, Collective())
    collectives[kind] = before + times * collective
  return Costs(
    total.flops + times * costs.flops,
    total.hbm_bytes + times * costs.hbm_bytes,
    collectives,
    total.loops + costs.loops,
  )


class _Total:
  """Sums that grow while a program is walked."""

  def __init__(self, program: Program, devices: int):
    self.program, self.devices = program, devices
    self.flops = self.hbm_bytes = 0.0
    self.collectives: dict[str, Collective] = {}
    self.loops: list[Loop] = []

  def add(self, computation: Computation, times: float) -> None:
    """Adds a computation that runs so often and whose values are in memory."""
    program = self.program
    for instruction in computation.instructions.values():
      self._add_instruction(computation, instruction, times)
      self.hbm_bytes += times * moved_bytes(program, computation, instruction)
      if instruction.opcode == "while":
        loop = read_loop(program, computation, instruction)
        self.loops.append(loop)
        for name in ("condition", "body"):
          self.add(program.called(instruction, name), times * loop.trips)
      elif instruction.opcode == "conditional":
        self._add_largest_branch(instruction, times)
      elif instruction.opcode == "fusion":
        self._add_fused(program.called(instruction, "calls"), times)
      elif instruction.opcode in ("call", "call-start", "async-start"):
        has_calls = instruction.called("calls") is not None
        name = "calls" if has_calls else "to_apply"
        self.add(program.called(instruction, name), times)

  def _add_largest_branch(self, instruction: Instruction, times: float) -> None:
    """Adds the branch with the most FLOPs, since any may be taken."""
    texts = [instruction.attribute(name) or "" for name in _BRANCHES]
    branches = []
    for name in re.findall(r"%([\w.\-]+)", " ".join(texts)):
      branch = _Total(self.program, self.devices)
      branch.add(self.program.computations[name], times)
      branches.append(branch)
    largest = max(branches, key=lambda total: (total.flops, total.hbm_bytes))
    self.flops += largest.flops
    self.hbm_bytes += largest.hbm_bytes
    self.loops += largest.loops
    for kind, collective in largest.collectives.items():
      self._add_collective(kind, collective)

  def _add_fused(self, computation: Computation, times: float) -> None:
    """Adds products and collectives inside a fusion."""
    for instruction in computation.instructions.values():
      self._add_instruction(computation, instruction, times)
      if instruction.opcode == "fusion":
        self._add_fused(self.program.called(instruction, "calls"), times)

  def _add_instruction(
    self, computation: Computation, instruction: Instruction, times: float
  ) -> None:
    """Adds the products of an instruction and the bytes it sends."""
    self.flops += times * product_flops(computation, instruction)
    exchange = read_collective(computation, instruction, self.devices)
    if exchange is not None:
      kind, collective = exchange
      self._add_collective(kind, times * collective)

  def _add_collective(self, kind: str, collective: Collective) -> None:
    """Adds to the sum of one kind."""
    total = self.collectives.get(kind, Collective())
    self.collectives[kind] = total + collective
