"""The settings of a training run as frozen dataclasses, checked as made."""

import dataclasses

from pure_jax.host.data.world.arithmetic import WorldConfig
from pure_jax.host.evaluation.tables import AVERAGE
from pure_jax.parallel.kernel_calls import XLA, Kernels
from pure_jax.ranges import within
from pure_jax.runs.settings.checks import at_least
from pure_jax.runs.settings.files import ComputationSettings, FilesSettings
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.runs.settings.models import (
  AUTO,
  LoraSettings,
  ModelSettings,
  compute_dtype_of,
)
from pure_jax.runs.settings.rl import RLSettings
from pure_jax.settings import ScoreConfig, Seed
from pure_jax.training.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class SFTSettings:
  """The supervised start."""

  demonstrations: int
  steps: int
  batch_size: int
  log_every: int
  optim: OptimConfig

  def __post_init__(self):
    at_least(1, self, "demonstrations steps batch_size log_every")
    self.optim.check_updates("optim", self.steps)


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
  score: ScoreConfig
  head_optim: OptimConfig
  full_optim: OptimConfig
  lora: LoraSettings
  trunk_states: str | None = None
  early_ends: float = 0.0

  def __post_init__(self):
    """Validates that there are data and updates, and something to train."""
    within(0, 1, self, "early_ends")
    if self.early_ends and not self.score.read_end:
      raise ValueError(
        f"early_ends={self.early_ends} needs score.read_end=True: without EOS "
        "a PRM cannot tell a response that ends too early from one that goes "
        "on."
      )
    at_least(1, self, "batch_size head_steps full_steps log_every")
    at_least(1, self, "length_multiple eval_prompts")
    at_least(0, self, "extra_layers")
    self.head_optim.check_updates("head_optim", self.head_steps)
    self.full_optim.check_updates("full_optim", self.full_steps)
    if self.extra_layers and self.lora.rank:
      raise ValueError(
        f"extra_layers={self.extra_layers} start as the identity and would "
        f"stay so but for adapters of lora.rank={self.lora.rank}: set one of "
        "them to 0."
      )


@dataclasses.dataclass(frozen=True)
class Settings:
  """One run, from nothing to a trained model. See `configs/base.py`."""

  seed: Seed
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
  def best_metric(self) -> str:
    """The metric of evaluations by which checkpoints are ranked.

    The one that `rl.best_metric` names, else the average over the benchmarks
    if the run has any that are averaged, else the held-out accuracy.
    """
    if self.rl.best_metric is not None:
      return self.rl.best_metric
    if self.files is None:
      return "accuracy"
    averaged = [b for b in self.files.named_benchmarks().values() if b.averaged]
    makes_some = "benchmarks" in self.files.random_files
    if averaged or (self.files.random_model is not None and makes_some):
      return f"{AVERAGE}/accuracy"
    return "accuracy"

  @property
  def trains_prm(self) -> bool:
    """Whether there is anything to train a PRM on."""
    return self.files is None or self.files.labelled is not None

  def for_platform(self, platform: str) -> "Settings":
    """The same run with the dtype that "auto" stands for on a platform."""
    model = self._model
    if model.compute_dtype != AUTO:
      return self
    dtype = compute_dtype_of(platform)
    model = dataclasses.replace(model, compute_dtype=dtype)
    if self.files is None:
      return dataclasses.replace(self, model=model)
    files = dataclasses.replace(self.files, model=model)
    return dataclasses.replace(self, files=files)

  @property
  def _model(self) -> ModelSettings | ComputationSettings:
    """The group that holds the dtypes of this run's models."""
    return self.model if self.files is None else self.files.model

  def __post_init__(self):
    """Validates that the stages fit each other and the mesh."""
    at_least(0, self, "seed")
    prm = self.prm
    made = [self.world, self.model, self.sft]
    made += [prm.labelled, prm.policy_prompts, prm.policy_samples]
    if any((group is None) != (self.files is not None) for group in made):
      raise ValueError(
        "a run has either files, or world, model, sft, prm.labelled, "
        "prm.policy_prompts and prm.policy_samples: the others are None."
      )
    at_least(1, prm, "labelled policy_prompts policy_samples")
    dtype = self._model.compute_dtype
    if self.kernels.attention == "cudnn" and dtype == "float32":
      raise ValueError(
        "kernels.attention='cudnn' takes 16 bits, and compute_dtype is "
        "'float32': set it to 'bfloat16', or kernels.attention to 'xla'."
      )
    self._check_meshes()

  def _check_meshes(self) -> None:
    """Validates that every batch can be split over its mesh."""
    rl, prm = self.rl, self.prm
    for name, rows in (
      ("sft.batch_size", self.sft.batch_size if self.sft else 0),
      ("prm.batch_size", prm.batch_size if self.trains_prm else 0),
      ("prm.eval_prompts", prm.eval_prompts if self.trains_prm else 0),
      ("rl.prompts", rl.prompts),
      ("rl.eval_prompts", rl.eval_prompts),
    ):
      self.mesh.check_rows(name, rows)
    for name in ("rollout_mesh", "reference_mesh", "prm_mesh"):
      other = getattr(rl, name)
      if other is not None:
        other.check_shares_devices(f"rl.{name}", self.mesh)
        other.check_rows(f"rl.eval_prompts (in rl.{name})", rl.eval_prompts)
    for name, batches, mesh in (
      ("micro_batches", rl.micro_batches, None),
      ("micro_batches", rl.micro_batches, rl.reference_mesh),
      ("micro_batches", rl.micro_batches, rl.prm_mesh),
      ("rollout.batches", rl.rollout.batches, rl.rollout_mesh),
      ("updates.mini_batches", rl.updates.mini_batches, None),
    ):
      (mesh or self.mesh).check_rows(
        f"responses / rl.{name}", rl.responses // batches
      )
