r"""A stop condition on text: a response ends with its first answer in a box.

The box is the one that the grader reads (`grading.verify.boxed`): the last
``\boxed{...}`` so far, with balanced braces, where ``\{`` and ``\}`` are
characters. A box without content is no answer, so the response goes on.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pure_jax.rollout.sampling import StopTable

_BEGINNING = r"\boxed"  # White space may follow, then the brace.
# Largest number of open braces that is counted, with the box's own. A box with
# more does not end a response.
MAX_OPEN_BRACES = 16

# All other characters act alike, and so do all white spaces. A run of either
# acts as one of them.
_OTHERS = re.compile(r"[^\\boxed{}\s]+")
_SPACES = re.compile(r"\s+")
_LETTERS = (*r"\boxed{}", " ", ".")


class _State(NamedTuple):
  r"""How much of a box has been read.

  Attributes:
    braces: open braces of the last box, 0 outside of boxes.
    has_content: whether the box has more than white space.
    escaped: whether a backslash before the next character escapes it.
    matched: characters of ``\boxed`` that the text ends with, not counting
      white space after the last of them.
  """

  braces: int = 0
  has_content: bool = False
  escaped: bool = False
  matched: int = 0


_START = _State()
_COMPLETE = _State(braces=-1)


def boxed_stops(pieces: Sequence[str]) -> StopTable:
  r"""Makes the automaton that detects a complete ``\boxed{...}``.

  >>> table = boxed_stops([r"\boxed", "{4}", "{{4}", "}"])
  >>> state = 0
  >>> for token in (0, 2, 3):
  ...   state = table.next_state[token, state]
  >>> bool(state == table.next_state.shape[1] - 1)
  True

  Args:
    pieces: V texts, one per id.
  """
  after = _transitions()
  texts = [_SPACES.sub(" ", _OTHERS.sub(".", piece)) for piece in pieces]
  # Few texts differ in what they do.
  index = {text: number for number, text in enumerate(dict.fromkeys(texts))}
  unique = list(index)
  table = np.tile(np.arange(after.shape[1], dtype=np.uint8), (len(unique), 1))
  order = range(len(unique))
  for position in range(max(map(len, unique), default=0)):
    order = [i for i in order if len(unique[i]) > position]
    letter = np.array([_LETTERS.index(unique[i][position]) for i in order])
    table[order] = after[letter[:, None], table[order]]
  return StopTable(table[[index[text] for text in texts]])


def _transitions() -> np.ndarray:
  """States after each of `_LETTERS`, [letters, Z] uint8; the last is complete.

  There are 137 states that can be reached from the first.
  """
  reached, rows = [_START], []
  for state in reached:  # Grows on the way.
    rows.append([_after(letter, state) for letter in _LETTERS])
    for new in rows[-1]:
      if new not in reached and new != _COMPLETE:
        reached.append(new)
  reached.append(_COMPLETE)
  rows.append([_COMPLETE] * len(_LETTERS))
  numbers = {state: number for number, state in enumerate(reached)}
  return np.array([[numbers[new] for new in row] for row in rows], np.uint8).T


def _after(letter: str, state: _State) -> _State:
  """The state after one character; never called with `_COMPLETE`."""
  braces, has_content, escaped, matched = state
  if matched == len(_BEGINNING):
    if letter == "{":
      return _State(braces=1)  # Whatever box is open, this is the last one.
    if letter != " ":
      matched = int(letter == _BEGINNING[0])
  elif letter == _BEGINNING[matched]:
    matched += 1
  else:
    # A mismatch can only be followed by a new beginning at "\\".
    matched = int(letter == _BEGINNING[0])
  if not escaped:
    braces += (braces > 0) * ((letter == "{") - (letter == "}"))
  if state.braces and not braces:
    return _COMPLETE if has_content else _START
  if not 0 < braces <= MAX_OPEN_BRACES:
    return _State(matched=matched)
  return _State(
    braces=braces,
    has_content=has_content or letter != " ",
    escaped=not escaped and letter == "\\",
    matched=matched,
  )
