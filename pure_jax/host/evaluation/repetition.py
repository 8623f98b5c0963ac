"""How repetitive a response is: a sign of reward hacking."""

from collections.abc import Sequence

import numpy as np


def repetition_score(tokens: Sequence[int] | np.ndarray) -> float:
  """Measures how much a text repeats itself, from 0 (not at all) to near 1.

  Sort the n suffixes of the text; add up the lengths of the common prefixes of
  neighbours in that order; divide by n(n+1)/2. One token repeated n times
  gives (n−1)/(n+1), n different tokens give 0. The paper calls a response
  highly repetitive above 0.2. O(n log² n) time, O(n log n) memory.

  Args:
    tokens: [n] int, token ids without padding.

  Returns:
    The score in [0, 1); 0 for fewer than two tokens.

  >>> round(repetition_score([5, 5, 5, 5]), 3)
  0.6
  >>> repetition_score([1, 2, 3, 4])
  0.0
  """
  tokens = np.asarray(tokens)
  n = tokens.shape[0]
  if n < 2:
    return 0.0
  # rank[k][i] orders the 2^k tokens from i on; -1 stands past the end, which
  # makes a text that ends early differ from every longer one.
  rank = np.unique(tokens, return_inverse=True)[1].astype(np.int64)
  ranks, width = [np.append(rank, -1)], 1
  while rank.max() < n - 1:
    later = np.full(n, -1, np.int64)
    later[: max(n - width, 0)] = rank[width:]
    rank = np.unique(rank * (n + 1) + later + 1, return_inverse=True)[1]
    ranks.append(np.append(rank, -1))
    width *= 2
  order = np.argsort(rank)
  first, second = order[:-1], order[1:]
  common = np.zeros(n - 1, np.int64)
  for k in reversed(range(len(ranks))):
    same = ranks[k][first + common] == ranks[k][second + common]
    common += same.astype(np.int64) << k
  return float(common.sum() * 2 / (n * (n + 1)))
