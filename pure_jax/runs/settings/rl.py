"""Settings of reinforcement learning, nested as the library's configs are.

`rl.credit`, `rl.loss` and `rl.optim` are the library's own dataclasses. Those
of sampling hold the fields of the library's configs that the user chooses; a
method `config` adds what follows from the tokenizer or from a switch.
"""

import dataclasses

from pure_jax import ranges
from pure_jax.host.evaluation.repetition import UNITS
from pure_jax.models.config import CACHE_DTYPES
from pure_jax.ranges import within
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.runs.settings.alarms import AlarmSettings
from pure_jax.runs.settings.checks import at_least, one_of
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.runs.settings.models import LoraSettings
from pure_jax.runs.settings.online_prm import OnlinePRMSettings
from pure_jax.settings import AdaptiveKLConfig, CreditConfig, LossConfig
from pure_jax.training.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
  """How responses are drawn; the tokenizer gives the ids."""

  max_new_tokens: int
  temperature: float
  top_p: float
  top_k: int
  min_p: float

  def __post_init__(self):
    """Validates the sampler as the library does, which also allows greedy."""
    within(*ranges.TEMPERATURE, self, "temperature")
    self.config(pad_id=0, stop_ids=(1,))

  def config(
    self,
    *,
    pad_id: int,
    stop_ids: tuple[int, ...],
    banned_ids: tuple[int, ...] = (),
    greedy: bool = False,
  ) -> SamplingConfig:
    """The library's sampler for the ids of a tokenizer."""
    config = SamplingConfig(
      pad_id=pad_id,
      stop_ids=stop_ids,
      banned_ids=banned_ids,
      **dataclasses.asdict(self),
    )
    if not greedy:
      return config
    return dataclasses.replace(
      config, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0
    )


@dataclasses.dataclass(frozen=True)
class EngineSettings:
  """Continuous batching; without slots a batch is sampled in one loop."""

  slots: int | None
  sync_interval: int

  def __post_init__(self):
    """Validates the engine as the library does, also while it is off."""
    EngineConfig(1 if self.slots is None else self.slots, self.sync_interval)

  def config(self) -> EngineConfig | None:
    """The library's engine, None for one loop."""
    if self.slots is None:
      return None
    return EngineConfig(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
  """Precision, batches and stops of rollouts."""

  stop_on_boxed: bool
  batches: int
  weights: str
  cache_dtype: str | None

  def __post_init__(self):
    one_of(self, "weights", ("compute", "int8"))
    one_of(self, "cache_dtype", CACHE_DTYPES)

  @property
  def is_rounded(self) -> bool:
    """Whether sampling rounds more than the trainer's forward pass does."""
    return self.weights != "compute" or self.cache_dtype is not None


@dataclasses.dataclass(frozen=True)
class OldLogpSettings:
  """The old log-probs, with which an update compares the policy."""

  source: str
  check_every: int
  tolerance: float

  def __post_init__(self):
    one_of(self, "source", ("score", "sampled", "update"))
    at_least(1, self, "check_every")
    within(*ranges.LOG_PROB, self, "tolerance")


@dataclasses.dataclass(frozen=True)
class UpdateSettings:
  """How many updates a rollout gives, and of which responses."""

  mini_batches: int = 1
  epochs: int = 1
  shuffle: bool = False

  def __post_init__(self):
    at_least(1, self, "mini_batches epochs")

  @property
  def count(self) -> int:
    """Updates of an iteration."""
    return self.mini_batches * self.epochs


# Of settings without these groups.
_ALARMS, _ONLINE_PRM = AlarmSettings(), OnlinePRMSettings()
# Of settings without a group `critic`, whose baseline reads no critic.
_CRITIC_OPTIM = OptimConfig(learning_rate=1e-5)


@dataclasses.dataclass(frozen=True)
class CriticSettings:
  """The critic of the baseline "gae"; other baselines read none of it."""

  optim: OptimConfig = _CRITIC_OPTIM
  value_clip: float | None = 0.2
  warmup_iterations: int = 0

  def __post_init__(self):
    at_least(0, self, "warmup_iterations")
    within(*ranges.VALUE, self, "value_clip", "None for no limit")


@dataclasses.dataclass(frozen=True)
class RLSettings:
  """PURE's reinforcement learning. See `configs/base.py`.

  `credit.group_size` is set here, from samples_per_prompt. Rollouts have
  sampler.max_new_tokens columns, which is N if `credit.baseline_length` is
  None.
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
  benchmark_new_tokens: int | None
  benchmark_samples: int
  best_metric: str | None
  generations: int
  repetition_unit: str
  samples_every: int
  checkpoint_every: int
  checkpoints_kept: int
  max_skipped_updates: int
  updates: UpdateSettings = UpdateSettings()
  adaptive_kl: AdaptiveKLConfig | None = None
  critic: CriticSettings = CriticSettings()
  alarms: AlarmSettings = _ALARMS
  online_prm: OnlinePRMSettings = _ONLINE_PRM

  @property
  def responses(self) -> int:
    """B, of one iteration."""
    return self.prompts * self.samples_per_prompt

  @property
  def benchmark_sampler(self) -> SamplerSettings:
    """The sampler whose length limit is that of benchmarks."""
    limit = self.benchmark_new_tokens or self.sampler.max_new_tokens
    return dataclasses.replace(self.sampler, max_new_tokens=limit)

  @property
  def num_updates(self) -> int:
    """The number of the policy's updates in the whole stage."""
    warmup = self.critic.warmup_iterations if self.trains_critic else 0
    return (self.iterations - warmup) * self.updates.count

  @property
  def num_critic_updates(self) -> int:
    """The number of the critic's updates in the whole stage; 0 without one."""
    return self.iterations * self.updates.count if self.trains_critic else 0

  @property
  def trains_prm(self) -> bool:
    """Whether the PRM is updated on rollouts."""
    return self.online_prm.every is not None

  @property
  def first_kl_coef(self) -> float | None:
    """The KL coefficient before it is adapted; None if it never is."""
    if self.adaptive_kl is None:
      return None
    if self.credit.kl_in_reward is not None:
      return self.credit.kl_coef
    return self.loss.kl_coef

  @property
  def trains_critic(self) -> bool:
    """Whether a critic is trained as well, whose values are the baseline."""
    return self.credit.baseline == "gae"

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
    at_least(1, self, "iterations prompts samples_per_prompt length_buckets")
    at_least(1, self, "packed_tokens eval_every eval_prompts samples_every")
    at_least(1, self, "checkpoint_every checkpoints_kept max_skipped_updates")
    self.optim.check_updates("optim", self.num_updates)
    if self.trains_critic:
      self.critic.optim.check_updates("critic.optim", self.num_critic_updates)
    at_least(1, self, "benchmark_new_tokens")
    at_least(0, self, "benchmark_samples generations")
    one_of(self, "repetition_unit", UNITS)
    self._complete_credit()
    # Less than one prompt in 10^9 is none.
    within(1e-9, 1, self, "answer_fraction", "None for all answers")
    if not self.reward_mode:
      raise ValueError(
        "credit.process_coef and credit.verifiable_coef are both 0, which "
        "leaves no reward to learn from."
      )
    self._check_batches()
    self._check_old_logp()
    self._check_adaptive_kl()
    self._check_roll_back()
    self.online_prm.check(self.reward_mode, self.iterations)
    warmup = self.critic.warmup_iterations
    if self.trains_critic and warmup >= self.iterations:
      raise ValueError(
        f"critic.warmup_iterations={warmup} leaves none of the "
        f"{self.iterations} iterations to train the policy: set fewer."
      )

  def _complete_credit(self) -> None:
    """Sets the credit's field that follows from the batch."""
    try:
      credit = dataclasses.replace(
        self.credit, group_size=self.samples_per_prompt
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
      ("updates.mini_batches", self.updates.mini_batches),
    ):
      if batches < 1 or self.responses % batches:
        raise ValueError(
          f"{name}={batches} does not divide the {self.responses} responses "
          f"of an iteration ({self.prompts} prompts x "
          f"{self.samples_per_prompt} samples): choose a divisor."
        )
    if self.packed_tokens is not None and self.micro_batches == 1:
      raise ValueError(
        f"packed_tokens={self.packed_tokens} saves time by leaving out "
        "micro-batches that stay empty: set micro_batches to more than 1."
      )
    if self.engine.slots is not None and self.rollout.batches > 1:
      raise ValueError(
        f"engine.slots={self.engine.slots} and rollout.batches="
        f"{self.rollout.batches} both say how many responses are sampled at a "
        "time: set rollout.batches to 1, or engine.slots to None (the paper's "
        "runs also have variants for that, which end in _one_loop)."
      )

  def _check_old_logp(self) -> None:
    """Validates that other log-probs may stand for the policy's old ones."""
    if self.old_logp.source == "update":
      self._check_one_update()
    if self.old_logp.source != "sampled":
      return
    if self.loss.importance_cap is not None:
      raise ValueError(
        f"loss.importance_cap={self.loss.importance_cap} weighs tokens by "
        "policy over sampler, and old_logp.source='sampled' assumes that they "
        "are equal: leave importance_cap unset, or set old_logp.source='score'."
      )
    if self.rollout.is_rounded:
      raise ValueError(
        f"rollout.weights={self.rollout.weights!r} with rollout.cache_dtype="
        f"{self.rollout.cache_dtype!r} sample from another policy than "
        "old_logp.source='sampled' assumes: set old_logp.source='score', or "
        "the others to 'compute' and None."
      )

  def _check_one_update(self) -> None:
    """Validates that an update's own log-probs are the old ones."""
    updates = (self.updates.mini_batches, self.updates.epochs)
    if updates != (1, 1):
      raise ValueError(
        "old_logp.source='update' takes the log-probs of the update itself, "
        "which are the old ones only in the first of several updates: set "
        "updates.mini_batches=1 and updates.epochs=1, or another source."
      )
    if self.credit.kl_in_reward is not None or self.adaptive_kl is not None:
      raise ValueError(
        "old_logp.source='update' has no old log-probs before the update, "
        "which credit.kl_in_reward and adaptive_kl read: leave both unset, or "
        "set old_logp.source='score'."
      )

  def _check_roll_back(self) -> None:
    """Validates that there are checkpoints to roll back to."""
    if not self.alarms.rolls_back:
      return
    back = self.alarms.roll_back.iterations
    # Evaluations save checkpoints, too.
    least, other = sorted((self.checkpoint_every, self.eval_every))
    needed = -(-back // least) + 1
    if other % least:
      needed += -(-back // other)
    if self.checkpoints_kept < needed:
      raise ValueError(
        f"alarms.roll_back.iterations={back} needs older checkpoints than "
        f"checkpoints_kept={self.checkpoints_kept} keeps, with checkpoint_every"
        f"={self.checkpoint_every} and eval_every={self.eval_every}: set "
        f"checkpoints_kept={needed}."
      )

  def _check_adaptive_kl(self) -> None:
    """Validates that there is one KL coefficient, which can be adapted."""
    if self.adaptive_kl is None:
      return
    in_reward, in_loss = self.credit.kl_in_reward, self.loss.kl_in_loss
    if (in_reward is None) == (in_loss is None):
      raise ValueError(
        "adaptive_kl changes the coefficient of one KL penalty: set either "
        f"credit.kl_in_reward or loss.kl_in_loss, not {in_reward!r} and "
        f"{in_loss!r}."
      )
    if not self.first_kl_coef > 0:
      group = "loss" if in_reward is None else "credit"
      raise ValueError(
        f"adaptive_kl multiplies {group}.kl_coef, which is 0 and would stay "
        "so: set it above 0."
      )
    horizon = self.adaptive_kl.horizon
    if not 0.2 * self.responses < horizon:
      raise ValueError(
        f"adaptive_kl.horizon={horizon} is at most a fifth of the "
        f"{self.responses} responses of an iteration, so the coefficient "
        "could become 0 or negative: choose a longer horizon."
      )
