"""Packs texts of different lengths into full rows, and unpacks their values.

A batch is B texts (a prompt with its completion, or an input of the PRM) in T
columns, most of which are padding. Packing lays the texts without their
padding into rows of W columns. Several texts share a row as segments:
attention keeps them apart, and positions start at 0 in each. Models process a
micro-batch of R rows at a time, and only as many micro-batches as hold a text.
Only the device knows this number, so it is not a constant of the program. W is
the smallest of a few widths that fits a batch (`row_choice.choose`).

The layers of a model and the loss run on packed rows. Steps, credit, baselines
and whitening stay on [B, C] and [B, S]. Any text may lie in any row, on any
device: texts come as ids and leave as one or two numbers per token, and hidden
states are not exchanged.

The samples of a prompt may share its tokens (`RowShape.samples`): the prompt
and its samples are then one segment, in which each sample attends to the prompt
and to itself. A prompt is read once for all of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.transformer import positions_from_mask
from pure_jax.types import SharedPrompts


@dataclasses.dataclass(frozen=True)
class RowShape:
  """The rows that texts are packed into. Hashable.

  Attributes:
    columns: W, at least the tokens of the longest text.
    rows: R, rows of a micro-batch; a multiple of the devices that split them.
    shared: True if texts share rows; False gives each text its own row.
    samples: k, consecutive texts that have the same prompt and share it.
  """

  columns: int
  rows: int
  shared: bool = True
  samples: int = 1

  def __post_init__(self):
    """Validates sizes."""
    if min(self.columns, self.rows, self.samples) < 1:
      raise ValueError(
        f"A micro-batch needs rows, and rows need columns, got {self}."
      )


@dataclasses.dataclass(frozen=True)
class ScoreRows:
  """The rows that scoring packs texts into. Hashable.

  Attributes:
    policy: rows of prompts with their completions.
    prm: rows of the PRM's inputs; None without a PRM.
  """

  policy: RowShape
  prm: RowShape | None

  @property
  def columns(self) -> tuple[int, ...]:
    """Columns of each kind of row, as `row_choice.make_measure` orders them."""
    if self.prm is None:
      return (self.policy.columns,)
    return self.policy.columns, self.prm.columns

  @property
  def samples(self) -> int:
    """Consecutive texts of the policy that share their prompt."""
    return self.policy.samples


# On average the last micro-batch that holds a text is half empty. With at least
# 8 micro-batches of the longest texts, this wastes a sixteenth of the time.
FEWEST_MICRO_BATCHES = 8


def row_shapes(
  longest: int,
  texts: int,
  rows: int,
  buckets: int = 1,
  packed_tokens: int | None = None,
) -> tuple[RowShape, ...]:
  """The row shapes of a run, from the widest to the narrowest.

  Bucket i serves batches whose longest text has at most longest / 2^i tokens.
  A micro-batch of shorter rows has more of them, about as many tokens. If texts
  share rows, their number leaves at least `FEWEST_MICRO_BATCHES`.

  >>> [(s.columns, s.rows) for s in row_shapes(1000, 32, 8, 3)]
  [(1000, 8), (500, 16), (250, 32)]
  >>> [s.columns for s in row_shapes(1000, 32, 8, 3, packed_tokens=400)]
  [1000, 500, 400]

  Args:
    longest: largest number of tokens of a text.
    texts: B, texts of a batch.
    rows: rows of that length that fit into memory together.
    buckets: number of widths, at least 1.
    packed_tokens: columns of a row that texts share, exceeded only if one text
      needs more; None gives each text its own row.

  Returns:
    One shape for each bucket, but no more than can differ without
    `packed_tokens`, which makes the narrowest ones equal.
  """
  shared = packed_tokens is not None
  most = max(1, texts // rows // (FEWEST_MICRO_BATCHES if shared else 1))
  shapes = []
  # Rows of one column cannot be halved.
  for bucket in range(min(buckets, longest.bit_length() + 1)):
    columns = max(-(-longest // 2**bucket), packed_tokens or 0)
    times = min(most, max(1, longest // columns))
    shapes.append(RowShape(columns, times * rows, shared))
  return tuple(shapes)


@struct.dataclass
class Packing:
  """Where the tokens of B texts [B, T] lie in N micro-batches of R x W tokens.

  Attributes:
    source: [N, R, W] int32, index into the B * T tokens, -1 where none lies;
      of a prompt that texts share, into the first of them.
    slots: [B, T] int32, index into the N * R * W columns, -1 where masked.
    ranks: [B, T] int32, position of a token in its text.
    micro_batches: [] int32, 1..N, how many micro-batches hold the texts.
    fits: [] bool, True if every text, or the texts that share a prompt, have at
      most W tokens. Otherwise all unpacked values are NaN.
    samples: k, consecutive texts that share their prompt.
  """

  source: Array
  slots: Array
  ranks: Array
  micro_batches: Array
  fits: Array
  samples: int = struct.field(pytree_node=False, default=1)

  @property
  def fill(self) -> Array:
    """[] float32, share of the processed columns that hold a token."""
    _, rows, columns = self.source.shape
    processed = self.micro_batches * (rows * columns)
    return jnp.sum(self.source >= 0) / processed.astype(jnp.float32)


def place_texts(
  lengths: Array, columns: int, shared: bool = True
) -> tuple[Array, Array]:
  """Places texts first-fit decreasing: the longest first, in the first row.

  Ties are broken by order, so every process gets the same rows. For any
  lengths, all rows but one are more than half full.

  >>> row, start = place_texts(jnp.array([3, 6, 5, 4]), 9)
  >>> row.tolist(), start.tolist()
  ([0, 0, 1, 1], [6, 0, 0, 5])

  Args:
    lengths: [B] int32, tokens of each text, at most `columns`.
    columns: W, of a row.
    shared: False gives text b row b.

  Returns:
    (row [B] int32, 0..B-1; start [B] int32, its first column).
  """
  count = lengths.shape[0]
  if not shared:
    return jnp.arange(count), jnp.zeros(count, jnp.int32)

  def place(free, length):
    row = jnp.argmax(free >= length).astype(jnp.int32)
    return free.at[row].add(-length), (row, columns - free[row])

  order = jnp.argsort(-lengths, stable=True)
  free = jnp.full(count, columns, jnp.int32)
  _, (row, start) = jax.lax.scan(place, free, lengths[order])
  inverse = jnp.zeros_like(order).at[order].set(jnp.arange(count))
  return row[inverse], start[inverse]


def pack(
  mask: Array,
  shape: RowShape,
  act_sharding: ActivationSharding = LOCAL,
  completion_columns: int = 0,
) -> Packing:
  """Assigns tokens to rows, the same way on every device.

  Args:
    mask: [B, T] bool, True on the tokens of a text, padding on either side.
    shape: the shape of the rows. A micro-batch has no more rows than there are
      texts, or prompts that texts share; `samples` divides B.
    act_sharding: sharding of the batch.
    completion_columns: C; the last C of T columns are those of completions. If
      texts share prompts, padding is before a prompt and after a completion.

  Returns:
    The packing.
  """
  mask = act_sharding.constrain(mask, (None, None))
  B, T = mask.shape
  lengths, start_of_own = _lengths(mask, shape.samples, completion_columns)
  R, W = min(shape.rows, len(lengths)), shape.columns
  N = -(-len(lengths) // R)
  row, start = place_texts(lengths, W, shape.shared)
  fits = jnp.all(lengths <= W)
  ranks = positions_from_mask(mask)
  first = jnp.repeat(row * W + start, shape.samples)[:, None]
  slots = jnp.where(mask & fits, first + start_of_own + ranks, -1)
  # A prompt is taken from the first of the texts that share it.
  is_copy = (jnp.arange(B) % shape.samples > 0)[:, None]
  is_copy &= jnp.arange(T)[None] < T - completion_columns
  nowhere = N * R * W  # A write outside the array is dropped.
  tokens = jnp.arange(B * T, dtype=jnp.int32).reshape(B, T)
  source = jnp.full(nowhere, -1, jnp.int32)
  source = source.at[jnp.where((slots < 0) | is_copy, nowhere, slots)].set(
    tokens, mode="drop"
  )
  last_row = jnp.max(jnp.where(lengths > 0, row, 0))
  return Packing(
    source=source.reshape(N, R, W),
    slots=slots.astype(jnp.int32),
    ranks=ranks,
    micro_batches=(last_row // R + 1).astype(jnp.int32),
    fits=fits,
    samples=shape.samples,
  )


def _lengths(mask, samples, completion_columns):
  """Lengths of segments [B / k], and what a token's start adds to its rank.

  The latter [B, T] is 0 in prompts; in a completion it is the length of the
  completions before it in the segment.
  """
  if samples == 1:
    return jnp.sum(mask, axis=1, dtype=jnp.int32), 0
  B, T = mask.shape
  is_completion = (jnp.arange(T) >= T - completion_columns)[None]
  own = jnp.sum(mask & is_completion, axis=1, dtype=jnp.int32)
  own = own.reshape(-1, samples)
  prompt = jnp.sum(mask[::samples] & ~is_completion, axis=1, dtype=jnp.int32)
  earlier = (jnp.cumsum(own, axis=1) - own).reshape(B, 1)
  return prompt + own.sum(axis=1), jnp.where(is_completion, earlier, 0)


def gather(
  values: Array, index: Array, act_sharding: ActivationSharding = LOCAL
) -> Array:
  """Takes values by their flat index, 0 where the index is -1.

  Args:
    values: [B, n] values of any dtype.
    index: int32 of any shape, -1..B * n - 1.
    act_sharding: sharding of the batch; every device first gets all values.

  Returns:
    Like index, in the dtype of the values.
  """
  flat = act_sharding.constrain(values, (None, None)).reshape(-1)
  taken = flat[jnp.maximum(index, 0)]
  return jnp.where(index >= 0, taken, jnp.zeros_like(taken))


@struct.dataclass
class PackedTexts:
  """The inputs of a model: the rows of one micro-batch.

  Attributes:
    tokens: [R, W] int32, 0 where no token lies.
    positions: [R, W] int32, 0 for the first token of each text.
    segment_ids: [R, W] int32, 1 + the index of the text, or of the prompt
      that texts share; 0 where no token lies.
    completion: [R, W] int32, index into the B * C completion tokens, -1
      where no such token lies.
    sharing: which completions share a prompt; None if none do.
  """

  tokens: Array
  positions: Array
  segment_ids: Array
  completion: Array
  sharing: SharedPrompts | None = None


def read_micro_batch(
  packing: Packing,
  index: Array,
  tokens: Array,
  completion_columns: int = 0,
  act_sharding: ActivationSharding = LOCAL,
) -> PackedTexts:
  """Collects the texts of one micro-batch, each device its rows.

  Args:
    packing: from `pack`.
    index: [] int, 0..N-1, which micro-batch.
    tokens: [B, T] int32, the ids that were packed.
    completion_columns: C; the last C of T columns are those of completions.
    act_sharding: sharding of the rows.

  Returns:
    Its rows.
  """
  T = tokens.shape[1]
  source = act_sharding.constrain(packing.source[index], ("rows", None))
  text, column = source // T, source % T - (T - completion_columns)
  is_token = source >= 0
  is_completion = is_token & (column >= 0)
  texts = PackedTexts(
    tokens=gather(tokens, source, act_sharding),
    positions=gather(packing.ranks, source, act_sharding),
    segment_ids=jnp.where(is_token, text // packing.samples + 1, 0),
    completion=jnp.where(is_completion, text * completion_columns + column, -1),
  )
  if packing.samples == 1:
    return texts
  before = jnp.where(is_completion, source - 1, -1)
  sharing = SharedPrompts(
    branches=jnp.where(is_completion, text % packing.samples + 1, 0),
    before=gather(packing.slots, before, act_sharding) % source.shape[1],
  )
  return texts.replace(sharing=sharing)


def map_micro_batches(
  function: Callable[[Array], Any], packing: Packing
) -> Any:
  """Applies a function to every micro-batch that holds a text.

  Args:
    function: index [] int32 -> pytree of arrays [R, W, ...].
    packing: from `pack`.

  Returns:
    Pytree of arrays [N, R, W, ...], 0 in micro-batches without a text.
  """
  count = packing.source.shape[0]
  if count == 1:
    return jax.tree.map(lambda x: x[None], function(jnp.int32(0)))

  def body(index, results):
    return jax.tree.map(
      lambda all_, new: jax.lax.dynamic_update_index_in_dim(
        all_, new, index, 0
      ),
      results,
      function(index),
    )

  zeros = jax.tree.map(
    lambda x: jnp.zeros((count, *x.shape), x.dtype),
    jax.eval_shape(function, jnp.int32(0)),
  )
  return jax.lax.fori_loop(0, packing.micro_batches, body, zeros)


def unpack(
  packing: Packing, values: Array, act_sharding: ActivationSharding = LOCAL
) -> Array:
  """Returns values of tokens to their texts.

  Args:
    packing: from `pack`.
    values: [N, R, W, ...] float, from `map_micro_batches`.
    act_sharding: sharding of the rows; every device first gets all values.

  Returns:
    [B, T, ...], 0 where masked; NaN everywhere if a text did not fit.
  """
  flat = values.reshape(-1, *values.shape[3:])
  flat = act_sharding.constrain(flat, (None,) * flat.ndim)
  unpacked = flat[jnp.maximum(packing.slots, 0)]
  mask = jnp.expand_dims(packing.slots >= 0, tuple(range(2, unpacked.ndim)))
  unpacked = jnp.where(mask, unpacked, jnp.zeros_like(unpacked))
  return jnp.where(packing.fits, unpacked, jnp.nan)
