r"""A stop condition on text: a response ends after a complete
``\boxed{...}``."""

from collections.abc import Sequence

import numpy as np

from pure_jax.rollout.sampling import StopTable

_BEGINNING = r"\boxed{"
# Largest number of open braces that is counted, with the box's own. In a box
# with more, the response ends one brace too early.
MAX_OPEN_BRACES = 16


def boxed_stops(pieces: Sequence[str]) -> StopTable:
  r"""Makes the automaton that detects a complete ``\boxed{...}``.

  In state s < 7 the text so far ends with the first s characters of
  ``\boxed{``. The states from 7 on count the open braces. The last state is
  "complete".

  >>> table = boxed_stops([r"\boxed", "{4}", "{{4}", "}"])
  >>> state = 0
  >>> for token in (0, 2, 3):
  ...   state = table.next_state[token, state]
  >>> bool(state == table.next_state.shape[1] - 1)
  True

  Args:
    pieces: V texts, one per id.
  """
  begun = len(_BEGINNING)
  complete = begun + MAX_OPEN_BRACES
  letters = sorted({*_BEGINNING, "}"})
  kinds = {letter: number for number, letter in enumerate(letters, start=1)}
  after = np.zeros((len(letters) + 1, complete + 1), np.int32)
  for letter, kind in [("", 0), *kinds.items()]:
    for state in range(complete + 1):
      after[kind, state] = _after(letter, state, begun, complete)

  table = np.tile(np.arange(complete + 1, dtype=np.int32), (len(pieces), 1))
  order = range(len(pieces))
  for position in range(max(map(len, pieces), default=0)):
    order = [i for i in order if len(pieces[i]) > position]
    kind = np.array([kinds.get(pieces[i][position], 0) for i in order])
    table[order] = after[kind[:, None], table[order]]
  return StopTable(table)


def _after(letter: str, state: int, begun: int, complete: int) -> int:
  """The state after one character."""
  if state == complete:
    return complete
  if state < begun:
    if letter and letter == _BEGINNING[state]:
      return state + 1
    # A mismatch can only be followed by a new beginning at "\\".
    return 1 if letter == _BEGINNING[0] else 0
  if letter == "{":
    return min(state + 1, complete - 1)
  if letter == "}":
    return complete if state == begun else state - 1
  return state
