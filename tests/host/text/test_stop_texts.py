r"""The automaton detects a complete ``\boxed{...}`` for every tokenisation."""

import numpy as np
import pytest
from boxes import BEGINNING, end_of_box

from pure_jax.host.text import stop_texts
from pure_jax.host.text.stop_texts import boxed_stops


def is_complete(table, ids):
  """Whether the automaton is in its last state, after every token."""
  last = table.next_state.shape[1] - 1
  state, complete = 0, []
  for token in ids:
    state = table.next_state[token, state]
    complete.append(bool(state == last))
  return complete


def expected(pieces, ids):
  """Whether the text so far contains a complete box, after every token."""
  text, complete = "", []
  for token in ids:
    text += pieces[token]
    complete.append(end_of_box(text) is not None)
  return complete


PIECES = [
  *("", "\\", "b", "o", "x", "e", "d", "{", "}", "4", " "),
  *(r"\boxed", r"\boxed{", "oxed{", r"\bo", r"\boxed{4}", "{4}", "}}", "{{"),
  *(r"}. So \boxed{", "} and more", r"4}\boxed", r"\\boxed{", r"\box{", "ed"),
  r"\boxed{\frac{1}{2}} is {",
]
TABLE = boxed_stops(PIECES)


def test_random_cuts_of_random_texts():
  """Two tokens are drawn more often, or few texts would contain a box."""
  rng = np.random.default_rng(0)
  weights = np.ones(len(PIECES))
  weights[PIECES.index(r"\boxed{")] = 3
  weights[PIECES.index("}")] = 3
  complete = unfinished = inside = 0
  for _ in range(3000):
    ids = rng.choice(
      len(PIECES), rng.integers(1, 12), p=weights / weights.sum()
    )
    texts = [PIECES[i] for i in ids]
    is_box = expected(PIECES, ids)
    assert is_complete(TABLE, ids) == is_box, texts
    complete += is_box[-1]
    unfinished += not is_box[-1] and BEGINNING in "".join(texts)
    inside += is_box[-1] and texts[is_box.index(True)] not in ("}", "}}")
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
def test_a_text_cut_in_two_or_into_characters(text):
  for cut in range(len(text) + 1):
    pieces = [text[:cut], text[cut:]]
    assert is_complete(boxed_stops(pieces), [0, 1]) == expected(pieces, [0, 1])
  letters = sorted(set(text))
  ids = [letters.index(letter) for letter in text]
  assert is_complete(boxed_stops(letters), ids) == expected(letters, ids)


def test_open_braces_are_counted_up_to_a_limit():
  deepest = stop_texts.MAX_OPEN_BRACES
  for depth in (deepest - 1, deepest):
    text = BEGINNING + "{" * (depth - 1) + "}" * depth
    letters = ["\\", *"boxed{}"]
    ids = [letters.index(letter) for letter in text]
    complete = is_complete(boxed_stops(letters), ids)
    assert complete.index(True) == len(text) - 1
  too_deep = BEGINNING + "{" * deepest + "}" * (deepest + 1)
  assert is_complete(boxed_stops([too_deep[:-1]]), [0]) == [True]


def test_a_vocabulary_without_texts_never_ends_a_row():
  table = boxed_stops(["", "", ""])
  assert table.next_state.dtype == np.int32
  assert is_complete(table, [0, 1, 2, 0]) == [False] * 4
