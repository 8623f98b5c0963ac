"""How one RL step is run on given devices: layouts, micro-batches, slots."""

import dataclasses
import json

from pure_jax.parallel.sharding import Layout
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.runs.spec import RunSpec
from pure_jax.training.step_spec import Layouts


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
    """Counts the responses that are sampled together.

    Args:
      prompts: prompts of a batch (P).
      samples: samples of each prompt (G).

    Returns:
      The responses of a rollout batch. With continuous batching, the slots
      rounded to whole prompts on every row shard: down, but at least to one.
    """
    if self.slots is None:
      return prompts * samples // self.rollout_batches
    shards = self.layouts.rollout.row_shards
    prompts_per_shard = min(
      self.slots // (shards * samples), -(-prompts // shards)
    )
    return max(prompts_per_shard, 1) * shards * samples

  def with_half_the_rows(
    self, prompts: int, samples: int
  ) -> "ExecutionPlan | None":
    """Halves the number of responses that are sampled together.

    Args:
      prompts: prompts of a batch (P).
      samples: samples of each prompt (G).

    Returns:
      The same plan with half the rows; None if they cannot be halved.
    """
    shards = self.layouts.rollout.row_shards
    rows = self.rows_at_a_time(prompts, samples)
    if self.slots is None:
      if rows % (2 * shards):
        return None
      return dataclasses.replace(self, rollout_batches=2 * self.rollout_batches)
    half = dataclasses.replace(self, slots=rows // 2)
    half_rows = half.rows_at_a_time(prompts, samples)
    if half_rows == rows:
      return None
    return dataclasses.replace(half, slots=half_rows)

  def of_rollout(self) -> "ExecutionPlan":
    """Drops the parts that do not change the rollout.

    Returns:
      The plan in one micro-batch.
    """
    return dataclasses.replace(self, micro_batches=1)

  def of_training(self) -> "ExecutionPlan":
    """Drops the parts that do not change scores and update.

    Returns:
      The plan with rollouts in the layout of training, in one batch.
    """
    layouts = dataclasses.replace(self.layouts, rollout=self.layouts.training)
    return ExecutionPlan(layouts, self.micro_batches, 1)

  def flags(self) -> list[str]:
    """Writes the plan as flags of `train_pure.py`.

    Returns:
      The flags, not quoted for a shell.
    """
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
    ValueError: if the row shards do not divide the prompts of a batch.
  """
  rl, shards = spec.settings.rl, layouts.row_shards
  if rl.prompts % layouts.all_row_shards:
    raise ValueError(
      f"rl.prompts={rl.prompts} is not divisible by the "
      f"{layouts.all_row_shards} row shards of {layouts}: set "
      "--config.rl.prompts to a multiple of them."
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
