"""Ways to run one RL step on given devices."""

import dataclasses
import json

from pure_jax.parallel.sharding import Layout
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.training.step_spec import Layouts


@dataclasses.dataclass(frozen=True)
class Way:
  """One way to run a step.

  Attributes:
    layouts: devices and rules.
    micro_batches: parts in which a batch is scored and differentiated.
    rollout_parts: parts in which it is drawn, 1 where rows take turns.
    rollout_rows: rows that take turns, None where they do not.
  """

  layouts: Layouts
  micro_batches: int
  rollout_parts: int
  rollout_rows: int | None = None

  def rows_at_a_time(self, prompts: int, samples: int) -> int:
    """Rows that are drawn together.

    Args:
      prompts: of a batch.
      samples: of each prompt.

    Returns:
      Those of a part; of rows that take turns, whole prompts on every row
      shard, at least one and no more than there are.
    """
    if self.rollout_rows is None:
      return prompts * samples // self.rollout_parts
    shards = self.layouts.rollout.row_shards
    each = self.rollout_rows // (shards * samples)
    return max(min(each, -(-prompts // shards)), 1) * shards * samples

  def smaller(self, prompts: int, samples: int) -> "Way | None":
    """The same with half as many rows drawn together.

    Args:
      prompts: of a batch.
      samples: of each prompt.

    Returns:
      The way, None where rows or prompts cannot be halved.
    """
    shards = self.layouts.rollout.row_shards
    rows = self.rows_at_a_time(prompts, samples)
    if self.rollout_rows is None:
      if rows % (2 * shards):
        return None
      return dataclasses.replace(self, rollout_parts=2 * self.rollout_parts)
    half = dataclasses.replace(self, rollout_rows=rows // 2)
    half_rows = half.rows_at_a_time(prompts, samples)
    if half_rows == rows:
      return None
    return dataclasses.replace(half, rollout_rows=half_rows)

  def flags(self) -> list[str]:
    """What makes a script run it so.

    Returns:
      Flags of `train_pure.py`, to be quoted for a shell.
    """
    training = _mesh(self.layouts.training)
    found = [f"--config.mesh.{name}={size}" for name, size in training.items()]
    for name in ("rollout", "reference", "prm"):
      mesh = _mesh(getattr(self.layouts, name))
      if mesh != training:
        found.append(f"--config.rl.{name}_mesh={json.dumps(mesh)}")
    if self.rollout_rows is not None:
      found.append(f"--config.rl.rollout_rows={self.rollout_rows}")
    return [
      *found,
      f"--config.rl.micro_batches={self.micro_batches}",
      f"--config.rl.rollout_parts={self.rollout_parts}",
    ]


def _mesh(layout: Layout) -> dict[str, int | str]:
  """A layout as `mesh_settings.MeshSettings` is written, without defaults."""
  default = dataclasses.asdict(MeshSettings())
  found = dict(layout.mesh.shape) | {"rules": layout.rules}
  return {name: value for name, value in found.items()
          if value != default[name]}  # fmt: skip
