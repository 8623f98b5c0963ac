r"""Ends a response with a text: here, with a complete ``\boxed{...}``."""

from collections.abc import Sequence

import numpy as np

from pure_jax.rollout.sampling import StopTable

_BEGINNING = r"\boxed{"
# Open braces that are told apart, the box's own included; with one more the box
# ends one brace too early.
DEEPEST = 16


def boxed_stops(pieces: Sequence[str]) -> StopTable:
  r"""An automaton that reads ``\boxed{``, text, and the brace that closes it.

  >>> table = boxed_stops([r"\boxed", "{4}", "{{4}", "}"])
  >>> state = 0
  >>> for token in (0, 2, 3):
  ...   state = table.next_state[token, state]
  >>> bool(state == table.next_state.shape[1] - 1)
  True

  Args:
    pieces: V texts, of each id.

  Returns:
    The table, a numpy array over V ids. In state s < 7 it has read s
    characters of ``\boxed{``, then it counts braces that are open.
  """
  begun = len(_BEGINNING)
  complete = begun + DEEPEST
  letters = sorted({*_BEGINNING, "}"})
  kinds = {letter: number for number, letter in enumerate(letters, start=1)}
  after = np.zeros((len(letters) + 1, complete + 1), np.int32)
  for letter, kind in [("", 0), *kinds.items()]:
    for state in range(complete + 1):
      after[kind, state] = _after(letter, state, begun, complete)

  table = np.tile(np.arange(complete + 1, dtype=np.int32), (len(pieces), 1))
  order = np.argsort([len(text) for text in pieces], kind="stable")[::-1]
  for position in range(max(map(len, pieces), default=0)):
    longer = [i for i in order if len(pieces[i]) > position]
    order = longer  # Sorted by length, so those that are left stay sorted.
    kind = np.array([kinds.get(pieces[i][position], 0) for i in longer])
    table[longer] = after[kind[:, None], table[longer]]
  return StopTable(table)


def _after(letter: str, state: int, begun: int, complete: int) -> int:
  """The state after one character."""
  if state == complete:
    return complete
  if state < begun:
    if letter and letter == _BEGINNING[state]:
      return state + 1
    # No proper part of the beginning starts again within it but "\".
    return 1 if letter == _BEGINNING[0] else 0
  if letter == "{":
    return min(state + 1, complete - 1)
  if letter == "}":
    return complete if state == begun else state - 1
  return state
