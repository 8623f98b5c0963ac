"""How scores rank whole solutions: for one problem, and by their length.

A metric that has no value, such as an AUC without wrong solutions, is None or
absent.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pure_jax.host.evaluation.intervals import (
  Bootstrap,
  Estimate,
  Statistic,
  estimate_mean,
  estimate_statistic,
)
from pure_jax.host.evaluation.prm_metrics import auc
from pure_jax.host.evaluation.response_scores import response_scores


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


def ranking_metrics(
  step_rewards: np.ndarray,
  step_mask: np.ndarray,
  problems: Sequence[str],
  outcomes: Sequence[bool | None],
  characters: np.ndarray,
  bootstrap: Bootstrap,
) -> dict[str, Estimate]:
  """Estimates how scores rank solutions by their outcome, and by length.

  Args:
    step_rewards: [n, S] float, -1..1.
    step_mask: [n, S] bool, True where the step exists.
    problems: n names; solutions of one problem share a name.
    outcomes: whether each solution is right; those of None are not used.
    characters: [n] int, lengths of the solutions.
    bootstrap: how intervals over problems are computed.

  Returns:
    "right", the share of right solutions, and for each of `response_scores`
    "auc", "auc within problems" (`auc_of_each_problem`, whose mean is over the
    problems with right and wrong solutions), and the `rank_correlation` of the
    score with the number of steps and of characters.
  """
  known = [row for row, outcome in enumerate(outcomes) if outcome is not None]
  right = np.asarray([outcomes[row] for row in known], bool)
  problems = [problems[row] for row in known]
  scores = response_scores(step_rewards[known], step_mask[known])
  lengths = {"steps": step_mask[known].sum(1), "characters": characters[known]}
  metrics: dict[str, Callable[[np.ndarray], float | None]] = {
    "right": lambda rows: float(right[rows].mean())
  }
  for name, score in scores.items():
    metrics[f"auc {name}"] = lambda rows, score=score: auc(
      score[rows], right[rows], np.ones(len(rows), bool)
    )
  estimates = _over_problems(metrics, problems, bootstrap)
  for name, score in scores.items():
    areas = auc_of_each_problem(problems, score, right)
    if areas.size:
      estimates[f"auc within problems {name}"] = estimate_mean(
        [areas], bootstrap
      )
  correlations = {
    f"correlation with {unit} {name}": (
      lambda rows, score=score, length=length: rank_correlation(
        score[rows], length[rows]
      )
    )
    for unit, length in lengths.items()
    for name, score in scores.items()
  }
  return estimates | _over_problems(correlations, problems, bootstrap)


def _over_problems(
  metrics: Mapping[str, Callable[[np.ndarray], float | None]],
  problems: Sequence[str],
  bootstrap: Bootstrap,
) -> dict[str, Estimate]:
  """Estimates metrics of rows; the rows of a problem are drawn together."""
  rows_of: dict[str, list[int]] = {}
  for row, problem in enumerate(problems):
    rows_of.setdefault(problem, []).append(row)
  rows_of_problem = [np.asarray(rows) for rows in rows_of.values()]
  estimates = {}
  for name, metric in metrics.items():

    def compute(chosen: np.ndarray, metric=metric) -> float | None:
      return metric(np.concatenate([rows_of_problem[i] for i in chosen]))

    statistic = Statistic(compute, len(rows_of_problem))
    estimate = estimate_statistic([statistic], bootstrap)
    if estimate is not None:
      estimates[name] = estimate
  return estimates
