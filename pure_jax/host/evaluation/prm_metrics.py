"""How good a PRM is: ProcessBench, single steps, calibration.

Step rewards are r = p(good) − p(bad) in [−1, 1]; a step is labelled good where
its reward is *above* the threshold, 0 by default, as the PRM loss counts it.
What has no value, such as an AUC where all steps are good, is None, and left
out where a dict of numbers comes back.
"""

import dataclasses

import numpy as np

from pure_jax.host.evaluation.response_scores import (
  kept_scores,
  probability_good,
)

# ===== ProcessBench: where is the first error? =====
# Zheng et al. 2024, https://arxiv.org/abs/2412.06559.


@dataclasses.dataclass(frozen=True)
class FirstErrors:
  """The first wrong step of each response, labelled or predicted.

  Attributes:
    index: [B] int64, from 0; 0 where there is no error.
    found: [B] bool, whether there is one.
  """

  index: np.ndarray
  found: np.ndarray

  def take(self, rows: np.ndarray) -> "FirstErrors":
    """The responses of these rows, say of a bootstrap's resample."""
    return FirstErrors(self.index[rows], self.found[rows])


def labelled_errors(labels: np.ndarray) -> FirstErrors:
  """Reads the labels of ProcessBench files.

  Args:
    labels: [B] int, index of the first wrong step, -1 where all are right.

  Returns:
    [B].
  """
  labels = np.asarray(labels, np.int64)
  return FirstErrors(np.maximum(labels, 0), labels >= 0)


def predicted_errors(
  step_rewards: np.ndarray, step_mask: np.ndarray, threshold: float = 0.0
) -> FirstErrors:
  """The first step that is not labelled good.

  Args:
    step_rewards: [B, S] float, any scale on which higher is better.
    step_mask: [B, S] bool, True where the step exists.
    threshold: what the reward of a good step is above.

  Returns:
    [B]; no error where every step is above, or there is none.

  >>> rewards = np.array([[0.9, -0.2, -0.8], [0.9, 0.4, -0.8]])
  >>> mask = np.array([[True, True, True], [True, True, False]])
  >>> predicted_errors(rewards, mask)
  FirstErrors(index=array([1, 0]), found=array([ True, False]))
  """
  rewards = kept_scores(step_rewards, step_mask)
  wrong = np.asarray(step_mask) & (rewards <= threshold)
  found = wrong.any(-1)
  # Steps of a row before which nothing was wrong.
  untouched = np.cumsum(wrong, axis=-1) == 0
  return FirstErrors(np.where(found, untouched.sum(-1), 0), found)


def process_bench(
  predicted: FirstErrors, labelled: FirstErrors
) -> dict[str, float]:
  """The benchmark's three numbers.

  Accuracy on erroneous items (the index must be the labelled one), accuracy
  on correct items (no error predicted), and their harmonic mean, called F1.

  Args:
    predicted: [B].
    labelled: [B].

  Returns:
    "error_accuracy", "correct_accuracy" and "f1" in [0, 1]. The accuracy on a
    kind of which there is no item is left out, and F1 with it; F1 is 0 where
    both accuracies are.
  """
  match = predicted.found == labelled.found
  match &= ~labelled.found | (predicted.index == labelled.index)
  numbers = {}
  if labelled.found.any():
    numbers["error_accuracy"] = float(match[labelled.found].mean())
  if not labelled.found.all():
    numbers["correct_accuracy"] = float(match[~labelled.found].mean())
  if len(numbers) == 2:
    error, correct = numbers.values()
    both = error + correct
    numbers["f1"] = 2 * error * correct / both if both else 0.0
  return numbers


def choose_threshold(
  step_rewards: np.ndarray, step_mask: np.ndarray, labelled: FirstErrors
) -> float | None:
  """The threshold with the highest F1.

  For PRMs that give a score without a verdict, the authors of ProcessBench
  choose it on the GSM8K subset and use it on all four; PRMs that give
  verdicts are taken at their word, here a threshold of 0. Every threshold
  that could matter is tried, those halfway between neighbouring scores.

  Args:
    step_rewards: [B, S] float, any scale on which higher is better.
    step_mask: [B, S] bool, True where the step exists.
    labelled: [B].

  Returns:
    The threshold, the lowest of several best ones. None where F1 has no value
    (no item of a kind) or all scores are the same.
  """
  rewards = kept_scores(step_rewards, step_mask)
  scores = np.unique(rewards[np.asarray(step_mask)])
  candidates = (scores[:-1] + scores[1:]) / 2
  if labelled.found.all() or not labelled.found.any() or not candidates.size:
    return None
  f1 = [
    process_bench(predicted_errors(rewards, step_mask, t), labelled)["f1"]
    for t in candidates
  ]
  return float(candidates[np.argmax(f1)])


def step_labels(
  labelled: FirstErrors, step_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Labels of steps from the first error: good before it, then bad, then none.

  Args:
    labelled: [B].
    step_mask: [B, S] bool, True where the step exists.

  Returns:
    (good [B, S] bool, label_mask [B, S] bool): steps after the first error
    have no label, as in PRM800K.
  """
  step = np.arange(np.shape(step_mask)[-1])
  found, first = labelled.found[:, None], labelled.index[:, None]
  return ~found | (step < first), step_mask & (~found | (step <= first))


# ===== Single steps =====


def accuracy(
  step_rewards: np.ndarray,
  good: np.ndarray,
  label_mask: np.ndarray,
  threshold: float = 0.0,
) -> float | None:
  """The share of labelled steps labelled as their label says.

  Args:
    step_rewards: [...] float, any scale on which higher is better.
    good: [...] bool, labels.
    label_mask: [...] bool, True where a step has a label.
    threshold: what the reward of a good step is above.

  Returns:
    The share in [0, 1]; None without labels.
  """
  label_mask = np.asarray(label_mask)
  right = (kept_scores(step_rewards, label_mask) > threshold) == good
  return float(right[label_mask].mean()) if label_mask.any() else None


def balanced_accuracy(
  step_rewards: np.ndarray,
  good: np.ndarray,
  label_mask: np.ndarray,
  threshold: float = 0.0,
) -> float | None:
  """The mean of the accuracies on good and on bad steps.

  Args:
    step_rewards: [...] float, any scale on which higher is better.
    good: [...] bool, labels.
    label_mask: [...] bool, True where a step has a label.
    threshold: what the reward of a good step is above.

  Returns:
    The mean in [0, 1], 0.5 for a PRM that judges all steps the same; None
    where good or bad steps are missing.
  """
  recalls = [
    accuracy(step_rewards, good, kind & label_mask, threshold)
    for kind in (np.asarray(good), ~np.asarray(good))
  ]
  return None if None in recalls else sum(recalls) / 2


def auc(
  step_rewards: np.ndarray, good: np.ndarray, label_mask: np.ndarray
) -> float | None:
  """The probability that a good step scores above a bad one, ties half.

  The Mann-Whitney statistic U / (n_good n_bad) from the ranks of the scores,
  equal scores sharing their average rank; the area under the ROC curve.

  Args:
    step_rewards: [...] float, any scale on which higher is better.
    good: [...] bool, labels.
    label_mask: [...] bool, True where a step has a label.

  Returns:
    The area in [0, 1], 0.5 for scores that tell nothing; None where good or
    bad steps are missing.

  >>> everywhere = np.ones(3, bool)
  >>> auc(np.array([0.5, 0.5, 0.9]), np.array([True, False, True]), everywhere)
  0.75
  """
  label_mask = np.asarray(label_mask)
  scores = kept_scores(step_rewards, label_mask)[label_mask]
  labels = np.asarray(good)[label_mask]
  n_good, n_bad = int(labels.sum()), int((~labels).sum())
  if not n_good or not n_bad:
    return None
  _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
  rank = (np.cumsum(ties) - (ties - 1) / 2)[place]
  above = rank[labels].sum() - n_good * (n_good + 1) / 2
  return float(above / (n_good * n_bad))


def calibration_error(
  step_rewards: np.ndarray,
  good: np.ndarray,
  label_mask: np.ndarray,
  bins: int = 10,
) -> float | None:
  """The expected calibration error of p(good).

  ECE = Σₘ |Bₘ|/N |share of good steps in Bₘ − mean p(good) in Bₘ| over bins
  of equal width, ((m−1)/M, m/M], 0 in the first. As in Guo et al. 2017
  (https://arxiv.org/abs/1706.04599), but of p(good) itself over [0, 1], where
  theirs is of the predicted class.

  Args:
    step_rewards: [...] float, -1..1.
    good: [...] bool, labels.
    label_mask: [...] bool, True where a step has a label.
    bins: M, at least 1.

  Returns:
    The error in [0, 1]; None without labels.
  """
  label_mask = np.asarray(label_mask)
  if not label_mask.any():
    return None
  p = probability_good(step_rewards, label_mask)[label_mask]
  bin_of = np.searchsorted(np.arange(1, bins) / bins, p, side="left")
  # |Bₘ| cancels: what is left are sums over the bin.
  gap = np.bincount(bin_of, np.asarray(good)[label_mask] - p, bins)
  return float(np.abs(gap).sum() / p.size)


def step_metrics(
  step_rewards: np.ndarray, good: np.ndarray, label_mask: np.ndarray
) -> dict[str, float]:
  """All numbers on single steps, at threshold 0.

  Args:
    step_rewards: [...] float, -1..1.
    good: [...] bool, labels.
    label_mask: [...] bool, True where a step has a label.

  Returns:
    "step_accuracy", "balanced_accuracy", "auc", "calibration_error" and
    "good_share"; what has no value is left out.
  """
  label_mask = np.asarray(label_mask)
  numbers = {
    "step_accuracy": accuracy(step_rewards, good, label_mask),
    "balanced_accuracy": balanced_accuracy(step_rewards, good, label_mask),
    "auc": auc(step_rewards, good, label_mask),
    "calibration_error": calibration_error(step_rewards, good, label_mask),
  }
  if label_mask.any():
    numbers["good_share"] = float(np.asarray(good)[label_mask].mean())
  return {name: n for name, n in numbers.items() if n is not None}
