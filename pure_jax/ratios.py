"""Ratios of the new policy to the old one, and the limits on them.

Each limit is an option of `LossConfig`. A log-ratio limit keeps exp finite. A
dual clip bounds the loss of tokens that became much likelier although their
advantage is negative. A guard drops a batch whose mean ratio is too high.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax import masked, ranges
from pure_jax.types import MetricGroups

LARGEST_EXPONENT = float(ranges.LOG_RATIO[1])


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
    log_ratio_limit: > 0, nats; the log-ratio is clipped to +-limit. A limit
      above `LARGEST_EXPONENT` counts as that. None clips only at
      `LARGEST_EXPONENT`, from above.

  Returns:
    [...] like new_logp, computed in float32 at least. The gradient reaches
    new_logp only; it is exactly 0 where the log-ratio exceeds the limit. In
    float32 both are finite for finite log-probs.
  """
  # Without stop_gradient, new_logp passed as both would get no gradient.
  log_ratio = masked.widened(new_logp) - jax.lax.stop_gradient(
    masked.widened(old_logp)
  )
  if log_ratio_limit is None:
    log_ratio = jnp.minimum(log_ratio, LARGEST_EXPONENT)
  else:
    limit = min(log_ratio_limit, LARGEST_EXPONENT)
    log_ratio = jnp.clip(log_ratio, -limit, limit)
  return masked.narrowed(jnp.exp(log_ratio), new_logp)


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


def mean_ratio(
  ratio: Array,
  mask: Array,
  denominator: Array | None,
  token_count: Array | None,
) -> Array:
  """Computes the mean ratio over a batch, or a micro-batch's share of it.

  Args:
    ratio: [B, C] float.
    mask: [B, C] bool, True on tokens.
    denominator: [] float, that of the loss; None for a whole batch.
    token_count: [] int, tokens of the whole batch; None counts the mask's.

  Returns:
    [] float; 0 without a token.

  Raises:
    ValueError: if a micro-batch is given no token_count.
  """
  if token_count is None:
    if denominator is not None:
      raise ValueError(
        "ratio_guard compares the mean ratio of the whole batch: give "
        "token_count, the number of its tokens, with the denominator."
      )
    token_count = jnp.sum(mask)
  return masked.safe_divide(masked.masked_sum(ratio, mask), token_count)


def apply_guard(
  results: Any, metrics: MetricGroups, guard: float | None
) -> tuple[Any, MetricGroups]:
  """Makes the results of a batch 0 if its mean ratio exceeds the guard.

  On-policy the mean ratio is about 1. TRL's PPO trainer zeroes the loss of a
  batch whose mean ratio exceeds 10 (its `ratio_threshold`). The mean is that of
  the whole batch of an update, so micro-batches are summed before.

  >>> import jax.numpy as jnp
  >>> metrics = MetricGroups({"mean_ratio": jnp.array(11.0)})
  >>> loss, metrics = apply_guard(jnp.array(2.0), metrics, 10.0)
  >>> float(loss), float(metrics.sums["guarded_fraction"])
  (0.0, 1.0)

  Args:
    results: pytree of arrays, the loss and, if they were computed, its
      gradients.
    metrics: of `losses.policy_objective`, summed over the whole batch;
      ``mean_ratio`` is read.
    guard: > 1, the largest mean ratio; None changes nothing.

  Returns:
    (results, metrics). If the guard is exceeded, the results are 0, also where
    they were not finite. ``guarded_fraction`` is then 1, otherwise 0. A mean
    ratio of NaN exceeds no guard.
  """
  if guard is None:
    return results, metrics
  exceeds = metrics.sums["mean_ratio"] > guard
  results = jax.tree.map(
    lambda x: jnp.where(exceeds, jnp.zeros_like(x), x), results
  )
  sums = metrics.sums | {"guarded_fraction": exceeds.astype(jnp.float32)}
  return results, metrics.replace(sums=sums)
