r"""A complete ``\boxed{...}`` is found however the text is cut into tokens."""

import numpy as np
import pytest

from pure_jax.host.text import stop_texts
from pure_jax.host.text.stop_texts import boxed_stops

BEGINNING = r"\boxed{"


def complete_at(text):
  """Characters up to the end of the first box, by scanning; None without."""
  start = text.find(BEGINNING)
  if start < 0:
    return None
  depth = 0
  for position in range(start, len(text)):
    depth += {"{": 1, "}": -1}.get(text[position], 0)
    if depth == 0 and position >= start + len(BEGINNING):
      return position + 1
  return None


def is_complete(table, ids):
  """After every token, whether the automaton says so."""
  last = table.next_state.shape[1] - 1
  state, found = 0, []
  for token in ids:
    state = table.next_state[token, state]
    found.append(bool(state == last))
  return found


def expected(pieces, ids):
  """After every token, whether the text so far holds a complete box."""
  text, found = "", []
  for token in ids:
    text += pieces[token]
    found.append(complete_at(text) is not None)
  return found


PIECES = [
  *("", "\\", "b", "o", "x", "e", "d", "{", "}", "4", " "),
  *(r"\boxed", r"\boxed{", "oxed{", r"\bo", r"\boxed{4}", "{4}", "}}", "{{"),
  *(r"}. So \boxed{", "} and more", r"4}\boxed", r"\\boxed{", r"\box{", "ed"),
  r"\boxed{\frac{1}{2}} is {",
]
TABLE = boxed_stops(PIECES)


def test_random_cuts_of_random_texts():
  """Some tokens are drawn more than others, or few texts would hold a box."""
  rng = np.random.default_rng(0)
  weights = np.ones(len(PIECES))
  weights[PIECES.index(r"\boxed{")] = 3
  weights[PIECES.index("}")] = 3
  complete = unfinished = inside = 0
  for _ in range(3000):
    ids = rng.choice(
      len(PIECES), rng.integers(1, 12), p=weights / weights.sum()
    )
    wanted = expected(PIECES, ids)
    assert is_complete(TABLE, ids) == wanted, [PIECES[i] for i in ids]
    complete += wanted[-1]
    unfinished += not wanted[-1] and BEGINNING in "".join(
      PIECES[i] for i in ids
    )
    inside += wanted[-1] and PIECES[ids[wanted.index(True)]] not in ("}", "}}")
  assert min(complete, unfinished, inside) > 300


@pytest.mark.parametrize(
  "text",
  [
    r"so \boxed{4}",
    r"\boxed{}",
    r"\boxed{\frac{1}{2}} then",
    r"\boxed{\boxed{4}}",
    r"\boxed{1 and \boxed{2}",
    r"\boxed{{{}}{{}}}",
    r"\bo\boxed{4}",
    r"\\boxed{4}",
    r"\boxed 4}",
    r"\Boxed{4}",
    r"{}} \boxed{3",
    r"\boxed{1} and \boxed{2}",
  ],
)
def test_every_cut_of_a_text_in_two(text):
  """And in single characters."""
  for cut in range(len(text) + 1):
    pieces = [text[:cut], text[cut:]]
    assert is_complete(boxed_stops(pieces), [0, 1]) == expected(pieces, [0, 1])
  letters = sorted(set(text))
  ids = [letters.index(letter) for letter in text]
  assert is_complete(boxed_stops(letters), ids) == expected(letters, ids)


def test_braces_are_told_apart_up_to_a_depth():
  deepest = stop_texts.DEEPEST
  for depth in (deepest - 1, deepest):
    text = BEGINNING + "{" * (depth - 1) + "}" * depth
    found = is_complete(boxed_stops(["\\", *"boxed{}"]), [
      (["\\", *"boxed{}"]).index(letter) for letter in text
    ])  # fmt: skip
    assert found.index(True) == len(text) - 1
  too_deep = BEGINNING + "{" * deepest + "}" * (deepest + 1)
  assert is_complete(boxed_stops([too_deep[:-1]]), [0]) == [True]


def test_a_vocabulary_without_texts_never_ends_a_row():
  table = boxed_stops(["", "", ""])
  assert table.next_state.dtype == np.int32
  assert is_complete(table, [0, 1, 2, 0]) == [False] * 4
