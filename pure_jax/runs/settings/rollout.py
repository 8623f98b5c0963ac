"""Settings of sampling: the fields of library configs that the user chooses.

The other fields of these configs follow from the tokenizer or from a switch.
Each group has a method `config` that completes it.
"""

import dataclasses

from pure_jax.models.config import CACHE_DTYPES
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.runs.settings.checks import one_of

ROLLOUT_WEIGHTS = ("compute", "int8")


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
    self.config(pad_id=0, stop_ids=(1,))
    if not self.temperature > 0:
      raise ValueError(
        f"temperature must be above 0 to draw samples, got {self.temperature}."
      )

  def config(
    self,
    *,
    pad_id: int,
    stop_ids: tuple[int, ...],
    banned_ids: tuple[int, ...] = (),
    greedy: bool = False,
  ) -> SamplingConfig:
    """The library's sampler for a tokenizer.

    Args:
      pad_id: fills a row after its end.
      stop_ids: end a row.
      banned_ids: are never sampled.
      greedy: takes the likeliest token instead of drawing one.
    """
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
    """Validates the choices."""
    one_of("weights", self.weights, ROLLOUT_WEIGHTS)
    if self.cache_dtype is not None:
      one_of("cache_dtype", self.cache_dtype, CACHE_DTYPES)

  @property
  def is_rounded(self) -> bool:
    """Whether sampling rounds more than the trainer's forward pass does."""
    return self.weights != "compute" or self.cache_dtype is not None
