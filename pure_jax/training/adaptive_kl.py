"""The KL coefficient of training, adapted to the KL of each rollout."""

import jax
import jax.numpy as jnp

from pure_jax import masked
from pure_jax.advantages import Metrics
from pure_jax.estimators import adaptive_kl_coef, kl_estimate
from pure_jax.training.step_spec import StepSpec
from pure_jax.types import Experience


def rollout_kl(experience: Experience, spec: StepSpec) -> jax.Array:
  """Measures the KL from the sampling policy to the reference policy.

  The estimator and its limit are those of the KL penalty.

  Args:
    experience: the batch; log-probs and mask are read.
    spec: the step's specification, with a KL penalty.

  Returns:
    [] float32, nats per token: the mean over tokens of each response, averaged
    over responses, as in verl. A response without a token does not count.
  """
  credit, loss, mask = spec.credit, spec.loss, experience.completion_mask
  kind, limit = credit.kl_in_reward, credit.kl_limit
  if kind is None:
    kind, limit = loss.kl_in_loss, loss.kl_limit
  kl = kl_estimate(experience.old_logp, experience.ref_logp, kind, limit)
  of_responses = masked.masked_mean(kl, mask, axis=1)
  return masked.masked_mean(of_responses, jnp.any(mask, axis=1))


def adapt_kl_coef(
  kl_coef: jax.Array | None, experience: Experience, spec: StepSpec
) -> tuple[jax.Array, Metrics]:
  """Computes the KL coefficient of the next rollout's updates.

  Args:
    kl_coef: [] float32, the coefficient of this rollout's updates, per nat.
    experience: the rollout's experience, B responses.
    spec: the step's specification, with `adaptive_kl`.

  Returns:
    (the next coefficient [] float32, metrics). The metrics are ``kl_coef``, the
    given coefficient, and ``kl_rollout``, the KL that changes it.

  Raises:
    ValueError: if the coefficient is None.
  """
  if kl_coef is None:
    raise ValueError(
      "adaptive_kl changes the kl_coef of the state, which is None: make the "
      "state with a kl_coef."
    )
  kl = rollout_kl(experience, spec)
  responses = len(experience.completion_mask)
  following = adaptive_kl_coef(kl_coef, kl, spec.adaptive_kl, responses)
  return following, {"kl_coef": kl_coef, "kl_rollout": kl}
