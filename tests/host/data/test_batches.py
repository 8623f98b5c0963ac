"""The order of examples, resuming, and padding."""

import dataclasses
import json

import numpy as np
import pytest

from pure_jax.host.data.batches import Cursor, left_pad, next_batch, right_pad


def read(num_examples, batch_size, cursor, count):
  """(`count` batches as one list, the cursor after them)."""
  order = []
  for _ in range(count):
    indices, cursor = next_batch(num_examples, batch_size, cursor)
    assert indices.shape == (batch_size,)
    order += indices.tolist()
  return order, cursor


@pytest.mark.parametrize("num_examples, batch_size", [(12, 4), (10, 4), (7, 9)])
def test_every_epoch_visits_each_example_once(num_examples, batch_size):
  # 7 examples and batches of 9: a batch may span three epochs.
  order, cursor = read(num_examples, batch_size, Cursor(3), num_examples)
  epochs = np.reshape(order, (batch_size, num_examples))
  for epoch in epochs:
    assert sorted(epoch) == list(range(num_examples))
  assert cursor == Cursor(3, epoch=batch_size, index=0)
  assert len({tuple(epoch) for epoch in epochs}) == batch_size


def test_order_is_shuffled_and_follows_from_the_seed():
  first, _ = read(100, 100, Cursor(0), 2)
  assert first == read(100, 100, Cursor(0), 2)[0]
  assert first != read(100, 100, Cursor(1), 2)[0]
  assert first[:100] != list(range(100)) and first[:100] != first[100:]


def test_the_order_does_not_depend_on_the_batch_size():
  assert read(30, 7, Cursor(5), 12)[0] == read(30, 12, Cursor(5), 7)[0]


@pytest.mark.parametrize("stop", range(9))
def test_a_saved_cursor_resumes_exactly(stop):
  # 10 examples in fives: every second stop is right at an epoch's end.
  whole, _ = read(10, 5, Cursor(2), 9)
  before, cursor = read(10, 5, Cursor(2), stop)
  saved = json.dumps(dataclasses.asdict(cursor))
  after, _ = read(10, 5, Cursor(**json.loads(saved)), 9 - stop)
  assert before + after == whole


@pytest.mark.parametrize(
  "arguments, words",
  [
    ((0, 4, Cursor(0)), "at least 1"),
    ((4, 0, Cursor(0)), "at least 1"),
    # Saved with a larger data set. It used to loop forever.
    ((4, 2, Cursor(0, index=5)), "another data set"),
    ((4, 2, Cursor(0, index=4)), "another data set"),
    ((4, 2, Cursor(0, index=-1)), "another data set"),
  ],
)
def test_impossible_batches_raise(arguments, words):
  with pytest.raises(ValueError, match=words):
    next_batch(*arguments)


ROWS = [
  [5, 6, 7],
  [],
  [8],
  [0, 9],
]  # 0 is also the padding id: the mask must not follow from it.


def test_left_padding_by_hand():
  tokens, mask = left_pad(ROWS, 4, 0)
  assert tokens.tolist() == [
    [0, 5, 6, 7],
    [0, 0, 0, 0],
    [0, 0, 0, 8],
    [0, 0, 0, 9],
  ]
  assert mask.tolist() == [
    [False, True, True, True],
    [False] * 4,
    [False, False, False, True],
    [False, False, True, True],
  ]


def test_right_padding_by_hand():
  tokens, mask = right_pad(ROWS, 4, 1)
  assert tokens.tolist() == [
    [5, 6, 7, 1],
    [1, 1, 1, 1],
    [8, 1, 1, 1],
    [0, 9, 1, 1],
  ]
  assert mask.tolist() == [
    [True, True, True, False],
    [False] * 4,
    [True, False, False, False],
    [True, True, False, False],
  ]


@pytest.mark.parametrize("pad", [left_pad, right_pad])
def test_padded_arrays_are_contiguous_int32_and_may_have_no_row(pad):
  tokens, mask = pad(ROWS, 3, 0)
  assert tokens.dtype == np.int32 and mask.dtype == bool
  assert tokens.flags["C_CONTIGUOUS"] and mask.flags["C_CONTIGUOUS"]
  tokens, mask = pad([], 3, 0)
  assert tokens.shape == mask.shape == (0, 3)


@pytest.mark.parametrize("pad", [left_pad, right_pad])
def test_a_row_that_is_too_long_raises_with_its_number(pad):
  with pytest.raises(ValueError, match="Row 2 has 5 tokens, more than the 4"):
    pad([[1], [1] * 4, [1] * 5, [1] * 5], 4, 0)


def test_the_order_never_changes_between_versions():
  # Computed with numpy only: a saved cursor must continue with the same
  # examples.
  expected = [
    *np.random.default_rng((3, 0)).permutation(5),
    *np.random.default_rng((3, 1)).permutation(5),
  ]
  assert read(5, 2, Cursor(3), 5)[0] == expected
