"""Metrics of sampled answers: pass@k, maj@k, best-of-k, weighted vote.

Arrays are [P, n]: P problems, up to n responses each. `mask` is True where a
response exists; masked entries may hold any value. Every function returns one
number per problem, with a mask (`intervals.PerProblem`). A problem that cannot
give a number, such as pass@8 from five responses, is masked.

pass@k, maj@k and best-of-k are expectations over all subsets of k responses
of a problem. Sampled responses are exchangeable, so this is the unbiased
estimate with the least variance, and the order of the responses has no effect.
`average` is avg@k for every k in that sense. The weighted vote has no closed
form over subsets and takes all responses.
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from pure_jax.host.evaluation.intervals import PerProblem

_BOOL = ("mask", "correct", "has_answer", "has_score")


def average(values: np.ndarray, mask: np.ndarray) -> PerProblem:
  """Averages a quantity over the responses of each problem.

  The average of `correct` is avg@k, or greedy pass@1 if the only response is
  greedy; that of truncation flags or lengths is the truncation rate or the
  mean length.

  Args:
    values: [P, n] bool or number.
    mask: [P, n] bool, True where the response exists.

  Returns:
    [P]; a problem without responses has no value.
  """
  mask = _checked(mask, values=values)
  total = np.where(mask, values, 0).astype(np.float64).sum(1)
  count = mask.sum(1)
  return PerProblem(total / np.maximum(count, 1), count > 0)


def pass_at_k(correct: np.ndarray, mask: np.ndarray, k: int) -> PerProblem:
  """Computes the probability that at least one of k responses is correct.

  1 − C(n−c, k) / C(n, k) with c correct ones among n (Chen et al. 2021,
  https://arxiv.org/abs/2107.03374, Eq. 1).

  Args:
    correct: [P, n] bool, whether the answer is right.
    mask: [P, n] bool, True where the response exists.
    k: at least 1.

  Returns:
    [P]; a problem with fewer than k responses has no value.

  >>> correct = np.array([[True, False, False, False]])
  >>> pass_at_k(correct, np.ones((1, 4), bool), k=2).value
  array([0.5])
  """
  mask = _checked(mask, correct=correct)
  value, enough = _start(mask, k)
  total, wrong = mask.sum(1), (mask & ~np.asarray(correct)).sum(1)
  for row in np.flatnonzero(enough):
    subsets = math.comb(total[row], k)
    # Exact integers: one division, and no overflow at a thousand responses.
    value[row] = (subsets - math.comb(wrong[row], k)) / subsets
  return PerProblem(value, enough)


def majority_at_k(
  correct: np.ndarray,
  answer_ids: np.ndarray,
  has_answer: np.ndarray,
  mask: np.ndarray,
  k: int,
) -> PerProblem:
  """Computes the probability that the majority answer of k is right.

  Ties are broken uniformly at random. A response without an answer is one of
  the k but does not vote; if nobody votes, the result is wrong. The value of
  an answer is the share of its responses that are correct: 0 or 1 if the
  grader gave equal answers the same result.

  Args:
    correct: [P, n] bool, whether the answer is right.
    answer_ids: [P, n] int, equal for equal answers of a problem.
    has_answer: [P, n] bool, whether the response has an answer.
    mask: [P, n] bool, True where the response exists.
    k: at least 1; at 1 it is the average.

  Returns:
    [P]; a problem with fewer than k responses has no value.

  >>> ids = np.array([[7, 7, 3]])
  >>> mask = np.ones((1, 3), bool)
  >>> majority_at_k(ids == 7, ids, mask, mask, k=3).value
  array([1.])
  """
  mask = _checked(
    mask, correct=correct, answer_ids=answer_ids, has_answer=has_answer
  )
  value, enough = _start(mask, k)
  for row in np.flatnonzero(enough):
    votes = mask[row] & np.asarray(has_answer)[row]
    _, members, size = np.unique(
      np.asarray(answer_ids)[row, votes],
      return_inverse=True,
      return_counts=True,
    )
    right = np.bincount(members, np.asarray(correct)[row, votes], len(size))
    value[row] = _majority(size, right / size, int(mask[row].sum()), k)
  return PerProblem(value, enough)


def best_of_k(
  correct: np.ndarray,
  scores: np.ndarray,
  has_score: np.ndarray,
  mask: np.ndarray,
  k: int,
) -> PerProblem:
  """Computes the probability that the best scored of k responses is correct.

  Ties are broken uniformly at random. A response without a score, such as an
  empty one, is never chosen; if none of the k has a score, the result is
  wrong.

  Args:
    correct: [P, n] bool, whether the answer is right.
    scores: [P, n] float, higher is better (`host.evaluation.response_scores`).
    has_score: [P, n] bool, whether the response could be scored.
    mask: [P, n] bool, True where the response exists.
    k: at least 1.

  Returns:
    [P]; a problem with fewer than k responses has no value.

  Raises:
    ValueError: if a score is not finite; the message gives its index.
  """
  mask = _checked(mask, correct=correct, scores=scores, has_score=has_score)
  scored = mask & np.asarray(has_score)
  _check_finite("score", scores, scored)
  value, enough = _start(mask, k)
  for row in np.flatnonzero(enough):
    columns = scored[row]
    _, members, size = np.unique(
      np.asarray(scores)[row, columns], return_inverse=True, return_counts=True
    )
    right = np.bincount(members, np.asarray(correct)[row, columns], len(size))
    total = int(mask[row].sum())
    below = total - int(columns.sum())
    for count, share in zip(size.tolist(), right / size, strict=True):
      # The number of subsets whose best response has this score.
      chosen = math.comb(below + count, k) - math.comb(below, k)
      value[row] += share * (chosen / math.comb(total, k))
      below += count
  return PerProblem(value, enough)


def weighted_majority(
  correct: np.ndarray,
  answer_ids: np.ndarray,
  has_answer: np.ndarray,
  weights: np.ndarray,
  has_score: np.ndarray,
  mask: np.ndarray,
) -> PerProblem:
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
    mask: [P, n] bool, True where the response exists.

  Returns:
    [P]; a problem without responses has no value.

  Raises:
    ValueError: if a weight is negative or not finite; the message gives its
      index.
  """
  mask = _checked(
    mask,
    correct=correct,
    answer_ids=answer_ids,
    has_answer=has_answer,
    weights=weights,
    has_score=has_score,
  )
  voting = mask & np.asarray(has_answer) & np.asarray(has_score)
  _check_finite("weight", weights, voting)
  negative = np.argwhere(voting & (np.asarray(weights) < 0))
  if negative.size:
    row, column = negative[0]
    raise ValueError(
      f"The weight of problem {row}, response {column} is "
      f"{np.asarray(weights)[row, column]}: votes need weights of at least 0. "
      "A reward r in -1..1 gives (r + 1) / 2."
    )
  value = np.zeros(len(mask))
  for row in range(len(mask)):
    right_of: dict[int, list[bool]] = {}
    weights_of: dict[int, list[float]] = {}
    for column in np.flatnonzero(voting[row]):
      answer = int(np.asarray(answer_ids)[row, column])
      right_of.setdefault(answer, []).append(bool(correct[row][column]))
      weights_of.setdefault(answer, []).append(float(weights[row][column]))
    # fsum is exact, so the order of the responses cannot break a tie.
    sums = {answer: math.fsum(votes) for answer, votes in weights_of.items()}
    best = max(sums.values(), default=0.0)
    shares = [np.mean(right_of[a]) for a, s in sums.items() if s == best]
    value[row] = np.mean(shares) if shares else 0.0
  return PerProblem(value, mask.any(1))


def answer_ids(
  answers: Sequence[Sequence[str | None]],
  key: Callable[[str], Hashable] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers the distinct answers of each problem.

  Args:
    answers: P rows of answers, None for a response without one; rows may
      differ in length.
    key: maps an answer to a normal form; answers with equal normal forms are
      equal. None compares the texts.

  Returns:
    (ids [P, n] int64, has_answer [P, n] bool), n the length of the longest
    row. The first distinct answer of a problem is 0.

  >>> ids, has_answer = answer_ids([["7", "07", None], ["2"]], key=int)
  >>> ids.tolist(), has_answer.tolist()
  ([[0, 0, 0], [0, 0, 0]], [[True, True, False], [True, False, False]])
  """
  width = max(map(len, answers), default=0)
  ids = np.zeros((len(answers), width), np.int64)
  has_answer = np.zeros((len(answers), width), bool)
  for row, row_answers in enumerate(answers):
    id_of: dict[Hashable, int] = {}
    for column, answer in enumerate(row_answers):
      if answer is not None:
        normal_form = answer if key is None else key(answer)
        ids[row, column] = id_of.setdefault(normal_form, len(id_of))
        has_answer[row, column] = True
  return ids, has_answer


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


def _start(mask: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns zeros [P] and a mask of the problems with k responses."""
  if k < 1:
    raise ValueError(f"k must be at least 1, got {k}.")
  return np.zeros(len(mask)), mask.sum(1) >= k


def _checked(mask: np.ndarray, **arrays: np.ndarray) -> np.ndarray:
  """Validates shapes and dtypes of [P, n] arrays; returns the mask."""
  mask = np.asarray(mask)
  for name, array in {"mask": mask, **arrays}.items():
    array = np.asarray(array)
    if array.ndim != 2 or array.shape != mask.shape:
      raise ValueError(
        f"{name} has shape {array.shape}, the mask {mask.shape}: both must be "
        "[problems, responses]."
      )
    if name in _BOOL and array.dtype != bool:
      raise ValueError(f"{name} must be bool, not {array.dtype}.")
  return mask


def _check_finite(name: str, values: np.ndarray, mask: np.ndarray) -> None:
  """Raises a ValueError with the index of the first value not finite."""
  not_finite = np.argwhere(mask & ~np.isfinite(np.asarray(values, np.float64)))
  if not_finite.size:
    row, column = not_finite[0]
    raise ValueError(
      f"The {name} of problem {row}, response {column} is "
      f"{np.asarray(values)[row, column]}: leave it out by has_score, or check "
      "the reward model's weights."
    )
