"""How scores rank whole solutions: for one problem, and by their length.

A metric that has no value, such as an AUC without wrong solutions, is None.
"""

from collections.abc import Sequence

import numpy as np

from pure_jax.host.evaluation.prm_metrics import auc


def auc_of_each_problem(
  problems: Sequence[str], scores: np.ndarray, right: np.ndarray
) -> np.ndarray:
  """Computes the AUC among the solutions of each problem.

  It is the probability that a right solution scores above a wrong one of the
  same problem; a tie counts one half. A baseline of RL compares the responses
  to one problem, so this is the part of a ranking that RL sees: an AUC over all
  problems is high, too, for a score that only tells easy problems from hard
  ones.

  Args:
    problems: n names; solutions of one problem share a name.
    scores: [n] float, higher is better.
    right: [n] bool, whether the solution is right.

  Returns:
    [P] float64 for the problems with right and wrong solutions, in order of
    first appearance; empty if there is none.

  >>> auc_of_each_problem(
  ...   ["a", "a", "b", "b"], np.array([1, 2, 9, 8]),
  ...   np.array([True, False, True, False])).tolist()
  [0.0, 1.0]
  """
  rows_of: dict[str, list[int]] = {}
  for row, problem in enumerate(problems):
    rows_of.setdefault(problem, []).append(row)
  areas = [
    auc(scores[rows], right[rows], np.ones(len(rows), bool))
    for rows in rows_of.values()
  ]
  return np.asarray([area for area in areas if area is not None], np.float64)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
  """Computes Spearman's correlation: that of ranks, ties at their mean.

  Args:
    first: [n] float.
    second: [n] float.

  Returns:
    -1..1; None if all values of one are equal, or n is below 2.

  >>> rank_correlation(np.array([1, 2, 3]), np.array([2, 40, 900]))
  1.0
  """
  centred = [_centred_ranks(values) for values in (first, second)]
  scale = np.sqrt(np.prod([(ranks**2).sum() for ranks in centred]))
  return float(centred[0] @ centred[1] / scale) if scale else None


def _centred_ranks(values: np.ndarray) -> np.ndarray:
  """Ranks of values, equal ones at their mean, minus the mean of all."""
  _, group, ties = np.unique(values, return_inverse=True, return_counts=True)
  ranks = (np.cumsum(ties) - (ties - 1) / 2)[group]
  return ranks - (len(values) + 1) / 2
