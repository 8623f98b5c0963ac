"""One score for a response, computed from the rewards of its steps.

Step rewards are r = p(good) − p(bad) in [−1, 1]. Scores are in [0, 1], the
scale of p(good), so that they can also weigh votes. A response without steps
scores 0; `step_mask.any(-1)` distinguishes it from a bad response.
"""

import numpy as np

from pure_jax import credit


def probability_good(
  step_rewards: np.ndarray, step_mask: np.ndarray
) -> np.ndarray:
  """Converts step rewards to p(good) = (r + 1) / 2, float64, 0 where masked.

  Args:
    step_rewards: [..., S] float, -1..1.
    step_mask: [..., S] bool, True where the step exists.

  Raises:
    ValueError: with the index of a reward outside -1..1.
  """
  rewards = masked_scores(step_rewards, step_mask)
  # A difference of float32 probabilities can exceed 1 by rounding.
  out_of_range = np.argwhere(np.abs(rewards) > 1 + 1e-6)
  if out_of_range.size:
    index = out_of_range[0]
    raise ValueError(
      f"The reward at {_index_text(index)} is {rewards[tuple(index)]}, a step "
      "reward p(good) - p(bad) lies in -1..1. Is it a logit?"
    )
  return np.where(step_mask, np.clip((rewards + 1) / 2, 0, 1), 0.0)


def softmin_outcome(
  step_rewards: np.ndarray, step_mask: np.ndarray, temperature: float = 0.1
) -> np.ndarray:
  """Sums the rewards of Eq. 5: a soft minimum over the steps of a response.

  Σᵢ softmax(−r/T)ᵢ rᵢ (https://arxiv.org/abs/2504.15275, Eq. 5), 0 for a
  response without steps. Metrics of every run use this number, for every form
  of credit in training. It equals the sum of `credit.softmin_rewards`, which
  computes in float32 on the devices; metrics are float64 on the host.

  Args:
    step_rewards: [..., S] float, -1..1; any value where masked.
    step_mask: [..., S] bool, True where the step exists.
    temperature: T of Eq. 5, above 0; a T below `credit.LOWEST_TEMPERATURE`
      is raised to it, as on the devices.
  """
  rewards = np.where(step_mask, step_rewards, 0).astype(np.float64)
  lowest = np.min(np.where(step_mask, rewards, np.inf), axis=-1, initial=1.0)
  shift = np.where(step_mask, rewards - lowest[..., None], 0.0)
  shift /= max(temperature, credit.LOWEST_TEMPERATURE)
  weight = np.where(step_mask, np.exp(-shift), 0.0)
  total = weight.sum(-1)
  return (weight * rewards).sum(-1) / np.where(total > 0, total, 1.0)


def response_scores(
  step_rewards: np.ndarray, step_mask: np.ndarray
) -> dict[str, np.ndarray]:
  """Scores responses in each of five ways.

  Args:
    step_rewards: [..., S] float, -1..1.
    step_mask: [..., S] bool, True where the step exists.

  Returns:
    By name, [...] float64 in [0, 1], 0 for a response without steps. "minimum",
    "last", "product" and "mean" are those of p(good) over the steps. "softmin",
    by which PURE ranks best-of-n, is `softmin_outcome` mapped from [−1, 1] to
    [0, 1]. Reports list the scores in the order of the dict.

  Raises:
    ValueError: as `probability_good`.

  >>> scores = response_scores(np.array([0.5, 0, 9.9]), np.arange(3) < 2)
  >>> [round(float(score), 3) for score in scores.values()]
  [0.5, 0.502, 0.5, 0.375, 0.625]
  """
  good = probability_good(step_rewards, step_mask)
  good_or_1 = np.where(step_mask, good, 1.0)
  steps_left = np.cumsum(np.asarray(step_mask)[..., ::-1], axis=-1)[..., ::-1]
  scores = {
    "minimum": np.min(good_or_1, axis=-1, initial=1.0),
    "softmin": (1 + softmin_outcome(2 * good - 1, step_mask)) / 2,
    # The last step has one step left, itself; masked steps before it add 0.
    "last": np.sum(np.where(steps_left == 1, good, 0.0), axis=-1),
    "product": np.prod(good_or_1, axis=-1),
    "mean": good.sum(-1) / np.maximum(np.sum(step_mask, axis=-1), 1),
  }
  has_steps = np.any(step_mask, axis=-1)
  return {name: np.where(has_steps, s, 0.0) for name, s in scores.items()}


def masked_scores(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Converts scores to float64 and sets masked ones to 0.

  Args:
    scores: [..., S] float, any scale; any value where masked.
    mask: [..., S] bool, True keeps.

  Raises:
    ValueError: if the mask does not fit the scores; with the index of an
      unmasked score that is not finite.
  """
  mask = np.asarray(mask)
  if mask.dtype != bool or mask.shape != np.shape(scores):
    raise ValueError(
      f"The mask is {mask.dtype} of shape {mask.shape}, the scores have shape "
      f"{np.shape(scores)}: a bool for each score is needed."
    )
  masked = np.where(mask, np.asarray(scores, np.float64), 0.0)
  not_finite = np.argwhere(~np.isfinite(masked))
  if not_finite.size:
    index = not_finite[0]
    raise ValueError(
      f"The score at {_index_text(index)} is {masked[tuple(index)]}: it must "
      "be a number. Check the PRM's weights."
    )
  return masked


def _index_text(index: np.ndarray) -> str:
  """Writes an index as row and step."""
  *rows, step = index.tolist()
  return f"row {rows}, step {step}" if rows else f"step {step}"
