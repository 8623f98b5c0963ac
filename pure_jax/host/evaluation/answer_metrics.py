"""How good a set of responses is: pass@k, maj@k, best-of-k, weighted vote.

Arrays are [P, n]: P problems, up to n responses each; `mask` is True where a
response exists, the rest may hold anything. Every function returns a number
per problem, with a mask (`intervals.PerProblem`); what a problem cannot
give, such as pass@8 from five responses, is left out of it, not made up.

pass@k, maj@k and best-of-k are expectations over all subsets of k responses
of a problem: drawn responses are exchangeable, so this is the unbiased
estimate with the least variance, and the order of the responses means
nothing. `average` is avg@k for every k in that sense. The weighted vote has no
closed form over subsets: it is taken over all responses it is given, and
`first_responses` narrows them down.
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from pure_jax.host.evaluation.intervals import PerProblem

_BOOL = ("mask", "correct", "has_answer", "has_score")


def average(values: np.ndarray, mask: np.ndarray) -> PerProblem:
  """The mean over a problem's responses.

  Of verdicts it is avg@k, or greedy pass@1 where the one response is greedy;
  of truncation flags or lengths, the truncation rate or the mean length.

  Args:
    values: [P, n] bool or number.
    mask: [P, n] bool, which responses exist.

  Returns:
    [P]; a problem without responses has no value.
  """
  mask = _checked(mask, values=values)
  kept = np.where(mask, values, 0).astype(np.float64)
  count = mask.sum(1)
  return PerProblem(kept.sum(1) / np.maximum(count, 1), count > 0)


def pass_at_k(correct: np.ndarray, mask: np.ndarray, k: int) -> PerProblem:
  """The probability that one of k responses is right.

  1 − C(n−c, k) / C(n, k) with c right ones among n (Chen et al. 2021,
  https://arxiv.org/abs/2107.03374, Eq. 1).

  Args:
    correct: [P, n] bool, verdicts.
    mask: [P, n] bool, which responses exist.
    k: at least 1.

  Returns:
    [P]; a problem with fewer than k responses has no value.

  >>> verdicts = np.array([[True, False, False, False]])
  >>> pass_at_k(verdicts, np.ones((1, 4), bool), k=2).value
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
  """The probability that the most frequent answer of k responses is right.

  Answers with equally many votes are equally likely to be chosen. A response
  without an answer is one of the k but does not vote; where none of them
  votes nothing is chosen, which is wrong. A class is as right as the share of
  its responses: 0 or 1 where equal answers have equal verdicts.

  Args:
    correct: [P, n] bool, verdicts.
    answer_ids: [P, n] int, equal where answers of one problem are.
    has_answer: [P, n] bool, whether an answer was found in the response.
    mask: [P, n] bool, which responses exist.
    k: at least 1; at 1 it is the average.

  Returns:
    [P]; a problem with fewer than k responses has no value.

  >>> ids = np.array([[7, 7, 3]])
  >>> there = np.ones((1, 3), bool)
  >>> majority_at_k(ids == 7, ids, there, there, k=3).value
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
  """The probability that the best scored of k responses is right.

  Responses with the same score are equally likely to be chosen. One without
  a score, such as an empty response, is chosen never: where none of the k has
  a score nothing is chosen, which is wrong.

  Args:
    correct: [P, n] bool, verdicts.
    scores: [P, n] float, higher is better (`host.evaluation.response_scores`).
    has_score: [P, n] bool, whether the response could be scored.
    mask: [P, n] bool, which responses exist.
    k: at least 1.

  Returns:
    [P]; a problem with fewer than k responses has no value.

  Raises:
    ValueError: naming the first score that is not finite.
  """
  mask = _checked(mask, correct=correct, scores=scores, has_score=has_score)
  scored = mask & np.asarray(has_score)
  _check_finite("score", scores, scored)
  value, enough = _start(mask, k)
  for row in np.flatnonzero(enough):
    kept = scored[row]
    _, members, size = np.unique(
      np.asarray(scores)[row, kept], return_inverse=True, return_counts=True
    )
    right = np.bincount(members, np.asarray(correct)[row, kept], len(size))
    total = int(mask[row].sum())
    below = total - int(kept.sum())
    for count, share in zip(size.tolist(), right / size, strict=True):
      # Subsets whose best response is of this score.
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
  """Whether the answer with the largest summed weight is right.

  Over all responses. A response without an answer or a score does not vote;
  where none votes nothing is chosen, which is wrong. Answers with exactly the
  same sum are equally likely to be chosen, and a class is as right as the
  share of its responses, as in `majority_at_k`.

  Args:
    correct: [P, n] bool, verdicts.
    answer_ids: [P, n] int, equal where answers of one problem are.
    has_answer: [P, n] bool, whether an answer was found in the response.
    weights: [P, n] float, at least 0: a negative weight would make an answer
      lose by being given more often.
    has_score: [P, n] bool, whether the response could be scored.
    mask: [P, n] bool, which responses exist.

  Returns:
    [P]; a problem without responses has no value.

  Raises:
    ValueError: naming the first weight that is not finite, or negative.
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
    rights: dict[int, list[bool]] = {}
    parts: dict[int, list[float]] = {}
    for column in np.flatnonzero(voting[row]):
      answer = int(np.asarray(answer_ids)[row, column])
      rights.setdefault(answer, []).append(bool(correct[row][column]))
      parts.setdefault(answer, []).append(float(weights[row][column]))
    # fsum is exact, so the order of the responses cannot break a tie.
    sums = {answer: math.fsum(part) for answer, part in parts.items()}
    best = max(sums.values(), default=0.0)
    shares = [np.mean(rights[a]) for a, total in sums.items() if total == best]
    value[row] = np.mean(shares) if shares else 0.0
  return PerProblem(value, mask.any(1))


def first_responses(mask: np.ndarray, k: int) -> np.ndarray:
  """Keeps the first k responses of each problem.

  Args:
    mask: [P, n] bool, which responses exist.
    k: at least 1.

  Returns:
    [P, n] bool; all responses of a problem that has fewer than k.

  Raises:
    ValueError: if `k` is less than 1.
  """
  mask = _checked(mask)
  _start(mask, k)
  return mask & (np.cumsum(mask, axis=1) <= k)


def answer_ids(
  answers: Sequence[Sequence[str | None]],
  key: Callable[[str], Hashable] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers the distinct answers of each problem.

  Args:
    answers: P rows of answers, None where a response has none; a row may be
      shorter than others.
    key: what equal answers have in common, such as a normal form; by default
      the text itself.

  Returns:
    (ids [P, n] int64, has_answer [P, n] bool), n the length of the longest
    row. The first distinct answer of a problem is 0.

  >>> ids, there = answer_ids([["7", "07", None], ["2"]], key=int)
  >>> ids.tolist(), there.tolist()
  ([[0, 0, 0], [0, 0, 0]], [[True, True, False], [True, False, False]])
  """
  width = max(map(len, answers), default=0)
  ids = np.zeros((len(answers), width), np.int64)
  has_answer = np.zeros((len(answers), width), bool)
  for row, given in enumerate(answers):
    seen: dict[Hashable, int] = {}
    for column, answer in enumerate(given):
      if answer is not None:
        name = answer if key is None else key(answer)
        ids[row, column] = seen.setdefault(name, len(seen))
        has_answer[row, column] = True
  return ids, has_answer


def _majority(size: np.ndarray, right: np.ndarray, total: int, k: int) -> float:
  """How often the vote of a subset is right.

  Responses drawn independently, each with probability p, are a uniform subset
  once there are k of them, whatever p is. So the votes of the classes are
  independent binomials given their sum, and one pass over the classes counts
  the draws with t classes at the largest vote and none above.

  Args:
    size: [classes] int, responses of each.
    right: [classes] float, the share of them that is right.
    total: responses, those without an answer included; at least k.
    k: responses drawn.
  """
  p = k / (total + 1)
  value = 0.0
  for most in range(1, min(k, size.max(initial=0)) + 1):
    # [votes so far, classes at the most]: probability of the draw, and the
    # same times the summed shares of the classes at the most.
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
    # Classes that cannot reach the most and responses without an answer
    # share out the rest of the draw as they like.
    others = _binomial(total - int(size[size >= most].sum()), p)[: k + 1]
    rest = np.pad(others, (0, k + 1 - len(others)))
    tie = np.arange(1, draw.shape[1])
    value += float(rest[::-1] @ (shares[:, 1:] / tie).sum(1))
  return value / float(_binomial(total, p)[k])


def _vote(
  below: np.ndarray, tied: np.ndarray, pmf: np.ndarray, most: int
) -> np.ndarray:
  """Adds a class with fewer votes than the most, or exactly as many."""
  added = np.zeros_like(below)
  for votes in range(most):
    added[votes:] += pmf[votes] * below[: len(below) - votes]
  added[most:, 1:] += pmf[most] * tied[: len(below) - most, :-1]
  return added


@functools.lru_cache(maxsize=4096)
def _binomial(count: int, p: float) -> np.ndarray:
  """[count + 1] probabilities of 0..count successes; 0 < p < 1."""
  log_p, log_q = math.log(p), math.log1p(-p)
  logs = [
    math.log(math.comb(count, i)) + i * log_p + (count - i) * log_q
    for i in range(count + 1)
  ]
  return np.exp(logs)


def _start(mask: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Values to fill in, and which problems have k responses."""
  if k < 1:
    raise ValueError(f"k must be at least 1, got {k}.")
  return np.zeros(len(mask)), mask.sum(1) >= k


def _checked(mask: np.ndarray, **arrays: np.ndarray) -> np.ndarray:
  """The mask as an array, after a look at what comes with it."""
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
  """Raises a ValueError that names the first kept value that is no number."""
  bad = np.argwhere(mask & ~np.isfinite(np.asarray(values, np.float64)))
  if bad.size:
    row, column = bad[0]
    raise ValueError(
      f"The {name} of problem {row}, response {column} is "
      f"{np.asarray(values)[row, column]}: leave it out by has_score, or check "
      "the reward model's weights."
    )
