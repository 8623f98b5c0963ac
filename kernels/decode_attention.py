"""Attention of one new token per row, to parts of a cache that rows may share.

The samples of a prompt have its keys and values in common: they are stored,
and read, once for all of them. What a row has made itself lies in slots of its
own. Both are parts here, with masks that say which slots a row may read.

Letters: P rows of the part that most rows share, B rows, B = P G, N query
heads, K key heads, R = N / K, M slots of a part, H head dimension, Q = G R
query rows that read the same keys of the first part.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pure_jax.kernels.dispatch import choose

# Stands for -inf under the softmax: finite, so no row can become NaN.
MASKED_SCORE = -1e30

# Slots of a block, a multiple of the 128 lanes that a row of scores has.
BLOCK_SLOTS = 512
LANES = 128
# Of the keys of one block; a kernel holds four such: values, and the next of
# both on their way. A TPU core has 16 MB for all that a kernel holds.
BLOCK_BYTES = 2**21


class Part(NamedTuple):
  """Some slots of a cache, of rows [Q] that B / Q neighbours read each.

  Attributes:
    keys: [Q, K, M, H] float, rotated, or int8; slots that no row may read may
      hold any finite value.
    values: [Q, K, M, H], likewise.
    mask: [Q, M] bool, True on slots that may be read.
    key_scale: [Q, K, M] float32, what int8 keys are multiplied by, else None.
    value_scale: likewise.
  """

  keys: Array
  values: Array
  mask: Array
  key_scale: Array | None = None
  value_scale: Array | None = None


def decode_attention(
  q_BNH: Array,
  parts: Sequence[Part],
  *,
  implementation: str | None = None,
  interpret: bool = False,
) -> Array:
  """softmax(q k / sqrt(H)) v over the slots of all parts that a row may read.

  The softmax is one, in float32. Neighbours share: row b reads row b // (B / Q)
  of a part of Q rows.

  Args:
    q_BNH: [B, N, H] float, rotated queries.
    parts: at least one; the first has the fewest rows, P, and all have a
      multiple of P that divides B. Every row may read some slot.
    implementation: None or "xla", two products a part and a softmax; "pallas",
      a kernel that reads only blocks in which a row has something.
    interpret: runs the kernel step by step on any device, to test it.

  Returns:
    [B, N, H] in the dtype of the queries. The kernel has no gradient.

  Raises:
    ValueError: shapes do not fit, or the implementation named cannot run.
  """
  parts = tuple(Part(*part) for part in parts)
  _check_shapes(q_BNH, parts)
  obstacle = _obstacle(parts)
  if choose(implementation, {"pallas": obstacle}, interpret) == "xla":
    return reference(q_BNH, parts)
  return _decode(q_BNH, parts, interpret)


def _check_shapes(q, parts) -> None:
  """Raises where arrays would broadcast or mix up rows."""
  (B, N, H), K = q.shape, parts[0].keys.shape[1]
  P = parts[0].keys.shape[0]
  if N % K:
    raise ValueError(f"{N} query heads are no multiple of {K} key heads.")
  for number, part in enumerate(parts):
    rows, M = part.mask.shape
    if B % rows or rows % P:
      raise ValueError(
        f"{B} rows must be a multiple of the {rows} of part {number}, and "
        f"these of the {P} of part 0."
      )
    if (part.key_scale is None) != (part.keys.dtype != jnp.int8):
      raise ValueError(
        f"part {number}: {part.keys.dtype} keys have a scale if they are int8, "
        "and only then."
      )
    for name, wanted in (
      ("keys", (rows, K, M, H)),
      ("values", (rows, K, M, H)),
      ("key_scale", (rows, K, M)),
      ("value_scale", (rows, K, M)),
    ):
      found = getattr(part, name)
      if found is not None and found.shape != wanted:
        raise ValueError(
          f"{name} of part {number} has shape {found.shape}, not {wanted}."
        )


def _shared(x: Array, rows: int) -> Array:
  """[B, K, R, ...] -> [rows, K, (B / rows) R, ...], neighbours side by side."""
  B, K, R, *rest = x.shape
  x = jnp.swapaxes(x.reshape(rows, B // rows, K, R, *rest), 1, 2)
  return x.reshape(rows, K, -1, *rest)


def _by_row(x: Array, rows: int) -> Array:
  """The inverse of `_shared`: [B, K, R, ...] with B the rows given."""
  Q, K, X, *rest = x.shape
  neighbours = rows // Q
  x = jnp.swapaxes(x.reshape(Q, K, neighbours, X // neighbours, *rest), 1, 2)
  return x.reshape(rows, K, X // neighbours, *rest)


def reference(q_BNH: Array, parts: Sequence[Part]) -> Array:
  """`decode_attention` as two products with each part.

  The scores are not brought together, only their maxima and sums.

  Args:
    q_BNH: [B, N, H] float.
    parts: as there.

  Returns:
    [B, N, H] in the dtype of the queries. Differentiable.
  """
  B, N, H = q_BNH.shape
  K, dtype = parts[0].keys.shape[1], q_BNH.dtype
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  q_BKRH = (q_BNH * (H**-0.5)).reshape(B, K, N // K, H)
  scores = []
  for part in parts:
    q_QKXH = _shared(q_BKRH, part.mask.shape[0])
    found = product("QKXH,QKMH->QKXM", q_QKXH, part.keys.astype(dtype))
    if part.key_scale is not None:
      found = found * part.key_scale[:, :, None]
    scores.append(jnp.where(part.mask[:, None, None], found, MASKED_SCORE))

  highest = [_by_row(found.max(axis=-1), B) for found in scores]
  highest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, highest))
  total, out = 0.0, 0.0
  for part, found in zip(parts, scores, strict=True):
    above = found - _shared(highest, part.mask.shape[0])[..., None]
    weights = jnp.exp(above)
    total = total + _by_row(weights.sum(axis=-1), B)
    if part.value_scale is not None:
      weights = weights * part.value_scale[:, :, None]
    values = part.values.astype(dtype)
    read = product("QKXM,QKMH->QKXH", weights.astype(dtype), values)
    out = out + _by_row(read, B)
  return (out / total[..., None]).astype(dtype).reshape(B, N, H)


def _slot_bytes(part, prompts) -> int:
  """Of one slot in all rows of the part that read one row of the first."""
  rows, _, _, H = part.keys.shape
  return rows // prompts * H * part.keys.dtype.itemsize


def _block(part, prompts) -> int:
  """Slots of a block: all, or a multiple of the lanes that fits."""
  fits = BLOCK_BYTES // _slot_bytes(part, prompts) // LANES
  return min(part.mask.shape[1], BLOCK_SLOTS, max(fits, 1) * LANES)


def _obstacle(parts) -> str | None:
  """Why the kernel cannot take these arrays, None where it can."""
  prompts = parts[0].mask.shape[0]
  for part in parts:
    needed = min(part.mask.shape[1], LANES) * _slot_bytes(part, prompts)
    if needed > BLOCK_BYTES:
      return (
        f"{LANES} slots of all samples of a prompt have {needed} bytes of "
        f"keys, more than the {BLOCK_BYTES} of a block"
      )
  return None


def _used_blocks(mask: Array, prompts: int, block: int) -> tuple[Array, Array]:
  """Blocks that hold something: ([P, n] int32 the used first, [P] count)."""
  kept = mask.reshape(prompts, -1, mask.shape[1]).any(axis=1)
  kept = jnp.pad(kept, ((0, 0), (0, -kept.shape[1] % block)))
  used = kept.reshape(prompts, -1, block).any(axis=-1)
  order = jnp.argsort(~used, axis=-1, stable=True).astype(jnp.int32)
  return order, used.sum(axis=-1, dtype=jnp.int32)


def _part_arrays(part, number, prompts, block):
  """What the kernel reads of a part: arrays and where their blocks are."""
  rows, K, M, H = part.keys.shape
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
    *(x.reshape(prompts, samples, K, M, H) for x in part[:2]),
    part.mask.reshape(prompts, samples, M).astype(jnp.int32),
  ]
  specs = [data, data, mask]
  if part.key_scale is not None:
    for x in (part.key_scale, part.value_scale):
      arrays.append(jnp.swapaxes(x.reshape(prompts, samples, K, M), 1, 2))
      specs.append(scale)
  return arrays, specs


@functools.partial(jax.jit, static_argnames="interpret")
def _decode(q_BNH, parts, interpret):
  """The kernel: prompts by key heads by blocks, of one part after the other.

  How many blocks there are is known when it runs: those in which some row of
  some prompt has something. A prompt that needs fewer repeats its last one,
  which is not read again, and skips the work.
  """
  B, N, H = q_BNH.shape
  P, K = parts[0].keys.shape[:2]
  X = B // P * (N // K)
  q_BKRH = (q_BNH * (H**-0.5)).reshape(B, K, N // K, H)
  blocks, arrays, specs = [], [], []
  for number, part in enumerate(parts):
    block = _block(part, P)
    blocks += _used_blocks(part.mask, P, block)
    found = _part_arrays(part, number, P, block)
    arrays += found[0]
    specs += found[1]
  rows = pl.BlockSpec((None, None, X, H), lambda p, h, i, *_: (p, h, 0, 0))
  out = pl.pallas_call(
    functools.partial(
      _kernel,
      slots=tuple(part.mask.shape[1] for part in parts),
      scaled=tuple(part.key_scale is not None for part in parts),
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
  )(*blocks, _shared(q_BKRH, P), *arrays)
  return _by_row(out, B).reshape(B, N, H)


def _kernel(*refs, slots, scaled):
  """One block of keys, added to a running softmax of the queries."""
  blocks, (q, *read) = refs[: 2 * len(slots)], refs[2 * len(slots) : -4]
  out, *sums = refs[-4:]
  highest, total, summed = sums
  p, i = pl.program_id(0), pl.program_id(2)

  @pl.when(i == 0)
  def _():
    highest[...] = jnp.full_like(highest, MASKED_SCORE)
    total[...] = jnp.zeros_like(total)
    summed[...] = jnp.zeros_like(summed)

  end = 0
  for number, size in enumerate(slots):
    order, count = blocks[2 * number : 2 * number + 2]
    start, end = end, end + count[p]
    mine = read[: 5 if scaled[number] else 3]
    read = read[len(mine) :]

    @pl.when((i >= start) & (i < end))
    def _(order=order, start=start, mine=mine, size=size):
      first = order[p, jnp.maximum(i - start, 0)] * mine[0].shape[1]
      _add_part(q, mine, first, size, sums)

  @pl.when(i == jnp.maximum(end - 1, 0))
  def _():
    out[...] = (summed[...] / total[...]).astype(out.dtype)


def _add_part(q, read, first, slots, sums) -> None:
  """A block of a part: its keys row by row, each with its own queries."""
  k, v, mask, *scales = read
  samples, block = mask.shape
  X = q.shape[0] // samples
  at = first + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
  for g in range(samples):
    rows = slice(g * X, (g + 1) * X)
    kept = (mask[g : g + 1] != 0) & (at < slots)
    by_key, by_value = (
      (_there(scale[g : g + 1], at < slots) for scale in scales)
      if scales
      else (None, None)
    )
    values = v[g].astype(q.dtype)
    if slots % block:
      # After the last slot a block holds anything, even NaN.
      row = first + jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)
      values = _there(values, row < slots)
    _add(
      *(q[rows], k[g].astype(q.dtype), values, kept, by_key, by_value),
      *(rows, *sums),
    )


def _there(x: Array, kept: Array) -> Array:
  """An array with 0 where nothing is kept."""
  return jnp.where(kept, x, jnp.zeros_like(x))


def _add(q, k, v, kept, by_key, by_value, rows, highest, total, summed) -> None:
  """Updates the running maximum, sum and weighted values of some queries."""
  scores = jax.lax.dot_general(
    q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )
  if by_key is not None:
    scores = scores * by_key
  scores = jnp.where(kept, scores, MASKED_SCORE)
  old = highest[rows]
  new = jnp.maximum(old, scores.max(axis=1, keepdims=True))
  # Of blocks before the first with a key for a query the weights are 1: they
  # shrink to nothing when that comes, and one does, for a row sees itself.
  weights = jnp.exp(scores - new)
  shrink = jnp.exp(old - new)
  highest[rows] = new
  total[rows] = shrink * total[rows] + weights.sum(axis=1, keepdims=True)
  if by_value is not None:
    weights = weights * by_value
  summed[rows] = shrink * summed[rows] + jnp.dot(
    weights.astype(v.dtype), v, preferred_element_type=jnp.float32
  )
