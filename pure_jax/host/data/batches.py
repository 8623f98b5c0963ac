"""The order of examples, and padding of token ids to one length.

The order of epoch e is a permutation that depends only on (seed, e), so that a
run resumes with a cursor of three integers.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Cursor:
  """A position in the data. `dataclasses.asdict` makes it JSON.

  Attributes:
    seed: random seed of the order.
    epoch: number of completed epochs.
    index: number of examples of this epoch that have been read.
  """

  seed: int
  epoch: int = 0
  index: int = 0


def next_batch(
  num_examples: int, batch_size: int, cursor: Cursor
) -> tuple[np.ndarray, Cursor]:
  """The indices of the next batch, in shuffled order.

  Every epoch visits each example once. A batch may contain the end of one epoch
  and the beginning of the next, so that no example is dropped or repeated for
  any batch size.

  Args:
    num_examples: size of the data set, at least 1.
    batch_size: at least 1.
    cursor: the position before the batch.

  Returns:
    (indices [batch_size] int64, position after the batch).

  Raises:
    ValueError: if a size is below 1, or the cursor points outside the data set.

  >>> first, cursor = next_batch(5, 3, Cursor(seed=0))
  >>> cursor, sorted({*first, *next_batch(5, 2, cursor)[0]} - {*range(5)})
  (Cursor(seed=0, epoch=0, index=3), [])
  """
  if num_examples < 1 or batch_size < 1:
    raise ValueError(
      f"A batch of {batch_size} from {num_examples} examples: both must be at "
      "least 1."
    )
  if not 0 <= cursor.index < num_examples:
    raise ValueError(
      f"{cursor} points outside {num_examples} examples: it was saved with "
      "another data set. Start from Cursor(seed), or restore the data."
    )
  pieces, missing = [], batch_size
  while missing:
    order = np.random.default_rng((cursor.seed, cursor.epoch)).permutation(
      num_examples
    )
    piece = order[cursor.index : cursor.index + missing]
    pieces.append(piece)
    missing -= len(piece)
    index = cursor.index + len(piece)
    if index == num_examples:
      cursor = Cursor(cursor.seed, cursor.epoch + 1, 0)
    else:
      cursor = dataclasses.replace(cursor, index=index)
  return np.concatenate(pieces), cursor


def left_pad(
  rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads rows of ids on the left, otherwise as `right_pad`.

  Args:
    rows: B lists of ids.
    length: number of columns.
    pad_id: id of padding.
  """
  tokens, mask = right_pad([row[::-1] for row in rows], length, pad_id)
  return tokens[:, ::-1].copy(), mask[:, ::-1].copy()


def right_pad(
  rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads rows of ids on the right.

  Args:
    rows: B lists of ids.
    length: number of columns, at least the length of the longest row.
    pad_id: id of padding.

  Returns:
    (tokens [B, length] int32, mask [B, length] bool).

  Raises:
    ValueError: with the number of a row that is too long.
  """
  lengths = np.asarray([len(row) for row in rows])
  if lengths.size and lengths.max() > length:
    first = int(np.argmax(lengths > length))
    raise ValueError(
      f"Row {first} has {lengths[first]} tokens, more than the {length} there "
      "is room for: raise the limit or leave the row out."
    )
  mask = np.arange(length) < lengths[:, None]
  tokens = np.full((len(rows), length), pad_id, np.int32)
  if lengths.size:
    tokens[mask] = np.concatenate([np.asarray(r, np.int32) for r in rows])
  return tokens, mask
