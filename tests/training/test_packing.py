"""Where texts lie: every token once, nothing of another text, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax.training import packing
from pure_jax.training.packing import RowShape


def first_fit(lengths, columns):
  """Rows and starts by a Python loop over lists of what is free."""
  free, found = [], {}
  for text in sorted(range(len(lengths)), key=lambda b: -lengths[b]):
    row = next((r for r, f in enumerate(free) if f >= lengths[text]), len(free))
    if row == len(free):
      free.append(columns)
    found[text] = row, columns - free[row]
    free[row] -= lengths[text]
  rows, starts = zip(*(found[b] for b in range(len(lengths))), strict=True)
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
  """Texts b of ids 100 b, 100 b + 1, ..., with garbage in the padding."""
  mask = np.zeros((len(lengths), columns), bool)
  tokens = np.full(mask.shape, -7, np.int32)
  for b, (length, before) in enumerate(zip(lengths, left, strict=True)):
    mask[b, before : before + length] = True
    tokens[b, before : before + length] = 100 * b + np.arange(length)
  return jnp.asarray(tokens), jnp.asarray(mask)


@pytest.mark.parametrize("shared", [True, False])
def test_texts_lie_one_after_the_other(shared):
  """Read column by column in Python, as a model's mask would read them."""
  lengths, left = [5, 0, 7, 3, 1, 6], [2, 0, 1, 0, 3, 2]
  tokens, mask = padded(lengths, 8, left)
  found = packing.pack(mask, RowShape(9, 2, shared))
  assert found.source.shape == (3, 2, 9)
  # 7 + 1, 6 + 3 and 5 of 9 columns are two parts of two rows.
  assert found.parts == (2 if shared else 3)
  assert np.isclose(found.fill, 22 / (36 if shared else 54))
  seen = []
  for part in range(3):
    texts = packing.read_part(found, jnp.int32(part), tokens, 4)
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
        place = left[text] + positions[column] - 4
        assert completion[column] == (4 * text + place if place >= 0 else -1)
        seen.append(ids[column])
  assert sorted(seen) == sorted(np.asarray(tokens)[np.asarray(mask)])


def test_what_is_unpacked_is_what_was_packed():
  tokens, mask = padded([5, 0, 7, 3, 1, 6], 8, [2, 0, 1, 0, 3, 2])
  found = packing.pack(mask, RowShape(9, 2))

  def both(part):
    texts = packing.read_part(found, part, tokens)
    value = texts.tokens.astype(jnp.float32)
    return value, jnp.stack([value, -value], -1)

  value, pair = packing.map_parts(both, found)
  expected = np.where(mask, tokens, 0)
  np.testing.assert_array_equal(packing.unpack(found, value), expected)
  pair = packing.unpack(found, pair)
  np.testing.assert_array_equal(pair, np.stack([expected, -expected], -1))


def test_a_text_that_does_not_fit_gives_no_number():
  """Written over its neighbours it would give a plausible one."""
  _, mask = padded([5, 8, 2], 8, [0, 0, 0])
  found = packing.pack(mask, RowShape(7, 3))
  assert not found.fits and (found.source == -1).all()
  values = packing.unpack(found, jnp.zeros(found.source.shape))
  assert np.isnan(values).all()


def test_parts_without_a_text_are_not_computed():
  """Each part that is computed appears once, the rest are left 0."""
  _, mask = padded([4] * 8, 8, [0] * 8)
  found = packing.pack(mask, RowShape(16, 2))
  read = packing.map_parts(lambda part: 1.0 + part, found)
  np.testing.assert_array_equal(read, [1, 0, 0, 0])


def test_a_batch_goes_to_the_shortest_rows_it_fits():
  called = []

  def make(*shapes):
    columns = tuple(shape.columns for shape in shapes)
    return lambda batch: called.append(columns)

  choose = packing.by_length(
    make,
    lambda batch: jnp.asarray(batch),
    packing.row_shapes(100, 8, 4, 3),
    packing.row_shapes(120, 8, 4, 3, packed_tokens=40),
  )
  for batch in [(1, 1), (25, 30), (25, 41), (26, 1), (100, 1), (1, 120)]:
    choose(batch)
  assert called == [
    *((25, 40), (25, 40), (50, 60), (50, 60), (100, 120), (100, 120)),
  ]
  with pytest.raises(ValueError, match=r"\[101, 3\] tokens, and rows at most"):
    choose((101, 3))


def test_lengths_that_do_not_differ_are_one_function():
  shapes = packing.row_shapes(100, 64, 8, 4, packed_tokens=60)
  assert [shape.columns for shape in shapes] == [100, 60, 60, 60]
  assert len(packing.by_length(lambda shape: shape, None, shapes).limits) == 2


@pytest.mark.parametrize(
  ("packed_tokens", "rows"),
  # 512 texts in parts of 8 leave 64; shared rows keep 8 parts, and 64 rows.
  [(None, [8, 16, 32, 64, 128]), (1, [8, 16, 32, 64, 64])],
)
def test_a_part_of_shorter_rows_has_more_of_them(packed_tokens, rows):
  shapes = packing.row_shapes(1024, 512, 8, 5, packed_tokens)
  assert [shape.at_a_time for shape in shapes] == rows
  assert [shape.columns for shape in shapes] == [1024, 512, 256, 128, 64]


def test_rows_that_hold_nothing_are_refused():
  with pytest.raises(ValueError, match="Rows need columns"):
    RowShape(0, 1)
