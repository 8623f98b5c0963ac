"""A plan as numbers and as text: what fits, what a step costs, what bounds it.

Bytes are those of one chip, or of one device where a chip has two.
"""

import dataclasses
import shlex
from typing import Any

from pure_jax.runs.planning.compiler import CompiledStage
from pure_jax.runs.planning.programs import Resident
from pure_jax.runs.planning.roofline import GIB, Bound, Chip, bound

# Weights and optimizer state that a stage is not called with.
_WAITING = {
  "reshard": ("optimizer", "reference", "prm"),
  "rollout": ("parameters", "optimizer", "reference", "prm"),
  "score": ("optimizer",),
  "update": ("reference", "prm"),
}


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """A compiled stage, with what it does not know of.

  Attributes:
    compiled: what the compiler made of it.
    waiting_bytes: of weights and optimizer state that are in memory meanwhile.
    cache_bytes: of its temporaries, keys and values (closed form).
    kept_bytes: of its temporaries, what a backward pass keeps (closed form).
    model_flops: that the method needs, on all devices together.
    bound: its roofline, None for a chip without peak numbers.
  """

  compiled: CompiledStage
  waiting_bytes: int
  cache_bytes: int
  kept_bytes: int
  model_flops: int
  bound: Bound | None

  @property
  def total_bytes(self) -> float | None:
    """In memory while it runs, None where the compiler gave no number."""
    total = self.compiled.total
    return None if total is None else total + self.waiting_bytes


@dataclasses.dataclass(frozen=True)
class Plan:
  """One way to run a config's step on a topology.

  Attributes:
    topology: its name, or "local".
    device_kind: as jax calls it.
    devices: how many.
    devices_per_chip: that share a chip.
    layout: rules and sizes of the meshes, in words.
    rows: of a batch.
    micro_batches: parts in which it is scored and differentiated.
    rollout_parts: parts in which it is drawn.
    rollout_rows: rows that take turns, None where they do not.
    flags: that make a run of it.
    notes: what was changed to plan it.
    iterations: of the config.
    resident: weights and optimizer state of a device.
    chip: peak numbers, None where there are none.
    stages: reshard if there is one, rollout, score and update.
    versions: of the compiler.
  """

  topology: str
  device_kind: str
  devices: int
  devices_per_chip: int
  layout: str
  rows: int
  micro_batches: int
  rollout_parts: int
  rollout_rows: int | None
  flags: tuple[str, ...]
  notes: tuple[str, ...]
  iterations: int
  resident: Resident
  chip: Chip | None
  stages: tuple[StagePlan, ...]
  versions: dict[str, str]

  @property
  def chips(self) -> int:
    """How many."""
    return self.devices // self.devices_per_chip

  @property
  def limit_bytes(self) -> float | None:
    """Of memory of a device, None where it is not known."""
    return self.chip and self.chip.hbm_bytes / self.devices_per_chip

  @property
  def fits(self) -> bool | None:
    """Whether every stage does, None where nobody knows."""
    if any(stage.compiled.memory is None for stage in self.stages):
      return False
    if self.limit_bytes is None:
      return None
    return all(stage.total_bytes <= self.limit_bytes for stage in self.stages)

  @property
  def step_seconds(self) -> float | None:
    """Sum of the stages' bounds, None unless each has one."""
    bounds = [stage.bound for stage in self.stages]
    return None if None in bounds else sum(found.seconds for found in bounds)

  @property
  def chip_hours(self) -> float | None:
    """Of all iterations."""
    seconds = self.step_seconds
    return seconds and seconds * self.chips * self.iterations / 3600

  @property
  def bottleneck(self) -> StagePlan | None:
    """The stage with the longest bound."""
    if self.step_seconds is None:
      return None
    return max(self.stages, key=lambda stage: stage.bound.seconds)


def plan_stage(
  compiled: CompiledStage,
  resident: Resident,
  chip: Chip | None,
  devices_per_chip: int,
  model_flops: int,
  cache_bytes: int,
  kept_bytes: int,
) -> StagePlan:
  """Joins what the compiler says of a stage with the rest.

  Args:
    compiled: the stage.
    resident: weights and optimizer state of a device.
    chip: peak numbers, or None.
    devices_per_chip: that share them.
    model_flops: of the stage, in closed form.
    cache_bytes: of a rollout.
    kept_bytes: of an update.

  Returns:
    The stage's plan.
  """
  parts = _WAITING[compiled.name]
  if compiled.name == "rollout" and not resident.sampler:
    parts = parts[1:]  # It samples from the parameters themselves.
  waiting = sum(getattr(resident, part) for part in parts)
  known = compiled.costs is not None and chip is not None
  return StagePlan(
    compiled=compiled,
    waiting_bytes=waiting,
    cache_bytes=cache_bytes if compiled.name == "rollout" else 0,
    kept_bytes=kept_bytes if compiled.name == "update" else 0,
    model_flops=model_flops,
    bound=bound(compiled.costs, chip, devices_per_chip) if known else None,
  )


def as_json(plan: Plan, price: float | None) -> dict[str, Any]:
  """Everything in a plan.

  Args:
    plan: the plan.
    price: of a chip hour, in the user's money; None leaves the cost out.

  Returns:
    A dict for `json.dumps`. Bytes and FLOPs are those of one device.
  """
  found = dataclasses.asdict(plan)
  for stage, values in zip(plan.stages, found["stages"], strict=True):
    values["total_bytes"] = stage.total_bytes
    costs = stage.compiled.costs
    if costs is not None:
      # Hundreds of loops that end as they should say little.
      loops = [loop for loop in costs.loops if loop.ends != "counted"]
      values["compiled"]["costs"]["loops"] = {
        "counted": len(costs.loops) - len(loops),
        "others": [dataclasses.asdict(loop) for loop in loops],
      }
    if stage.bound is not None:
      values["bound"]["seconds"] = stage.bound.seconds
      values["bound"]["serial_seconds"] = stage.bound.serial_seconds
      values["bound"]["name"] = stage.bound.name
  bottleneck = plan.bottleneck
  found |= {
    "chips": plan.chips,
    "limit_bytes": plan.limit_bytes,
    "fits": plan.fits,
    "step_seconds": plan.step_seconds,
    "chip_hours": plan.chip_hours,
    "bottleneck": bottleneck and bottleneck.compiled.name,
    "bound_by": bottleneck and bottleneck.bound.name,
  }
  if price is not None and plan.chip_hours is not None:
    found["cost"] = plan.chip_hours * price
  return found


def as_text(plan: Plan, price: float | None) -> str:
  """A plan to read.

  Args:
    plan: the plan.
    price: of a chip hour, in the user's money; None leaves the cost out.

  Returns:
    Lines.
  """
  versions = ", ".join(f"{k} {v}" for k, v in plan.versions.items())
  lines = [
    f"{plan.topology}: {plan.chips} chips ({plan.device_kind}), {plan.rows} "
    f"rows in {plan.micro_batches} micro-batches, {_drawn(plan)}",
    plan.layout,
    f"Flags: {shlex.join(plan.flags)}",
    *(f"note: {note}" for note in plan.notes),
    "",
    _verdict(plan),
    "",
    f"Memory per device, GiB (compiler's, {versions}; parts marked ~ are "
    "computed from shapes)",
    *_memory_table(plan),
    "",
    "Work per device and step (counted in the compiled program, loops times "
    "their trips;",
    "a rollout at its longest) and its least time (estimate from peak rates)",
    *_work_table(plan),
    "",
    *_collectives(plan),
    *_estimate(plan, price),
  ]
  return "\n".join(lines)


def _drawn(plan: Plan) -> str:
  """How a rollout goes."""
  if plan.rollout_rows is None:
    return f"drawn in {plan.rollout_parts} parts"
  return f"{plan.rollout_rows} at a time drawn in turns"


def _gib(size: float | None) -> str:
  """Bytes in GiB."""
  return "?" if size is None else f"{size / GIB:.3g}"


def _verdict(plan: Plan) -> str:
  """Whether it fits, in a sentence."""
  if plan.fits is None:
    return (
      f"Compiles; whether it fits is not known: no memory size of "
      f"{plan.device_kind!r} is (pure_jax/runs/planning/roofline.py)."
    )
  if plan.fits:
    peak = max(stage.total_bytes for stage in plan.stages)
    return f"FITS: {_gib(peak)} of {_gib(plan.limit_bytes)} GiB at its peak."
  over = []
  for stage in plan.stages:
    if stage.compiled.memory is None or stage.total_bytes > plan.limit_bytes:
      words = stage.compiled.refusal or ""
      over.append(f"{stage.compiled.name} needs {_gib(stage.total_bytes)}")
      over[-1] += f" ({words})" if words and stage.total_bytes is None else ""
  return (
    f"DOES NOT FIT into {_gib(plan.limit_bytes)} GiB: {', '.join(over)} GiB."
  )


def _memory_table(plan: Plan) -> list[str]:
  """Parts of the memory, a row for each stage."""
  held = plan.resident
  lines = [
    f"  ~ parameters {_gib(held.parameters)}, optimizer {_gib(held.optimizer)},"
    f" reference {_gib(held.reference)}, PRM {_gib(held.prm)}: "
    f"{_gib(held.total)} throughout; the sampler's copy "
    f"{_gib(held.sampler)}",
    f"  {'':8}{'arguments':>11}{'outputs':>11}{'temporary':>11}"
    f"{'~ KV cache':>11}{'~ kept':>11}{'~ waiting':>11}{'total':>11}",
  ]
  for stage in plan.stages:
    memory = stage.compiled.memory
    new = memory and memory.outputs - memory.aliased
    lines.append(
      f"  {stage.compiled.name:8}{_gib(memory and memory.arguments):>11}"
      f"{_gib(new):>11}{_gib(memory and memory.temporaries):>11}"
      f"{_gib(stage.cache_bytes):>11}{_gib(stage.kept_bytes):>11}"
      f"{_gib(stage.waiting_bytes + stage.compiled.beside):>11}"
      f"{_gib(stage.total_bytes):>11}"
    )
  return [
    *lines,
    "  KV cache and kept (inputs of layers, for the backward pass) are part of "
    "temporary;",
    "  waiting: weights and optimizer state that the stage is not called with.",
    *_parts(plan),
  ]


def _parts(plan: Plan) -> list[str]:
  """What each program of a stage needs, where it has several."""
  lines = []
  for stage in plan.stages:
    needed = [
      f"{part.name} {_gib(part.total and part.total + stage.waiting_bytes)}"
      for part in stage.compiled.parts
    ]
    if needed:
      lines += [
        f"  {stage.compiled.name} has several programs, of which the largest "
        "is shown; its KV cache",
        f"  is among arguments and outputs. Total of each: {', '.join(needed)}",
      ]
  return lines


def _work_table(plan: Plan) -> list[str]:
  """FLOPs, bytes and seconds, a row for each stage."""
  lines = [
    f"  {'':8}{'TFLOP':>10}{'model':>8}{'HBM GB':>11}{'sent GB':>11}"
    f"{'compute s':>11}{'memory s':>10}{'network s':>10}  bound by"
  ]
  for stage in plan.stages:
    costs = stage.compiled.costs
    if costs is None:
      lines.append(f"  {stage.compiled.name:8}{'not compiled':>10}")
      continue
    share = stage.model_flops / (plan.devices * costs.flops or 1)
    row = (
      f"  {stage.compiled.name:8}{costs.flops / 1e12:>10.2f}{share:>8.0%}"
      f"{costs.hbm_bytes / 1e9:>11.1f}{costs.sent_bytes / 1e9:>11.1f}"
    )
    found = stage.bound
    if found is not None:
      row += (
        f"{found.compute:>11.2f}{found.memory:>10.2f}{found.network:>10.2f}"
        f"  {found.name}"
      )
    lines.append(row)
  return [
    *lines,
    "  model: FLOPs that the method needs (closed form) as a share of those "
    "compiled.",
  ]


def _collectives(plan: Plan) -> list[str]:
  """Exchanges by stage and kind."""
  lines = []
  for stage in plan.stages:
    costs = stage.compiled.costs
    for kind, found in sorted((costs.collectives if costs else {}).items()):
      lines.append(
        f"  {stage.compiled.name:8} {kind:18} {found.count:>10.0f} times "
        f"{found.sent_bytes / 1e9:>10.2f} GB sent"
      )
  return ["Collectives per device and step", *lines, ""] if lines else []


def _estimate(plan: Plan, price: float | None) -> list[str]:
  """Time and cost of a step and of the run."""
  unknown = [
    f"{stage.compiled.name} has a loop without a trip count, counted once"
    for stage in plan.stages
    if stage.compiled.costs
    and any(loop.ends == "unknown" for loop in stage.compiled.costs.loops)
  ]
  times = ", ".join(
    f"{s.compiled.name} {s.compiled.seconds:.0f} s" for s in plan.stages
  )
  lines = [*unknown, f"Compiled in: {times}."]
  if plan.step_seconds is None:
    return [
      *lines,
      "No estimate of time: a stage or the peak rates are missing.",
    ]
  slowest = plan.bottleneck
  serial = sum(stage.bound.serial_seconds for stage in plan.stages)
  lines.append(
    f"Estimate: a step takes at least {plan.step_seconds:.1f} s "
    f"({serial:.1f} s if nothing overlaps), {plan.iterations} iterations at "
    f"least {plan.chip_hours:,.0f} chip hours"
    + (f" ({plan.chip_hours * price:,.0f} at {price:g})" if price else "")
    + f". The bottleneck is {slowest.compiled.name} "
    f"({slowest.bound.seconds / plan.step_seconds:.0%} of the time), bound by "
    f"{slowest.bound.name}."
  )
  return lines
