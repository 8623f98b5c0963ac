"""Searches for an execution plan that fits and is fast.

All functions plan for the devices of the specification's layouts.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from pure_jax.host.logs import console
from pure_jax.parallel import sharding
from pure_jax.parallel.sharding import Layout
from pure_jax.runs.planning import estimates
from pure_jax.runs.planning.execution_plan import ExecutionPlan, with_plan
from pure_jax.runs.planning.plan import Plan
from pure_jax.runs.planning.programs import (
  ROLLOUT_STAGES,
  TRAINING_STAGES,
  Programs,
)
from pure_jax.runs.planning.roofline import CHIPS
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.runs.spec import Layouts, RunSpec

# Devices that the rules "tensor" and "sequence" split heads or tokens over.
_SHARD_COUNTS = (2, 4, 8)

# Compiles the named stages of an execution plan; None for all stages.
MakePlan = Callable[[ExecutionPlan, Sequence[str] | None], Plan]


def config_plan(spec: RunSpec) -> ExecutionPlan:
  """Reads the execution plan of a config.

  A mesh of one device stands for "fsdp" over all devices. Rollouts without a
  mesh of their own then take the layout of `_rollout_plans` that splits weights
  over the most devices.

  Args:
    spec: the run's specification, with the config's settings.

  Returns:
    The config's layouts and sizes.

  Raises:
    ValueError: if a mesh has another number of devices, or its rules do not
      use one of its axes.
  """
  main, rl = spec.settings.mesh, spec.settings.rl
  count = spec.layouts.training.mesh.size
  is_open = main.devices == 1 < count
  if is_open:
    main = dataclasses.replace(main, fsdp=count)
  meshes = main, rl.rollout_mesh, rl.reference_mesh, rl.prm_mesh
  layouts = Layouts(*(_layout(spec, mesh or main) for mesh in meshes))
  plan = ExecutionPlan(
    layouts, rl.micro_batches, rl.rollout.batches, rl.engine.slots
  )
  if not is_open or rl.rollout_mesh is not None:
    return plan
  *_, split_most = (plan, *_rollout_plans(spec, plan))
  batches = max(plan.rollout_batches, split_most.rollout_batches)
  return dataclasses.replace(split_most, rollout_batches=batches)


def _layout(spec: RunSpec, mesh: MeshSettings) -> Layout:
  """The layout of a config's mesh on the devices of a plan."""
  devices = list(spec.layouts.training.mesh.devices.flat)
  if mesh.devices != len(devices):
    raise ValueError(
      f"A mesh of the config ({mesh.sizes()}) has {mesh.devices} devices, but "
      f"there are {len(devices)}: set --config.mesh.fsdp and the others to "
      "them."
    )
  return sharding.make_layout(**dataclasses.asdict(mesh), devices=devices)


def search(spec: RunSpec, make_plan: MakePlan) -> Plan:
  """Finds a fast execution plan that fits, without compiling all combinations.

  The search starts with the stages of training. It tries every layout of
  `_training_layouts`, for the policy, the reference and the PRM, with one row
  at a time on each row shard. It then doubles the rows of the fastest layout
  that fits, for as long as that fits and is faster. With this layout for
  training it tries the rollout layouts of `_rollout_plans`, each with as many
  rows as fit.

  Args:
    spec: the run's specification.
    make_plan: compiles the named stages of an execution plan, or all.

  Returns:
    The plan of all stages. If nothing fits, one of the smallest.

  Raises:
    ValueError: if weights and optimizer state by themselves do not fit in any
      layout.
  """
  rl = spec.settings.rl

  def attempt(plan: ExecutionPlan, stages: Sequence[str]) -> Plan:
    made = make_plan(plan, stages)
    console.tell(made.summary())
    return made

  plans = []
  for layouts in _training_layouts(spec):
    most = spec.responses // layouts.row_shards
    plan = ExecutionPlan(layouts, most, 1, rl.engine.slots)
    plans.append(attempt(plan, TRAINING_STAGES))
  training = _choose(plans)
  while training.fits is not False:
    plan = training.execution_plan
    if plan.micro_batches % 2:
      break
    plan = dataclasses.replace(plan, micro_batches=plan.micro_batches // 2)
    larger = attempt(plan, TRAINING_STAGES)
    if _choose([training, larger]) is training:
      break
    training = larger
  plans = []
  for plan in _rollout_plans(spec, training.execution_plan):
    while plan is not None:
      plans.append(attempt(plan, ROLLOUT_STAGES))
      if plans[-1].fits is not False:
        break
      plan = plan.with_half_the_rows(rl.prompts, rl.samples_per_prompt)
  return make_plan(_choose(plans).execution_plan, None)


def _training_layouts(spec: RunSpec) -> Iterator[Layouts]:
  """Lists layouts that split the optimizer state over all devices.

  A layout is left out if its rules cannot split the models this way, or if
  already weights and optimizer state do not fit.
  """
  count = spec.layouts.training.mesh.size
  meshes = [MeshSettings(fsdp=count)]
  meshes += [
    MeshSettings(fsdp=count // shards, **{axis: shards}, rules=f"fsdp+{axis}")
    for axis in ("tensor", "sequence")
    for shards in _SHARD_COUNTS
    if count % shards == 0
  ]
  for mesh in meshes:
    layouts = Layouts.same(_layout(spec, mesh))
    if _spare_bytes(spec, layouts) > 0:
      yield layouts


def _rollout_plans(
  spec: RunSpec, plan: ExecutionPlan
) -> Iterator[ExecutionPlan]:
  """Lists rollout layouts in which no weight is gathered for each token.

  Their plans have as many rows at a time as leave room for keys and values:
  the slots of `plan`, or without continuous batching all rows, and fewer if
  those are too many.
  """
  count, rl = spec.layouts.training.mesh.size, spec.settings.rl
  meshes = [MeshSettings(data=count)]
  meshes += [
    MeshSettings(data=count // shards, tensor=shards, rules="tensor")
    for shards in _SHARD_COUNTS
    if count % shards == 0
  ]
  for mesh in meshes:
    layout = _layout(spec, mesh)
    layouts = dataclasses.replace(plan.layouts, rollout=layout)
    spare = _spare_bytes(spec, layouts)
    if spec.responses % layout.row_shards or spare <= 0:
      continue
    candidate = ExecutionPlan(layouts, plan.micro_batches, 1, plan.slots)
    while not _cache_fits(spec, candidate, spare):
      fewer = candidate.with_half_the_rows(rl.prompts, rl.samples_per_prompt)
      if fewer is None:
        break
      candidate = fewer
    yield candidate


def _cache_fits(spec: RunSpec, plan: ExecutionPlan, spare: float) -> bool:
  """Whether keys and values of a rollout fit into the spare bytes."""
  rl = spec.settings.rl
  rows = plan.rows_at_a_time(rl.prompts, rl.samples_per_prompt)
  copies = 1.0
  if plan.slots is not None:
    # An engine has more than one cache in memory at times.
    copies = 1.5 if rows < spec.responses else 2.0
  cache = estimates.cache_bytes(with_plan(spec, plan), rows)
  return copies * cache <= spare


def _spare_bytes(spec: RunSpec, layouts: Layouts) -> float:
  """Memory of a device without weights and optimizer state.

  It is negative if the models do not fit or cannot be split so, and infinite
  if the memory of the device is unknown.
  """
  if spec.settings.rl.prompts % layouts.all_row_shards:
    return -math.inf
  try:
    programs = Programs(with_plan(spec, ExecutionPlan(layouts, 1, 1)))
    resident = programs.resident
    programs.stages()
  except ValueError:
    return -math.inf  # The rules cannot split one of the dimensions.
  chip = CHIPS.get(layouts.training.mesh.devices.flat[0].device_kind)
  if chip is None:
    return math.inf
  return chip.hbm_bytes - resident.total - resident.sampler


def _choose(plans: Sequence[Plan]) -> Plan:
  """Chooses the fastest plan that fits, or if none fits, the smallest."""
  if not plans:
    raise ValueError(
      "No rule set can be tried: weights and optimizer state alone are too "
      "much for these devices, or the batch has too few rows. Take more."
    )
  fitting = [plan for plan in plans if plan.fits is not False]
  if fitting:
    return min(fitting, key=lambda plan: plan.step_seconds or 0.0)
  return min(plans, key=lambda plan: plan.peak_bytes)
