r"""The automaton stops where the grader finds a box, however a text is cut."""

import numpy as np
import pytest
from boxes import end_of_box

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
  """Whether the grader found an answer so far, after every token."""
  text, complete = "", []
  for token in ids:
    text += pieces[token]
    complete.append(end_of_box(text) is not None)
  return complete


PIECES = [
  *("", "\\", "b", "o", "x", "e", "d", "{", "}", "4", " ", "\n\n", "é"),
  *(r"\boxed", r"\boxed{", "oxed{", r"\bo", r"\boxed{4}", "{4}", "}}", "{{"),
  *(r"}. So \boxed{", "} and more", r"4}\boxed", r"\\boxed{", r"\box{", "ed"),
  *(r"\}", r"\{", r"\boxed{}", r"\boxed {", "\\\\", "\\\\}", r"\boxed{ \}"),
  r"\boxed{\frac{1}{2}} is {",
]
TABLE = boxed_stops(PIECES)


def test_random_cuts_of_random_texts():
  """Some pieces are drawn more often, or few texts would have a box."""
  rng = np.random.default_rng(0)
  weights = np.ones(len(PIECES))
  for piece, weight in ((r"\boxed{", 4), ("}", 4), (r"\}", 2)):
    weights[PIECES.index(piece)] = weight
  complete = unfinished = inside = escaped = empty = 0
  for _ in range(4000):
    ids = rng.choice(
      len(PIECES), rng.integers(1, 12), p=weights / weights.sum()
    )
    texts = [PIECES[i] for i in ids]
    is_box = expected(PIECES, ids)
    assert is_complete(TABLE, ids) == is_box, texts
    text = "".join(texts)
    complete += is_box[-1]
    unfinished += not is_box[-1] and r"\boxed{" in text
    inside += is_box[-1] and texts[is_box.index(True)] not in ("}", "}}")
    escaped += is_box[-1] and r"\}" in "".join(texts[: is_box.index(True)])
    empty += is_box[-1] and r"\boxed{}" in text[: end_of_box(text)]
  assert min(complete, unfinished, inside, escaped, empty) > 100


@pytest.mark.parametrize(
  ("text", "end"),
  [
    (r"so \boxed{4} then", r"so \boxed{4}"),
    (r"I put my answer within \boxed{}. It is \boxed{7}.", r"is \boxed{7}"),
    (r"\boxed{ } and \boxed{}", None),
    (r"\boxed{a \} b} c", r"a \} b}"),
    (r"\boxed{\{1, 2\}} c", r"2\}}"),
    (r"\boxed{1 \\} c", r"\boxed{1 \\}"),
    (r"\boxed{\frac{1}{2}} then", r"\boxed{\frac{1}{2}}"),
    (r"\boxed {4} then", r"\boxed {4}"),
    (r"\boxed{{}} then", r"\boxed{{}}"),
    # The last box is the one that is graded.
    (r"\boxed{1 and \boxed{2}", r"\boxed{2}"),
    (r"\boxed{\boxed{4}}", r"\boxed{\boxed{4}"),
    (r"\bo\boxed{4} }", r"\bo\boxed{4}"),
    (r"\\boxed{4} }", r"\\boxed{4}"),
    (r"\boxed 4}", None),
    (r"\Boxed{4}", None),
    (r"{}} \boxed{3", None),
    (r"\boxed{1} and \boxed{2}", r"\boxed{1}"),
  ],
)
def test_a_text_cut_in_two_or_into_characters(text, end):
  length = None if end is None else text.index(end) + len(end)
  assert end_of_box(text) == length
  for cut in range(len(text) + 1):
    pieces = [text[:cut], text[cut:]]
    assert is_complete(boxed_stops(pieces), [0, 1]) == expected(pieces, [0, 1])
  letters = sorted(set(text))
  ids = [letters.index(letter) for letter in text]
  assert sum(is_complete(boxed_stops(letters), ids)) == (
    0 if length is None else len(text) - length + 1
  )


def test_open_braces_are_counted_up_to_a_limit():
  """A box with more braces does not end a response, the next one does."""
  deepest = stop_texts.MAX_OPEN_BRACES
  letters = ["\\", *"boxed{}"]
  for depth in (deepest - 1, deepest, deepest + 1):
    text = r"\boxed{" + "{" * (depth - 1) + "}" * depth
    ids = [letters.index(letter) for letter in text + r"\boxed{b}"]
    complete = is_complete(boxed_stops(letters), ids)
    end = len(text) if depth <= deepest else len(ids)
    assert complete.index(True) == end - 1


def test_a_vocabulary_without_texts_never_ends_a_row():
  table = boxed_stops(["", "", ""])
  assert is_complete(table, [0, 1, 2, 0]) == [False] * 4
