"""The optimizer: an optax chain from one frozen config."""

import dataclasses

import optax


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW with a constant learning rate, as in the paper (2504.15275).

  Attributes:
    learning_rate: step size; the paper uses 1e-6 (5e-7 with the PRM only)
      for its 1.5B and 7B models.
    weight_decay: decoupled decay per step, times the learning rate.
    beta1: decay of the first moment.
    beta2: decay of the second moment; 0.95 in the paper's PRM training.
    max_grad_norm: gradients are scaled down to this global norm.
    warmup_steps: linear warm-up from 0; the paper uses none.
    decay_steps: cosine decay to 0 at this step; 0 keeps the rate constant.
  """

  learning_rate: float
  weight_decay: float = 0.0
  beta1: float = 0.9
  beta2: float = 0.95
  max_grad_norm: float = 1.0
  warmup_steps: int = 0
  decay_steps: int = 0

  def __post_init__(self):
    """Validates that every value is in its range."""
    for name in ("learning_rate", "max_grad_norm"):
      value = getattr(self, name)
      if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive, got {value}.")
    for name in ("beta1", "beta2"):
      value = getattr(self, name)
      if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}.")
    for name in ("weight_decay", "warmup_steps", "decay_steps"):
      value = getattr(self, name)
      if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}.")


def learning_rate_schedule(config: OptimConfig) -> optax.Schedule:
  """Makes the schedule: linear warm-up, then constant or cosine.

  Args:
    config: rates and step counts.

  Returns:
    A function from the update count (from 0) to the learning rate.
  """
  if config.decay_steps:
    return optax.warmup_cosine_decay_schedule(
      0.0 if config.warmup_steps else config.learning_rate,
      config.learning_rate,
      config.warmup_steps,
      max(config.decay_steps, config.warmup_steps + 1),
    )
  if config.warmup_steps:
    return optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  return optax.constant_schedule(config.learning_rate)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
  """Makes the optimizer: clipping to a global norm, then AdamW.

  Args:
    config: the optimizer's settings.

  Returns:
    The optax transformation. Its state is sharded as the parameters are.
  """
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(
      learning_rate_schedule(config),
      b1=config.beta1,
      b2=config.beta2,
      weight_decay=config.weight_decay,
    ),
  )
