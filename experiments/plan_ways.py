"""Ways to run one RL step on given devices."""

import dataclasses
import json
import math

from mesh_settings import MeshSettings

from pure_jax.parallel.sharding import Layout


@dataclasses.dataclass(frozen=True)
class Layouts:
  """Where the models of a step live, on the same devices.

  Attributes:
    training: of the policy and its optimizer, and of the rows.
    rollout: of the policy's copy that samples.
    reference: of the reference policy.
    prm: of the PRM.
  """

  training: Layout
  rollout: Layout
  reference: Layout
  prm: Layout

  @property
  def row_shards(self) -> int:
    """Parts that must divide the rows of a micro-batch."""
    others = (self.training, self.reference, self.prm)
    return math.lcm(*(layout.row_shards for layout in others))

  @property
  def all_row_shards(self) -> int:
    """Parts that must divide prompts, and what is evaluated."""
    return math.lcm(self.row_shards, self.rollout.row_shards)

  def __str__(self) -> str:
    words = f"training: {self.training}"
    for name in ("rollout", "reference", "prm"):
      if getattr(self, name) != self.training:
        words += f"; {name}: {getattr(self, name)}"
    return words


@dataclasses.dataclass(frozen=True)
class Way:
  """One way to run a step.

  Attributes:
    layouts: devices and rules.
    micro_batches: parts in which a batch is scored and differentiated.
    rollout_parts: parts in which it is drawn.
  """

  layouts: Layouts
  micro_batches: int
  rollout_parts: int

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
