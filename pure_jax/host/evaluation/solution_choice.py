"""A PRM as a chooser among several solutions of a problem.

Best-of-n by each way to make one score of step rewards
(`response_scores`), beside what needs no PRM: the mean accuracy, which is
that of choosing blindly, and the majority of the answers.
"""

from collections.abc import Sequence

import numpy as np

from pure_jax.host.evaluation import answer_metrics
from pure_jax.host.evaluation.intervals import PerProblem
from pure_jax.host.evaluation.response_scores import AGGREGATIONS


def choose_among_solutions(
  problems: Sequence[str],
  correct: Sequence[bool | None],
  answers: Sequence[str | None],
  step_rewards: np.ndarray,
  step_mask: np.ndarray,
) -> dict[str, PerProblem]:
  """How often the solution that is chosen is right.

  n is the largest number of solutions that a problem has; problems with fewer
  are left out, for best-of-2 and best-of-4 are no one metric. A solution
  without a known outcome does not count.

  Args:
    problems: B names, such as `records.problem_key` gives; solutions of one
      problem share it.
    correct: B outcomes, None where unknown.
    answers: B final answers, equal where their texts are; None where there is
      none, which does not vote.
    step_rewards: [B, S] float, -1..1.
    step_mask: [B, S] bool, True where the step exists.

  Returns:
    By metric, [P] values over the problems with n solutions in the order of
    their first one: "mean_of_n", "majority_of_n" and "best_of_n_minimum" with
    the other `AGGREGATIONS`, n written as a number. Empty where no problem
    has two solutions.

  Raises:
    ValueError: if the lengths differ, or as `response_scores` do.

  >>> rewards = np.array([[0.9, -0.8], [0.2, 0.1]])
  >>> found = choose_among_solutions(
  ...   ["a", "a"], [False, True], ["3", "4"], rewards, np.ones((2, 2), bool))
  >>> [found[f"best_of_2_{name}"].value for name in ("minimum", "mean")]
  [array([1.]), array([1.])]
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
  right = np.asarray([[bool(correct[row]) for row in rows] for rows in groups])
  there = np.ones(right.shape, bool)
  ids, has_answer = answer_metrics.answer_ids(
    [[answers[row] for row in rows] for rows in groups]
  )
  found = {
    f"mean_of_{n}": answer_metrics.average(right, there),
    f"majority_of_{n}": answer_metrics.majority_at_k(
      right, ids, has_answer, there, n
    ),
  }
  for name, aggregate in AGGREGATIONS.items():
    scores = aggregate(step_rewards, step_mask)[groups]
    found[f"best_of_{n}_{name}"] = answer_metrics.best_of_k(
      right, scores, there, there, n
    )
  return found
