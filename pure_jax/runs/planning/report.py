"""Writes a plan as JSON and as text.

Bytes are those of one device.
"""

import dataclasses
import shlex
from typing import Any

from pure_jax.runs.planning.hlo.loops import LoopEnd
from pure_jax.runs.planning.plan import Plan, StagePlan
from pure_jax.runs.planning.roofline import GIB


def as_json(plan: Plan, price: float | None) -> dict[str, Any]:
  """Writes a plan as a dict for `json.dumps`.

  Args:
    plan: the plan.
    price: price of a chip hour in any currency; None leaves the cost out.

  Returns:
    All values of the plan.
  """
  execution_plan, bottleneck = plan.execution_plan, plan.bottleneck
  values = dataclasses.asdict(plan.target) | {
    "chips": plan.target.chips,
    "limit_bytes": plan.target.limit_bytes,
    "layout": str(execution_plan.layouts),
    "rows": plan.rows,
    "micro_batches": execution_plan.micro_batches,
    "rollout_batches": execution_plan.rollout_batches,
    "slots": execution_plan.slots,
    "flags": plan.flags,
    "notes": plan.notes,
    "iterations": plan.iterations,
    "resident": dataclasses.asdict(plan.resident),
    "stages": [_stage_json(stage) for stage in plan.stages],
    "fits": plan.fits,
    "step_seconds": plan.step_seconds,
    "chip_hours": plan.chip_hours,
    "bottleneck": bottleneck and bottleneck.compiled.name,
    "bound_by": bottleneck and bottleneck.bound.name,
  }
  if price is not None and plan.chip_hours is not None:
    values["cost"] = plan.chip_hours * price
  return values


def _stage_json(stage: StagePlan) -> dict[str, Any]:
  """A stage as a dict."""
  compiled, costs = dataclasses.asdict(stage.compiled), stage.compiled.costs
  if costs is not None:
    # A program may have hundreds of loops. Those with a known count are not
    # listed.
    others = [loop for loop in costs.loops if loop.ends != LoopEnd.COUNTED]
    compiled["costs"]["loops"] = {
      "counted": len(costs.loops) - len(others),
      "others": [dataclasses.asdict(loop) for loop in others],
    }
  bound = None
  if stage.bound is not None:
    bound = dataclasses.asdict(stage.bound) | {
      "seconds": stage.bound.seconds,
      "serial_seconds": stage.bound.serial_seconds,
      "name": stage.bound.name,
    }
  return {
    "compiled": compiled,
    "total_bytes": stage.total_bytes,
    **dataclasses.asdict(stage.estimates),
    "bound": bound,
  }


def as_text(plan: Plan, price: float | None) -> str:
  """Writes a plan for a reader.

  Args:
    plan: the plan.
    price: price of a chip hour in any currency; None leaves the cost out.

  Returns:
    Lines of text.
  """
  target, execution_plan = plan.target, plan.execution_plan
  versions = ", ".join(f"{k} {v}" for k, v in target.versions.items())
  sampled = f"sampled in {execution_plan.rollout_batches} batches"
  if execution_plan.slots is not None:
    sampled = f"sampled in {execution_plan.slots} slots"
  lines = [
    f"{target.topology}: {target.chips} chips ({target.device_kind}), "
    f"{plan.rows} rows in {execution_plan.micro_batches} micro-batches, "
    f"{sampled}",
    str(execution_plan.layouts),
    f"Flags: {shlex.join(plan.flags)}",
    *(f"note: {note}" for note in plan.notes),
    "",
    _verdict(plan),
    "",
    f"Memory per device in GiB, from the compiler ({versions}); columns with ~ "
    "are computed from shapes",
    *_memory_table(plan),
    "",
    "Work per device and step, counted in the compiled program with the trips "
    "of its loops,",
    "for responses at their longest, and its least time (estimate from peak "
    "rates)",
    *_work_table(plan),
    "",
    *_collectives(plan),
    *_estimate(plan, price),
  ]
  return "\n".join(lines)


def _gib(size: float | None) -> str:
  """Formats bytes in GiB."""
  return "?" if size is None else f"{size / GIB:.3g}"


def _verdict(plan: Plan) -> str:
  """Says whether the plan fits."""
  limit = plan.target.limit_bytes
  if plan.fits is None:
    return (
      f"Compiles; whether it fits is not known: no memory size of "
      f"{plan.target.device_kind!r} is (pure_jax/runs/planning/roofline.py)."
    )
  if plan.fits:
    return f"FITS: {_gib(plan.peak_bytes)} of {_gib(limit)} GiB at its peak."
  too_large = []
  for stage in plan.stages:
    compiled = stage.compiled
    if compiled.memory is None or stage.total_bytes > limit:
      needs = f"{compiled.name} needs {_gib(stage.total_bytes)}"
      if compiled.refusal is not None and stage.total_bytes is None:
        needs += f" ({compiled.refusal})"
      too_large.append(needs)
  return f"DOES NOT FIT into {_gib(limit)} GiB: {', '.join(too_large)} GiB."


def _memory_table(plan: Plan) -> list[str]:
  """Memory of each stage in columns, and of each program of a stage."""
  held, programs = plan.resident, []
  columns = (
    *("arguments", "outputs", "temporary", "~ KV cache", "~ kept"),
    *("~ waiting", "total"),
  )
  critic = ""
  if held.critic:
    critic = f", critic {_gib(held.critic)} and its optimizer "
    critic += _gib(held.critic_optimizer)
  lines = [
    f"  ~ parameters {_gib(held.parameters)}, optimizer "
    f"{_gib(held.optimizer)}, reference {_gib(held.reference)}, PRM "
    f"{_gib(held.prm)}{critic}: {_gib(held.total)} throughout; the sampler's "
    f"copy {_gib(held.sampler)}",
    f"  {'':8}" + "".join(f"{column:>11}" for column in columns),
  ]
  for stage in plan.stages:
    compiled, memory = stage.compiled, stage.compiled.memory
    waiting = stage.estimates.waiting_bytes
    sizes = (
      memory and memory.arguments,
      memory and memory.outputs - memory.aliased,
      memory and memory.temporaries,
      stage.estimates.cache_bytes,
      stage.estimates.kept_bytes,
      waiting + compiled.held_bytes,
      stage.total_bytes,
    )
    row = "".join(f"{_gib(size):>11}" for size in sizes)
    lines.append(f"  {compiled.name:8}{row}")
    if compiled.programs:
      totals = [
        f"{program.name} "
        + _gib(program.total_bytes and program.total_bytes + waiting)
        for program in compiled.programs
      ]
      programs += [
        f"  {compiled.name} has several programs, of which the largest is "
        "shown; its KV cache",
        f"  is among arguments and outputs. Total of each: {', '.join(totals)}",
      ]
  return [
    *lines,
    "  KV cache and kept (inputs of layers, for the backward pass) are part of "
    "temporary;",
    "  waiting: weights and optimizer state that the stage does not read.",
    *programs,
  ]


def _work_table(plan: Plan) -> list[str]:
  """FLOPs, bytes and seconds of each stage, in columns."""
  lines = [
    f"  {'':8}{'TFLOP':>10}{'model':>8}{'HBM GB':>11}{'sent GB':>11}"
    f"{'compute s':>11}{'memory s':>10}{'network s':>10}  bound by"
  ]
  for stage in plan.stages:
    costs, bound = stage.compiled.costs, stage.bound
    if costs is None:
      lines.append(f"  {stage.compiled.name:8}{'not compiled':>10}")
      continue
    compiled_flops = plan.target.devices * costs.flops
    share = stage.estimates.model_flops / (compiled_flops or 1)
    row = (
      f"  {stage.compiled.name:8}{costs.flops / 1e12:>10.2f}{share:>8.0%}"
      f"{costs.hbm_bytes / 1e9:>11.1f}{costs.sent_bytes / 1e9:>11.1f}"
    )
    if bound is not None:
      row += (
        f"{bound.compute:>11.2f}{bound.memory:>10.2f}{bound.network:>10.2f}"
        f"  {bound.name}"
      )
    lines.append(row)
  return [
    *lines,
    "  model: FLOPs that the method needs (closed form), as a share of the "
    "compiled FLOPs.",
  ]


def _collectives(plan: Plan) -> list[str]:
  """Collectives by stage and kind."""
  lines = [
    f"  {stage.compiled.name:8} {kind:18} {total.count:>10.0f} times "
    f"{total.sent_bytes / 1e9:>10.2f} GB sent"
    for stage in plan.stages
    if stage.compiled.costs is not None
    for kind, total in sorted(stage.compiled.costs.collectives.items())
  ]
  return ["Collectives per device and step", *lines, ""] if lines else []


def _estimate(plan: Plan, price: float | None) -> list[str]:
  """Least time and cost of a step and of the run."""
  unknown = [
    f"{stage.compiled.name} has a loop without a trip count, counted once"
    for stage in plan.stages
    if stage.compiled.costs
    and any(loop.ends == LoopEnd.UNKNOWN for loop in stage.compiled.costs.loops)
  ]
  times = ", ".join(
    f"{s.compiled.name} {s.compiled.seconds:.0f} s" for s in plan.stages
  )
  estimate = "No estimate of time: a stage or the peak rates are missing."
  if plan.step_seconds is not None:
    slowest = plan.bottleneck
    serial = sum(stage.bound.serial_seconds for stage in plan.stages)
    share = slowest.bound.seconds / plan.step_seconds
    cost = f" ({plan.chip_hours * price:,.0f} at {price:g})" if price else ""
    estimate = (
      f"Estimate: a step takes at least {plan.step_seconds:.1f} s "
      f"({serial:.1f} s if nothing overlaps), {plan.iterations} iterations at "
      f"least {plan.chip_hours:,.0f} chip hours{cost}. The bottleneck is "
      f"{slowest.compiled.name} ({share:.0%} of the time), bound by "
      f"{slowest.bound.name}."
    )
  return [*unknown, f"Compiled in: {times}.", estimate]
