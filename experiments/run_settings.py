"""From a ConfigDict to frozen dataclasses: the only place that reads one.

A config file fills a `ml_collections.ConfigDict`; `settings_from_config`
turns it into `Settings`, and raises `ConfigError` with a sentence for an
unknown, missing, mistyped or impossible value. Everything below the scripts
takes these dataclasses, or the library's own.
"""

import dataclasses
import difflib
import math
import types
import typing
from typing import Any

from pure_jax.host.data.arithmetic import WorldConfig
from pure_jax.models.config import ModelConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.training.optim import OptimConfig
from pure_jax.training.score import ScoreConfig

REWARD_MODES = ("prm", "prm+vr", "vr")


class ConfigError(ValueError):
  """A config that cannot be run; the message says which field and why."""


def _at_least_one(settings: Any, names: str) -> None:
  """Raises ValueError unless each of the named counts is positive."""
  for name in names.split():
    if getattr(settings, name) < 1:
      raise ValueError(
        f"{name} must be at least 1, got {getattr(settings, name)}."
      )


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """Devices: `data` x `fsdp` of them. See `pure_jax.parallel.sharding`."""

  data: int
  fsdp: int


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
    _at_least_one(self, "demonstrations steps batch_size log_every")


@dataclasses.dataclass(frozen=True)
class PRMSettings:
  """The process reward model, in the paper's two stages."""

  extra_layers: int
  judged: int
  policy_prompts: int
  policy_samples: int
  batch_size: int
  head_steps: int
  full_steps: int
  log_every: int
  eval_prompts: int
  separator: str
  head_optim: OptimConfig
  full_optim: OptimConfig

  def __post_init__(self):
    """Refuses a stage without data or updates."""
    _at_least_one(
      self,
      "judged policy_prompts policy_samples batch_size head_steps full_steps "
      "log_every eval_prompts",
    )
    if self.extra_layers < 0:
      raise ValueError("extra_layers must not be negative.")
    if self.separator not in ("insert", "replace"):
      raise ValueError(
        f"separator must be 'insert' or 'replace', got {self.separator!r}."
      )


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
  reward_mode: str
  answer_fraction: float
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
  micro_batches: int
  optim: OptimConfig
  eval_every: int
  eval_prompts: int
  samples_every: int
  checkpoint_every: int
  checkpoints_kept: int
  max_skipped_updates: int

  def __post_init__(self):
    """Refuses combinations no run can have."""
    if self.reward_mode not in REWARD_MODES:
      raise ValueError(
        f"reward_mode must be one of {REWARD_MODES}, got {self.reward_mode!r}."
      )
    if self.kl_placement not in ("loss", "reward", "none"):
      raise ValueError(
        "kl_placement must be 'loss', 'reward' or 'none', got "
        f"{self.kl_placement!r}."
      )
    if not self.temperature > 0:
      raise ValueError(
        f"temperature must be > 0 to explore, got {self.temperature}."
      )
    SamplingConfig(
      max_new_tokens=self.max_new_tokens,
      pad_id=0,
      stop_ids=(1,),
      top_p=self.top_p,
      top_k=self.top_k,
    )
    reward = self.empty_step_reward
    if reward is not None and not -1 <= reward <= 1:
      raise ValueError(f"empty_step_reward must be in [-1, 1], got {reward}.")
    if not 0 < self.answer_fraction <= 1:
      raise ValueError(
        f"answer_fraction must be in (0, 1], got {self.answer_fraction}."
      )
    rows = self.prompts * self.samples_per_prompt
    if self.micro_batches < 1 or rows % self.micro_batches:
      raise ValueError(
        f"micro_batches={self.micro_batches} does not divide the "
        f"{rows} responses of a batch ({self.prompts} prompts x "
        f"{self.samples_per_prompt} samples): choose a divisor."
      )
    _at_least_one(
      self,
      "iterations prompts samples_per_prompt max_new_tokens max_steps "
      "eval_every eval_prompts samples_every checkpoint_every "
      "checkpoints_kept max_skipped_updates",
    )

  def _kl(self, placement: str) -> str | None:
    """The KL estimator, where this is its place."""
    return self.kl_estimator if self.kl_placement == placement else None

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
    )

  def score_config(self, separator: str) -> ScoreConfig:
    """Steps and their scores; the PRM's own separator mode is kept."""
    return ScoreConfig(self.max_steps, separator, self.empty_step_reward)

  def has_answer_fraction(self) -> float:
    """Share of the prompts whose verdict the update may use."""
    return {"prm": 0.0, "prm+vr": self.answer_fraction, "vr": 1.0}[
      self.reward_mode
    ]


@dataclasses.dataclass(frozen=True)
class Settings:
  """One run, from nothing to a trained model."""

  seed: int
  progress: bool
  mesh: MeshSettings
  world: WorldConfig
  model: ModelSettings
  sft: SFTSettings
  prm: PRMSettings
  rl: RLSettings

  def __post_init__(self):
    """Refuses stages that do not fit each other or the mesh."""
    if self.seed < 0:
      raise ValueError(f"seed must be at least 0, got {self.seed}.")
    if self.mesh.data < 1 or self.mesh.fsdp < 1:
      raise ValueError(
        "mesh sizes must be at least 1, got "
        f"data={self.mesh.data} x fsdp={self.mesh.fsdp}."
      )
    devices = self.mesh.data * self.mesh.fsdp
    for name, rows in (
      ("sft.batch_size", self.sft.batch_size),
      ("prm.batch_size", self.prm.batch_size),
      ("prm.eval_prompts", self.prm.eval_prompts),
      ("rl.prompts", self.rl.prompts),
      ("rl.eval_prompts", self.rl.eval_prompts),
    ):
      if rows % devices:
        raise ValueError(
          f"{name}={rows} is not divisible by the {devices} devices of the "
          f"mesh (data={self.mesh.data} x fsdp={self.mesh.fsdp})."
        )
    self.rl.credit_config()
    self.rl.loss_config()
    self.model.architecture(vocab_size=1)


def settings_from_config(config: Any) -> Settings:
  """Checks a config whole and freezes it.

  Args:
    config: a ConfigDict or dict with every field of `Settings`.

  Returns:
    The frozen settings.

  Raises:
    ConfigError: naming the field, what is wrong and what to do.
  """
  values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
  return _build(Settings, values, "config")


def _build(kind: type, values: Any, path: str) -> Any:
  """One dataclass from a dict of the same fields."""
  if not isinstance(values, dict):
    raise ConfigError(f"{path} must be a group of fields, got {values!r}.")
  fields = {field.name: field for field in dataclasses.fields(kind)}
  for name in values:
    if name not in fields:
      close = difflib.get_close_matches(name, fields, 1)
      hint = f"; did you mean {close[0]!r}?" if close else "."
      raise ConfigError(f"{path}.{name} is not a field of this config{hint}")
  types_ = typing.get_type_hints(kind)
  made = {}
  for name, field in fields.items():
    if name not in values:
      if field.default is dataclasses.MISSING:
        raise ConfigError(f"{path}.{name} is missing.")
      continue
    made[name] = _convert(types_[name], values[name], f"{path}.{name}")
  try:
    return kind(**made)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f"{path}: {error}") from error


def _convert(kind: Any, value: Any, path: str) -> Any:
  """One value of a declared type; ints pass as floats, nothing else bends."""
  if dataclasses.is_dataclass(kind):
    return _build(kind, value, path)
  if isinstance(kind, types.UnionType):
    if value is None and type(None) in typing.get_args(kind):
      return None
    kind = next(k for k in typing.get_args(kind) if k is not type(None))
  if isinstance(value, float) and not math.isfinite(value):
    raise ConfigError(f"{path} must be a finite number, got {value}.")
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ConfigError(
      f"{path} must be {kind.__name__}, got {value!r} ({type(value).__name__})."
    )
  return value
