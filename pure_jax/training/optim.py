"""The optimizer: an optax chain from one frozen config."""

import dataclasses
from typing import Any

import optax

from pure_jax import ranges
from pure_jax.models.params import decaying
from pure_jax.ranges import within

# Shapes of the learning rate's decay to 0.
DECAYS = ("cosine", "linear")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW with a constant learning rate, as in the paper (2504.15275).

  Attributes:
    learning_rate: step size; the paper uses 1e-6 (5e-7 with the PRM only)
      for its 1.5B and 7B models.
    weight_decay: decoupled decay per step, times the learning rate. Norms and
      biases do not decay.
    beta1: decay of the first moment.
    beta2: decay of the second moment; 0.95 in the paper's PRM training.
    max_grad_norm: gradients are scaled down to this global norm.
    warmup_steps: linear warm-up from 0; the paper uses none.
    decay_steps: the rate decays to 0 at this step, warm-up included; 0 keeps
      the rate constant.
    decay: shape of that decay, "cosine" or "linear"; the latter is the default
      of transformers' Trainer, which trained the paper's PRM.
  """

  learning_rate: float
  weight_decay: float = 0.0
  beta1: float = 0.9
  beta2: float = 0.95
  max_grad_norm: float = 1.0
  warmup_steps: int = 0
  decay_steps: int = 0
  decay: str = "cosine"

  def __post_init__(self):
    """Validates that every value is in its range."""
    within(*ranges.LEARNING_RATE, self, "learning_rate")
    within(*ranges.WEIGHT_DECAY, self, "weight_decay")
    within(*ranges.BETA, self, "beta1 beta2")
    within(*ranges.GRAD_NORM, self, "max_grad_norm")
    for name in ("warmup_steps", "decay_steps"):
      value = getattr(self, name)
      if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}.")
    if self.decay not in DECAYS:
      raise ValueError(f"decay must be one of {DECAYS}, got {self.decay!r}.")
    if 0 < self.decay_steps <= self.warmup_steps:
      raise ValueError(
        f"decay_steps={self.decay_steps} counts from the first update, and the "
        f"warm-up alone has warmup_steps={self.warmup_steps}: set decay_steps "
        "to more, or to 0 for a constant rate after the warm-up."
      )

  def check_updates(self, name: str, updates: int) -> None:
    """Validates that the learning rate is above 0 in every update.

    Args:
      name: of this config in the message.
      updates: number of updates of the stage.

    Raises:
      ValueError: if the rate is 0 before the stage ends.
    """
    if 0 < self.decay_steps < updates:
      raise ValueError(
        f"{name}.decay_steps={self.decay_steps} ends before the {updates} "
        "updates of the stage, and the later ones would change nothing: set it "
        f"to at least {updates}, or to 0 for a constant rate."
      )


def learning_rate_schedule(config: OptimConfig) -> optax.Schedule:
  """Makes the schedule: linear warm-up, then constant, or a decay to 0.

  With the rate eta, the update k (from 0), W warm-up steps and the end D, the
  decay is eta (1 + cos(pi p)) / 2 or eta (1 - p) at p = (k - W) / (D - W).

  Args:
    config: rates and step counts.

  Returns:
    A function from the update count (from 0) to the learning rate.
  """
  if config.decay_steps and config.decay == "linear":
    length = config.decay_steps - config.warmup_steps
    decay = optax.linear_schedule(config.learning_rate, 0.0, length)
    warmup = optax.linear_schedule(
      0.0, config.learning_rate, config.warmup_steps
    )
    return optax.join_schedules([warmup, decay], [config.warmup_steps])
  if config.decay_steps:
    return optax.warmup_cosine_decay_schedule(
      0.0 if config.warmup_steps else config.learning_rate,
      config.learning_rate,
      config.warmup_steps,
      config.decay_steps,
    )
  if config.warmup_steps:
    return optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  return optax.constant_schedule(config.learning_rate)


def make_optimizer(
  config: OptimConfig, declared: Any = None
) -> optax.GradientTransformation:
  """Makes the optimizer: clipping to a global norm, then AdamW.

  With the rate eta, the decay lambda and Adam's direction u of the clipped
  gradient, a weight w becomes w - eta (u + lambda w), and one that does not
  decay w - eta u. AdamW is from https://arxiv.org/abs/1711.05101.

  Args:
    config: the optimizer's settings.
    declared: pytree of `models.params.Weight`, those that are trained. They
      say which weights decay: all but norms and biases. Without weight decay
      None does as well.

  Returns:
    The optax transformation. Its state is sharded as the parameters are, and
    has the same arrays whatever decays.

  Raises:
    ValueError: if there is a weight decay and nothing says what decays.
  """
  if config.weight_decay and declared is None:
    raise ValueError(
      f"weight_decay={config.weight_decay} needs the weights' declarations, "
      "which say what decays."
    )
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(
      learning_rate_schedule(config),
      b1=config.beta1,
      b2=config.beta2,
      weight_decay=config.weight_decay,
      mask=None if declared is None else decaying(declared),
    ),
  )
