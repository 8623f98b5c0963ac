"""Texts of different lengths in full rows: where each one lies, and back.

A batch is B texts (prompt and completion, or what the PRM reads) in T columns,
most of which are padding. Here the texts are laid, without their padding, into
rows of W columns; several share a row as segments, so that attention keeps
them apart and positions start afresh in each. Rows are read a *part* at a
time, and only as many parts as hold a text: how many is known on the device
alone, and no number of rows is ever compiled in. W is one of a few widths, the
least that the longest text of a batch fits (`ByLength`).

What goes through the layers of a model is packed, and so is the loss. Steps,
credit, baselines and whitening stay on [B, C] and [B, S]: they are integer
arithmetic and scans over numbers, not over vectors, and see groups and the
whole batch as they do without packing.

Any text may lie in any row, on any device: texts come as ids and leave as one
or two numbers a token, which all devices exchange (some megabytes a batch)
against rows that are equally full everywhere. Hidden states stay where they
are.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.transformer import positions_from_mask


@dataclasses.dataclass(frozen=True)
class RowShape:
  """The rows that texts are laid into. Hashable, for a static argument.

  Attributes:
    columns: W, at least the tokens of the longest text.
    at_a_time: rows of a part; a multiple of the devices they are split over.
    shared: whether texts share rows; else each has one of its own.
  """

  columns: int
  at_a_time: int
  shared: bool = True

  def __post_init__(self):
    """Refuses rows that hold nothing."""
    if self.columns < 1 or self.at_a_time < 1:
      raise ValueError(f"Rows need columns, and parts rows, got {self}.")


# The last part that is read is half empty on average: with so many parts in a
# batch of long texts, a sixteenth of the time is lost.
FEWEST_PARTS = 8


def row_shapes(
  longest: int,
  rows: int,
  at_a_time: int,
  buckets: int = 1,
  packed_tokens: int | None = None,
) -> tuple[RowShape, ...]:
  """The row shapes of a run, from the widest to the narrowest.

  Bucket i serves batches whose longest text has at most longest / 2^i tokens.
  As rows get shorter a part has more of them, so that it has about as many
  tokens; but where texts share rows, not so many that few parts are left.

  >>> [(s.columns, s.at_a_time) for s in row_shapes(1000, 32, 8, 3)]
  [(1000, 8), (500, 16), (250, 32)]
  >>> [s.columns for s in row_shapes(1000, 32, 8, 3, packed_tokens=400)]
  [1000, 500, 400]

  Args:
    longest: tokens of the longest text there can be.
    rows: B, texts of a batch.
    at_a_time: rows of that length that fit into memory together.
    buckets: how many lengths, at least 1.
    packed_tokens: columns that texts share, more only where one text needs
      them; None gives each text its own row.

  Returns:
    One shape for each bucket.
  """
  shared = packed_tokens is not None
  most = max(1, rows // at_a_time // (FEWEST_PARTS if shared else 1))
  shapes = []
  for bucket in range(buckets):
    columns = max(-(-longest // 2**bucket), packed_tokens or 0)
    times = min(most, max(1, longest // columns))
    shapes.append(RowShape(columns, times * at_a_time, shared))
  return tuple(shapes)


@struct.dataclass
class Packing:
  """Where the tokens of B texts [B, T] lie in N parts of R rows of W columns.

  Attributes:
    source: [N, R, W] int32, index into the B * T tokens, -1 where none lies.
    slots: [B, T] int32, index into the N * R * W columns, -1 where masked.
    ranks: [B, T] int32, position of a token in its text.
    parts: [] int32, 1..N, how many parts hold the texts.
    fits: [] bool, whether every text is at most W long. If not, every number
      that comes back is NaN.
  """

  source: Array
  slots: Array
  ranks: Array
  parts: Array
  fits: Array

  @property
  def fill(self) -> Array:
    """[] float32, share of the columns that are read which hold a token."""
    _, rows, columns = self.source.shape
    read = self.parts * (rows * columns)
    return jnp.sum(self.slots >= 0) / read.astype(jnp.float32)


def place_texts(
  lengths: Array, columns: int, shared: bool = True
) -> tuple[Array, Array]:
  """First-fit decreasing: the longest text first, each in the first row.

  Ties go by order, so the same lengths give the same rows everywhere. All but
  one row are more than half full, whatever the lengths.

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
  back = jnp.zeros_like(order).at[order].set(jnp.arange(count))
  return row[back], start[back]


def pack(
  mask: Array, shape: RowShape, act_sharding: ActivationSharding = LOCAL
) -> Packing:
  """Lays out texts; the same on every device.

  Args:
    mask: [B, T] bool, True on the tokens of a text, padding on either side.
    shape: of the rows. A part has no more rows than there are texts.
    act_sharding: of the batch.

  Returns:
    The packing.
  """
  mask = act_sharding.constrain(mask, (None, None))
  B, T = mask.shape
  R, W = min(shape.at_a_time, B), shape.columns
  N = -(-B // R)
  lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
  row, start = place_texts(lengths, W, shape.shared)
  fits = jnp.all(lengths <= W)
  ranks = positions_from_mask(mask)
  slots = jnp.where(mask & fits, (row * W + start)[:, None] + ranks, -1)
  nowhere = N * R * W  # A write outside the array is dropped.
  tokens = jnp.arange(B * T, dtype=jnp.int32).reshape(B, T)
  source = jnp.full(nowhere, -1, jnp.int32)
  source = source.at[jnp.where(slots < 0, nowhere, slots)].set(
    tokens, mode="drop"
  )
  last_row = jnp.max(jnp.where(lengths > 0, row, 0))
  return Packing(
    source=source.reshape(N, R, W),
    slots=slots.astype(jnp.int32),
    ranks=ranks,
    parts=(last_row // R + 1).astype(jnp.int32),
    fits=fits,
  )


def gather(
  values: Array, index: Array, act_sharding: ActivationSharding = LOCAL
) -> Array:
  """Values by their flat index, 0 where it is -1.

  Args:
    values: [B, n] of any dtype.
    index: int32 of any shape, -1..B * n - 1.
    act_sharding: of the batch; every device gets all the values first.

  Returns:
    Like index, in the dtype of the values.
  """
  flat = act_sharding.constrain(values, (None, None)).reshape(-1)
  found = flat[jnp.maximum(index, 0)]
  return jnp.where(index >= 0, found, jnp.zeros_like(found))


@struct.dataclass
class PackedTexts:
  """What a model reads: rows of a part.

  Attributes:
    tokens: [R, W] int32, 0 where no token lies.
    positions: [R, W] int32, 0 for the first token of each text.
    segment_ids: [R, W] int32, 1 + the number of the text; 0 where none lies.
    completion: [R, W] int32, index into the B * C completion tokens, -1
      where no such token lies.
  """

  tokens: Array
  positions: Array
  segment_ids: Array
  completion: Array


def read_part(
  packing: Packing,
  part: Array,
  tokens: Array,
  completion_columns: int = 0,
  act_sharding: ActivationSharding = LOCAL,
) -> PackedTexts:
  """Collects the texts of one part, each device its rows.

  Args:
    packing: from `pack`.
    part: [] int, 0..N-1.
    tokens: [B, T] int32, the ids that were packed.
    completion_columns: C; the last C of T columns are those of completions.
    act_sharding: of the rows.

  Returns:
    The part.
  """
  T = tokens.shape[1]
  source = act_sharding.constrain(packing.source[part], ("rows", None))
  text, column = source // T, source % T - (T - completion_columns)
  held = source >= 0
  return PackedTexts(
    tokens=gather(tokens, source, act_sharding),
    positions=gather(packing.ranks, source, act_sharding),
    segment_ids=jnp.where(held, text + 1, 0),
    completion=jnp.where(
      held & (column >= 0), text * completion_columns + column, -1
    ),
  )


def map_parts(function: Callable[[Array], Any], packing: Packing) -> Any:
  """Applies a function to every part that holds a text.

  Args:
    function: part [] int32 -> pytree of arrays [R, W, ...].
    packing: from `pack`.

  Returns:
    Pytree of arrays [N, R, W, ...], 0 in the parts that were left out.
  """
  count = packing.source.shape[0]
  if count == 1:
    return jax.tree.map(lambda x: x[None], function(jnp.int32(0)))

  def body(part, found):
    return jax.tree.map(
      lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, part, 0),
      found,
      function(part),
    )

  nothing = jax.tree.map(
    lambda x: jnp.zeros((count, *x.shape), x.dtype),
    jax.eval_shape(function, jnp.int32(0)),
  )
  return jax.lax.fori_loop(0, packing.parts, body, nothing)


def unpack(
  packing: Packing,
  values: Array,
  act_sharding: ActivationSharding = LOCAL,
) -> Array:
  """Brings values of tokens back to their texts.

  Args:
    packing: from `pack`.
    values: [N, R, W, ...] float, from `map_parts`.
    act_sharding: of the rows; every device gets all the values first.

  Returns:
    [B, T, ...], 0 where masked; NaN everywhere if a text did not fit.
  """
  flat = values.reshape(-1, *values.shape[3:])
  flat = act_sharding.constrain(flat, (None,) * flat.ndim)
  found = flat[jnp.maximum(packing.slots, 0)]
  kept = jnp.expand_dims(packing.slots >= 0, tuple(range(2, found.ndim)))
  found = jnp.where(kept, found, jnp.zeros_like(found))
  return jnp.where(packing.fits, found, jnp.nan)


@dataclasses.dataclass(frozen=True)
class ByLength:
  """A function compiled for a few lengths of texts; the longest text chooses.

  Attributes:
    measure: arguments of the function -> [m] int32, the longest text of each
      of m kinds in this batch, the same on every process.
    limits: one tuple of m lengths for each function, in ascending order.
    functions: of the same arguments; function i can be called where no text
      is longer than its limits.
  """

  measure: Callable[..., Array]
  limits: tuple[tuple[int, ...], ...]
  functions: tuple[Callable[..., Any], ...]

  def __call__(self, *arguments: Any) -> Any:
    """Calls the function of the least limits.

    Raises:
      ValueError: if a text is longer than all of them.
    """
    lengths = np.asarray(jax.device_get(self.measure(*arguments)))
    for limit, function in zip(self.limits, self.functions, strict=True):
      if (lengths <= np.asarray(limit)).all():
        return function(*arguments)
    raise ValueError(
      f"The longest texts have {lengths.tolist()} tokens, and rows at most "
      f"{list(self.limits[-1])}: give rows as many columns as prompt and "
      "completion can have together."
    )


def by_length(
  make: Callable[..., Callable[..., Any]],
  measure: Callable[..., Array],
  *shapes: tuple[RowShape, ...],
) -> ByLength:
  """Makes one function for each length that differs.

  Args:
    make: row shapes, one of each kind -> function.
    measure: see `ByLength`.
    *shapes: of each kind of text those of `row_shapes`, as many of each.

  Returns:
    The function that chooses; nothing is compiled before its first call.
  """
  found = sorted({*zip(*shapes, strict=True)}, key=_columns)
  return ByLength(
    measure, tuple(map(_columns, found)), tuple(make(*kinds) for kinds in found)
  )


def _columns(kinds: tuple[RowShape, ...]) -> tuple[int, ...]:
  """The columns of some row shapes."""
  return tuple(shape.columns for shape in kinds)
