"""Estimators: KL from sampled tokens, advantages from outcomes.

The outcome estimators compare a response with the others of its prompt;
samples of one prompt are contiguous rows, G of them.
"""

import math

import jax.numpy as jnp
from jax import Array

from pure_jax import masked, ratios
from pure_jax.credit import following_returns, sum_returns
from pure_jax.settings import KL_KINDS, AdaptiveKLConfig
from pure_jax.types import Experience, PackedExperience

# Nats per token, limit of a metric: sums over a batch of larger ones could
# overflow. k3 reaches it where the log-probs differ by about 14 nats.
LARGEST_KL_METRIC = 1e6


def kl_estimate(
  logp: Array, ref_logp: Array, kind: str, limit: float | None = None
) -> Array:
  """Estimates KL(policy || reference) from the log-probs of sampled tokens.

  With d = ref_logp - logp: k1 = -d (unbiased, either sign), k2 = d^2 / 2
  (biased, its gradient is that of the KL), k3 = exp(d) - d - 1 (unbiased,
  never negative). http://joschu.net/blog/kl-approx.html

  >>> import jax.numpy as jnp
  >>> float(kl_estimate(jnp.array(-1.0), jnp.array(-1.5), "k1"))
  0.5

  Args:
    logp: [...] float, nats, under the policy that sampled.
    ref_logp: [...] float, nats, under the reference policy.
    kind: "k1", "k2" or "k3".
    limit: > 0, nats, clips the estimate to +-limit; None clips nothing.

  Returns:
    [...] nats per token in the dtype of the log-probs, computed in float32 at
    least; exactly 0 where the policies agree. Differentiable in both log-probs.
    The gradient is that of the estimate, and exactly 0 beyond the limit, where
    the estimate does not change. With a limit both are finite, even if one
    log-prob is infinite. (For k3 a limit above 1e26 counts as 1e26.) Without a
    limit, k2, k3 and their gradients can overflow.

  Raises:
    ValueError: if kind is none of the three.
  """
  difference = masked.widened(ref_logp) - masked.widened(logp)
  if kind == "k1":
    estimate = -difference
  elif kind == "k2":
    if limit is not None:
      far = 2 * math.sqrt(limit)  # 0 times an infinite gradient would be NaN.
      difference = jnp.clip(difference, -far, far)
    estimate = jnp.square(difference) / 2
  elif kind == "k3":
    if limit is not None:
      # exp would overflow, and 0 times its gradient would be NaN. At this
      # exponent k3 is above the limit.
      beyond = min(math.log1p(limit) + 1, ratios.LARGEST_EXPONENT)
      difference = jnp.minimum(difference, beyond)
    estimate = jnp.expm1(difference) - difference
  else:
    raise ValueError(f"kind must be one of {KL_KINDS}, not {kind!r}.")
  if limit is not None:
    estimate = jnp.clip(estimate, -limit, limit)
  return masked.narrowed(estimate, logp)


def known_old(experience: Experience) -> Array:
  """Returns the old log-probs.

  Args:
    experience: the responses.

  Raises:
    ValueError: if the experience has none.
  """
  if experience.old_logp is None:
    raise ValueError(
      "kl_in_reward reads experience.old_logp, which is None: give the "
      "log-probs of the policy that sampled, or no penalty."
    )
  return experience.old_logp


def known_reference(
  experience: Experience | PackedExperience, setting: str
) -> Array:
  """Returns the reference's log-probs, 0 where masked.

  Args:
    experience: the responses.
    setting: the name of the KL penalty that reads them.

  Raises:
    ValueError: if the experience has none.
  """
  if experience.ref_logp is None:
    raise ValueError(
      f"{setting} penalizes the KL to the reference policy by "
      "experience.ref_logp, which is None: give its log-probs, or no penalty."
    )
  return masked.zero_masked(experience.ref_logp, experience.completion_mask)


def _check_group(rows: int, group_size: int) -> None:
  """Raises if rows are no multiple of a group of at least two."""
  if group_size < 2:
    raise ValueError(
      "group_size must be at least 2: a single sample has no others to"
      " compare with."
    )
  if rows % group_size:
    raise ValueError(f"{rows} rows are no multiple of group_size={group_size}.")


def _grouped(x: Array, group_size: int) -> Array:
  """Reshapes [B] to [P, G]; raises if B is not a multiple of G."""
  _check_group(x.shape[0], group_size)
  return x.reshape(x.shape[0] // group_size, group_size)


def others_sum(x: Array, group_size: int) -> Array:
  """Sums a quantity over the other samples of the same prompt.

  Args:
    x: [B] float, one value per response.
    group_size: G >= 2, contiguous rows per prompt.

  Returns:
    [B] like x, sum over k != i of x_k.

  Raises:
    ValueError: G < 2, or B is not a multiple of G.
  """
  grouped = _grouped(masked.widened(x), group_size)
  others = grouped.sum(axis=1, keepdims=True) - grouped
  return masked.narrowed(others.reshape(x.shape), x)


def rloo_advantages(outcome: Array, mask: Array, group_size: int) -> Array:
  """Returns leave-one-out advantages of outcomes (arXiv 2402.14740).

  A_i = r_i - mean of the other G - 1 outcomes of the prompt.

  >>> import jax.numpy as jnp
  >>> outcome, mask = jnp.array([1.0, 0.0, 0.0]), jnp.ones(3, bool)
  >>> rloo_advantages(outcome, mask, 3).tolist()
  [1.0, -0.5, -0.5]

  Args:
    outcome: [B] float, reward of each response; NaN allowed where masked.
    mask: [B] bool, True if the outcome counts, for the others of its prompt
      too.
    group_size: G >= 2, contiguous rows per prompt.

  Returns:
    [B] like outcome; 0 where masked, and if no other outcome counts.

  Raises:
    ValueError: G < 2, or B is not a multiple of G.
  """
  known = masked.zero_masked(masked.widened(outcome), mask)
  counted = others_sum(mask.astype(known.dtype), group_size)
  baseline = masked.safe_divide(others_sum(known, group_size), counted)
  advantages = masked.zero_masked(known - baseline, mask & (counted > 0))
  return masked.narrowed(advantages, outcome)


def grpo_advantages(
  outcome: Array, mask: Array, group_size: int, epsilon: float = 1e-6
) -> Array:
  """Returns group-normalised outcomes (GRPO, arXiv 2402.03300).

  A_i = (r_i - mean of the group) / (standard deviation + epsilon), the
  deviation with Bessel's correction.

  Args:
    outcome: [B] float, reward of each response; NaN allowed where masked.
    mask: [B] bool, True if the outcome counts, for the others of its prompt
      too.
    group_size: G >= 2, contiguous rows per prompt.
    epsilon: > 0, in units of outcome.

  Returns:
    [B] like outcome; 0 and without gradient where masked, and in a group of a
    single outcome or of outcomes that are equal up to rounding (1e-6 of the
    largest).

  Raises:
    ValueError: G < 2, or B is not a multiple of G.
  """
  scaled = _normalised(
    _grouped(outcome, group_size), _grouped(mask, group_size), epsilon
  )
  return scaled.reshape(outcome.shape)


def _normalised(x: Array, mask: Array, epsilon: float) -> Array:
  """(x - mean) / (deviation + epsilon) of each row; 0 where it is constant."""
  wide = masked.zero_masked(masked.widened(x), mask)
  mean = masked.masked_mean(wide, mask, axis=1)[:, None]
  deviation = masked.masked_std(wide, mask, axis=1, ddof=1)[:, None]
  scaled = (wide - mean) / (deviation + epsilon)
  signal = mask & masked.differ(wide, mask, axis=1)[:, None]
  return masked.narrowed(masked.zero_masked(scaled, signal), x)


def grpo_step_rewards(
  step_rewards: Array, step_mask: Array, group_size: int, epsilon: float = 1e-6
) -> Array:
  """Returns step rewards normalised in the group (arXiv 2402.03300, 4.1.3).

  GRPO with process supervision: (r - mean) / (standard deviation + epsilon),
  both over all steps of all G responses of the prompt together, the deviation
  with Bessel's correction as in `grpo_advantages`. A token's advantage is the
  sum of those of its step and of the later ones, which
  `CreditConfig(baseline="grpo")` adds up. Appendix F.2 of the PURE paper
  (arXiv 2504.15275) does this to transformed rewards (Eq. 5): form "softmin",
  baseline and verifiable_estimator "grpo".

  >>> import jax.numpy as jnp
  >>> rewards = jnp.array([[1.0, -1.0], [0.0, 9.0]])
  >>> mask = jnp.array([[True, True], [True, False]])
  >>> grpo_step_rewards(rewards, mask, 2, epsilon=1.0).tolist()
  [[0.5, -0.5], [0.0, 0.0]]

  Args:
    step_rewards: [B, S] float; NaN allowed where masked.
    step_mask: [B, S] bool, True where the step exists.
    group_size: G >= 2, contiguous rows per prompt.
    epsilon: > 0, in units of reward.

  Returns:
    [B, S] like step_rewards; 0 and without gradient where masked, and in a
    group of a single step or of rewards that are equal up to rounding (1e-6 of
    the largest).

  Raises:
    ValueError: G < 2, or B is not a multiple of G.
  """
  B, S = step_rewards.shape
  _check_group(B, group_size)
  by_prompt = (B // group_size, group_size * S)
  scaled = _normalised(
    step_rewards.reshape(by_prompt), step_mask.reshape(by_prompt), epsilon
  )
  return scaled.reshape(B, S)


def reinforce_pp_advantages(
  outcome: Array, token_penalty: Array, completion_mask: Array
) -> Array:
  """Returns REINFORCE++ advantages (arXiv 2501.03262).

  A_t = outcome - sum over j >= t of the penalty, then whitened over all
  tokens of the batch. No group is needed.

  Args:
    outcome: [B] float, reward of each response.
    token_penalty: [B, C] float, cost of each token, such as
      coefficient * KL.
    completion_mask: [B, C] bool, True on generated tokens.

  Returns:
    [B, C] like token_penalty, 0 where masked.
  """
  to_go = sum_returns(token_penalty, completion_mask)
  return masked.whiten(outcome[:, None] - to_go, completion_mask)


def adaptive_kl_coef(
  kl_coef: Array, kl: Array, config: AdaptiveKLConfig, num_steps: int
) -> Array:
  """Returns the next KL coefficient (arXiv 1909.08593, Section 2.2).

  error = clip(kl / target - 1, -0.2, 0.2), and the coefficient is multiplied
  by 1 + error * num_steps / horizon: it rises if the KL is above the target,
  and falls if it is below. verl and OpenRLHF have the same controller, with
  responses as steps.

  >>> import jax.numpy as jnp
  >>> config = AdaptiveKLConfig(target=0.1, horizon=1000)
  >>> round(float(adaptive_kl_coef(jnp.array(1e-3), 0.3, config, 500)), 6)
  0.0011

  Args:
    kl_coef: [] float32, >= 0, the coefficient of this update, per nat.
    kl: [] float, nats per token, the measured KL to the reference policy.
    config: AdaptiveKLConfig.
    num_steps: >= 0, responses since the last change.

  Returns:
    [] like kl_coef, >= 0; unchanged if the kl is not finite.

  Raises:
    ValueError: num_steps is negative, or at least 5 times the horizon, so that
      the coefficient could become 0 or negative.
  """
  if not 0 <= 0.2 * num_steps < config.horizon:
    raise ValueError(
      f"num_steps must lie in 0..{5 * config.horizon - 1} for a horizon of "
      f"{config.horizon}, not {num_steps}: the coefficient could fall to 0. "
      "Choose a longer horizon."
    )
  error = jnp.clip(kl / config.target - 1, -0.2, 0.2)
  error = jnp.where(jnp.isfinite(kl), error, 0)
  factor = 1 + error * (num_steps / config.horizon)
  return (kl_coef * factor).astype(jnp.asarray(kl_coef).dtype)


def gae_advantages(
  token_rewards: Array,
  values: Array,
  mask: Array,
  discount: float = 1.0,
  gae_lambda: float = 1.0,
) -> tuple[Array, Array]:
  """Returns generalised advantage estimates (arXiv 1506.02438, Eq. 16).

  With the TD errors d_t = r_t + discount * V_{t+1} - V_t, where V is 0 behind
  the last token (of a truncated response, too, as in verl and OpenRLHF),

    A_t = d_t + discount * gae_lambda * A_{t+1}.

  gae_lambda = 1 gives the sum of rewards to go minus the value (unbiased
  whatever the values are), gae_lambda = 0 gives the TD error. A masked token
  is skipped: t + 1 means the next token that exists.

  >>> import jax.numpy as jnp
  >>> rewards, values = jnp.array([0.0, 1.0]), jnp.array([0.25, 0.5])
  >>> mask = jnp.ones(2, bool)
  >>> advantages, returns = gae_advantages(rewards, values, mask)
  >>> advantages.tolist(), returns.tolist()
  ([0.75, 0.5], [1.0, 1.0])
  >>> gae_advantages(rewards, values, mask, gae_lambda=0.0)[0].tolist()
  [0.25, 0.5]

  Args:
    token_rewards: [..., C] float, reward of each token; NaN allowed where
      masked.
    values: [..., C] float, value of the state before each token; NaN allowed
      where masked.
    mask: [..., C] bool, True on generated tokens.
    discount: 0..1, per token.
    gae_lambda: 0..1, weight of later TD errors.

  Returns:
    (advantages, returns): both [..., C] like token_rewards and 0 where masked.
    returns = advantages + values are the targets of the value function.

  Raises:
    ValueError: discount or gae_lambda is outside 0..1.
  """
  for name, number in (("discount", discount), ("gae_lambda", gae_lambda)):
    if not 0 <= number <= 1:
      raise ValueError(f"{name} must lie in 0..1, not {number}.")
  rewards, values = (
    masked.zero_masked(masked.widened(x), mask) for x in (token_rewards, values)
  )
  following = following_returns(values, mask)
  next_values = jnp.concatenate(
    [following[..., 1:], jnp.zeros_like(following[..., :1])], axis=-1
  )
  errors = rewards + discount * next_values - values
  # The recurrence is that of a discounted sum of TD errors.
  advantages = sum_returns(errors, mask, discount=discount * gae_lambda)
  returns = masked.zero_masked(advantages + values, mask)
  return tuple(masked.narrowed(x, token_rewards) for x in (advantages, returns))
