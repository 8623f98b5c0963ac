"""Metrics of sampled answers: pass@k, maj@k, best-of-k, weighted vote.

Arrays are [P, n]: P problems with n responses each. Every function returns one
float64 per problem, which `intervals.estimate_mean` averages. avg@n, the share
of correct responses, is `correct.mean(1)`.

pass@k, maj@k and best-of-k are expectations over all subsets of k responses
of a problem. Sampled responses are exchangeable, so this is the unbiased
estimate with the least variance, and the order of the responses has no effect.
The weighted vote has no closed form over subsets and takes all responses.
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

_BOOL = ("correct", "has_answer", "has_score")


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
  """Computes the probability that at least one of k responses is correct.

  1 − C(n−c, k) / C(n, k) with c correct ones among n (Chen et al. 2021,
  https://arxiv.org/abs/2107.03374, Eq. 1).

  Args:
    correct: [P, n] bool, whether the answer is right.
    k: 1..n.

  >>> pass_at_k(np.array([[True, False, False, False]]), k=2)
  array([0.5])
  """
  _check(k, correct=correct)
  subsets = math.comb(correct.shape[1], k)
  # Exact integers: one division, and no overflow at a thousand responses.
  return np.array(
    [
      (subsets - math.comb(wrong, k)) / subsets
      for wrong in (~correct).sum(1).tolist()
    ],
    np.float64,
  )


def majority_at_k(
  correct: np.ndarray, answer_ids: np.ndarray, has_answer: np.ndarray, k: int
) -> np.ndarray:
  """Computes the probability that the majority answer of k is right.

  Ties are broken uniformly at random. A response without an answer is one of
  the k but does not vote; if nobody votes, the result is wrong. The value of
  an answer is the share of its responses that are correct: 0 or 1 if the
  grader gave equal answers the same result.

  Args:
    correct: [P, n] bool, whether the answer is right.
    answer_ids: [P, n] int, equal for equal answers of a problem.
    has_answer: [P, n] bool, whether the response has an answer.
    k: 1..n; at 1 it is the average.

  >>> ids = np.array([[7, 7, 3]])
  >>> majority_at_k(ids == 7, ids, np.ones((1, 3), bool), k=3)
  array([1.])
  """
  _check(k, correct=correct, answer_ids=answer_ids, has_answer=has_answer)
  values = np.zeros(len(correct))
  for row, votes in enumerate(has_answer):
    _, size, right = _groups(answer_ids[row, votes], correct[row, votes])
    values[row] = _majority(size, right, len(votes), k)
  return values


def best_of_k(
  correct: np.ndarray, scores: np.ndarray, has_score: np.ndarray, k: int
) -> np.ndarray:
  """Computes the probability that the best scored of k responses is correct.

  Ties are broken uniformly at random. A response without a score, such as an
  empty one, is never chosen; if none of the k has a score, the result is
  wrong.

  Args:
    correct: [P, n] bool, whether the answer is right.
    scores: [P, n] float, higher is better (`host.evaluation.response_scores`).
    has_score: [P, n] bool, whether the response could be scored.
    k: 1..n.

  Raises:
    ValueError: with the index of a score that is not finite.
  """
  _check(k, correct=correct, scores=scores, has_score=has_score)
  _check_finite("score", scores, has_score)
  values = np.zeros(len(correct))
  for row, scored in enumerate(has_score):
    _, sizes, right = _groups(scores[row, scored], correct[row, scored])
    below = len(scored) - int(scored.sum())
    for size, share in zip(sizes.tolist(), right, strict=True):
      # The number of subsets whose best response has this score.
      chosen = math.comb(below + size, k) - math.comb(below, k)
      values[row] += share * (chosen / math.comb(len(scored), k))
      below += size
  return values


def weighted_majority(
  correct: np.ndarray,
  answer_ids: np.ndarray,
  has_answer: np.ndarray,
  weights: np.ndarray,
  has_score: np.ndarray,
) -> np.ndarray:
  """Tells whether the answer with the largest summed weight is right.

  All responses of a problem vote, except those without an answer or a score;
  if nobody votes, the result is wrong. Answers with exactly the same sum tie,
  and ties are broken uniformly at random. The value of an answer is the share
  of its responses that are correct, as in `majority_at_k`.

  Args:
    correct: [P, n] bool, whether the answer is right.
    answer_ids: [P, n] int, equal for equal answers of a problem.
    has_answer: [P, n] bool, whether the response has an answer.
    weights: [P, n] float, at least 0: a negative weight would make an answer
      lose by being given more often.
    has_score: [P, n] bool, whether the response could be scored.

  Raises:
    ValueError: with the index of a weight that is negative or not finite.
  """
  _check(
    1,
    correct=correct,
    answer_ids=answer_ids,
    has_answer=has_answer,
    weights=weights,
    has_score=has_score,
  )
  voting = has_answer & has_score
  _check_finite("weight", weights, voting)
  negative = np.argwhere(voting & (weights < 0))
  if negative.size:
    row, column = negative[0]
    raise ValueError(
      f"The weight of problem {row}, response {column} is "
      f"{weights[row, column]}: votes need weights of at least 0. "
      "A reward r in -1..1 gives (r + 1) / 2."
    )
  values = np.zeros(len(correct))
  for row, votes in enumerate(voting):
    if votes.any():
      members, _, right = _groups(answer_ids[row, votes], correct[row, votes])
      # fsum is exact, so the order of the responses cannot break a tie.
      sums = np.array(
        [
          math.fsum(weights[row, votes][members == answer])
          for answer in range(len(right))
        ]
      )
      values[row] = right[sums == sums.max()].mean()
  return values


def answer_ids(
  answers: Sequence[Sequence[str | None]],
  key: Callable[[str], Hashable] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers the distinct answers of each problem.

  Args:
    answers: P rows of n answers, None for a response without one.
    key: maps an answer to a normal form; answers with equal normal forms are
      equal. None compares the texts.

  Returns:
    (ids [P, n] int64, has_answer [P, n] bool). The first distinct answer of a
    problem is 0.

  >>> ids, has_answer = answer_ids([["7", "07", None], ["2", "3", "2"]], int)
  >>> ids.tolist(), has_answer[0].tolist()
  ([[0, 0, 0], [0, 1, 0]], [True, True, False])
  """
  shape = len(answers), max(map(len, answers), default=0)
  ids, has_answer = np.zeros(shape, np.int64), np.zeros(shape, bool)
  for row, row_answers in enumerate(answers):
    id_of: dict[Hashable, int] = {}
    for column, answer in enumerate(row_answers):
      if answer is not None:
        normal_form = answer if key is None else key(answer)
        ids[row, column] = id_of.setdefault(normal_form, len(id_of))
        has_answer[row, column] = True
  return ids, has_answer


def _groups(
  keys: np.ndarray, correct: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Groups responses by equal keys, groups in ascending order of the keys.

  Returns:
    (group of each response, size of each group, share of it that is correct).
  """
  _, members, size = np.unique(keys, return_inverse=True, return_counts=True)
  return members, size, np.bincount(members, correct, len(size)) / size


def _majority(size: np.ndarray, right: np.ndarray, total: int, k: int) -> float:
  """Computes the expected value of the majority answer of a random subset.

  If each response is drawn independently with probability p, then the draws of
  size k are uniform subsets of size k, for any p. So the votes of the answers
  are independent binomials conditioned on their sum. For each possible largest
  vote, one pass over the answers sums the probabilities of the draws in which
  t answers have that vote and none has more.

  Args:
    size: [answers] int, number of responses with each answer.
    right: [answers] float, share of them that is correct.
    total: number of responses, those without an answer included; at least k.
    k: number of responses drawn.
  """
  p = k / (total + 1)
  value = 0.0
  for most in range(1, min(k, size.max(initial=0)) + 1):
    # [votes so far, answers with `most` votes]: probability of the draw, and
    # the same times the summed `right` of the answers with `most` votes.
    draw = np.zeros((k + 1, k // most + 1))
    draw[0, 0] = 1.0
    shares = np.zeros_like(draw)
    for count, share in zip(size, right, strict=True):
      if count >= most:
        pmf = _binomial(int(count), p)
        tied = share * draw + shares
        draw, shares = (
          _vote(draw, draw, pmf, most),
          _vote(shares, tied, pmf, most),
        )
    # The rest of the draw is from answers with too few responses to reach
    # `most` votes and from responses without an answer.
    others = _binomial(total - int(size[size >= most].sum()), p)[: k + 1]
    rest = np.pad(others, (0, k + 1 - len(others)))
    tie = np.arange(1, draw.shape[1])
    value += float(rest[::-1] @ (shares[:, 1:] / tie).sum(1))
  return value / float(_binomial(total, p)[k])


def _vote(
  below: np.ndarray, tied: np.ndarray, pmf: np.ndarray, most: int
) -> np.ndarray:
  """Adds an answer that has fewer than `most` votes, or exactly `most`."""
  added = np.zeros_like(below)
  for votes in range(most):
    added[votes:] += pmf[votes] * below[: len(below) - votes]
  added[most:, 1:] += pmf[most] * tied[: len(below) - most, :-1]
  return added


@functools.lru_cache(maxsize=4096)
def _binomial(count: int, p: float) -> np.ndarray:
  """Returns [count + 1] probabilities of 0..count successes; 0 < p < 1."""
  log_p, log_q = math.log(p), math.log1p(-p)
  logs = [
    math.log(math.comb(count, i)) + i * log_p + (count - i) * log_q
    for i in range(count + 1)
  ]
  return np.exp(logs)


def _check(k: int, *, correct: np.ndarray, **others: np.ndarray) -> None:
  """Validates k, and shapes and dtypes of [P, n] arrays."""
  if correct.ndim != 2 or not 1 <= k <= correct.shape[1]:
    raise ValueError(
      f"k must be at least 1, and correct [problems, k responses or more]; got "
      f"{k} and {correct.shape}."
    )
  for name, array in {"correct": correct, **others}.items():
    if array.shape != correct.shape:
      raise ValueError(
        f"{name} has shape {array.shape}, correct {correct.shape}."
      )
    if name in _BOOL and array.dtype != bool:
      raise ValueError(f"{name} must be bool, not {array.dtype}.")


def _check_finite(name: str, values: np.ndarray, mask: np.ndarray) -> None:
  """Raises a ValueError with the index of the first value not finite."""
  not_finite = np.argwhere(mask & ~np.isfinite(values))
  if not_finite.size:
    row, column = not_finite[0]
    raise ValueError(
      f"The {name} of problem {row}, response {column} is "
      f"{values[row, column]}: leave it out by has_score, or check the reward "
      "model's weights."
    )
