"""Losses: the clipped policy objective, the whole PURE loss, the PRM loss.

Every mean states its denominator. A micro-batch can use the denominator of the
whole batch; the losses of the micro-batches then add up to the batch's loss.
"""

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax import importance, masked, ratios
from pure_jax.advantages import Metrics, pure_advantages
from pure_jax.estimators import LARGEST_KL_METRIC, kl_estimate, known_reference
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.types import Experience, MetricGroups, PackedExperience, PRMInputs


def clipped_policy_loss(
  new_logp: Array,
  old_logp: Array,
  advantages: Array,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  log_ratio_limit: float | None = 20.0,
) -> tuple[Array, Array]:
  """Returns PPO's clipped loss per token (arXiv 1707.06347, Eq. 7).

  -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), with the
  ratio of `ratios.policy_ratio`. clip_high > clip_low is DAPO's clip-higher.

  >>> import jax.numpy as jnp
  >>> one = jnp.ones(())
  >>> loss, clipped = clipped_policy_loss(jnp.log(1.5 * one), 0 * one, one)
  >>> round(float(loss), 4), bool(clipped)
  (-1.2, True)

  Args:
    new_logp: [...] float, nats, under the policy being trained.
    old_logp: [...] float, nats, under the policy that sampled.
    advantages: [...] float, any scale.
    clip_low: 0..1; the ratio is clipped below at 1 - clip_low.
    clip_high: >= 0; the ratio is clipped above at 1 + clip_high.
    log_ratio_limit: > 0, nats, or None, as in `ratios.policy_ratio`.

  Returns:
    (loss, clipped): [...] like new_logp, and bool, True where clipping
    changed the loss. The gradient reaches new_logp only; it is -ratio * A, and
    0 where clipped or beyond the limit.
  """
  advantages = jax.lax.stop_gradient(masked.widened(advantages))
  ratio = ratios.policy_ratio(
    masked.widened(new_logp), old_logp, log_ratio_limit
  )
  plain = -ratio * advantages
  bounded = -jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
  loss = jnp.maximum(plain, bounded)
  return masked.narrowed(loss, new_logp), bounded > plain


def clipped_value_loss(
  new_values: Array,
  old_values: Array,
  returns: Array,
  value_clip: float | None = None,
) -> tuple[Array, Array]:
  """Returns the loss of a value function per token, clipped as in PPO.

  max((V - R)^2, (clip(V, V_old - value_clip, V_old + value_clip) - R)^2) / 2,
  so that one batch cannot move a value further than value_clip from the one
  its advantages were computed with. The PPO paper has no such clipping; its
  implementations do (verl, TRL, OpenRLHF).

  >>> import jax.numpy as jnp
  >>> zero, one = jnp.zeros(()), jnp.ones(())
  >>> loss, clipped = clipped_value_loss(0.75 * one, zero, one, value_clip=0.5)
  >>> float(loss), bool(clipped)
  (0.125, True)

  Args:
    new_values: [...] float, of the value function being trained.
    old_values: [...] float, values before the update.
    returns: [...] float, the targets.
    value_clip: > 0, in units of reward; None clips nothing.

  Returns:
    (loss, clipped): [...] like new_values, and bool, True where clipping
    changed the loss. The gradient reaches new_values only; it is V - R, and 0
    where clipped.
  """
  old_values, returns = jax.lax.stop_gradient((old_values, returns))
  plain = jnp.square(new_values - returns) / 2
  if value_clip is None:
    return plain, jnp.zeros_like(plain, bool)
  near = jnp.clip(new_values, old_values - value_clip, old_values + value_clip)
  bounded = jnp.square(near - returns) / 2
  return jnp.maximum(plain, bounded), bounded > plain


def loss_denominator(completion_mask: Array, config: LossConfig) -> Array:
  """Returns the denominator of the batch's summed loss.

  Args:
    completion_mask: [B, C] bool, of the whole batch.
    config: LossConfig; aggregate and constant_length are read.

  Returns:
    [] float32: tokens ("token_mean"), responses with at least one token
    ("sequence_mean"), or B * constant_length ("constant_length").
  """
  if config.aggregate == "token_mean":
    count = jnp.sum(completion_mask)
  elif config.aggregate == "sequence_mean":
    count = jnp.sum(jnp.any(completion_mask, axis=1))
  else:
    count = jnp.asarray(completion_mask.shape[0] * config.constant_length)
  return count.astype(jnp.float32)


def aggregate_loss(
  per_token: Array,
  mask: Array,
  config: LossConfig,
  denominator: Array | None = None,
  response_tokens: Array | None = None,
) -> Array:
  """Reduces a per-token quantity to a scalar as config.aggregate says.

  token_mean: sum over tokens / tokens. sequence_mean: mean over responses of
  each response's token mean, so short responses weigh as much as long ones.
  constant_length: sum over tokens / (B * constant_length), so a token's weight
  does not depend on the length of its response (Dr. GRPO, arXiv 2503.20783).

  Args:
    per_token: [B, C] float; entries outside the mask may be NaN.
    mask: [B, C] bool, True on generated tokens.
    config: LossConfig; aggregate and constant_length are read.
    denominator: [] float, `loss_denominator` of the whole batch if the
      arguments are a micro-batch of it; None computes it from the arguments.
    response_tokens: [B, C] int, the length of each token's response, for rows
      that hold several responses; None if each row is one response. It
      requires the denominator.

  Returns:
    [] in the dtype of per_token, summed in float32 at least; 0 without a token.
  """
  if denominator is None:
    denominator = loss_denominator(mask, config)
  wide = masked.widened(per_token)
  if config.aggregate == "sequence_mean" and response_tokens is not None:
    total = masked.masked_sum(masked.safe_divide(wide, response_tokens), mask)
  elif config.aggregate == "sequence_mean":
    total = jnp.sum(masked.masked_mean(wide, mask, axis=1))
  else:
    total = masked.masked_sum(wide, mask)
  return masked.narrowed(masked.safe_divide(total, denominator), per_token)


def policy_objective(
  new_logp: Array,
  entropy: Array,
  advantages: Array,
  experience: Experience | PackedExperience,
  config: LossConfig,
  denominator: Array | None = None,
  kl_coef: Array | None = None,
  token_count: Array | None = None,
) -> tuple[Array, MetricGroups]:
  """Returns clipped loss + KL to the reference - entropy bonus.

  The metrics in `sums` are aggregated like the loss, with its denominator.
  With the limits of config (the default), loss, gradients and metrics are
  finite for all finite log-probs. The guard of config does not change the
  loss: `ratios.apply_guard` does, once micro-batches are summed.

  Args:
    new_logp: [B, C] float, nats, under the policy being trained.
    entropy: [B, C] float, nats, of the policy's next-token distributions.
    advantages: [B, C] float, from `pure_advantages`.
    experience: Experience of the same rows; masks and log-probs are read. For
      packed rows it is a `PackedExperience`, all arrays are [R, W], and the
      denominator is required.
    config: LossConfig.
    denominator: [] float, as in `aggregate_loss`.
    kl_coef: [] float32, replaces config.kl_coef, as an adaptive coefficient
      does (`estimators.adaptive_kl_coef`); None keeps it.
    token_count: [] int, tokens of the whole batch; required with both
      ratio_guard and a denominator, and read only with ratio_guard.

  Returns:
    (loss [] float32, metrics): policy_loss, entropy, clip_fraction, ratio_max
    and ratio_min (0 without a token), and with ref_logp kl_reference (k3
    estimate, nats). With dual_clip, ``dual_clip_fraction`` is the share of
    tokens whose loss it bounds. With ratio_guard, ``mean_ratio`` is the mean
    over tokens. With importance_cap the metrics of `importance.weigh` are
    included. The gradient reaches new_logp and entropy.

  Raises:
    ValueError: if shapes differ, if log-probs that a setting reads are None, or
      if token_count is missing.
  """
  mask = experience.completion_mask
  _check_shapes(mask, new_logp=new_logp, entropy=entropy, advantages=advantages)

  old_logp = experience.old_logp
  old_logp = jax.lax.stop_gradient(new_logp) if old_logp is None else old_logp
  new_logp, old_logp, advantages = (
    masked.zero_masked(masked.widened(x), mask)
    for x in (new_logp, old_logp, advantages)
  )
  entropy = masked.widened(entropy)
  per_token, quantities = _policy_losses(
    new_logp, old_logp, advantages, experience, config
  )
  penalty, kl_quantities = _kl_to_reference(new_logp, experience, config)
  response_tokens = None
  if isinstance(experience, PackedExperience):
    response_tokens = experience.response_tokens

  def mean(x):
    return aggregate_loss(x, mask, config, denominator, response_tokens)

  policy_loss, mean_entropy = mean(per_token), mean(entropy)
  loss = policy_loss
  if penalty is not None:
    loss += (config.kl_coef if kl_coef is None else kl_coef) * mean(penalty)
  if config.entropy_coef:
    loss -= config.entropy_coef * mean_entropy
  ratio = ratios.policy_ratio(new_logp, old_logp, config.log_ratio_limit)
  metrics = MetricGroups(
    sums={
      "policy_loss": policy_loss,
      "entropy": mean_entropy,
      **{
        name: mean(x.astype(per_token.dtype))
        for name, x in (kl_quantities | quantities).items()
      },
    },
    maxima={"ratio_max": masked.masked_max(ratio, mask)},
    minima={"ratio_min": masked.masked_min(ratio, mask)},
  )
  if config.ratio_guard is not None:
    metrics.sums["mean_ratio"] = ratios.mean_ratio(
      ratio, mask, denominator, token_count
    )
  return loss, jax.lax.stop_gradient(metrics)


def _policy_losses(
  new_logp: Array,
  old_logp: Array,
  advantages: Array,
  experience: Experience | PackedExperience,
  config: LossConfig,
) -> tuple[Array, dict[str, Array]]:
  """Returns each token's policy loss, and quantities whose means are metrics.

  The log-probs and advantages are 0 where masked.
  """
  per_token, clipped = clipped_policy_loss(
    new_logp,
    old_logp,
    advantages,
    config.clip_low,
    config.clip_high,
    config.log_ratio_limit,
  )
  quantities = {"clip_fraction": clipped}
  if config.dual_clip is not None:
    per_token, quantities["dual_clip_fraction"] = ratios.dual_clip(
      per_token, advantages, config.dual_clip
    )
  if config.importance_cap is not None:
    sampled_logp = masked.zero_masked(
      _known(experience.sampled_logp), experience.completion_mask
    )
    per_token, importance_quantities = importance.weigh(
      per_token, old_logp, sampled_logp, config.importance_cap
    )
    quantities |= importance_quantities
  return per_token, quantities


def _kl_to_reference(new_logp, experience, config):
  """Returns each token's KL penalty or None, and quantities like the above."""
  if experience.ref_logp is None and config.kl_in_loss is None:
    return None, {}
  ref_logp = jax.lax.stop_gradient(
    masked.widened(known_reference(experience, "kl_in_loss"))
  )
  kl = kl_estimate(new_logp, ref_logp, "k3", LARGEST_KL_METRIC)
  quantities = {"kl_reference": kl}
  if config.kl_in_loss is None:
    return None, quantities
  return kl_estimate(
    new_logp, ref_logp, config.kl_in_loss, config.kl_limit
  ), quantities


def _check_shapes(mask, **arrays):
  """Validates shapes, so that no array is broadcast by accident."""
  for name, x in arrays.items():
    if x.shape != mask.shape:
      raise ValueError(
        f"{name} has shape {x.shape}, not that of completion_mask, "
        f"{mask.shape}."
      )


def _known(sampled_logp):
  """Validates that the sampler's log-probs are given."""
  if sampled_logp is None:
    raise ValueError(
      "importance_cap weighs tokens by experience.sampled_logp, which is None: "
      "give the sampler's log-probs, or no cap."
    )
  return sampled_logp


def pure_loss(
  new_logp: Array,
  entropy: Array,
  experience: Experience,
  credit: CreditConfig,
  loss: LossConfig,
) -> tuple[Array, Metrics]:
  """Returns the PURE loss: credit, baseline, advantage and clipping together.

  It calls `pure_advantages`, `policy_objective` and `ratios.apply_guard` on a
  batch that fits into memory. With micro-batches, call the three yourself, the
  last on their summed losses, metrics and gradients.

  Args:
    new_logp: [B, C] float, nats, under the policy being trained.
    entropy: [B, C] float, nats, of the policy's next-token distributions.
    experience: Experience, B = P * G rows. Its steps come from
      `steps.split_steps` (or are a `types.StepBoundaries` made by hand), its
      terminal_mask comes from `steps.terminal_mask`. `training.score` makes an
      experience from a rollout, `notebooks/01_credit.ipynb` makes one by hand.
    credit: CreditConfig, static under jit.
    loss: LossConfig, static under jit.

  Returns:
    (loss [], metrics of the three functions). The gradient with respect to
    step rewards, and to any other field of the experience, is exactly 0. With
    ratio_guard exceeded, loss and gradient are 0.

  Raises:
    ValueError: if shapes differ, or if B is not a multiple of G.
  """
  advantages, credit_metrics = pure_advantages(experience, credit)
  value, metrics = policy_objective(
    new_logp, entropy, advantages, experience, loss
  )
  value, metrics = ratios.apply_guard(value, metrics, loss.ratio_guard)
  return value, credit_metrics | metrics.to_dict()


def prm_loss(
  logits: Array, inputs: PRMInputs, labels: Array, label_mask: Array
) -> tuple[Array, Metrics]:
  """Returns the PRM's cross-entropy, averaged over labelled steps.

  Args:
    logits: [B, T, 2] float32, class 1 good, class 0 bad.
    inputs: PRMInputs the logits were computed from.
    labels: [B, S] int, 1 good, 0 bad; any value if not labelled.
    label_mask: [B, S] bool, True where a label exists. In PRM800K, steps after
      the first error have no label.

  Returns:
    (loss [] nats per step, metrics): prm_loss, accuracy, balanced_accuracy
    (mean recall of the classes present), good_fraction, labelled_steps. All
    are 0 if nothing is labelled. A label without a step does not count. Logits
    that no labelled step reads may be NaN: their gradient is exactly 0.
  """
  labelled = label_mask & inputs.score_mask
  good = labels == 1
  positions = inputs.score_position[..., None]
  at_scores = jnp.take_along_axis(logits, positions, axis=1)
  at_scores = masked.zero_masked(at_scores, labelled[..., None])
  logp = jax.nn.log_softmax(at_scores, axis=-1)
  per_step = -jnp.where(good, logp[..., 1], logp[..., 0])
  loss = masked.masked_mean(per_step, labelled)

  right = ((at_scores[..., 1] > at_scores[..., 0]) == good).astype(loss.dtype)
  recall = jnp.stack(
    [
      masked.masked_mean(right, labelled & good),
      masked.masked_mean(right, labelled & ~good),
    ]
  )
  present = jnp.stack([jnp.any(labelled & good), jnp.any(labelled & ~good)])
  metrics = {
    "prm_loss": loss,
    "accuracy": masked.masked_mean(right, labelled),
    "balanced_accuracy": masked.masked_mean(recall, present),
    "good_fraction": masked.masked_mean(good.astype(loss.dtype), labelled),
    "labelled_steps": jnp.sum(labelled).astype(loss.dtype),
  }
  return loss, jax.lax.stop_gradient(metrics)
