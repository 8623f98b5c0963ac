"""Advantages: from step returns and outcome rewards to one number per token.

The process part is the return to go of a token's step minus a baseline from
the other samples of the prompt. The verifiable part is a group estimator of
the outcome. The two are added, or folded into one row of token rewards (verl).
"""

import operator

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax import masked, steps
from pure_jax.credit import (
  following_returns,
  min_returns,
  step_returns,
  sum_returns,
  transformed_rewards,
)
from pure_jax.credit_metrics import Metrics, credit_metrics
from pure_jax.estimators import (
  gae_advantages,
  grpo_advantages,
  grpo_step_rewards,
  kl_estimate,
  known_old,
  known_reference,
  others_sum,
  rloo_advantages,
)
from pure_jax.settings import CreditConfig
from pure_jax.types import Experience


def _check_experience(experience):
  """Validates shapes, so that no array is broadcast by accident."""
  B, C = experience.completion_mask.shape
  S = experience.steps.mask.shape[-1]
  for name, shape in (
    ("steps.mask", (B, S)),
    ("steps.index", (B, C)),
    ("step_rewards", (B, S)),
    ("correct", (B,)),
    ("has_answer", (B,)),
    ("old_logp", (B, C)),
    ("ref_logp", (B, C)),
    ("terminal_mask", (B, C)),
    ("sampled_logp", (B, C)),
    ("truncated", (B,)),
    ("values", (B, C)),
  ):
    array = operator.attrgetter(name)(experience)
    if array is not None and array.shape != shape:
      raise ValueError(
        f"experience.{name} has shape {array.shape}, not {shape}: "
        f"completion_mask is {(B, C)}, with S={S} steps."
      )


def process_advantages(
  returns: Array, step_mask: Array, experience: Experience, config: CreditConfig
) -> Array:
  """Returns each token's process return to go minus the baseline.

  Below, g_t is the return of the token's step, r* are the rewards that sum to
  it, N is `baseline_length`, and sums over k run over the other G - 1 samples.

  none     g_t
  paper_a  sum over j >= t of (r*_j - b), b = sum_k sum_l r*_kl / ((G-1) N),
           where j and l run over tokens. The baseline is inside the sum, so it
           fades towards the end of the response.
  paper_b  g_t - sum_k sum_l g_kl / ((G-1) N). The baseline is outside the sum
           and consists of returns, as in the reference's verl branch.
  main     like paper_a, but b = sum_k reward / sum_k tokens over real lengths.
           Every token of a step pays b for each token from the start of the
           step to the end of the response.
  step     like main, but b = mean_k (reward / steps), paid once per step. It
           is known to be biased by the number of steps, and included to show
           the bias: if b > 0 each further step costs b, if b < 0 it earns -b.
  grpo     sum over steps s from the token's on of (r*_s - mean) / deviation,
           both over all steps of the prompt's G responses, see
           `estimators.grpo_step_rewards`. It shares the bias of "step".

  Args:
    returns: [B, S] float, step returns from `credit.step_returns`.
    step_mask: [B, S] bool, True on the steps that take part in credit.
    experience: the batch; completion_mask and steps are read.
    config: CreditConfig.

  Returns:
    [B, C] like returns, 0 where masked.

  Raises:
    ValueError: if a baseline is set and G < 2, or B is not a multiple of G, or
      if the baseline is "gae", which reads folded rewards.
  """
  if config.baseline == "gae":
    raise ValueError(
      "baseline='gae' has no process part of its own: `pure_advantages` "
      "estimates advantages of the folded rewards."
    )
  mask, dtype = experience.completion_mask, returns.dtype
  returns = masked.widened(returns)
  if config.baseline == "grpo":
    scaled = grpo_step_rewards(
      transformed_rewards(returns, step_mask, discount=config.discount),
      step_mask,
      config.group_size,
    )
    returns = sum_returns(scaled, step_mask, discount=config.discount)
  # A step left out of credit has the return of the next step that is not.
  to_go = following_returns(returns, step_mask)
  to_go = steps.values_per_token(to_go, experience.steps)
  if config.baseline in ("grpo", "none"):
    return masked.zero_masked(to_go, mask).astype(dtype)

  rewards = transformed_rewards(returns, step_mask, discount=config.discount)
  total = rewards.sum(axis=1)
  group_size, others = config.group_size, config.group_size - 1
  length = config.baseline_length or mask.shape[1] or 1
  if config.baseline == "paper_a":
    share = others_sum(total, group_size) / (others * length)
    cost = sum_returns(mask.astype(total.dtype), mask) * share[:, None]
  elif config.baseline == "paper_b":
    summed = masked.masked_sum(to_go, mask, axis=1)
    share = others_sum(summed, group_size) / (others * length)
    cost = jnp.broadcast_to(share[:, None], to_go.shape)
  elif config.baseline == "main":
    tokens = mask.sum(axis=1).astype(total.dtype)
    share = masked.safe_divide(
      others_sum(total, group_size), others_sum(tokens, group_size)
    )
    per_step = steps.tokens_per_step(experience.steps, mask)
    if not config.count_step_end:
      per_step = per_step - experience.steps.mask
    cost = _step_cost(per_step, share, experience)
  else:
    mean = masked.safe_divide(total, step_mask.sum(axis=1))
    share = others_sum(mean, group_size) / others
    cost = _step_cost(step_mask, share, experience)
  if config.whitening == "reference_main":
    # Compilers fuse product and difference, which leaves a rounding error where
    # both are equal, and `masked.whiten_nonzero` tests for an exact 0.
    mask = mask & (to_go != cost)
  return masked.zero_masked(to_go - cost, mask).astype(dtype)


def _step_cost(per_step: Array, share: Array, experience: Experience) -> Array:
  """Sums a per-step cost from each token's step to the last step, [B, C]."""
  to_go = sum_returns(per_step.astype(share.dtype), experience.steps.mask)
  return steps.values_per_token(to_go, experience.steps) * share[:, None]


def _verifiable_advantages(
  experience: Experience, config: CreditConfig
) -> Array:
  """Returns the advantage of the outcome [B]; 0 without an answer."""
  outcome, known = experience.correct, experience.has_answer
  if config.verifiable_estimator == "rloo":
    return rloo_advantages(outcome, known, config.group_size)
  if config.verifiable_estimator == "grpo":
    return grpo_advantages(outcome, known, config.group_size)
  return masked.zero_masked(outcome, known)


def _reward_penalty(
  experience: Experience, config: CreditConfig, kl_coef: Array | None
) -> Array:
  """Returns each token's KL penalty [B, C]; 0 where masked or unused."""
  mask = experience.completion_mask
  if config.kl_in_reward is None:
    return jnp.zeros(mask.shape, experience.step_rewards.dtype)
  penalty = kl_estimate(
    masked.zero_masked(known_old(experience), mask),
    known_reference(experience, "kl_in_reward"),
    config.kl_in_reward,
    config.kl_limit,
  )
  return (config.kl_coef if kl_coef is None else kl_coef) * penalty


def _last_token(mask: Array) -> Array:
  """Marks the last token of each row, [B, C] bool."""
  remaining = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
  return mask & (remaining == 1)


def folded_rewards(
  rewards: Array,
  experience: Experience,
  config: CreditConfig,
  kl_coef: Array | None = None,
) -> Array:
  """Returns one row of token rewards: process, outcome and KL together.

  The process reward is on the token that ends its step, the outcome on the
  last token, and the KL penalty on every token, as in the verl branch.

  Args:
    rewards: [B, S] float, step rewards; softmin-weighted (Eq. 5) with softmin.
    experience: the batch.
    config: CreditConfig; coefficients and KL are read.
    kl_coef: [] float32, replaces config.kl_coef; None keeps it.

  Returns:
    [B, C] like rewards, 0 where masked.
  """
  mask = experience.completion_mask
  at_ends = steps.values_at_step_ends(rewards, experience.steps)
  known = _last_token(mask) & experience.has_answer[:, None]
  outcome = masked.zero_masked(experience.correct[:, None], known)
  outcome = config.verifiable_coef * outcome.astype(rewards.dtype)
  penalty = _reward_penalty(experience, config, kl_coef)
  token_rewards = config.process_coef * at_ends + outcome - penalty
  return masked.zero_masked(token_rewards, mask)


def _folded_advantages(
  token_rewards: Array, experience: Experience, config: CreditConfig
) -> Array:
  """Returns [B, C] token returns minus the common baseline."""
  mask = experience.completion_mask
  if config.baseline == "gae":
    return _gae(token_rewards, experience, config)[0]
  if config.form == "min_dense":
    # The reference's fault, on purpose: the minimum includes the zeros of
    # other tokens and of padding.
    returns = min_returns(token_rewards, jnp.ones_like(mask))
  else:
    returns = sum_returns(token_rewards, mask)
  returns = masked.zero_masked(returns, mask)
  if config.baseline == "none":
    return returns
  share = others_sum(returns.sum(axis=1), config.group_size) / (
    (config.group_size - 1) * (config.baseline_length or mask.shape[1] or 1)
  )
  return masked.zero_masked(returns - share[:, None], mask)


def _credit_mask(experience: Experience, config: CreditConfig) -> Array:
  """Marks the tokens that get an advantage, [B, C] bool."""
  mask = jnp.asarray(experience.completion_mask)
  credit_mask = mask
  if config.zero_terminal_advantage:
    credit_mask = credit_mask & ~experience.terminal_mask
  if config.zero_truncated_end:
    if experience.truncated is None:
      raise ValueError(
        "zero_truncated_end reads experience.truncated, which is None: give "
        "the flags [B], or set zero_truncated_end=False."
      )
    end = experience.truncated[:, None] & _last_token(mask)
    credit_mask = credit_mask & ~end
  return credit_mask


def _gae(
  token_rewards: Array, experience: Experience, config: CreditConfig
) -> tuple[Array, Array]:
  """Returns (advantages, targets of the critic), both [B, C]."""
  if experience.values is None:
    raise ValueError(
      "baseline='gae' reads a critic's values, and experience.values is None: "
      "give the values [B, C] (training.critic.make_values computes them), or "
      "choose another baseline."
    )
  # Folded rewards have no discount (`CreditConfig`).
  return gae_advantages(
    token_rewards,
    experience.values,
    experience.completion_mask,
    gae_lambda=config.gae_lambda,
  )


def _step_credit(
  experience: Experience, config: CreditConfig
) -> tuple[Array, Array, Array]:
  """Returns step rewards, the steps that take part, and step returns."""
  finite = jnp.isfinite(experience.step_rewards)
  step_mask = experience.steps.mask & finite
  if config.exclude_empty_steps:
    step_mask &= ~experience.steps.empty
  rewards = masked.widened(experience.step_rewards)
  rewards = masked.zero_masked(rewards, step_mask)
  if config.form == "min_dense":
    return rewards, step_mask, sum_returns(rewards, step_mask)
  return rewards, step_mask, step_returns(rewards, step_mask, config)


def value_targets(
  experience: Experience,
  config: CreditConfig,
  kl_coef: Array | None = None,
) -> Array:
  """Returns what a critic should predict: the returns of `gae_advantages`.

  They are the values plus the advantages of `pure_advantages` before whitening.
  With gae_lambda = 1 that is the sum of `folded_rewards` to go.

  Args:
    experience: Experience, with the values before the critic's update.
    config: CreditConfig with baseline "gae".
    kl_coef: as for `pure_advantages`.

  Returns:
    [B, C] float, in units of reward, 0 where masked. No gradient flows through.

  Raises:
    ValueError: if the baseline is not "gae", the experience has no values, or
      shapes differ.
  """
  if config.baseline != "gae":
    raise ValueError(
      f"A critic has targets with baseline='gae', not {config.baseline!r}."
    )
  _check_experience(experience)
  _, step_mask, returns = _step_credit(experience, config)
  rewards = folded_rewards(
    transformed_rewards(returns, step_mask), experience, config, kl_coef
  )
  return jax.lax.stop_gradient(_gae(rewards, experience, config)[1])


def pure_advantages(
  experience: Experience,
  config: CreditConfig,
  kl_coef: Array | None = None,
) -> tuple[Array, Metrics]:
  """Returns the advantage of every token, and metrics about credit.

  A = process_coef * A_process + verifiable_coef * A_verifiable - KL to go.
  With fold_verifiable the advantages come from `folded_rewards` instead. In
  both cases the tokens without an advantage (zero_terminal_advantage,
  zero_truncated_end) are left out, and whitening follows. A step reward that
  is not finite counts as an absent step, so that it cannot spread through a
  baseline. Stop training if the metric `nonfinite_step_rewards`, the number
  of such rewards, is not 0.

  >>> from pure_jax.types import StepBoundaries
  >>> zero, one = jnp.zeros((2, 1)), jnp.ones((2, 1), bool)  # C = S = 1.
  >>> index, scores = zero.astype(int), jnp.array([[0.5], [-0.5]])
  >>> steps = StepBoundaries(index, one, index, one, ~one, index[:, 0])
  >>> no, right = ~one, scores[:, 0]
  >>> batch = Experience(one, steps, scores, right, no[:, 0], zero, zero, no)
  >>> config = CreditConfig(
  ...   "min", baseline="main", group_size=2, whitening="none"
  ... )
  >>> pure_advantages(batch, config)[0].tolist()
  [[1.0], [-1.0]]

  Args:
    experience: Experience, B = P * G rows.
    config: CreditConfig.
    kl_coef: [] float32, replaces config.kl_coef, as an adaptive coefficient
      does (`estimators.adaptive_kl_coef`); None keeps it.

  Returns:
    (advantages [B, C] float32, 0 where masked; metrics, scalars). No gradient
    flows through either. B, C and S may be 0.

  Raises:
    ValueError: if a group estimator is set and G < 2, if B is not a multiple
      of G, if shapes differ, if zero_truncated_end is set and the experience
      has no truncated flags, or if the baseline is "gae" and it has no values.
  """
  _check_experience(experience)
  rewards, step_mask, returns = _step_credit(experience, config)
  mask = experience.completion_mask

  if config.fold_verifiable:
    token_rewards = folded_rewards(
      transformed_rewards(returns, step_mask), experience, config, kl_coef
    )
    advantages = _folded_advantages(token_rewards, experience, config)
  else:
    penalty = _reward_penalty(experience, config, kl_coef)
    advantages = -sum_returns(penalty, mask)
    if config.process_coef:
      advantages += config.process_coef * process_advantages(
        returns, step_mask, experience, config
      )
    if config.verifiable_coef:
      outcome = _verifiable_advantages(experience, config)
      advantages += config.verifiable_coef * outcome[:, None]

  credit_mask = _credit_mask(experience, config)
  if config.whitening == "tokens":
    advantages = masked.whiten(advantages, credit_mask)
  elif config.whitening == "reference_main":
    advantages = masked.whiten_nonzero(advantages, credit_mask, mask)
  advantages = masked.zero_masked(advantages, credit_mask)
  metrics = credit_metrics(rewards, step_mask, returns, experience, config)
  metrics |= {
    "advantage_mean": masked.masked_mean(advantages, mask),
    "advantage_std": masked.masked_std(advantages, mask),
  }
  return jax.lax.stop_gradient((advantages, metrics))
