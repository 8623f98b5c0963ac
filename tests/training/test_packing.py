"""Packing: every token lies in one place, and returns from there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax.training import packing, row_choice
from pure_jax.training.packing import RowShape

# Eager, every operation is a program.
pack = jax.jit(packing.pack, static_argnums=1)
read_micro_batch = jax.jit(packing.read_micro_batch, static_argnums=3)
unpack = jax.jit(packing.unpack)


def first_fit(lengths, columns):
  """Rows and starts by a Python loop over lists of free columns."""
  free, placed = [], {}
  for text in sorted(range(len(lengths)), key=lambda b: -lengths[b]):
    row = next((r for r, f in enumerate(free) if f >= lengths[text]), len(free))
    if row == len(free):
      free.append(columns)
    placed[text] = row, columns - free[row]
    free[row] -= lengths[text]
  rows, starts = zip(*(placed[b] for b in range(len(lengths))), strict=True)
  return list(rows), list(starts)


@pytest.mark.parametrize("seed", range(4))
def test_texts_are_placed_first_fit_decreasing(seed):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, 30, 40).astype(np.int32)
  row, start = jax.jit(packing.place_texts, static_argnums=1)(lengths, 40)
  rows, starts = first_fit(lengths.tolist(), 40)
  assert row.tolist() == rows and start.tolist() == starts
  filled = np.bincount(row, lengths)
  assert filled.max() <= 40 and (filled <= 20).sum() <= 1


def padded(lengths, columns, left):
  """Text b has ids 100 b, 100 b + 1, ...; the padding holds garbage."""
  mask = np.zeros((len(lengths), columns), bool)
  tokens = np.full(mask.shape, -7, np.int32)
  for b, (length, before) in enumerate(zip(lengths, left, strict=True)):
    mask[b, before : before + length] = True
    tokens[b, before : before + length] = 100 * b + np.arange(length)
  return tokens, mask


@pytest.mark.parametrize("shared", [True, False])
def test_rows_hold_whole_texts_one_after_the_other(shared):
  """Read column by column in Python, as attention would read them."""
  lengths, left = [5, 0, 7, 3, 1, 6], [2, 0, 1, 0, 3, 2]
  tokens, mask = padded(lengths, 8, left)
  packed = pack(mask, RowShape(9, 2, shared))
  assert packed.source.shape == (3, 2, 9)
  # 7 + 1, 6 + 3 and 5 of 9 columns are two micro-batches of two rows.
  assert packed.micro_batches == (2 if shared else 3)
  assert np.isclose(packed.fill, 22 / (36 if shared else 54))
  seen = []
  for index in range(3):
    texts = read_micro_batch(packed, np.int32(index), tokens, 4)
    for ids, positions, segments, completion in zip(
      *(np.asarray(x) for x in jax.tree.leaves(texts)), strict=True
    ):
      for column, text in enumerate(segments - 1):
        if text < 0:
          assert ids[column] == 0 and completion[column] == -1
          continue
        assert ids[column] == 100 * text + positions[column]
        # Positions that were not reset would go on counting.
        first = column == 0 or segments[column] != segments[column - 1]
        assert (positions[column] == 0) == first
        rank = left[text] + positions[column] - 4
        assert completion[column] == (4 * text + rank if rank >= 0 else -1)
        seen.append(ids[column])
  assert sorted(seen) == sorted(tokens[mask])


def test_unpacking_inverts_packing():
  tokens, mask = padded([5, 0, 7, 3, 1, 6], 8, [2, 0, 1, 0, 3, 2])
  packed = pack(mask, RowShape(9, 2))

  @jax.jit
  def both_of_each(packed, tokens):
    def both(index):
      texts = packing.read_micro_batch(packed, index, tokens)
      value = texts.tokens.astype(jnp.float32)
      return value, jnp.stack([value, -value], -1)

    return packing.map_micro_batches(both, packed)

  value, pair = both_of_each(packed, tokens)
  expected = np.where(mask, tokens, 0)
  np.testing.assert_array_equal(unpack(packed, value), expected)
  pair = unpack(packed, pair)
  np.testing.assert_array_equal(pair, np.stack([expected, -expected], -1))


def test_a_text_that_does_not_fit_gives_nan():
  """Written over its neighbours it would give a plausible number."""
  _, mask = padded([5, 8, 2], 8, [0, 0, 0])
  packed = pack(mask, RowShape(7, 3))
  assert not packed.fits and (np.asarray(packed.source) == -1).all()
  values = unpack(packed, np.zeros(packed.source.shape, np.float32))
  assert np.isnan(values).all()


def test_micro_batches_without_a_text_are_not_computed():
  """Each one that is computed appears once, the others stay 0."""
  _, mask = padded([4] * 8, 8, [0] * 8)
  packed = pack(mask, RowShape(16, 2))
  values = packing.map_micro_batches(lambda index: 1.0 + index, packed)
  np.testing.assert_array_equal(values, [1, 0, 0, 0])


def test_a_batch_goes_to_the_narrowest_rows_that_hold_it():
  shapes = zip(
    packing.row_shapes(100, 8, 4, 3),
    packing.row_shapes(120, 8, 4, 3, packed_tokens=40),
    strict=True,
  )
  rows = [packing.ScoreRows(*pair) for pair in shapes]
  table = {row: row.columns for row in reversed(rows)}
  for lengths, expected in [
    ((1, 1), (25, 40)),
    ((25, 30), (25, 40)),
    ((25, 41), (50, 60)),
    ((26, 1), (50, 60)),
    ((100, 1), (100, 120)),
    ((1, 120), (100, 120)),
  ]:
    assert row_choice.choose(table, np.array(lengths)) == expected
  with pytest.raises(ValueError, match=r"\[101, 3\] tokens, and rows at most"):
    row_choice.choose(table, np.array([101, 3]))


@pytest.mark.parametrize(
  ("packed_tokens", "rows"),
  # 512 texts in micro-batches of 8 leave 64; shared rows keep 8 micro-batches,
  # of 64 rows.
  [(None, [8, 16, 32, 64, 128]), (1, [8, 16, 32, 64, 64])],
)
def test_a_micro_batch_of_shorter_rows_has_more_of_them(packed_tokens, rows):
  shapes = packing.row_shapes(1024, 512, 8, 5, packed_tokens)
  assert [shape.rows for shape in shapes] == rows
  assert [shape.columns for shape in shapes] == [1024, 512, 256, 128, 64]


def test_rows_without_columns_are_rejected():
  with pytest.raises(ValueError, match="rows need columns"):
    RowShape(0, 1)
