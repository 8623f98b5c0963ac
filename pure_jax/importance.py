"""Truncated importance sampling, for a sampler that differs from the policy.

Rollouts in int8 or bfloat16, or from another engine, are sampled from a
distribution mu that is close to the policy pi_old but not equal to it. So
"on-policy" updates are off-policy. The ratio of the two probabilities, up to a
cap, weights the loss of every token:

  w = min(pi_old / mu, cap), no gradient through it
  loss = w * PPO's clipped loss of (pi / pi_old)

Without a cap, the weighted mean over samples of mu is the mean over samples of
pi_old, for each token given the tokens before. The cap bounds the variance and
introduces a bias where it binds. PPO's ratio is still relative to pi_old.

Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy
RL Training"; the truncation is that of IMPALA (arXiv 1802.01561, Eq. 1).
"""

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax.estimators import kl_estimate


def importance_weights(
  old_logp: Array, sampled_logp: Array, cap: float
) -> tuple[Array, Array]:
  """Returns min(exp(old_logp - sampled_logp), cap) per token.

  >>> import jax.numpy as jnp
  >>> old, sampled = jnp.log(jnp.array([[0.6, 0.2], [0.2, 0.4]]))
  >>> weights, truncated = importance_weights(old, sampled, 2.0)
  >>> weights.round(2).tolist(), truncated.tolist()
  ([2.0, 0.5], [True, False])

  Args:
    old_logp: [...] float, nats, under the policy before the update.
    sampled_logp: [...] float, nats, under the sampled distribution.
    cap: > 0, the largest weight.

  Returns:
    (weights [...] in 0..cap, truncated [...] bool, True where the cap binds).
    No gradient flows through them.
  """
  ratio = jnp.exp(jax.lax.stop_gradient(old_logp - sampled_logp))
  return jnp.minimum(ratio, cap), ratio > cap


def weigh(
  per_token: Array, old_logp: Array, sampled_logp: Array, cap: float
) -> tuple[Array, dict[str, Array]]:
  """Weights each token's loss and measures how the sampler differs.

  Args:
    per_token: [...] float, the loss of each token.
    old_logp: [...] float, nats, under the policy before the update.
    sampled_logp: [...] float, nats, under the sampled distribution.
    cap: > 0, the largest weight.

  Returns:
    (the weighted loss [...], quantities [...] whose means are metrics:
    ``importance_weight``, 1 if the sampler is the policy;
    ``importance_truncated``, 1 where the cap binds; ``sampler_kl``, the k3
    estimate of KL(sampler || policy) in nats).
  """
  weights, truncated = importance_weights(old_logp, sampled_logp, cap)
  # The limit keeps the mean finite; it binds above 13 nats only.
  kl = kl_estimate(sampled_logp, old_logp, "k3", limit=1e6)
  metrics = {
    "importance_weight": weights,
    "importance_truncated": truncated.astype(weights.dtype),
    "sampler_kl": jax.lax.stop_gradient(kl),
  }
  return weights * per_token, metrics
