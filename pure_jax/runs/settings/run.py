"""The settings of a run as frozen dataclasses, checked as they are made.

`config_conversion` makes them of a config file. Everything below the scripts
takes these, or the library's own.
"""

import dataclasses

from pure_jax.host.data.world.arithmetic import WorldConfig
from pure_jax.models.config import CACHE_DTYPES, ModelConfig
from pure_jax.parallel.kernel_calls import XLA, Kernels
from pure_jax.rollout.engine import EngineConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.runs.settings.checks import at_least_one, one_of
from pure_jax.runs.settings.compute_dtype import check_compute_dtype
from pure_jax.runs.settings.files import FilesSettings
from pure_jax.runs.settings.lora import NO_ADAPTERS, LoraSettings
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.settings import AGGREGATES, CreditConfig, LossConfig
from pure_jax.training.optim import OptimConfig
from pure_jax.training.step_spec import ScoreConfig

ROLLOUT_WEIGHTS = ("compute", "int8")
REWARD_MODES = ("prm", "prm+vr", "vr")


class ConfigError(ValueError):
  """A config that cannot be run; the message says which field and why."""


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """The policy's shape; the tokenizer gives the vocabulary."""

  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  rope_theta: float
  attention_bias: bool
  tied_embeddings: bool
  compute_dtype: str

  def __post_init__(self):
    """Refuses shapes that no decoder has."""
    check_compute_dtype(self.compute_dtype)
    fields = dataclasses.asdict(self) | {"compute_dtype": "float32"}
    ModelConfig(vocab_size=1, **fields)

  def architecture(self, vocab_size: int) -> ModelConfig:
    """The library's model config for a vocabulary of that size."""
    return ModelConfig(vocab_size=vocab_size, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class SFTSettings:
  """The supervised start."""

  demonstrations: int
  steps: int
  batch_size: int
  log_every: int
  optim: OptimConfig

  def __post_init__(self):
    """Refuses a stage without data or updates."""
    at_least_one(self, "demonstrations steps batch_size log_every")


@dataclasses.dataclass(frozen=True)
class PRMSettings:
  """The process reward model, in the paper's two stages."""

  extra_layers: int
  labelled: int | None
  policy_prompts: int | None
  policy_samples: int | None
  batch_size: int
  head_steps: int
  full_steps: int
  log_every: int
  length_multiple: int
  eval_prompts: int
  evaluate_head: bool
  separator: str
  head_optim: OptimConfig
  full_optim: OptimConfig
  lora: LoraSettings = NO_ADAPTERS

  def __post_init__(self):
    """Refuses a stage without data or updates."""
    at_least_one(
      self,
      "batch_size head_steps full_steps log_every length_multiple eval_prompts",
    )
    if self.extra_layers < 0:
      raise ValueError("extra_layers must not be negative.")
    if self.extra_layers and self.lora.rank:
      raise ValueError(
        f"extra_layers={self.extra_layers} start as the identity and would "
        f"stay so but for adapters of lora.rank={self.lora.rank}: set one of "
        "them to 0."
      )
    one_of("separator", self.separator, ("insert", "replace"))


@dataclasses.dataclass(frozen=True)
class RLSettings:
  """PURE's reinforcement learning."""

  iterations: int
  prompts: int
  samples_per_prompt: int
  max_new_tokens: int
  max_steps: int
  temperature: float
  top_p: float
  top_k: int
  min_p: float
  stop_on_boxed: bool
  reward_mode: str
  answer_fraction: float | None
  credit: str
  credit_temperature: float
  discount: float
  baseline: str
  process_coef: float
  verifiable_coef: float
  whiten: bool
  zero_terminal_advantage: bool
  empty_step_reward: float | None
  kl_placement: str
  kl_estimator: str
  kl_coef: float
  clip_low: float
  clip_high: float
  loss_aggregate: str
  entropy_coef: float
  rollout_weights: str
  importance_cap: float | None
  old_logp: str
  old_logp_check_every: int
  old_logp_tolerance: float
  rollout_parts: int
  rollout_rows: int | None
  rollout_chunk: int
  cache_dtype: str | None
  micro_batches: int
  rollout_mesh: MeshSettings | None
  reference_mesh: MeshSettings | None
  prm_mesh: MeshSettings | None
  length_buckets: int
  packed_tokens: int | None
  optim: OptimConfig
  eval_every: int
  eval_prompts: int
  samples_every: int
  checkpoint_every: int
  checkpoints_kept: int
  max_skipped_updates: int
  lora: LoraSettings = NO_ADAPTERS

  def __post_init__(self):
    """Refuses combinations no run can have."""
    one_of("reward_mode", self.reward_mode, REWARD_MODES)
    one_of("credit", self.credit, ("sum", "min", "min_eq3", "softmin"))
    one_of("loss_aggregate", self.loss_aggregate, AGGREGATES)
    if not self.credit_temperature > 0:
      raise ValueError(
        f"credit_temperature must be > 0, got {self.credit_temperature}."
      )
    if self.discount != 1 and self.credit != "sum":
      raise ValueError(
        f"discount={self.discount} needs credit='sum', got {self.credit!r}."
      )
    if self.samples_per_prompt == 1:
      raise ValueError(
        "samples_per_prompt=1 leaves no other sample to compare with: use at "
        "least 2."
      )
    one_of("kl_placement", self.kl_placement, ("loss", "reward", "none"))
    if not self.temperature > 0:
      raise ValueError(
        f"temperature must be > 0 to explore, got {self.temperature}."
      )
    self._check_sampler()
    reward = self.empty_step_reward
    if reward is not None and not -1 <= reward <= 1:
      raise ValueError(f"empty_step_reward must be in [-1, 1], got {reward}.")
    fraction = self.answer_fraction
    if fraction is not None and not 0 < fraction <= 1:
      raise ValueError(f"answer_fraction must be in (0, 1], got {fraction}.")
    rows = self.prompts * self.samples_per_prompt
    for name in ("micro_batches", "rollout_parts"):
      parts = getattr(self, name)
      if parts < 1 or rows % parts:
        raise ValueError(
          f"{name}={parts} does not divide the {rows} responses of a batch "
          f"({self.prompts} prompts x {self.samples_per_prompt} samples): "
          "choose a divisor."
        )
    if self.packed_tokens is not None:
      at_least_one(self, "packed_tokens")
    if self.packed_tokens is not None and self.micro_batches == 1:
      raise ValueError(
        f"packed_tokens={self.packed_tokens} needs parts of a batch to leave "
        "out: set micro_batches to more than 1."
      )
    at_least_one(
      self,
      "iterations prompts samples_per_prompt max_new_tokens max_steps "
      "rollout_chunk old_logp_check_every length_buckets eval_every "
      "eval_prompts samples_every checkpoint_every checkpoints_kept "
      "max_skipped_updates",
    )
    self.credit_config()
    self.loss_config()

  def _check_sampler(self):
    """Refuses a sampler that is none, or taken for what it is not."""
    SamplingConfig(
      max_new_tokens=self.max_new_tokens,
      pad_id=0,
      stop_ids=(1,),
      top_p=self.top_p,
      top_k=self.top_k,
      min_p=self.min_p,
    )
    if self.cache_dtype is not None:
      one_of("cache_dtype", self.cache_dtype, CACHE_DTYPES)
    if self.rollout_rows is not None:
      at_least_one(self, "rollout_rows")
    if self.rollout_rows is not None and self.rollout_parts > 1:
      raise ValueError(
        f"rollout_rows={self.rollout_rows} says how many responses are sampled "
        f"at a time, and so does rollout_parts={self.rollout_parts}: set "
        "rollout_parts to 1, or leave rollout_rows unset (of the paper's runs "
        "by a variant that ends in _one_loop)."
      )
    one_of("rollout_weights", self.rollout_weights, ROLLOUT_WEIGHTS)
    one_of("old_logp", self.old_logp, ("score", "sampled"))
    if not self.old_logp_tolerance > 0:
      raise ValueError(
        f"old_logp_tolerance must be > 0 nats, got {self.old_logp_tolerance}."
      )
    if self.old_logp == "sampled" and self.importance_cap is not None:
      raise ValueError(
        f"importance_cap={self.importance_cap} weighs tokens by policy over "
        "sampler, and old_logp='sampled' takes these for equal: leave "
        "importance_cap unset, or set old_logp='score'."
      )
    rounds = self.rollout_weights != "compute" or self.cache_dtype is not None
    if self.old_logp == "sampled" and rounds:
      raise ValueError(
        f"rollout_weights={self.rollout_weights!r} with cache_dtype="
        f"{self.cache_dtype!r} sample from another policy than old_logp="
        "'sampled' takes them for: set old_logp='score', or the others to "
        "'compute' and None."
      )

  def _kl(self, act_sharding: str) -> str | None:
    """The KL estimator, where this is its place."""
    return self.kl_estimator if self.kl_placement == act_sharding else None

  def credit_config(self) -> CreditConfig:
    """Credit, baseline and advantage of this run."""
    return CreditConfig(
      form=self.credit,
      temperature=self.credit_temperature,
      discount=self.discount,
      baseline=self.baseline,
      baseline_length=self.max_new_tokens,
      process_coef=0.0 if self.reward_mode == "vr" else self.process_coef,
      verifiable_coef=(
        0.0 if self.reward_mode == "prm" else self.verifiable_coef
      ),
      kl_in_reward=self._kl("reward"),
      kl_coef=self.kl_coef,
      whiten=self.whiten,
      zero_terminal_advantage=self.zero_terminal_advantage,
      group_size=self.samples_per_prompt,
    )

  def loss_config(self) -> LossConfig:
    """Clipping, aggregation, KL and entropy of this run."""
    return LossConfig(
      clip_low=self.clip_low,
      clip_high=self.clip_high,
      aggregate=self.loss_aggregate,
      constant_length=(
        self.max_new_tokens
        if self.loss_aggregate == "constant_length"
        else None
      ),
      kl_in_loss=self._kl("loss"),
      kl_coef=self.kl_coef,
      entropy_coef=self.entropy_coef,
      importance_cap=self.importance_cap,
    )

  def continuous(self) -> EngineConfig | None:
    """How rows take turns, None where they do not."""
    if self.rollout_rows is None:
      return None
    return EngineConfig(self.rollout_rows, self.rollout_chunk)

  def score_config(self, separator: str) -> ScoreConfig:
    """Steps and their scores; the PRM's own separator mode is kept."""
    return ScoreConfig(self.max_steps, separator, self.empty_step_reward)


@dataclasses.dataclass(frozen=True)
class Settings:
  """One run, from nothing to a trained model."""

  seed: int
  progress: bool
  mesh: MeshSettings
  world: WorldConfig | None
  model: ModelSettings | None
  sft: SFTSettings | None
  files: FilesSettings | None
  prm: PRMSettings
  rl: RLSettings
  kernels: Kernels = XLA

  @property
  def trains_prm(self) -> bool:
    """Whether there is anything to train a PRM on."""
    return self.files is None or self.files.labelled is not None

  def __post_init__(self):
    """Refuses stages that do not fit each other or the mesh."""
    if self.seed < 0:
      raise ValueError(f"seed must be at least 0, got {self.seed}.")
    prm = self.prm
    made = [self.world, self.model, self.sft]
    made += [prm.labelled, prm.policy_prompts, prm.policy_samples]
    if any((part is None) != (self.files is not None) for part in made):
      raise ValueError(
        "a run has either files, or world, model, sft, prm.labelled, "
        "prm.policy_prompts and prm.policy_samples: the others are None."
      )
    if self.files is None:
      at_least_one(prm, "labelled policy_prompts policy_samples")
    dtype = (self.files or self.model).compute_dtype
    if self.kernels.attention == "cudnn" and dtype == "float32":
      raise ValueError(
        "kernels.attention='cudnn' takes 16 bits, and compute_dtype is "
        "'float32': set it to 'bfloat16', or kernels.attention to 'xla'."
      )
    for name, rows in (
      ("sft.batch_size", self.sft.batch_size if self.sft else 0),
      ("prm.batch_size", prm.batch_size if self.trains_prm else 0),
      ("prm.eval_prompts", prm.eval_prompts if self.trains_prm else 0),
      ("rl.prompts", self.rl.prompts),
      ("rl.eval_prompts", self.rl.eval_prompts),
    ):
      self.mesh.check_rows(name, rows)
    for name in ("rollout_mesh", "reference_mesh", "prm_mesh"):
      other = getattr(self.rl, name)
      if other is not None:
        other.check_beside(f"rl.{name}", self.mesh, self.rl.eval_prompts)
    rows = self.rl.prompts * self.rl.samples_per_prompt
    for name, mesh in (
      ("micro_batches", self.mesh),
      ("micro_batches", self.rl.reference_mesh),
      ("micro_batches", self.rl.prm_mesh),
      ("rollout_parts", self.rl.rollout_mesh or self.mesh),
    ):
      part = rows // getattr(self.rl, name)
      (mesh or self.mesh).check_rows(f"rows / rl.{name}", part)
