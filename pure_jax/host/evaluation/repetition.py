"""How much a text repeats itself, in characters or in tokens."""

from collections.abc import Hashable, Sequence

import numpy as np

# Above it the paper calls a response highly repetitive.
HIGH_REPETITION = 0.2
# What a score counts: the paper's code counts characters.
UNITS = ("characters", "tokens")


def repetition_score(sequence: Sequence[Hashable] | np.ndarray) -> float:
  """Measures how much a sequence repeats itself, from 0 (never) to near 1.

  Sort the n suffixes of the sequence; add up the lengths of the common prefixes
  of neighbours in that order; divide by n(n+1)/2 (arXiv 2504.15275, of the
  characters of a response, where more than 0.2 is highly repetitive). One
  letter repeated n times gives (n−1)/(n+1). n different letters give 0, and so
  do fewer than two.

  In sorted order a suffix begins with as many new substrings as it has letters
  that its neighbour before it does not share. So the sum is n(n+1)/2 less the
  number of different substrings, and a suffix automaton counts those in O(n)
  time and memory.

  >>> round(repetition_score("hahahaha"), 3)
  0.583
  >>> repetition_score([1, 2, 3, 4])
  0.0

  Args:
    sequence: n letters: the text itself for a score in characters (Unicode code
      points), or [n] int token ids without padding.

  Returns:
    The score. It depends only on which letters are equal.
  """
  letters = sequence.tolist() if isinstance(sequence, np.ndarray) else sequence
  substrings = len(letters) * (len(letters) + 1)  # Twice their number.
  if substrings == 0:
    return 0.0
  return (substrings - 2 * _different_substrings(letters)) / substrings


def response_repetition(
  text: str, ids: Sequence[int] | np.ndarray, unit: str
) -> float:
  """Scores the repetition of a response.

  Args:
    text: the decoded response.
    ids: [n] int, its token ids without padding.
    unit: one of `UNITS`.
  """
  return repetition_score(text if unit == "characters" else ids)


def _different_substrings(letters: Sequence[Hashable]) -> int:
  """Counts the different non-empty substrings of a sequence.

  A state of the suffix automaton is a set of substrings that end at the same
  positions: each is a suffix of the longest of them, and `link` is the state of
  the longest suffix that also ends elsewhere. State 0 is the empty substring.
  """
  following: list[dict[Hashable, int]] = [{}]  # By the next letter.
  longest, link = [0], [-1]
  last = count = 0  # `last` is the state of all letters read so far.
  for letter in letters:
    state, new = last, len(following)
    following.append({})
    longest.append(longest[last] + 1)
    link.append(0)
    while state >= 0 and letter not in following[state]:
      following[state][letter] = new
      state = link[state]
    if state >= 0:
      target = following[state][letter]
      if longest[target] > longest[state] + 1:
        # Only the shorter substrings of the target end here as well.
        shorter = len(following)
        following.append(following[target].copy())
        longest.append(longest[state] + 1)
        link.append(link[target])
        link[target] = shorter
        while state >= 0 and following[state].get(letter) == target:
          following[state][letter] = shorter
          state = link[state]
        target = shorter
      link[new] = target
    # The suffixes up to here that are longer than this have not been seen.
    count += longest[new] - longest[link[new]]
    last = new
  return count
