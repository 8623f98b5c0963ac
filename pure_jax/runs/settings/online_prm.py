"""Settings of the PRM's updates during RL."""

import dataclasses

from pure_jax.runs.settings.checks import at_least, one_of
from pure_jax.training.optim import OptimConfig

# Of settings without this group, which train no PRM during RL.
_OPTIM = OptimConfig(learning_rate=1e-4)


@dataclasses.dataclass(frozen=True)
class OnlinePRMSettings:
  """When the PRM is updated on rollouts, and by which labels."""

  every: int | None = None
  labels: str = "verdicts"
  optim: OptimConfig = _OPTIM

  def __post_init__(self):
    at_least(1, self, "every")
    one_of(self, "labels", ("verdicts", "steps"))

  @property
  def reads_answers(self) -> bool:
    """Whether the PRM learns from verdicts on answers."""
    return self.every is not None and self.labels == "verdicts"

  def check(self, reward_mode: str, iterations: int) -> None:
    """Validates the settings with those of RL.

    Args:
      reward_mode: `RLSettings.reward_mode`.
      iterations: of RL.

    Raises:
      ValueError: if the PRM would not be updated, or its scores not be used.
    """
    if self.every is None:
      return
    if "prm" not in reward_mode:
      raise ValueError(
        f"online_prm.every={self.every} updates a PRM whose scores are no "
        "rewards: set credit.process_coef above 0, or leave it unset."
      )
    if self.every > iterations:
      raise ValueError(
        f"online_prm.every={self.every} is more than the {iterations} "
        "iterations, so the PRM would never be updated: set fewer."
      )
    self.optim.check_updates("online_prm.optim", iterations // self.every)
