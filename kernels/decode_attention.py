"""Attention of one new token per row, to a KV cache that rows may share.

The cache is a sequence of segments. The samples of a prompt share the segment
with its keys and values, which is stored and read once for all of them. The
keys and values of the tokens that a row has generated are in a segment with
one row for each sample. A mask says which slots of a segment a row attends to.

Letters: B rows, P rows of the first segment (prompts), G = B / P, N query
heads, K key heads, R = N / K, M slots of a segment, H head dimension, Q rows
of a segment, X = R B / Q queries that read the same keys of a segment.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pure_jax.kernels.dispatch import choose

# Replaces -inf in the softmax: finite, so that no row can become NaN.
MASKED_SCORE = -1e30

# Most slots of a block, a multiple of the lanes.
BLOCK_SLOTS = 512
LANES = 128  # Of a TPU's vectors.
# Most bytes of a block's keys. The kernel holds four arrays of this size: keys
# and values of a block and, on their way, of the next one. A TPU core has 16 MB
# for all arrays of a kernel.
BLOCK_BYTES = 2**21


class SegmentArrays(NamedTuple):
  """One segment of the cache; each of its Q rows serves B / Q rows in a row.

  Attributes:
    keys: [Q, K, M, H] float, rotated, or int8. Masked slots may hold any finite
      value.
    values: [Q, K, M, H] values of the same dtype.
    mask: [Q, M] bool, True on slots that rows attend to.
    key_scale: [Q, K, M] float32 factors of int8 keys, None for float keys.
    value_scale: [Q, K, M] float32 factors of int8 values, or None.
  """

  keys: Array
  values: Array
  mask: Array
  key_scale: Array | None = None
  value_scale: Array | None = None


def decode_attention(
  q_BNH: Array,
  segments: Sequence[SegmentArrays],
  *,
  implementation: str | None = None,
  interpret: bool = False,
) -> Array:
  """Computes softmax(q k / sqrt(H)) v over the unmasked slots of all segments.

  There is one softmax over all segments, in float32. Row b reads row
  b // (B / Q) of a segment with Q rows.

  Args:
    q_BNH: [B, N, H] float, rotated queries.
    segments: at least one. The first has the fewest rows, P; the others have a
      multiple of P that divides B. Every row must have an unmasked slot, or
      its result is undefined.
    implementation: None or "xla": two products per segment and a softmax.
      "pallas": a kernel, which does not read fully masked blocks.
    interpret: runs the kernel step by step on any device, for tests.

  Returns:
    [B, N, H] in the dtype of the queries; B may be 0. The kernel has no
    gradient.

  Raises:
    ValueError: if shapes do not match, a segment is empty, or the named
      implementation cannot run.
  """
  if not q_BNH.shape[0]:
    return q_BNH
  segments = tuple(SegmentArrays(*segment) for segment in segments)
  _check_shapes(q_BNH, segments)
  obstacle = _obstacle(segments)
  if choose(implementation, {"pallas": obstacle}, interpret) == "xla":
    return _reference(q_BNH, segments)
  return _decode(q_BNH, segments, interpret)


def _check_shapes(q, segments) -> None:
  """Raises if arrays would broadcast or mix up rows."""
  for number, segment in enumerate(segments):
    if not segment.mask.size:
      raise ValueError(
        f"segment {number} has a mask of shape {segment.mask.shape}, so it has "
        "no rows or no slots: leave it out."
      )
  (B, N, H), K = q.shape, segments[0].keys.shape[1]
  P = segments[0].keys.shape[0]
  if N % K:
    raise ValueError(f"{N} query heads are no multiple of {K} key heads.")
  for number, segment in enumerate(segments):
    rows, M = segment.mask.shape
    if B % rows or rows % P:
      raise ValueError(
        f"{B} rows must be a multiple of the {rows} of segment {number}, and "
        f"these of the {P} of segment 0."
      )
    if (segment.key_scale is None) != (segment.keys.dtype != jnp.int8):
      raise ValueError(
        f"segment {number}: {segment.keys.dtype} keys have a scale if they are "
        "int8, and only then."
      )
    for name, shape in (
      ("keys", (rows, K, M, H)),
      ("values", (rows, K, M, H)),
      ("key_scale", (rows, K, M)),
      ("value_scale", (rows, K, M)),
    ):
      x = getattr(segment, name)
      if x is not None and x.shape != shape:
        raise ValueError(
          f"{name} of segment {number} has shape {x.shape}, not {shape}."
        )


def _group_rows(x: Array, rows: int) -> Array:
  """[B, K, R, ...] -> [rows, K, (B / rows) R, ...]: merges rows that share."""
  B, K, R, *rest = x.shape
  x = jnp.swapaxes(x.reshape(rows, B // rows, K, R, *rest), 1, 2)
  return x.reshape(rows, K, -1, *rest)


def _ungroup_rows(x: Array, B: int) -> Array:
  """[Q, K, (B / Q) R, ...] -> [B, K, R, ...]: the inverse of `_group_rows`."""
  Q, K, X, *rest = x.shape
  samples = B // Q
  x = jnp.swapaxes(x.reshape(Q, K, samples, X // samples, *rest), 1, 2)
  return x.reshape(B, K, X // samples, *rest)


def _reference(q_BNH: Array, segments: Sequence[SegmentArrays]) -> Array:
  """Two products with each segment; only maxima and sums are combined."""
  B, N, H = q_BNH.shape
  K, dtype = segments[0].keys.shape[1], q_BNH.dtype
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  q_BKRH = (q_BNH * (H**-0.5)).reshape(B, K, N // K, H)
  all_scores = []
  for segment in segments:
    q_QKXH = _group_rows(q_BKRH, segment.mask.shape[0])
    scores = product("QKXH,QKMH->QKXM", q_QKXH, segment.keys.astype(dtype))
    if segment.key_scale is not None:
      scores = scores * segment.key_scale[:, :, None]
    mask = segment.mask[:, None, None]
    all_scores.append(jnp.where(mask, scores, MASKED_SCORE))

  maxima = [_ungroup_rows(scores.max(axis=-1), B) for scores in all_scores]
  maximum = jax.lax.stop_gradient(functools.reduce(jnp.maximum, maxima))
  total, out = 0.0, 0.0
  for segment, scores in zip(segments, all_scores, strict=True):
    shift = _group_rows(maximum, segment.mask.shape[0])[..., None]
    weights = jnp.exp(scores - shift)
    total = total + _ungroup_rows(weights.sum(axis=-1), B)
    if segment.value_scale is not None:
      weights = weights * segment.value_scale[:, :, None]
    values = segment.values.astype(dtype)
    weighted = product("QKXM,QKMH->QKXH", weights.astype(dtype), values)
    out = out + _ungroup_rows(weighted, B)
  return (out / total[..., None]).astype(dtype).reshape(B, N, H)


def _slot_bytes(segment, prompts) -> int:
  """Bytes of the keys in one slot of one head, for all samples of a prompt."""
  rows, _, _, H = segment.keys.shape
  return rows // prompts * H * segment.keys.dtype.itemsize


def _block_slots(segment, prompts) -> int:
  """Slots of a block: all of the segment, or a multiple of the lanes."""
  most = BLOCK_BYTES // _slot_bytes(segment, prompts) // LANES
  return min(segment.mask.shape[1], BLOCK_SLOTS, max(most, 1) * LANES)


def _obstacle(segments) -> str | None:
  """Explains why the kernel cannot take these arrays; None if it can."""
  prompts = segments[0].mask.shape[0]
  for segment in segments:
    slots = min(segment.mask.shape[1], LANES)
    needed = slots * _slot_bytes(segment, prompts)
    if needed > BLOCK_BYTES:
      return (
        f"{LANES} slots of all samples of a prompt have {needed} bytes of "
        f"keys, more than the {BLOCK_BYTES} of a block"
      )
  return None


def _used_blocks(mask: Array, prompts: int, block: int) -> tuple[Array, Array]:
  """Orders the blocks of each prompt: ([P, n] int32, used ones first; [P] the
  number of used blocks). A block is used if a row attends to one of its slots.
  """
  slots = mask.reshape(prompts, -1, mask.shape[1]).any(axis=1)
  slots = jnp.pad(slots, ((0, 0), (0, -slots.shape[1] % block)))
  used = slots.reshape(prompts, -1, block).any(axis=-1)
  order = jnp.argsort(~used, axis=-1, stable=True).astype(jnp.int32)
  return order, used.sum(axis=-1, dtype=jnp.int32)


def _kernel_inputs(segment, number, prompts, block):
  """Returns the arrays of a segment as the kernel reads them, and their specs.

  Step i of a prompt goes through the used blocks of the segments one after the
  other; in the steps of other segments this one names its first or last used
  block, which is not read again.
  """
  rows, K, M, H = segment.keys.shape
  samples = rows // prompts

  def index(p, i, blocks):
    order, count = blocks[2 * number : 2 * number + 2]
    before = sum(blocks[2 * n + 1][p] for n in range(number))
    last = jnp.maximum(count[p] - 1, 0)
    return order[p, jnp.clip(i - before, 0, last)]

  data = pl.BlockSpec(
    (None, samples, None, block, H),
    lambda p, h, i, *blocks: (p, 0, h, index(p, i, blocks), 0),
  )
  mask = pl.BlockSpec(
    (None, samples, block),
    lambda p, h, i, *blocks: (p, 0, index(p, i, blocks)),
  )
  scale = pl.BlockSpec(
    (None, None, samples, block),
    lambda p, h, i, *blocks: (p, h, 0, index(p, i, blocks)),
  )
  arrays = [
    segment.keys.reshape(prompts, samples, K, M, H),
    segment.values.reshape(prompts, samples, K, M, H),
    segment.mask.reshape(prompts, samples, M).astype(jnp.int32),
  ]
  specs = [data, data, mask]
  if segment.key_scale is not None:
    for x in (segment.key_scale, segment.value_scale):
      arrays.append(jnp.swapaxes(x.reshape(prompts, samples, K, M), 1, 2))
      specs.append(scale)
  return arrays, specs


@functools.partial(jax.jit, static_argnames="interpret")
def _decode(q_BNH, segments, interpret):
  """Runs the kernel over prompts, key heads and used blocks.

  The number of blocks is computed at run time: the used blocks of the prompt
  that has most. A prompt with fewer repeats its last block, which is not read
  again, and does nothing.
  """
  B, N, H = q_BNH.shape
  P, K = segments[0].keys.shape[:2]
  X = B // P * (N // K)
  q_BKRH = (q_BNH * (H**-0.5)).reshape(B, K, N // K, H)
  blocks, arrays, specs = [], [], []
  for number, segment in enumerate(segments):
    block = _block_slots(segment, P)
    blocks += _used_blocks(segment.mask, P, block)
    segment_arrays, segment_specs = _kernel_inputs(segment, number, P, block)
    arrays += segment_arrays
    specs += segment_specs
  rows = pl.BlockSpec((None, None, X, H), lambda p, h, i, *_: (p, h, 0, 0))
  out = pl.pallas_call(
    functools.partial(
      _kernel,
      slots=tuple(segment.mask.shape[1] for segment in segments),
      scaled=tuple(segment.key_scale is not None for segment in segments),
    ),
    out_shape=jax.ShapeDtypeStruct((P, K, X, H), q_BNH.dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(blocks),
      grid=(P, K, jnp.max(sum(blocks[1::2]))),
      in_specs=[rows, *specs],
      out_specs=rows,
      scratch_shapes=[
        pltpu.VMEM((X, 1), jnp.float32),
        pltpu.VMEM((X, 1), jnp.float32),
        pltpu.VMEM((X, H), jnp.float32),
      ],
    ),
    interpret=interpret,
    name="decode_attention",
  )(*blocks, _group_rows(q_BKRH, P), *arrays)
  return _ungroup_rows(out, B).reshape(B, N, H)


class _Softmax(NamedTuple):
  """Running sums of the softmax of some queries.

  Attributes:
    maximum: [X, 1] maximum of the scores so far.
    total: [X, 1] sum of the weights exp(score - maximum).
    weighted: [X, H] sum of the values by these weights.
  """

  maximum: Any
  total: Any
  weighted: Any


def _kernel(*refs, slots, scaled):
  """Adds one block of keys to the running softmax of the queries."""
  blocks, (q, *inputs) = refs[: 2 * len(slots)], refs[2 * len(slots) : -4]
  out, sums = refs[-4], _Softmax(*refs[-3:])
  p, i = pl.program_id(0), pl.program_id(2)

  @pl.when(i == 0)
  def _():
    sums.maximum[...] = jnp.full_like(sums.maximum, MASKED_SCORE)
    sums.total[...] = jnp.zeros_like(sums.total)
    sums.weighted[...] = jnp.zeros_like(sums.weighted)

  end = 0
  for number, size in enumerate(slots):
    order, count = blocks[2 * number : 2 * number + 2]
    start, end = end, end + count[p]
    segment = inputs[: 5 if scaled[number] else 3]
    inputs = inputs[len(segment) :]

    @pl.when((i >= start) & (i < end))
    def _(order=order, start=start, segment=segment, size=size):
      first = order[p, jnp.maximum(i - start, 0)] * segment[0].shape[1]
      _add_block(q, segment, first, size, sums)

  @pl.when(i == jnp.maximum(end - 1, 0))
  def _():
    out[...] = (sums.weighted[...] / sums.total[...]).astype(out.dtype)


def _add_block(q, segment, first, slots, sums) -> None:
  """Adds a block of a segment: the keys of each row to the row's own queries.

  `first` is the first slot of the block, and `slots` are those of the segment.
  """
  k, v, mask, *scales = segment
  samples, block = mask.shape
  X = q.shape[0] // samples
  slot = first + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
  for g in range(samples):
    row_mask = (mask[g : g + 1] != 0) & (slot < slots)
    key_scale, value_scale = (
      (_zero_outside(scale[g : g + 1], slot < slots) for scale in scales)
      if scales
      else (None, None)
    )
    values = v[g].astype(q.dtype)
    if slots % block:
      # After the last slot a block holds anything, even NaN.
      row = first + jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)
      values = _zero_outside(values, row < slots)
    queries = slice(g * X, (g + 1) * X)
    scores = jax.lax.dot_general(
      q[queries],
      k[g].astype(q.dtype),
      (((1,), (1,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    if key_scale is not None:
      scores = scores * key_scale
    scores = jnp.where(row_mask, scores, MASKED_SCORE)
    _add_scores(scores, values, value_scale, queries, sums)


def _zero_outside(x: Array, mask: Array) -> Array:
  return jnp.where(mask, x, jnp.zeros_like(x))


def _add_scores(scores, values, value_scale, queries, sums) -> None:
  """Updates the running softmax of some queries."""
  old = sums.maximum[queries]
  new = jnp.maximum(old, scores.max(axis=1, keepdims=True))
  # In blocks before a query's first unmasked key all weights are 1. That key
  # shrinks their sum to nothing, and there is one: a row sees its own token.
  weights = jnp.exp(scores - new)
  shrink = jnp.exp(old - new)
  sums.maximum[queries] = new
  total = shrink * sums.total[queries] + weights.sum(axis=1, keepdims=True)
  sums.total[queries] = total
  if value_scale is not None:
    weights = weights * value_scale
  sums.weighted[queries] = shrink * sums.weighted[queries] + jnp.dot(
    weights.astype(values.dtype), values, preferred_element_type=jnp.float32
  )
