"""The specification of one training step of PURE, a frozen record.

The compiled functions of a step are made from a `StepSpec`:
`pure_jax.training.score.make_score` and `pure_jax.training.train.make_update`.
"""

import dataclasses
import math

from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.settings import (
  AdaptiveKLConfig,
  CreditConfig,
  LossConfig,
  ScoreConfig,
)
from pure_jax.types import SeparatorTable


@dataclasses.dataclass(frozen=True)
class Layouts:
  """Layouts of the models of a training step, all on the same devices.

  Attributes:
    training: layout of the policy, its optimizer and the rows of a batch.
    rollout: layout of the policy's copy that samples.
    reference: layout of the reference policy.
    prm: layout of the PRM.
  """

  training: sharding.Layout
  rollout: sharding.Layout
  reference: sharding.Layout
  prm: sharding.Layout

  @classmethod
  def same(cls, layout: sharding.Layout) -> "Layouts":
    """One layout for all models."""
    return cls(layout, layout, layout, layout)

  @property
  def row_shards(self) -> int:
    """The number of shards that must divide the rows of a micro-batch."""
    layouts = (self.training, self.reference, self.prm)
    return math.lcm(*(layout.row_shards for layout in layouts))

  @property
  def all_row_shards(self) -> int:
    """The number of shards that must divide prompts and evaluated rows."""
    return math.lcm(self.row_shards, self.rollout.row_shards)

  def __str__(self) -> str:
    words = f"training: {self.training}"
    for name in ("rollout", "reference", "prm"):
      if getattr(self, name) != self.training:
        words += f"; {name}: {getattr(self, name)}"
    return words


@dataclasses.dataclass(frozen=True)
class StepSpec:
  """The specification of the scores and the update of a training step.

  Attributes:
    model: the policy's architecture; with `model.lora` the step trains the
      adapters, and the reference policy is the base without them.
    prm_model: the PRM's architecture, extra layers included; None for outcome
      rewards only, where steps are split but not scored.
    sampler: how the rollout was sampled.
    scoring: how the rollout is split into steps and scored.
    table: which token ids end a step.
    layouts: devices and sharding rules of each model.
    credit: from step rewards to advantages.
    loss: clipping, KL, entropy and aggregation.
    micro_batch_rows: the most responses that scores and update process
      together; None processes the whole batch. It changes the memory used and
      not the result.
    mini_batches: mini-batches that the responses are divided into, each of
      which is one update; 1 makes one update of the whole batch.
    epochs: how often the update goes over the responses; old log-probs and
      advantages stay as they are.
    own_old_logp: the update takes its own log-probs as the old ones. They are
      equal, because it is the only update of the responses.
    adaptive_kl: how the KL coefficient, which is then part of the state,
      follows the measured KL; None keeps that of `credit` and `loss`.
  """

  model: ModelConfig
  prm_model: ModelConfig | None
  sampler: SamplingConfig
  scoring: ScoreConfig
  table: SeparatorTable
  layouts: Layouts
  credit: CreditConfig = dataclasses.field(default_factory=CreditConfig)
  loss: LossConfig = dataclasses.field(default_factory=LossConfig)
  micro_batch_rows: int | None = None
  mini_batches: int = 1
  epochs: int = 1
  own_old_logp: bool = False
  adaptive_kl: AdaptiveKLConfig | None = None

  @property
  def penalizes_kl(self) -> bool:
    """Whether rewards or loss have a KL penalty to the reference policy."""
    kinds = (self.credit.kl_in_reward, self.loss.kl_in_loss)
    return any(kind is not None for kind in kinds)
