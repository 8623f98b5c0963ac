"""One score for a response from the rewards of its steps.

Step rewards are r = p(good) − p(bad) in [−1, 1]. The scores are all in [0, 1],
the scale of p(good), so that they can weigh votes. A response without steps
scores 0 in each of them; `step_mask.any(-1)` tells it from one that is bad.
"""

from collections.abc import Callable

import numpy as np

from pure_jax.host.evaluation.rollout_metrics import softmin_outcome


def probability_good(
  step_rewards: np.ndarray, step_mask: np.ndarray
) -> np.ndarray:
  """p(good) = (r + 1) / 2 of each step.

  Args:
    step_rewards: [..., S] float, -1..1.
    step_mask: [..., S] bool, True where the step exists.

  Returns:
    [..., S] float64 in [0, 1], 0 where masked.

  Raises:
    ValueError: naming the first step whose reward is outside -1..1.
  """
  rewards = kept_scores(step_rewards, step_mask)
  # A difference of float32 probabilities may pass 1 by rounding.
  bad = np.argwhere(np.abs(rewards) > 1 + 1e-6)
  if bad.size:
    raise ValueError(
      f"The reward at {_place(bad[0])} is {rewards[tuple(bad[0])]}, a step "
      "reward p(good) - p(bad) lies in -1..1. Is it a logit?"
    )
  return np.where(step_mask, np.clip((rewards + 1) / 2, 0, 1), 0.0)


def minimum_score(
  step_rewards: np.ndarray, step_mask: np.ndarray
) -> np.ndarray:
  """p(good) of the worst step.

  Args:
    step_rewards: [..., S] float, -1..1.
    step_mask: [..., S] bool, True where the step exists.

  Returns:
    [...] float64 in [0, 1]; 0 without steps.
  """
  good = probability_good(step_rewards, step_mask)
  worst = np.min(np.where(step_mask, good, 1.0), axis=-1, initial=1.0)
  return np.where(np.any(step_mask, axis=-1), worst, 0.0)


def softmin_score(
  step_rewards: np.ndarray, step_mask: np.ndarray, temperature: float = 0.1
) -> np.ndarray:
  """The sum of Eq. 5's rewards, brought from [−1, 1] to [0, 1].

  (1 + Σᵢ softmax(−r/T)ᵢ rᵢ) / 2: what PURE ranks best-of-n by, in the same
  order (https://arxiv.org/abs/2504.15275).

  Args:
    step_rewards: [..., S] float, -1..1.
    step_mask: [..., S] bool, True where the step exists.
    temperature: T of Eq. 5, above 0.

  Returns:
    [...] float64 in [0, 1]; 0 without steps.
  """
  good = probability_good(step_rewards, step_mask)
  step_mask = np.asarray(step_mask)
  rows = (-1, step_mask.shape[-1])
  outcome = softmin_outcome(
    (2 * good - 1).reshape(rows), step_mask.reshape(rows), temperature
  ).reshape(step_mask.shape[:-1])
  return np.where(step_mask.any(-1), (1 + outcome) / 2, 0.0)


def last_score(step_rewards: np.ndarray, step_mask: np.ndarray) -> np.ndarray:
  """p(good) of the last step.

  Args:
    step_rewards: [..., S] float, -1..1.
    step_mask: [..., S] bool, True where the step exists.

  Returns:
    [...] float64 in [0, 1]; 0 without steps.
  """
  good = probability_good(step_rewards, step_mask)
  following = np.cumsum(np.asarray(step_mask)[..., ::-1], axis=-1)[..., ::-1]
  # The last step, and masked ones before it, which are 0.
  return np.sum(np.where(following == 1, good, 0.0), axis=-1)


def product_score(
  step_rewards: np.ndarray, step_mask: np.ndarray
) -> np.ndarray:
  """The product of p(good): that of all steps, were they independent.

  Args:
    step_rewards: [..., S] float, -1..1.
    step_mask: [..., S] bool, True where the step exists.

  Returns:
    [...] float64 in [0, 1]; 0 without steps, not the empty product.
  """
  good = probability_good(step_rewards, step_mask)
  product = np.prod(np.where(step_mask, good, 1.0), axis=-1)
  return np.where(np.any(step_mask, axis=-1), product, 0.0)


def mean_score(step_rewards: np.ndarray, step_mask: np.ndarray) -> np.ndarray:
  """The mean of p(good) over the steps that exist.

  Args:
    step_rewards: [..., S] float, -1..1.
    step_mask: [..., S] bool, True where the step exists.

  Returns:
    [...] float64 in [0, 1]; 0 without steps.

  >>> mean_score(np.array([[0.5, 0.0, 9.9]]), np.array([[True, True, False]]))
  array([0.625])
  """
  good = probability_good(step_rewards, step_mask)
  return good.sum(-1) / np.maximum(np.sum(step_mask, axis=-1), 1)


# What best-of-n and the weighted vote are reported under, in this order.
AGGREGATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
  "minimum": minimum_score,
  "softmin": softmin_score,
  "last": last_score,
  "product": product_score,
  "mean": mean_score,
}


def kept_scores(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Scores ready for arithmetic: float64, 0 where masked.

  Args:
    scores: [..., S] float, any scale; anything where masked.
    mask: [..., S] bool, True keeps.

  Returns:
    [..., S] float64.

  Raises:
    ValueError: if the mask does not fit, or naming the first kept score that
      is not finite.
  """
  mask = np.asarray(mask)
  if mask.dtype != bool or mask.shape != np.shape(scores):
    raise ValueError(
      f"The mask is {mask.dtype} of shape {mask.shape}, the scores have shape "
      f"{np.shape(scores)}: a bool for each score is needed."
    )
  kept = np.where(mask, np.asarray(scores, np.float64), 0.0)
  bad = np.argwhere(~np.isfinite(kept))
  if bad.size:
    raise ValueError(
      f"The score at {_place(bad[0])} is {kept[tuple(bad[0])]}: it must be a "
      "number. Check the PRM's weights."
    )
  return kept


def _place(index: np.ndarray) -> str:
  """Row and step of an index."""
  *rows, step = index.tolist()
  return f"row {rows}, step {step}" if rows else f"step {step}"
