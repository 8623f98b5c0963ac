"""Which examples come next, and rows of equal length made of them.

The order of epoch e is a permutation that follows from (seed, e), so a cursor
of three integers is all a resumed run needs.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Cursor:
  """How far a run has read its data. JSON-able by `dataclasses.asdict`.

  Attributes:
    seed: of the order.
    epoch: passes completed.
    index: examples of this pass already read.
  """

  seed: int
  epoch: int = 0
  index: int = 0


def next_batch(
  num_examples: int,
  batch_size: int,
  cursor: Cursor,
  *,
  process_index: int = 0,
  process_count: int = 1,
) -> tuple[np.ndarray, Cursor]:
  """The next examples in shuffled order, across epoch boundaries.

  Every epoch visits each example once; a batch may hold the end of one epoch
  and the beginning of the next, so no example is left over or padded, whatever
  the sizes.

  Several processes read one batch together: process p of n gets the p-th n-th
  of it, in order. Their shards of an epoch are disjoint and complete. The
  cursor counts the examples of all processes and is the same in each of them,
  so a run may resume with another number of processes.

  Args:
    num_examples: size of the data set, at least 1.
    batch_size: of all processes together, at least 1 and divisible by
      `process_count`.
    cursor: where to go on.
    process_index: this process, 0..process_count - 1.
    process_count: how many processes read.

  Returns:
    (indices [batch_size / process_count] int64, the cursor after the batch).

  Raises:
    ValueError: if either size is below 1, the processes cannot share the
      batch, or the cursor points outside the data set.

  >>> first, cursor = next_batch(5, 3, Cursor(seed=0))
  >>> cursor, sorted({*first, *next_batch(5, 2, cursor)[0]} - {*range(5)})
  (Cursor(seed=0, epoch=0, index=3), [])
  """
  if num_examples < 1 or batch_size < 1:
    raise ValueError(
      f"A batch of {batch_size} from {num_examples} examples: both must be at "
      "least 1."
    )
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"Process {process_index} of {process_count}: the first is 0."
    )
  if batch_size % process_count:
    raise ValueError(
      f"A batch of {batch_size} cannot be shared by {process_count} processes: "
      "make it a multiple of their number."
    )
  if not 0 <= cursor.index < num_examples:
    raise ValueError(
      f"{cursor} points outside {num_examples} examples: it was saved with "
      "another data set. Start from Cursor(seed), or restore the data."
    )
  parts, missing = [], batch_size
  while missing:
    order = np.random.default_rng((cursor.seed, cursor.epoch)).permutation(
      num_examples
    )
    part = order[cursor.index : cursor.index + missing]
    parts.append(part)
    missing -= len(part)
    index = cursor.index + len(part)
    if index == num_examples:
      cursor = Cursor(cursor.seed, cursor.epoch + 1, 0)
    else:
      cursor = dataclasses.replace(cursor, index=index)
  share = batch_size // process_count
  start = process_index * share
  return np.concatenate(parts)[start : start + share], cursor


def left_pad(
  rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of ids as one array, padding before them.

  Args:
    rows: B lists of ids.
    length: columns, at least the longest row.
    pad_id: the filler.

  Returns:
    (tokens [B, length] int32, mask [B, length] bool).

  Raises:
    ValueError: naming the first row that is too long.
  """
  tokens, mask = right_pad([row[::-1] for row in rows], length, pad_id)
  return tokens[:, ::-1].copy(), mask[:, ::-1].copy()


def right_pad(
  rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of ids as one array, padding after them.

  Args:
    rows: B lists of ids.
    length: columns, at least the longest row.
    pad_id: the filler.

  Returns:
    (tokens [B, length] int32, mask [B, length] bool).

  Raises:
    ValueError: naming the first row that is too long.
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
