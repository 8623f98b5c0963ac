"""Ratios of the new policy to the old one, and the limits on them.

Each limit is an option of `LossConfig`. A log-ratio limit keeps exp finite. A
dual clip bounds the loss of tokens that became much likelier although their
advantage is negative. A guard drops a micro-batch whose mean ratio is too high.
"""

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax import masked


def policy_ratio(
  new_logp: Array, old_logp: Array, log_ratio_limit: float | None = 20.0
) -> Array:
  """Returns exp(new_logp - old_logp), with a limit on the exponent.

  >>> import jax.numpy as jnp
  >>> far, zero = jnp.array(100.0), jnp.array(0.0)
  >>> round(float(policy_ratio(far, zero, 1.0)), 3)
  2.718
  >>> float(jax.grad(policy_ratio)(far, zero))
  0.0

  Args:
    new_logp: [...] float, nats, under the policy being trained.
    old_logp: [...] float, nats, under the policy that sampled.
    log_ratio_limit: > 0, nats; the log-ratio is clipped to +-limit. None clips
      nothing, and a log-ratio above 88 then overflows float32.

  Returns:
    [...] like new_logp. The gradient reaches new_logp only; it is 0 where the
    log-ratio exceeds the limit.
  """
  # Without stop_gradient, new_logp passed as both would get no gradient.
  log_ratio = new_logp - jax.lax.stop_gradient(old_logp)
  if log_ratio_limit is not None:
    log_ratio = jnp.clip(log_ratio, -log_ratio_limit, log_ratio_limit)
  return jnp.exp(log_ratio)


def dual_clip(
  per_token: Array, advantages: Array, bound: float
) -> tuple[Array, Array]:
  """Bounds the clipped loss of tokens with A < 0 (arXiv 1912.09729, Eq. 5).

  PPO's clipping leaves the loss -ratio * A of a token with A < 0 unbounded if
  its ratio grows. A dual clip takes the smaller of this loss and -bound * A, so
  a ratio above the bound gets no gradient. verl has it with a bound of 3.

  >>> import jax.numpy as jnp
  >>> loss, clipped = dual_clip(jnp.array([5.0]), jnp.array([-1.0]), 3.0)
  >>> loss.tolist(), clipped.tolist()
  ([3.0], [True])

  Args:
    per_token: [...] float, the loss of `losses.clipped_policy_loss`.
    advantages: [...] float, any scale.
    bound: > 1, c of the paper, the largest ratio that counts.

  Returns:
    (loss, clipped): [...] like per_token, and bool, True where the bound
    changed the loss. No gradient flows where it did.
  """
  largest = -bound * jax.lax.stop_gradient(advantages)
  clipped = (advantages < 0) & (per_token > largest)
  return jnp.where(clipped, largest, per_token), clipped


def exceeds_guard(ratio: Array, mask: Array, guard: float) -> Array:
  """Returns whether the mean ratio is so large that the loss should be 0.

  On-policy the mean ratio is about 1. TRL's PPO trainer zeroes the loss of a
  batch whose mean ratio exceeds 10 (its `ratio_threshold`). Each micro-batch is
  compared by the mean over its own tokens.

  Args:
    ratio: [B, C] float, policy over old policy.
    mask: [B, C] bool, True on generated tokens.
    guard: > 1, the largest mean ratio.

  Returns:
    [] bool, False without a token. No gradient flows through it.
  """
  return jax.lax.stop_gradient(masked.masked_mean(ratio, mask)) > guard
