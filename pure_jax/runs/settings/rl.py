"""Settings of reinforcement learning, nested as the library's configs are.

`rl.credit`, `rl.loss` and `rl.optim` are the library's own dataclasses.
"""

import dataclasses

from pure_jax.runs.settings.checks import at_least_one, one_of
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.runs.settings.models import LoraSettings
from pure_jax.runs.settings.rollout import (
  EngineSettings,
  RolloutSettings,
  SamplerSettings,
)
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.training.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class OldLogpSettings:
  """The old log-probs, with which an update compares the policy."""

  source: str
  check_every: int
  tolerance: float

  def __post_init__(self):
    """Validates source, interval and tolerance."""
    one_of("source", self.source, ("score", "sampled"))
    at_least_one(self, "check_every")
    if not self.tolerance > 0:
      raise ValueError(f"tolerance must be > 0 nats, got {self.tolerance}.")


@dataclasses.dataclass(frozen=True)
class RLSettings:
  """PURE's reinforcement learning. See `configs/base.py`.

  `credit.group_size` and `credit.baseline_length` are set here, from
  samples_per_prompt and sampler.max_new_tokens.
  """

  iterations: int
  prompts: int
  samples_per_prompt: int
  answer_fraction: float | None
  credit: CreditConfig
  loss: LossConfig
  sampler: SamplerSettings
  rollout: RolloutSettings
  engine: EngineSettings
  old_logp: OldLogpSettings
  micro_batches: int
  length_buckets: int
  packed_tokens: int | None
  rollout_mesh: MeshSettings | None
  reference_mesh: MeshSettings | None
  prm_mesh: MeshSettings | None
  optim: OptimConfig
  lora: LoraSettings
  eval_every: int
  eval_prompts: int
  samples_every: int
  checkpoint_every: int
  checkpoints_kept: int
  max_skipped_updates: int

  @property
  def responses(self) -> int:
    """B, of one iteration."""
    return self.prompts * self.samples_per_prompt

  @property
  def reward_mode(self) -> str:
    """The rewards whose weight is not 0: "prm", "prm+vr" or "vr"."""
    rewards = {
      "prm": self.credit.process_coef,
      "vr": self.credit.verifiable_coef,
    }
    return "+".join(name for name, weight in rewards.items() if weight > 0)

  def __post_init__(self):
    """Completes the credit's config, and validates combinations."""
    at_least_one(
      self,
      "iterations prompts samples_per_prompt length_buckets eval_every "
      "eval_prompts samples_every checkpoint_every checkpoints_kept "
      "max_skipped_updates",
    )
    self._complete_credit()
    fraction = self.answer_fraction
    if fraction is not None and not 0 < fraction <= 1:
      raise ValueError(f"answer_fraction must be in (0, 1], got {fraction}.")
    if not self.reward_mode:
      raise ValueError(
        "credit.process_coef and credit.verifiable_coef are both 0, which "
        "leaves no reward to learn from."
      )
    self._check_batches()
    self._check_old_logp()

  def _complete_credit(self) -> None:
    """Sets the credit's two fields that follow from the batch."""
    try:
      credit = dataclasses.replace(
        self.credit,
        group_size=self.samples_per_prompt,
        baseline_length=self.sampler.max_new_tokens,
      )
    except ValueError as error:
      raise ValueError(
        f"samples_per_prompt={self.samples_per_prompt}: {error}"
      ) from error
    object.__setattr__(self, "credit", credit)

  def _check_batches(self) -> None:
    """Validates how a batch is divided."""
    for name, batches in (
      ("micro_batches", self.micro_batches),
      ("rollout.batches", self.rollout.batches),
    ):
      if batches < 1 or self.responses % batches:
        raise ValueError(
          f"{name}={batches} does not divide the {self.responses} responses "
          f"of an iteration ({self.prompts} prompts x "
          f"{self.samples_per_prompt} samples): choose a divisor."
        )
    if self.packed_tokens is not None:
      at_least_one(self, "packed_tokens")
      if self.micro_batches == 1:
        raise ValueError(
          f"packed_tokens={self.packed_tokens} saves time by leaving out "
          "micro-batches that stay empty: set micro_batches to more than 1."
        )
    if self.engine.slots is not None and self.rollout.batches > 1:
      raise ValueError(
        f"engine.slots={self.engine.slots} and rollout.batches="
        f"{self.rollout.batches} both say how many responses are sampled at a "
        "time: set rollout.batches to 1, or leave engine.slots unset (for the "
        "paper's runs by a variant that ends in _one_loop)."
      )

  def _check_old_logp(self) -> None:
    """Validates that the sampler's log-probs may stand for the policy's."""
    if self.old_logp.source != "sampled":
      return
    if self.loss.importance_cap is not None:
      raise ValueError(
        f"loss.importance_cap={self.loss.importance_cap} weighs tokens by "
        "policy over sampler, and old_logp.source='sampled' takes these for "
        "equal: leave importance_cap unset, or set old_logp.source='score'."
      )
    if self.rollout.is_rounded:
      raise ValueError(
        f"rollout.weights={self.rollout.weights!r} with rollout.cache_dtype="
        f"{self.rollout.cache_dtype!r} sample from another policy than "
        "old_logp.source='sampled' assumes: set old_logp.source='score', or "
        "the others to 'compute' and None."
      )
