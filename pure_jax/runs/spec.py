"""The specification of a run, from which its compiled functions are made.

A `RunSpec` holds no folder, no data and no weights. An open run has one, and
so does the planner, which compiles the same functions without opening a run.
"""

import dataclasses
import enum

import jax
import numpy as np

from pure_jax.host.distributed import global_batch
from pure_jax.host.text.stop_texts import StopTable
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.runs.settings.run import Settings
from pure_jax.settings import ScoreConfig
from pure_jax.training.step_spec import Layouts, StepSpec
from pure_jax.types import SeparatorTable


class RandomStream(enum.IntEnum):
  """Independent streams of random numbers. A run's seed and these fix all."""

  POLICY_WEIGHTS = 0
  LABELLED_SAMPLES = 1
  PRM_EVALUATION_SAMPLES = 2
  PRM_WEIGHTS = 3
  ROLLOUTS = 4
  HELD_OUT_SAMPLES = 5
  POLICY_ADAPTERS = 6
  PRM_ADAPTERS = 7
  MINI_BATCHES = 8
  CRITIC_ADAPTERS = 9
  BENCHMARK_SAMPLES = 10
  EARLY_ENDS = 11


def make_layouts(settings: Settings) -> Layouts:
  """Lays the devices out for each model of a run.

  Args:
    settings: the run's settings.

  Raises:
    ConfigError: if the devices do not allow such a layout, or a kernel does
      not run on them.
  """
  rl = settings.rl
  # Sampler and PRM compute no log-probs, so their layout may split the head.
  without_logp = dataclasses.replace(settings.kernels, logp="xla")
  training = settings.mesh.layout(settings.kernels)
  others = [
    training if mesh is None else mesh.layout(kernels)
    for mesh, kernels in (
      (rl.rollout_mesh, without_logp),
      (rl.reference_mesh, settings.kernels),
      (rl.prm_mesh, without_logp),
    )
  ]
  return Layouts(training, *others)


@dataclasses.dataclass(frozen=True)
class RunSpec:
  """The specification of a run.

  Attributes:
    settings: the resolved config.
    model: the policy's architecture, without adapters.
    prm_model: the PRM's architecture; None in a run without a PRM.
    prompt_tokens: columns of the policy's prompts (L).
    prm_prompt_tokens: columns of the PRM's prompts.
    table: which token ids end a step.
    sampler: how rollouts are sampled.
    stops: texts that end a response besides EOS; None for EOS only.
    layouts: devices and sharding rules of each model.
    roll_backs: how often an alarm has rolled the run back; the random keys of
      rollouts are others after each.
  """

  settings: Settings
  model: ModelConfig
  prm_model: ModelConfig | None
  prompt_tokens: int
  prm_prompt_tokens: int
  table: SeparatorTable
  sampler: SamplingConfig
  stops: StopTable | None
  layouts: Layouts
  roll_backs: int = 0

  @property
  def rl_model(self) -> ModelConfig:
    """The policy's architecture in RL, with adapters if RL trains those."""
    return self.settings.rl.lora.of(self.model)

  @property
  def rollout_model(self) -> ModelConfig:
    """The architecture that samples: its cache and weights may be rounded."""
    rl = self.settings.rl
    return dataclasses.replace(
      self.rl_model,
      cache_dtype=rl.rollout.cache_dtype,
      int8_matrices=rl.rollout.weights == "int8",
    )

  @property
  def prm_score_config(self) -> ScoreConfig:
    """How the PRM is trained and evaluated: empty steps keep their score."""
    score = self.settings.prm.score
    return dataclasses.replace(score, empty_step_reward=None)

  @property
  def prm_columns(self) -> int:
    """Columns of the PRM's inputs in RL (T): prompt, response, score tokens."""
    inserted = self.settings.prm.score.inserted_tokens
    return self.prm_prompt_tokens + self.sampler.max_new_tokens + inserted

  @property
  def responses(self) -> int:
    """Responses of an RL batch (B)."""
    return self.settings.rl.responses

  @property
  def step(self) -> StepSpec:
    """The specification of scores and update of an RL step."""
    rl = self.settings.rl
    return StepSpec(
      model=self.rl_model,
      prm_model=self.prm_model,
      sampler=self.sampler,
      scoring=self.settings.prm.score,
      table=self.table,
      layouts=self.layouts,
      credit=rl.credit,
      loss=rl.loss,
      micro_batch_rows=self.responses // rl.micro_batches,
      mini_batches=rl.updates.mini_batches,
      epochs=rl.updates.epochs,
      own_old_logp=rl.old_logp.source == "update",
      adaptive_kl=rl.adaptive_kl,
    )

  def key(self, stream: RandomStream) -> jax.Array:
    """The key of a stream, on every device; it follows from the seed."""
    key = jax.random.fold_in(jax.random.key(self.settings.seed), stream.value)
    if self.roll_backs and stream is RandomStream.ROLLOUTS:
      key = jax.random.fold_in(key, self.roll_backs)
    everywhere = sharding.replicated(self.layouts.training)
    return global_batch.replicate(everywhere, key)

  def mini_batch_order(self, iteration: int) -> np.ndarray | None:
    """The order in which the updates of an iteration take responses.

    Args:
      iteration: its number, from 1.

    Returns:
      [B, epochs] int32, a permutation for each epoch; only seed and iteration
      change it. None if the responses are taken in their order.
    """
    updates = self.settings.rl.updates
    if not updates.shuffle or updates.count == 1:
      return None
    seed = (self.settings.seed, RandomStream.MINI_BATCHES.value, iteration)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(self.responses) for _ in range(updates.epochs)]
    return np.stack(orders, axis=1).astype(np.int32)
