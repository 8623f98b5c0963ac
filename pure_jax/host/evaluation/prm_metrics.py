"""Metrics of a PRM: ProcessBench, single steps, calibration, best-of-n.

Step rewards are r = p(good) − p(bad) in [−1, 1]. A PRM labels a step good if
its reward is *above* the threshold, 0 by default, as in the PRM's loss. A
metric that has no value, such as an AUC without bad steps, is None, and absent
from dictionaries of metrics.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pure_jax.host.evaluation import answer_metrics
from pure_jax.host.evaluation.response_scores import (
  masked_scores,
  probability_good,
  response_scores,
)

# ===== ProcessBench: where is the first error? =====
# Zheng et al. 2024, https://arxiv.org/abs/2412.06559.


@dataclasses.dataclass(frozen=True)
class FirstErrors:
  """The first wrong step of each response, labelled or predicted.

  Attributes:
    index: [B] int64, from 0; 0 for a response without an error.
    has_error: [B] bool, whether any step is wrong.
  """

  index: np.ndarray
  has_error: np.ndarray

  def take(self, rows: np.ndarray) -> "FirstErrors":
    """Selects responses by index, repeats included."""
    return FirstErrors(self.index[rows], self.has_error[rows])


def labelled_errors(labels: np.ndarray) -> FirstErrors:
  """Converts labels in ProcessBench's format.

  Args:
    labels: [B] int, index of the first wrong step, -1 if all are right.
  """
  labels = np.asarray(labels, np.int64)
  return FirstErrors(np.maximum(labels, 0), labels >= 0)


def predicted_errors(
  step_rewards: np.ndarray, step_mask: np.ndarray, threshold: float = 0.0
) -> FirstErrors:
  """Finds the first step that the PRM does not label good.

  There is no error in a response without steps.

  Args:
    step_rewards: [B, S] float, any scale on which higher is better.
    step_mask: [B, S] bool, True where the step exists.
    threshold: a step is good if its reward is above it.

  >>> rewards = np.array([[0.9, -0.2, -0.8], [0.9, 0.4, -0.8]])
  >>> mask = np.array([[True, True, True], [True, True, False]])
  >>> predicted_errors(rewards, mask)
  FirstErrors(index=array([1, 0]), has_error=array([ True, False]))
  """
  rewards = masked_scores(step_rewards, step_mask)
  wrong = np.asarray(step_mask) & (rewards <= threshold)
  has_error = wrong.any(-1)
  good_so_far = np.cumsum(wrong, axis=-1) == 0
  return FirstErrors(np.where(has_error, good_so_far.sum(-1), 0), has_error)


def process_bench(
  predicted: FirstErrors, labelled: FirstErrors
) -> dict[str, float]:
  """Computes the three metrics of ProcessBench.

  They are the accuracy on erroneous solutions (the predicted index must be
  the labelled one), the accuracy on correct solutions (no error predicted),
  and their harmonic mean, called F1.

  Args:
    predicted: [B] first errors.
    labelled: [B] first errors.

  Returns:
    "error_accuracy", "correct_accuracy" and "f1" in [0, 1]. An accuracy over
    no solutions is absent, and then F1 is too. F1 is 0 if both accuracies are.
  """
  match = predicted.has_error == labelled.has_error
  match &= ~labelled.has_error | (predicted.index == labelled.index)
  metrics = {}
  if labelled.has_error.any():
    metrics["error_accuracy"] = float(match[labelled.has_error].mean())
  if not labelled.has_error.all():
    metrics["correct_accuracy"] = float(match[~labelled.has_error].mean())
  if len(metrics) == 2:
    error, correct = metrics.values()
    both = error + correct
    metrics["f1"] = 2 * error * correct / both if both else 0.0
  return metrics


def choose_threshold(
  step_rewards: np.ndarray, step_mask: np.ndarray, labelled: FirstErrors
) -> float | None:
  """Finds the threshold with the highest F1, the lowest of several best ones.

  The authors of ProcessBench choose it on the GSM8K subset and use it on all
  four, for PRMs that give a score and no label. A PRM that gives labels is
  evaluated at a threshold of 0. Candidates lie halfway between neighbouring
  scores, so every distinct prediction is tried. None if F1 has no value,
  because erroneous or correct solutions are missing, or if all scores are
  equal.

  Args:
    step_rewards: [B, S] float, any scale on which higher is better.
    step_mask: [B, S] bool, True where the step exists.
    labelled: [B] first errors.
  """
  rewards = masked_scores(step_rewards, step_mask)
  scores = np.unique(rewards[np.asarray(step_mask)])
  candidates = (scores[:-1] + scores[1:]) / 2
  has_error = labelled.has_error
  if has_error.all() or not has_error.any() or not candidates.size:
    return None
  f1 = [
    process_bench(predicted_errors(rewards, step_mask, t), labelled)["f1"]
    for t in candidates
  ]
  return float(candidates[np.argmax(f1)])


# ===== Single steps =====

# What `step_metrics` computes.
STEP_METRICS = (
  *("step_accuracy", "balanced_accuracy", "auc", "calibration_error"),
  "good_share",
)


def accuracy(
  step_rewards: np.ndarray,
  good: np.ndarray,
  label_mask: np.ndarray,
  threshold: float = 0.0,
) -> float | None:
  """Computes the share of labelled steps on which PRM and label agree.

  None without labels.

  Args:
    step_rewards: [...] float, any scale on which higher is better.
    good: [...] bool, labels.
    label_mask: [...] bool, True where a step has a label.
    threshold: a step is good if its reward is above it.
  """
  label_mask = np.asarray(label_mask)
  agrees = (masked_scores(step_rewards, label_mask) > threshold) == good
  return float(agrees[label_mask].mean()) if label_mask.any() else None


def balanced_accuracy(
  step_rewards: np.ndarray,
  good: np.ndarray,
  label_mask: np.ndarray,
  threshold: float = 0.0,
) -> float | None:
  """Averages the accuracy on good steps and the accuracy on bad steps.

  It is 0.5 for a PRM that gives all steps the same label, and None if good or
  bad steps are missing.

  Args:
    step_rewards: [...] float, any scale on which higher is better.
    good: [...] bool, labels.
    label_mask: [...] bool, True where a step has a label.
    threshold: a step is good if its reward is above it.
  """
  recalls = [
    accuracy(step_rewards, good, label & label_mask, threshold)
    for label in (np.asarray(good), ~np.asarray(good))
  ]
  return None if None in recalls else sum(recalls) / 2


def auc(
  step_rewards: np.ndarray, good: np.ndarray, label_mask: np.ndarray
) -> float | None:
  """Computes the probability that a good step scores above a bad one.

  A tie counts one half. The result is the area under the ROC curve, computed
  as the Mann-Whitney statistic U / (n_good n_bad) from the ranks of the
  scores; equal scores share their average rank. It is 0.5 for uninformative
  scores, and None if good or bad steps are missing.

  Args:
    step_rewards: [...] float, any scale on which higher is better.
    good: [...] bool, labels.
    label_mask: [...] bool, True where a step has a label.

  >>> labelled = np.ones(3, bool)
  >>> auc(np.array([0.5, 0.5, 0.9]), np.array([True, False, True]), labelled)
  0.75
  """
  label_mask = np.asarray(label_mask)
  scores = masked_scores(step_rewards, label_mask)[label_mask]
  labels = np.asarray(good)[label_mask]
  n_good, n_bad = int(labels.sum()), int((~labels).sum())
  if not n_good or not n_bad:
    return None
  _, group, ties = np.unique(scores, return_inverse=True, return_counts=True)
  rank = (np.cumsum(ties) - (ties - 1) / 2)[group]
  above = rank[labels].sum() - n_good * (n_good + 1) / 2
  return float(above / (n_good * n_bad))


def calibration_error(
  step_rewards: np.ndarray,
  good: np.ndarray,
  label_mask: np.ndarray,
  bins: int = 10,
) -> float | None:
  """Computes the expected calibration error of p(good), in [0, 1].

  ECE = Σₘ |Bₘ|/N |share of good steps in Bₘ − mean p(good) in Bₘ| over bins
  of equal width, ((m−1)/M, m/M], 0 in the first. As in Guo et al. 2017
  (https://arxiv.org/abs/1706.04599), but of p(good) over [0, 1]; theirs is of
  the probability of the predicted class. None without labels.

  Args:
    step_rewards: [...] float, -1..1.
    good: [...] bool, labels.
    label_mask: [...] bool, True where a step has a label.
    bins: M, at least 1.
  """
  label_mask = np.asarray(label_mask)
  if not label_mask.any():
    return None
  p = probability_good(step_rewards, label_mask)[label_mask]
  bin_of = _bins(p, bins)
  # |Bₘ| cancels, which leaves sums over each bin.
  gap = np.bincount(bin_of, np.asarray(good)[label_mask] - p, bins)
  return float(np.abs(gap).sum() / p.size)


def _bins(p: np.ndarray, bins: int) -> np.ndarray:
  """The bin of each probability, from 0: ((m-1)/M, m/M], 0 in the first."""
  return np.searchsorted(np.arange(1, bins) / bins, p, side="left")


def steps_of_bins(
  step_rewards: np.ndarray, label_mask: np.ndarray, bins: int = 10
) -> dict[int, np.ndarray]:
  """Collects the labelled steps of each bin of `calibration_error`.

  Args:
    step_rewards: [...] float, -1..1.
    label_mask: [...] bool, True where a step has a label.
    bins: M, at least 1.

  Returns:
    By number of the bin, from 0 and ascending, [m] int64: which of the labelled
    steps it has, counted in the order of `step_rewards[label_mask]`. Bins
    without a step are absent.
  """
  label_mask = np.asarray(label_mask)
  bin_of = _bins(probability_good(step_rewards, label_mask)[label_mask], bins)
  return {
    number: np.flatnonzero(bin_of == number)
    for number in np.unique(bin_of).tolist()
  }


def step_metrics(
  step_rewards: np.ndarray, good: np.ndarray, label_mask: np.ndarray
) -> dict[str, float]:
  """Computes all metrics of single steps, at threshold 0.

  Args:
    step_rewards: [...] float, -1..1.
    good: [...] bool, labels.
    label_mask: [...] bool, True where a step has a label.

  Returns:
    "step_accuracy", "balanced_accuracy", "auc", "calibration_error" and
    "good_share"; a metric without a value is absent.
  """
  label_mask = np.asarray(label_mask)
  metrics = {
    "step_accuracy": accuracy(step_rewards, good, label_mask),
    "balanced_accuracy": balanced_accuracy(step_rewards, good, label_mask),
    "auc": auc(step_rewards, good, label_mask),
    "calibration_error": calibration_error(step_rewards, good, label_mask),
  }
  if label_mask.any():
    metrics["good_share"] = float(np.asarray(good)[label_mask].mean())
  return {name: n for name, n in metrics.items() if n is not None}


# ===== Best-of-n among several solutions of a problem =====


def best_of_n_metrics(
  problems: Sequence[str],
  correct: Sequence[bool | None],
  answers: Sequence[str | None],
  step_rewards: np.ndarray,
  step_mask: np.ndarray,
) -> dict[str, np.ndarray]:
  """Computes how often the solution that the PRM prefers is correct.

  Two baselines need no PRM: the mean accuracy, which is that of a random
  choice, and the majority of the answers. n is the largest number of solutions
  that a problem has. Problems with fewer are left out, because best-of-2 and
  best-of-4 are different metrics. Solutions of unknown outcome are ignored.

  Args:
    problems: B names, such as `records.problem_key` returns; solutions of one
      problem share a name.
    correct: B outcomes, None if unknown.
    answers: B final answers, compared as texts; None if there is no answer,
      which then does not vote.
    step_rewards: [B, S] float, -1..1.
    step_mask: [B, S] bool, True where the step exists.

  Returns:
    By metric, [P] values of the problems with n solutions, in order of first
    appearance: "mean_of_n", "majority_of_n" and "best_of_n_minimum" with the
    other `response_scores`, n written as a number. Empty if no problem has two
    solutions.

  Raises:
    ValueError: if the lengths differ, or a reward lies outside -1..1.

  >>> rewards = np.array([[0.9, -0.8], [0.2, 0.1]])
  >>> metrics = best_of_n_metrics(
  ...   ["a", "a"], [False, True], ["3", "4"], rewards, np.ones((2, 2), bool))
  >>> metrics["best_of_2_minimum"], metrics["best_of_2_mean"]
  (array([1.]), array([1.]))
  """
  if not len(problems) == len(correct) == len(answers) == len(step_rewards):
    raise ValueError(
      f"{len(problems)} problems, {len(correct)} outcomes, {len(answers)} "
      f"answers and {len(step_rewards)} rows of rewards: give one each."
    )
  rows_of: dict[str, list[int]] = {}
  for row, outcome in enumerate(correct):
    if outcome is not None:
      rows_of.setdefault(problems[row], []).append(row)
  n = max(map(len, rows_of.values()), default=0)
  if n < 2:
    return {}
  groups = np.asarray([rows for rows in rows_of.values() if len(rows) == n])
  right = np.asarray(correct, object)[groups].astype(bool)
  ids, has_answer = answer_metrics.answer_ids(
    np.asarray(answers, object)[groups].tolist()
  )
  metrics = {
    f"mean_of_{n}": right.mean(1),
    f"majority_of_{n}": answer_metrics.majority_at_k(right, ids, has_answer, n),
  }
  has_score = np.ones(right.shape, bool)
  for name, scores in response_scores(step_rewards, step_mask).items():
    metrics[f"best_of_{n}_{name}"] = answer_metrics.best_of_k(
      right, scores[groups], has_score, n
    )
  return metrics
