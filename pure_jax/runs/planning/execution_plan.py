"""How one RL step is run on given devices: layouts, micro-batches, slots."""

import dataclasses
import json
from typing import Self

from pure_jax.parallel.sharding import Layout
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.runs.spec import Layouts, RunSpec


@dataclasses.dataclass(frozen=True)
class ExecutionPlan:
  """How one RL step is run on given devices.

  Attributes:
    layouts: devices and sharding rules of each model.
    micro_batches: micro-batches in which a batch is scored and trained on.
    rollout_batches: batches in which the rollout is sampled, one after the
      other; 1 with continuous batching.
    slots: the most sequences in memory with continuous batching; None to
      sample in one compiled loop.
  """

  layouts: Layouts
  micro_batches: int
  rollout_batches: int
  slots: int | None = None

  def rows_at_a_time(self, prompts: int, samples: int) -> int:
    """Counts the responses that are sampled together, of P prompts x G samples.

    With continuous batching they are the slots, rounded to whole prompts on
    every row shard: down, but at least to one.
    """
    if self.slots is None:
      return prompts * samples // self.rollout_batches
    shards = self.layouts.rollout.row_shards
    prompts_per_shard = min(
      self.slots // (shards * samples), -(-prompts // shards)
    )
    return max(prompts_per_shard, 1) * shards * samples

  def with_half_the_rows(self, prompts: int, samples: int) -> Self | None:
    """Halves the responses that are sampled together; None if it cannot."""
    rows = self.rows_at_a_time(prompts, samples)
    if self.slots is None:
      if rows % (2 * self.layouts.rollout.row_shards):
        return None
      return dataclasses.replace(self, rollout_batches=2 * self.rollout_batches)
    half = dataclasses.replace(self, slots=rows // 2)
    half_rows = half.rows_at_a_time(prompts, samples)
    if half_rows == rows:
      return None
    return dataclasses.replace(half, slots=half_rows)

  def flags(self) -> list[str]:
    """Writes the plan as flags of `train_pure.py`, not quoted for a shell."""
    training = _mesh_config(self.layouts.training)
    flags = [f"--config.mesh.{name}={size}" for name, size in training.items()]
    for name in ("rollout", "reference", "prm"):
      mesh = _mesh_config(getattr(self.layouts, name))
      if mesh != training:
        flags.append(f"--config.rl.{name}_mesh={json.dumps(mesh)}")
    if self.slots is not None:
      flags.append(f"--config.rl.engine.slots={self.slots}")
    flags.append(f"--config.rl.micro_batches={self.micro_batches}")
    flags.append(f"--config.rl.rollout.batches={self.rollout_batches}")
    return flags


def _mesh_config(layout: Layout) -> dict[str, int | str]:
  """The fields of `MeshSettings` that make this layout, without defaults."""
  default = dataclasses.asdict(MeshSettings())
  fields = dict(layout.mesh.shape) | {"rules": layout.rules}
  return {
    name: value for name, value in fields.items() if value != default[name]
  }


def with_plan(spec: RunSpec, plan: ExecutionPlan) -> RunSpec:
  """Applies an execution plan to a run's specification.

  Args:
    spec: the run's specification.
    plan: layouts, micro-batches and slots.

  Returns:
    The specification with the plan's layouts and sizes. Every text has its
    full length and a row of its own, which is the most that a step can need.
  """
  rl = spec.settings.rl
  rl = dataclasses.replace(
    rl,
    micro_batches=plan.micro_batches,
    rollout=dataclasses.replace(rl.rollout, batches=plan.rollout_batches),
    engine=dataclasses.replace(rl.engine, slots=plan.slots),
    rollout_mesh=None,
    reference_mesh=None,
    prm_mesh=None,
    length_buckets=1,
    packed_tokens=None,
  )
  # The plan's layouts replace the config's meshes.
  settings = dataclasses.replace(spec.settings, mesh=MeshSettings(), rl=rl)
  return dataclasses.replace(spec, settings=settings, layouts=plan.layouts)


def nearest_micro_batches(
  spec: RunSpec, layouts: Layouts, micro_batches: int
) -> tuple[int, tuple[str, ...]]:
  """Finds a number of micro-batches that the layouts allow.

  Args:
    spec: the run's specification.
    layouts: devices and sharding rules of each model.
    micro_batches: the number that the config requests.

  Returns:
    The largest number that divides the rows of a shard and is at most the
    requested number, and notes for the reader of the plan.

  Raises:
    ValueError: if the row shards do not divide the prompts of a batch, or the
      responses of a mini-batch.
  """
  rl, shards = spec.settings.rl, layouts.row_shards
  if rl.prompts % layouts.all_row_shards:
    raise ValueError(
      f"rl.prompts={rl.prompts} is not divisible by the "
      f"{layouts.all_row_shards} row shards of {layouts}: set "
      "--config.rl.prompts to a multiple of them."
    )
  mini_batches = rl.updates.mini_batches
  if spec.responses // mini_batches % layouts.training.row_shards:
    raise ValueError(
      f"responses / rl.updates.mini_batches={spec.responses // mini_batches} "
      f"is not divisible by the {layouts.training.row_shards} row shards of "
      f"{layouts.training}: set --config.rl.updates.mini_batches to fewer."
    )
  rows_per_shard, notes = spec.responses // shards, []
  if rl.packed_tokens is not None or rl.length_buckets > 1:
    notes.append(
      "the plan gives every response its full length and its own row; "
      "rl.packed_tokens and rl.length_buckets make shorter ones cheaper."
    )
  limit = min(micro_batches, rows_per_shard)
  possible = max(n for n in range(1, limit + 1) if rows_per_shard % n == 0)
  if possible != micro_batches:
    notes.append(
      f"rl.micro_batches={micro_batches} cannot be, with {rows_per_shard} rows "
      f"on each of {shards} row shards: planned with {possible}."
    )
  return possible, tuple(notes)


def fitting_flags(spec: RunSpec, layouts: Layouts) -> list[str]:
  """Adapts batch sizes of evaluation and supervised stages to the layouts.

  Args:
    spec: the run's specification.
    layouts: devices and sharding rules of each model.

  Returns:
    A flag for each size of the config that the row shards do not divide, with
    the next smaller size that they divide, at least one row per shard.
  """
  settings = spec.settings
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
