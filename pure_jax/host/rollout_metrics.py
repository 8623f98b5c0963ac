"""What a batch of responses looks like: the numbers that show hacking.

Accuracy against process reward is the pair to watch: a policy that hacks its
PRM raises the second without the first. The collapse that the paper
(arXiv 2504.15275) describes announces itself in repetition and truncation
among *correct* responses.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pure_jax.host.metrics import repetition_score
from pure_jax.types import Rollout, Steps

HIGH_REPETITION = 0.2


def softmin_outcome(
  step_rewards: np.ndarray, step_mask: np.ndarray, temperature: float = 0.1
) -> np.ndarray:
  """Process rewards of a response as one number: the sum of Eq. 5's rewards.

  Σᵢ softmax(−r/T)ᵢ rᵢ over the steps that exist: about the minimum. One
  yardstick for every run, whatever form of credit it trains with.

  Args:
    step_rewards: [B, S] float, -1..1.
    step_mask: [B, S] bool.
    temperature: T of Eq. 5.

  Returns:
    [B] float64 in [-1, 1]; 0 for a response without steps.
  """
  rewards = np.where(step_mask, step_rewards, 0).astype(np.float64)
  lowest = np.min(np.where(step_mask, rewards, np.inf), axis=1, initial=1.0)
  weight = np.where(
    step_mask, np.exp(-(rewards - lowest[:, None]) / temperature), 0.0
  )
  total = weight.sum(1)
  return (weight * rewards).sum(1) / np.where(total > 0, total, 1.0)


def rollout_metrics(
  rollout: Rollout,
  steps: Steps,
  step_rewards: np.ndarray | None,
  correct: np.ndarray,
  step_texts: Sequence[Sequence[str]],
  is_vacuous: Callable[[str], bool],
) -> dict[str, float]:
  """Describes a scored and graded rollout.

  Args:
    rollout: numpy arrays, [B, C].
    steps: numpy arrays, [B, C] and [B, S].
    step_rewards: [B, S] float, -1..1; None where no PRM gave any, which leaves
      out what is made of them.
    correct: [B] float, 1 where the answer is right.
    step_texts: B lists with the text of each step.
    is_vacuous: whether a step's text neither claims nor concludes anything.

  Returns:
    Means over the batch by name. A mean over nothing (say of the wrong
    responses where all are right) is left out rather than made up.
  """
  mask = np.asarray(rollout.completion_mask)
  lengths = mask.sum(1)
  step_mask = np.asarray(steps.mask)
  right = np.asarray(correct) > 0.5
  repetition = np.asarray(
    [
      repetition_score(row[:length])
      for row, length in zip(np.asarray(rollout.tokens), lengths, strict=True)
    ]
  )
  vacuous = [is_vacuous(text) for texts in step_texts for text in texts]
  of_scores = {}
  if step_rewards is not None:
    worst = np.min(np.where(step_mask, step_rewards, np.inf), axis=1)
    of_scores = {
      "process_outcome": softmin_outcome(step_rewards, step_mask),
      "min_step_score": worst[step_mask.any(1)],
      "hacked_given_wrong": worst[~right & step_mask.any(1)] > 0,
    }
  values = {
    "accuracy": right,
    **of_scores,
    "response_tokens": lengths,
    "steps_per_response": step_mask.sum(1),
    "truncated": rollout.truncated,
    "truncated_given_correct": np.asarray(rollout.truncated)[right],
    "repetition": repetition,
    "high_repetition": repetition > HIGH_REPETITION,
    "high_repetition_given_correct": repetition[right] > HIGH_REPETITION,
    "vacuous_step_share": np.asarray(vacuous, bool),
    "empty_step_share": np.asarray(steps.empty)[step_mask],
    "step_overflow": np.asarray(steps.overflow) > 0,
  }
  return {
    name: float(np.mean(value))
    for name, value in values.items()
    if np.size(value)
  }
