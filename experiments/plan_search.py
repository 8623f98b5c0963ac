"""Which layouts and micro-batches a plan tries, and which of them it takes."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax
from mesh_settings import MeshSettings
from plan_programs import Layouts, Programs, Shapes
from plan_report import Plan
from run_settings import Settings

from pure_jax.host.roofline import CHIPS, GIB
from pure_jax.parallel import sharding
from pure_jax.parallel.sharding import Layout

# Devices over which a row's heads or tokens are split, where rules do that.
_SHARES = (2, 4, 8)


def config_layouts(
  settings: Settings, devices: Sequence[jax.Device]
) -> Layouts:
  """The config's meshes on these devices.

  Args:
    settings: the run's. A mesh of one device stands for fsdp over all.
    devices: as many as the mesh has, or any number for a mesh of one.

  Returns:
    The layouts.

  Raises:
    ValueError: if meshes and devices differ in number, or the rules do not
      use an axis.
  """
  main, rl = settings.mesh, settings.rl
  if main.devices == 1:
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
  return Layouts(layout(main), *map(layout, others))


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
  if rows % math.lcm(shards, layouts.rollout.row_shards):
    raise ValueError(
      f"{rows} rows (rl.prompts x rl.samples_per_prompt) are not divisible by "
      f"the row shards of {layouts}."
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


def candidates(
  settings: Settings, shapes: Shapes, devices: Sequence[jax.Device]
) -> Iterator[tuple[Layouts, int]]:
  """Layouts and micro-batches worth compiling.

  Reference and PRM live as the policy in training does. Left out is what
  weights and optimizer state alone make too large.

  Args:
    settings: the run's.
    shapes: its models.
    devices: to use, all of them.

  Yields:
    (layouts, micro-batches): with one row at a time on each row shard, and
    with two.
  """
  chip = CHIPS.get(devices[0].device_kind)
  rows = settings.rl.prompts * settings.rl.samples_per_prompt
  for training in _training_layouts(devices):
    for rollout in _rollout_layouts(devices):
      layouts = Layouts(training, rollout, training, training)
      if rows % math.lcm(training.row_shards, rollout.row_shards):
        continue
      try:
        programs = Programs(settings, shapes, layouts, 1)
        held = programs.resident()
        programs.stages()
      except ValueError:
        continue  # A dimension that the rules cannot split so.
      if chip is not None and held.total + held.sampler > chip.hbm_bytes:
        continue
      per_shard = rows // training.row_shards
      yield layouts, per_shard
      if per_shard % 2 == 0:
        yield layouts, per_shard // 2


def _training_layouts(devices: Sequence[jax.Device]) -> Iterator[Layout]:
  """Every rule set that splits the optimizer, in the sizes that are tried."""
  count = len(devices)
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


def _rollout_layouts(devices: Sequence[jax.Device]) -> Iterator[Layout]:
  """Layouts in which no weight is gathered for each token."""
  count = len(devices)
  yield sharding.make_layout(data=count, devices=devices)
  for share in _SHARES:
    if count % share == 0:
      yield sharding.make_layout(
        data=count // share, tensor=share, rules="tensor", devices=devices
      )


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
