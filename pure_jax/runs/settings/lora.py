"""Low-rank adapters as settings. See `pure_jax.models.lora`."""

import dataclasses

from pure_jax.models.config import MATRICES, LoraConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class LoraSettings:
  """Adapters of what a stage trains; rank 0 has none and trains all weights."""

  rank: int = 0
  alpha: float = 32.0
  targets: tuple[str, ...] = MATRICES

  def __post_init__(self):
    """Refuses adapters of nothing, also where they are off."""
    if self.rank < 0:
      raise ValueError(
        f"lora.rank must be at least 1, or 0 to train all weights, got "
        f"{self.rank}."
      )
    try:
      LoraConfig(max(self.rank, 1), self.alpha, self.targets)
    except ValueError as error:
      raise ValueError(f"lora: {error}") from error

  def of(self, model: ModelConfig) -> ModelConfig:
    """An architecture as the stage trains it.

    Args:
      model: without adapters.

    Returns:
      The same with these.
    """
    if not self.rank:
      return model
    config = LoraConfig(self.rank, self.alpha, self.targets)
    return dataclasses.replace(model, lora=config)


NO_ADAPTERS = LoraSettings()
