"""Settings of the alarms of RL, and of rolling back."""

import dataclasses

from pure_jax.host.evaluation.alarms import AlarmThresholds
from pure_jax.ranges import within
from pure_jax.runs.settings.checks import one_of

ACTIONS = ("off", "tell", "stop", "roll_back")  # "off" ignores the alarm.


@dataclasses.dataclass(frozen=True)
class RollBackSettings:
  """How a run goes back to a checkpoint, and what it changes from there on.

  The two factors apply again with each roll-back, the other changes once.
  """

  times: int = 2
  iterations: int = 10
  learning_rate: float = 0.5
  kl_coef: float = 1.0
  answer_fraction: float | None = None
  empty_step_reward: float | None = None

  def __post_init__(self):
    within(0, 100, self, "times")
    within(0, 1_000_000, self, "iterations")
    within(1e-6, 1, self, "learning_rate")
    within(1, 1e6, self, "kl_coef")
    within(1e-9, 1, self, "answer_fraction", "None to leave it")
    within(-1, 1, self, "empty_step_reward", "None to leave it")


# Of settings without these groups.
_THRESHOLDS, _ROLL_BACK = AlarmThresholds(), RollBackSettings()


@dataclasses.dataclass(frozen=True)
class AlarmSettings:
  """What each alarm of `host.evaluation.alarms` does."""

  divergence: str = "tell"
  short_responses: str = "tell"
  few_steps: str = "tell"
  no_answers: str = "tell"
  repetition: str = "tell"
  entropy: str = "tell"
  kl: str = "tell"
  thresholds: AlarmThresholds = _THRESHOLDS
  roll_back: RollBackSettings = _ROLL_BACK

  def __post_init__(self):
    one_of(self, " ".join(self.actions), ACTIONS)

  @property
  def actions(self) -> dict[str, str]:
    """The action of each alarm, by its name."""
    return {
      "divergence": self.divergence,
      "short_responses": self.short_responses,
      "few_steps": self.few_steps,
      "no_answers": self.no_answers,
      "repetition": self.repetition,
      "entropy": self.entropy,
      "kl": self.kl,
    }

  @property
  def rolls_back(self) -> bool:
    """Whether an alarm may roll back."""
    return "roll_back" in self.actions.values() and self.roll_back.times > 0
