"""Which ways to run a step a plan tries, and which of them it takes."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import jax

from pure_jax.host.logs import console
from pure_jax.parallel import sharding
from pure_jax.parallel.sharding import Layout
from pure_jax.runs.planning import estimates
from pure_jax.runs.planning.execution_plan import Layouts, Way
from pure_jax.runs.planning.programs import Programs, Shapes
from pure_jax.runs.planning.report import Plan
from pure_jax.runs.planning.roofline import CHIPS, GIB
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.runs.settings.run import Settings

# Devices over which a row's heads or tokens are split, where rules do that.
_SHARES = (2, 4, 8)
# The stages that do not depend on how rollouts are drawn, and those that do.
_LEARNING, _SAMPLING = ("score", "update"), ("reshard", "rollout")


def config_way(
  settings: Settings, shapes: Shapes, devices: Sequence[jax.Device]
) -> Way:
  """The config's meshes and parts on these devices.

  Args:
    settings: the run's. A mesh of one device stands for fsdp over all, and
      for rollouts, where the config gives them no mesh, in the layout of
      `rollout_ways` that splits weights most.
    shapes: its models.
    devices: as many as the mesh has, or any number for a mesh of one.

  Returns:
    Layouts and parts.

  Raises:
    ValueError: if meshes and devices differ in number, or the rules do not
      use an axis.
  """
  main, rl = settings.mesh, settings.rl
  is_open = main.devices == 1 < len(devices)
  if is_open:
    main = dataclasses.replace(main, fsdp=len(devices))

  def layout(mesh: MeshSettings | None) -> Layout:
    mesh = main if mesh is None else mesh
    if mesh.devices != len(devices):
      raise ValueError(
        f"A mesh of the config ({mesh.sizes()}) has {mesh.devices} devices, "
        f"but there are {len(devices)}: set --config.mesh.fsdp and the others "
        "to them."
      )
    sizes = {axis: getattr(mesh, axis) for axis in sharding.MESH_AXES}
    return sharding.make_layout(**sizes, rules=mesh.rules, devices=devices)

  others = (rl.rollout_mesh, rl.reference_mesh, rl.prm_mesh)
  layouts = Layouts(layout(main), *map(layout, others))
  way = Way(layouts, rl.micro_batches, rl.rollout.batches, rl.engine.slots)
  if not is_open or rl.rollout_mesh is not None:
    return way
  *_, best = (way, *rollout_ways(settings, shapes, way, devices))
  parts = max(rl.rollout.batches, best.rollout_parts)
  return dataclasses.replace(best, rollout_parts=parts)


def possible_micro_batches(
  settings: Settings, layouts: Layouts, wanted: int
) -> tuple[int, tuple[str, ...]]:
  """As many micro-batches as asked for, or the most that there can be.

  Args:
    settings: the run's.
    layouts: devices and rules.
    wanted: micro-batches.

  Returns:
    (a number, what to say of it).

  Raises:
    ValueError: if the layout's row shards do not divide the batch.
  """
  rows = settings.rl.prompts * settings.rl.samples_per_prompt
  shards = layouts.row_shards
  if settings.rl.prompts % layouts.all_row_shards:
    raise ValueError(
      f"rl.prompts={settings.rl.prompts} is not divisible by the "
      f"{layouts.all_row_shards} row shards of {layouts}: set "
      "--config.rl.prompts to a multiple of them."
    )
  per_shard, notes = rows // shards, []
  if settings.rl.packed_tokens is not None or settings.rl.length_buckets > 1:
    notes.append(
      "every response is taken at its longest, alone in its row; "
      "rl.packed_tokens and rl.length_buckets make shorter ones cheaper."
    )
  parts = max(n for n in range(1, min(wanted, per_shard) + 1)
              if per_shard % n == 0)  # fmt: skip
  if parts != wanted:
    notes.append(
      f"rl.micro_batches={wanted} cannot be, with {per_shard} rows on each of "
      f"{shards} row shards: planned with {parts}."
    )
  return parts, tuple(notes)


def fitting_flags(settings: Settings, layouts: Layouts) -> list[str]:
  """Sizes of other batches, where the config's cannot be split.

  Args:
    settings: the run's.
    layouts: devices and rules.

  Returns:
    Flags with the next smaller size that row shards divide, or the smallest.
  """
  sizes = {"rl.eval_prompts": settings.rl.eval_prompts}
  if settings.trains_prm:
    sizes["prm.batch_size"] = settings.prm.batch_size
    sizes["prm.eval_prompts"] = settings.prm.eval_prompts
  if settings.sft is not None:
    sizes["sft.batch_size"] = settings.sft.batch_size
  shards = layouts.all_row_shards
  return [
    f"--config.{name}={max(size // shards, 1) * shards}"
    for name, size in sizes.items()
    if size % shards
  ]


def search(
  settings: Settings,
  shapes: Shapes,
  devices: Sequence[jax.Device],
  plan: Callable[[Way, Sequence[str] | None], Plan],
) -> Plan:
  """Finds a fast way that fits, without compiling every combination.

  First the policy in training, with one row at a time on each row shard: every
  rule set in the sizes of `training_layouts`; reference and PRM live as it
  does. The fastest that fits takes twice the rows at a time for as long as
  that fits and is faster. Then, beside it, the layouts of rollouts, in as few
  parts as fit.

  Args:
    settings: the run's.
    shapes: its models.
    devices: to use, all of them.
    plan: compiles the named stages of a way, or all.

  Returns:
    The plan of all stages; one that does not fit if nothing does.

  Raises:
    ValueError: if weights and optimizer state alone are too much everywhere.
  """
  prompts, samples = settings.rl.prompts, settings.rl.samples_per_prompt
  rows = prompts * samples
  turns = settings.rl.engine.slots

  def tried(way: Way, stages: Sequence[str]) -> tuple[Way, Plan]:
    found = plan(way, stages)
    console.tell(summary(found))
    return way, found

  learning = [
    tried(Way(layouts, rows // layouts.row_shards, 1, turns), _LEARNING)
    for layouts in training_layouts(settings, shapes, devices)
  ]
  best, found = choose(learning)
  while found.fits is not False and best.micro_batches % 2 == 0:
    half = dataclasses.replace(best, micro_batches=best.micro_batches // 2)
    half, other = tried(half, _LEARNING)
    if choose([(best, found), (half, other)])[0] is best:
      break
    best, found = half, other
  sampling = []
  for way in rollout_ways(settings, shapes, best, devices):
    sampling.append(tried(way, _SAMPLING))
    while sampling[-1][1].fits is False:
      fewer = sampling[-1][0].smaller(prompts, samples)
      if fewer is None:
        break
      sampling.append(tried(fewer, _SAMPLING))
  return plan(choose(sampling)[0], None)


def training_layouts(
  settings: Settings, shapes: Shapes, devices: Sequence[jax.Device]
) -> Iterator[Layouts]:
  """Every rule set that splits the optimizer, in the sizes that are tried.

  Left out is what rules cannot split, and what weights and optimizer state
  alone make too large.

  Args:
    settings: the run's.
    shapes: its models.
    devices: to use, all of them.

  Yields:
    Layouts, the same for all four models.
  """
  count = len(devices)
  sizes = [{"fsdp": count}]
  sizes += [
    {"fsdp": count // share, axis: share, "rules": f"fsdp+{axis}"}
    for axis in ("tensor", "sequence")
    for share in _SHARES
    if count % share == 0
  ]
  for size in sizes:
    layout = sharding.make_layout(**size, devices=devices)
    layouts = Layouts(layout, layout, layout, layout)
    if _spare_bytes(settings, shapes, layouts) > 0:
      yield layouts


def rollout_ways(
  settings: Settings, shapes: Shapes, way: Way, devices: Sequence[jax.Device]
) -> Iterator[Way]:
  """Layouts in which no weight is gathered for each token.

  Args:
    settings: the run's.
    shapes: its models.
    way: how scores are computed and the policy is trained.
    devices: to use, all of them.

  Yields:
    Ways with as many rows at a time as leave room for keys and values: those
    of the way where they take turns, else all.
  """
  count = len(devices)
  prompts, samples = settings.rl.prompts, settings.rl.samples_per_prompt
  sizes = [{"data": count}]
  sizes += [
    {"data": count // share, "tensor": share, "rules": "tensor"}
    for share in _SHARES
    if count % share == 0
  ]
  for size in sizes:
    layout = sharding.make_layout(**size, devices=devices)
    layouts = dataclasses.replace(way.layouts, rollout=layout)
    spare = _spare_bytes(settings, shapes, layouts)
    if prompts * samples % layout.row_shards or spare <= 0:
      continue
    other = Way(layouts, way.micro_batches, 1, way.rollout_rows)
    while True:
      rows = other.rows_at_a_time(prompts, samples)
      # Where rows take turns, more than one cache is in memory at times.
      copies = 1.5 if rows < prompts * samples else 2
      copies = 1 if way.rollout_rows is None else copies
      cache = estimates.cache_bytes(settings, shapes, layout, rows)
      fewer = other.smaller(prompts, samples)
      if copies * cache <= spare or fewer is None:
        break
      other = fewer
    yield other


def _spare_bytes(settings: Settings, shapes: Shapes, layouts: Layouts) -> float:
  """What weights and optimizer leave of a device; below 0 if it cannot be."""
  if settings.rl.prompts % layouts.all_row_shards:
    return -math.inf
  try:
    programs = Programs(settings, shapes, Way(layouts, 1, 1))
    held = programs.resident()
    programs.stages()
  except ValueError:
    return -math.inf  # A dimension that the rules cannot split so.
  chip = CHIPS.get(layouts.training.mesh.devices.flat[0].device_kind)
  if chip is None:
    return math.inf
  return chip.hbm_bytes - held.total - held.sampler


def choose(plans: Sequence[tuple[Way, Plan]]) -> tuple[Way, Plan]:
  """The fastest plan that fits; of those that do not, the smallest.

  Args:
    plans: what was tried.

  Returns:
    One of them; of two that are equally fast, the first.

  Raises:
    ValueError: if nothing was tried.
  """
  if not plans:
    raise ValueError(
      "No rule set can be tried: weights and optimizer state alone are too "
      "much for these devices, or the batch has too few rows. Take more."
    )
  fitting = [tried for tried in plans if tried[1].fits is not False]
  if fitting:
    return min(fitting, key=lambda tried: tried[1].step_seconds or 0.0)

  def peak(tried):
    return max(stage.total_bytes or math.inf for stage in tried[1].stages)

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
  drawn = f"rollouts in {plan.rollout_parts}"
  if plan.rollout_rows is not None:
    drawn = f"{plan.rollout_rows} rows in turns"
  seconds = "" if plan.step_seconds is None else f", {plan.step_seconds:.0f} s"
  verdict = {True: "fits", False: "does not fit", None: "compiles"}[plan.fits]
  return (
    f"{plan.layout}, {plan.micro_batches} micro-batches, {drawn}: "
    f"{verdict} ({peaks} GiB{seconds})"
  )
