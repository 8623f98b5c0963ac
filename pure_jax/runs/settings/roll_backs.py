"""The settings of a run after alarms have rolled it back."""

import dataclasses
from collections.abc import Sequence

from pure_jax.runs.settings.alarms import RollBackSettings
from pure_jax.runs.settings.rl import RLSettings
from pure_jax.runs.settings.run import Settings


def after_roll_backs(
  settings: Settings, changes: Sequence[RollBackSettings]
) -> Settings:
  """Applies the changes of each roll-back.

  Learning rate and KL coefficient are multiplied each time. Answers are used
  for at least a share of the prompts.

  Args:
    settings: the settings of the config.
    changes: what was to change at each roll-back.

  Raises:
    ValueError: if the settings that result cannot be run.
  """
  prm, rl = settings.prm, settings.rl
  for change in changes:
    rl = _change_rl(rl, change)
    if change.empty_step_reward is not None:
      score = dataclasses.replace(
        prm.score, empty_step_reward=change.empty_step_reward
      )
      prm = dataclasses.replace(prm, score=score)
  return dataclasses.replace(settings, prm=prm, rl=rl)


def _change_rl(rl: RLSettings, change: RollBackSettings) -> RLSettings:
  """The settings of RL after one more roll-back."""
  rate = rl.optim.learning_rate * change.learning_rate
  loss_coef = rl.loss.kl_coef * change.kl_coef
  credit = dataclasses.replace(
    rl.credit, kl_coef=rl.credit.kl_coef * change.kl_coef
  )
  fraction = rl.answer_fraction
  if change.answer_fraction is not None:
    if "vr" not in rl.reward_mode:
      credit = dataclasses.replace(credit, verifiable_coef=1.0)
      if not rl.online_prm.reads_answers:
        fraction = 0.0
    if fraction is not None:
      fraction = max(fraction, change.answer_fraction)
  return dataclasses.replace(
    rl,
    credit=credit,
    loss=dataclasses.replace(rl.loss, kl_coef=loss_coef),
    answer_fraction=fraction,
    optim=dataclasses.replace(rl.optim, learning_rate=rate),
  )


def check_roll_backs(settings: Settings) -> None:
  """Checks that a run can go on after as many roll-backs as it may have.

  Args:
    settings: the settings of the config.

  Raises:
    ValueError: naming the field that makes it impossible, or that would change
      nothing.
  """
  rl, alarms = settings.rl, settings.rl.alarms
  if not alarms.rolls_back:
    return
  change, prefix = alarms.roll_back, "rl.alarms.roll_back"
  for times in range(1, change.times + 1):
    try:
      after_roll_backs(settings, [change] * times)
    except ValueError as error:
      raise ValueError(
        f"{prefix} makes settings that cannot be run, at roll-back {times}: "
        f"{error}"
      ) from error
  has_kl = rl.credit.kl_in_reward is not None or rl.loss.kl_in_loss is not None
  if change.kl_coef != 1 and not has_kl:
    raise ValueError(
      f"{prefix}.kl_coef={change.kl_coef} multiplies the coefficient of a KL "
      "penalty, and there is none: set it to 1, or rl.loss.kl_in_loss."
    )
  if change.kl_coef != 1 and rl.adaptive_kl is not None:
    raise ValueError(
      f"{prefix}.kl_coef={change.kl_coef} multiplies a constant coefficient, "
      "and rl.adaptive_kl adapts it: set it to 1, or leave adaptive_kl unset."
    )
  all_answers = rl.reward_mode == "vr" or (
    rl.reward_mode == "prm+vr" and rl.answer_fraction is None
  )
  if change.answer_fraction is not None and all_answers:
    raise ValueError(
      f"{prefix}.answer_fraction={change.answer_fraction} changes nothing: the "
      "run uses all answers from the start. Leave it unset."
    )
  if change.empty_step_reward is not None and "prm" not in rl.reward_mode:
    raise ValueError(
      f"{prefix}.empty_step_reward={change.empty_step_reward} changes nothing: "
      "the run has no step rewards. Leave it unset."
    )
