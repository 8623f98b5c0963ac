"""Which layouts and micro-batches a plan tries, and which of them it takes."""

import math
from collections.abc import Iterator, Sequence

import jax
import plan_programs
from plan_report import Plan
from run_settings import Settings

from pure_jax.host.roofline import CHIPS, GIB
from pure_jax.parallel import sharding
from pure_jax.parallel.sharding import Layout

# Devices over which a row's heads or tokens are split, where rules do that.
_SHARES = (2, 4, 8)


def config_layout(settings: Settings, devices: Sequence[jax.Device]) -> Layout:
  """The config's mesh on these devices.

  Args:
    settings: the run's. A mesh of one device stands for fsdp over all.
    devices: as many as the mesh has, or any number for a mesh of one.

  Returns:
    The layout.

  Raises:
    ValueError: if mesh and devices differ in number, or the rules do not use
      an axis.
  """
  mesh = settings.mesh
  sizes = {axis: getattr(mesh, axis) for axis in sharding.MESH_AXES}
  count = math.prod(sizes.values())
  if count == 1:
    sizes["fsdp"] = count = len(devices)
  if count != len(devices):
    raise ValueError(
      f"The config's mesh ({mesh.sizes()}) has {count} devices, but there are "
      f"{len(devices)}: set --config.mesh.fsdp and the others to them."
    )
  return sharding.make_layout(**sizes, rules=mesh.rules, devices=devices)


def possible_micro_batches(
  settings: Settings, layout: Layout, wanted: int
) -> tuple[int, tuple[str, ...]]:
  """As many micro-batches as asked for, or the most that there can be.

  Args:
    settings: the run's.
    layout: devices and rules.
    wanted: micro-batches.

  Returns:
    (a number, what to say if it is another one).

  Raises:
    ValueError: if the batch has fewer rows than the layout has row shards.
  """
  rows = settings.rl.prompts * settings.rl.samples_per_prompt
  shards = layout.row_shards
  if rows % shards:
    raise ValueError(
      f"{rows} rows (rl.prompts x rl.samples_per_prompt) are not divisible by "
      f"the {shards} row shards of {layout}."
    )
  per_shard = rows // shards
  if per_shard % wanted == 0:
    return wanted, ()
  parts = max(n for n in range(1, min(wanted, per_shard) + 1)
              if per_shard % n == 0)  # fmt: skip
  return parts, (
    f"rl.micro_batches={wanted} cannot be, with {per_shard} rows on each of "
    f"{shards} row shards: planned with {parts}.",
  )


def candidates(
  settings: Settings,
  shapes: plan_programs.Shapes,
  devices: Sequence[jax.Device],
) -> Iterator[tuple[Layout, int]]:
  """Layouts and micro-batches worth compiling.

  Those whose weights and optimizer state alone are too much are left out.

  Args:
    settings: the run's.
    shapes: its models.
    devices: to use, all of them.

  Yields:
    (layout, micro-batches): with one row at a time on each row shard, and
    with two.
  """
  chip = CHIPS.get(devices[0].device_kind)
  rows = settings.rl.prompts * settings.rl.samples_per_prompt
  for layout in _layouts(len(devices), devices):
    if rows % layout.row_shards:
      continue
    try:
      held = plan_programs.resident(settings, shapes, layout)
      plan_programs.stages(settings, shapes, layout, 1)
    except ValueError:
      continue  # A dimension that the rules cannot split so.
    if chip is not None and held.total > chip.hbm_bytes:
      continue
    per_shard = rows // layout.row_shards
    yield layout, per_shard
    if per_shard % 2 == 0:
      yield layout, per_shard // 2


def _layouts(count: int, devices: Sequence[jax.Device]) -> Iterator[Layout]:
  """Every rule set, in the sizes that are tried."""
  yield sharding.make_layout(fsdp=count, devices=devices)
  for axis in ("tensor", "sequence"):
    for share in _SHARES:
      if count % share == 0:
        yield sharding.make_layout(
          fsdp=count // share,
          rules=f"fsdp+{axis}",
          devices=devices,
          **{axis: share},
        )
  if count in _SHARES:
    yield sharding.make_layout(tensor=count, rules="tensor", devices=devices)


def choose(plans: Sequence[Plan]) -> Plan:
  """The fastest plan that fits; of those that do not, the smallest.

  Args:
    plans: what was tried.

  Returns:
    One of them.

  Raises:
    ValueError: if nothing was tried.
  """
  if not plans:
    raise ValueError(
      "No rule set can be tried: weights and optimizer state alone are too "
      "much for these devices, or the batch has too few rows. Take more."
    )
  fitting = [plan for plan in plans if plan.fits is not False]
  if fitting:
    return min(fitting, key=lambda plan: plan.step_seconds or 0.0)

  def peak(plan):
    return max(stage.total_bytes or math.inf for stage in plan.stages)

  return min(plans, key=peak)


def summary(plan: Plan) -> str:
  """A plan in a line.

  Args:
    plan: the plan.

  Returns:
    The line.
  """
  peaks = ", ".join(
    f"{stage.compiled.name} "
    + ("?" if stage.total_bytes is None else f"{stage.total_bytes / GIB:.1f}")
    for stage in plan.stages
  )
  seconds = "" if plan.step_seconds is None else f", {plan.step_seconds:.0f} s"
  verdict = {True: "fits", False: "does not fit", None: "compiles"}[plan.fits]
  return (
    f"{plan.layout}, {plan.micro_batches} micro-batches: {verdict} "
    f"({peaks} GiB{seconds})"
  )
