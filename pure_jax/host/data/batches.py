"""The order of examples, and padding of token ids to one length.

The order of epoch e is a permutation that depends only on (seed, e), so that a
run resumes with a cursor of three integers.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from pure_jax.host.logs import console
from pure_jax.host.text.tokenization import (
  PRMText,
  Tokenizer,
  encode_each_step,
  merge_overflow,
)
from pure_jax.types import PRMInputs


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


def pad_prm_texts(
  texts: Sequence[PRMText], length: int, max_steps: int, pad_id: int
) -> PRMInputs:
  """Makes the inputs of a PRM from texts whose steps were encoded one by one.

  A step is read as a whole or not at all: a text ends before the first step
  that does not fit. This step and all behind it are unread and have no score.

  Args:
    texts: B texts of at most max_steps steps; their prompts fit.
    length: T, number of columns.
    max_steps: S.
    pad_id: id of padding.

  Returns:
    Host arrays; all padding is on the right.

  Raises:
    ValueError: with the number of a row whose prompt is too long.
  """
  shape = (len(texts), max_steps)
  position, score_mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
  unread_mask, rows = np.zeros(shape, bool), []
  for row, text in enumerate(texts):
    ends = len(text.prompt) + np.cumsum([len(ids) for ids in text.steps])
    count, fits = len(text.steps), int(np.sum(ends <= length))
    position[row, :fits] = ends[:fits] - 1
    score_mask[row, :fits] = True
    unread_mask[row, fits:count] = True
    rows.append([*text.prompt, *itertools.chain(*text.steps[:fits])])
  tokens, mask = right_pad(rows, length, pad_id)
  return PRMInputs(tokens, mask, position, score_mask, unread_mask)


def each_step_inputs(
  tokenizer: Tokenizer,
  prompts: Sequence[Sequence[int]],
  steps: Sequence[Sequence[str]],
  length: int,
  max_steps: int,
) -> PRMInputs:
  """Makes the inputs of a PRM, every step of B responses encoded by itself.

  Steps that do not fit get the reward -1, see `steps.read_step_rewards`. If
  there are any, one line about them goes to stderr.

  Args:
    tokenizer: the PRM's.
    prompts: ids of the PRM's prompts.
    steps: texts of the steps of each response, from `split_texts`.
    length: T, number of columns.
    max_steps: S; the rest of a response is merged into the last step.

  Returns:
    Host arrays, see `pad_prm_texts`.

  Raises:
    TokenizerError: as `encode_each_step`.
    ValueError: as `pad_prm_texts`.
  """
  texts = [
    encode_each_step(tokenizer, prompt, merge_overflow(row, max_steps))
    for prompt, row in zip(prompts, steps, strict=True)
  ]
  inputs = pad_prm_texts(texts, length, max_steps, tokenizer.pad_id)
  if inputs.unread_mask.any():
    console.tell(
      f"{inputs.unread_mask.sum()} steps of "
      f"{inputs.unread_mask.any(1).sum()} responses do not fit into the "
      f"{length} tokens that the PRM reads if every step is encoded by itself. "
      "They get the reward -1. A larger score.max_steps makes room."
    )
  return inputs
