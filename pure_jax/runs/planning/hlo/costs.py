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

from pure_jax.runs.planning.hlo.collectives import Collective, read_collective
from pure_jax.runs.planning.hlo.loops import Loop, read_loop
from pure_jax.runs.planning.hlo.products import product_flops
from pure_jax.runs.planning.hlo.text import Computation, parse
from pure_jax.runs.planning.hlo.traffic import moved_bytes


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

  def plus(self, costs: "Costs", times: float = 1.0) -> "Costs":
    """Adds the costs of something that runs several times."""
    collectives = dict(self.collectives)
    for kind, collective in costs.collectives.items():
      before = collectives.get(kind, Collective())
      collectives[kind] = before.plus(collective, times)
    return Costs(
      self.flops + times * costs.flops,
      self.hbm_bytes + times * costs.hbm_bytes,
      collectives,
      self.loops + costs.loops,
    )


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
  return _count(parse(text), devices, is_fused=False)


def _count(computation: Computation, devices: int, is_fused: bool) -> Costs:
  """Counts one run of a computation; values of a fused one are in registers."""
  total = NO_COSTS
  for instruction in computation.instructions.values():
    opcode, called = instruction.opcode, instruction.called
    collectives = read_collective(computation, instruction, devices)
    moved = 0.0 if is_fused else float(moved_bytes(instruction))
    flops = float(product_flops(instruction))
    if flops or moved or collectives:
      total = total.plus(Costs(flops, moved, collectives, ()))
    if opcode == "fusion":
      total = total.plus(_count(called["calls"], devices, is_fused=True))
    elif is_fused:
      continue
    elif opcode == "while":
      loop = read_loop(instruction)
      total = total.plus(Costs(0.0, 0.0, {}, (loop,)))
      for name in ("condition", "body"):
        costs = _count(called[name], devices, is_fused=False)
        total = total.plus(costs, loop.trips)
    elif opcode == "conditional":
      # Any branch may be taken: the one with the most FLOPs counts.
      branches = [
        _count(branch, devices, is_fused=False)
        for branch in instruction.branches
      ]
      total = total.plus(max(branches, key=lambda x: (x.flops, x.hbm_bytes)))
    elif opcode in ("call", "call-start", "async-start"):
      inner = called.get("calls") or called["to_apply"]
      total = total.plus(_count(inner, devices, is_fused=False))
  return total
