"""What a batch of responses looks like: the numbers that show hacking.

Accuracy against process reward is the pair to watch: a policy that hacks its
PRM raises the second without the first. The collapse that the paper
(arXiv 2504.15275) describes announces itself in repetition and truncation
among *correct* responses.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from pure_jax.host.evaluation.repetition import repetition_score
from pure_jax.types import Rollout, StepBoundaries

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


@dataclasses.dataclass(frozen=True)
class ResponseFacts:
  """What the metrics need to know of each response, and no more.

  A process finds it out for the rows it answers for; of the whole batch it is
  small.

  Attributes:
    tokens: [B] int64, how many there are.
    truncated: [B] bool, cut by the length limit.
    repetition: [B] float64, see `repetition_score`.
    written_steps: [B] int64, steps whose text was looked at.
    vacuous_steps: [B] int64, how many of them claim and conclude nothing.
    step_mask: [B, S] bool.
    empty: [B, S] bool, steps without content.
    overflow: [B] int32, steps merged into the last one.
    step_rewards: [B, S] float32, -1..1; None where no PRM gave any.
  """

  tokens: np.ndarray
  truncated: np.ndarray
  repetition: np.ndarray
  written_steps: np.ndarray
  vacuous_steps: np.ndarray
  step_mask: np.ndarray
  empty: np.ndarray
  overflow: np.ndarray
  step_rewards: np.ndarray | None


def response_facts(
  rollout: Rollout,
  steps: StepBoundaries,
  step_rewards: np.ndarray | None,
  step_texts: Sequence[Sequence[str]],
  is_vacuous: Callable[[str], bool],
) -> ResponseFacts:
  """Looks at each response by itself.

  Args:
    rollout: numpy arrays, [B, C].
    steps: numpy arrays, [B, C] and [B, S].
    step_rewards: [B, S] float, -1..1; None where no PRM gave any.
    step_texts: B lists with the text of each step.
    is_vacuous: whether a step's text neither claims nor concludes anything.

  Returns:
    The facts.
  """
  lengths = np.asarray(rollout.completion_mask).sum(1)
  repetition = [
    repetition_score(row[:length])
    for row, length in zip(np.asarray(rollout.tokens), lengths, strict=True)
  ]
  vacuous = [sum(map(is_vacuous, texts)) for texts in step_texts]
  return ResponseFacts(
    tokens=lengths,
    truncated=np.asarray(rollout.truncated),
    repetition=np.asarray(repetition, np.float64),
    written_steps=np.asarray([len(texts) for texts in step_texts], np.int64),
    vacuous_steps=np.asarray(vacuous, np.int64),
    step_mask=np.asarray(steps.mask),
    empty=np.asarray(steps.empty),
    overflow=np.asarray(steps.overflow),
    step_rewards=None if step_rewards is None else np.asarray(step_rewards),
  )


def rollout_metrics(
  facts: ResponseFacts, correct: np.ndarray
) -> dict[str, float]:
  """Describes a scored and graded rollout.

  Args:
    facts: of its responses; without step rewards, what is made of them is
      left out.
    correct: [B] float, 1 where the answer is right.

  Returns:
    Means over the batch by name. A mean over nothing (say of the wrong
    responses where all are right) is left out rather than made up.
  """
  step_mask, right = facts.step_mask, np.asarray(correct) > 0.5
  # One entry for each text, as if they stood in a row.
  vacuous = np.arange(facts.written_steps.sum()) < facts.vacuous_steps.sum()
  of_scores = {}
  if facts.step_rewards is not None:
    worst = np.min(np.where(step_mask, facts.step_rewards, np.inf), axis=1)
    of_scores = {
      "process_outcome": softmin_outcome(facts.step_rewards, step_mask),
      "min_step_score": worst[step_mask.any(1)],
      "hacked_given_wrong": worst[~right & step_mask.any(1)] > 0,
    }
  high = facts.repetition > HIGH_REPETITION
  values = {
    "accuracy": right,
    **of_scores,
    "response_tokens": facts.tokens,
    "steps_per_response": step_mask.sum(1),
    "truncated": facts.truncated,
    "truncated_given_correct": facts.truncated[right],
    "repetition": facts.repetition,
    "high_repetition": high,
    "high_repetition_given_correct": high[right],
    "vacuous_step_share": vacuous,
    "empty_step_share": facts.empty[step_mask],
    "step_overflow": facts.overflow > 0,
  }
  return {
    name: float(np.mean(value))
    for name, value in values.items()
    if np.size(value)
  }
