"""Attention of one new token per row, to a prompt that rows share.

The samples of a prompt have its keys and values in common: they are stored,
and read, once for all of them. What a row has made itself lies in a ring of M
slots, written at the same place for every row; its age says how many of the
latest slots are its own.

Letters: P prompts, G samples of each, B = P G rows, N query heads, K key
heads, R = N / K, L prompt tokens, M slots of the ring, H head dimension,
Q = G R query rows that read the same keys.
"""

import functools

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


def decode_attention(
  q_BNH: Array,
  prefix_k_PKLH: Array,
  prefix_v_PKLH: Array,
  prefix_mask_PL: Array,
  k_BKMH: Array,
  v_BKMH: Array,
  slot: Array,
  ages: Array,
  *,
  implementation: str | None = None,
  interpret: bool = False,
) -> Array:
  """softmax(q k / sqrt(H)) v over the prompt's tokens and the row's own.

  Rows of one prompt are contiguous: row b reads prompt b // G. Row b attends
  to the kept tokens of the prompt and to the slots s of its ring with (slot -
  s) mod M < ages[b]. The softmax is one, in float32, over both.

  Args:
    q_BNH: [B, N, H] float, rotated queries.
    prefix_k_PKLH: [P, K, L, H] float, rotated keys of prompts; P divides B.
    prefix_v_PKLH: [P, K, L, H] float, their values.
    prefix_mask_PL: [P, L] bool, True keeps.
    k_BKMH: [B, K, M, H] float, rotated keys of rows; unwritten slots may hold
      any finite value.
    v_BKMH: [B, K, M, H] float, their values.
    slot: [] int32, 0..M-1, the slot written last, the same for every row.
    ages: [B] int32, 1..M, slots that the row attends to.
    implementation: None or "xla", two products and a softmax; "pallas", a
      kernel that reads only blocks in which a row of the prompt has something.
    interpret: runs the kernel step by step on any device, to test it.

  Returns:
    [B, N, H] in the dtype of the values. The kernel has no gradient.

  Raises:
    ValueError: shapes do not fit, or the implementation named cannot run.
  """
  _check_shapes(q_BNH, prefix_k_PKLH, prefix_mask_PL, k_BKMH, ages)
  obstacle = _obstacle(prefix_k_PKLH, k_BKMH)
  arguments = (
    *(q_BNH, prefix_k_PKLH, prefix_v_PKLH, prefix_mask_PL),
    *(k_BKMH, v_BKMH, slot, ages),
  )
  if choose(implementation, {"pallas": obstacle}, interpret) == "xla":
    return reference(*arguments)
  return _decode(*arguments, interpret)


def _check_shapes(q, prefix_k, prefix_mask, k, ages) -> None:
  """Raises where arrays would broadcast or mix up rows."""
  (B, N, H), (P, K, L, _) = q.shape, prefix_k.shape
  M = k.shape[2]
  if B % P or N % K:
    raise ValueError(
      f"{B} rows must be a multiple of {P} prompts, {N} query heads one of {K} "
      "key heads."
    )
  for name, found, wanted in (
    ("prefix_k_PKLH", prefix_k.shape, (P, K, L, H)),
    ("prefix_mask_PL", prefix_mask.shape, (P, L)),
    ("k_BKMH", k.shape, (B, K, M, H)),
    ("ages", ages.shape, (B,)),
  ):
    if found != wanted:
      raise ValueError(f"{name} has shape {found}, not {wanted}.")


def _attended(slot: Array, ages: Array, slots: int) -> Array:
  """[B, M] bool, the slots that each row has made."""
  behind = (slot - jnp.arange(slots)) % slots
  return behind[None] < ages[:, None]


def _by_prompt(x: Array, prompts: int) -> Array:
  """[B, K, R, ...] -> [P, K, Q, ...], all rows of a prompt side by side."""
  B, K, R, *rest = x.shape
  x = jnp.swapaxes(x.reshape(prompts, B // prompts, K, R, *rest), 1, 2)
  return x.reshape(prompts, K, -1, *rest)


def _by_row(x: Array, rows: int) -> Array:
  """[P, K, Q, ...] -> [B, K, R, ...]."""
  P, K, Q, *rest = x.shape
  samples = rows // P
  x = jnp.swapaxes(x.reshape(P, K, samples, Q // samples, *rest), 1, 2)
  return x.reshape(rows, K, Q // samples, *rest)


def reference(
  q_BNH: Array,
  prefix_k_PKLH: Array,
  prefix_v_PKLH: Array,
  prefix_mask_PL: Array,
  k_BKMH: Array,
  v_BKMH: Array,
  slot: Array,
  ages: Array,
) -> Array:
  """`decode_attention` as two products each: one with prompts, one with rings.

  The scores are not brought together, only their maxima and sums.

  Args:
    q_BNH: [B, N, H] float.
    prefix_k_PKLH: [P, K, L, H] float.
    prefix_v_PKLH: [P, K, L, H] float.
    prefix_mask_PL: [P, L] bool.
    k_BKMH: [B, K, M, H] float.
    v_BKMH: [B, K, M, H] float.
    slot: [] int32.
    ages: [B] int32.

  Returns:
    [B, N, H] in the dtype of the values. Differentiable.
  """
  B, N, H = q_BNH.shape
  P, K = prefix_k_PKLH.shape[:2]
  dtype = v_BKMH.dtype
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  q_BKRH = (q_BNH * (H**-0.5)).reshape(B, K, N // K, H)
  shared = product("PKQH,PKLH->PKQL", _by_prompt(q_BKRH, P), prefix_k_PKLH)
  shared = jnp.where(prefix_mask_PL[:, None, None], shared, MASKED_SCORE)
  own = product("BKRH,BKMH->BKRM", q_BKRH, k_BKMH)
  kept = _attended(slot, ages, k_BKMH.shape[2])
  own = jnp.where(kept[:, None, None], own, MASKED_SCORE)

  highest = jnp.maximum(_by_row(shared.max(axis=-1), B), own.max(axis=-1))
  highest = jax.lax.stop_gradient(highest)
  shared = jnp.exp(shared - _by_prompt(highest, P)[..., None])
  own = jnp.exp(own - highest[..., None])
  total = _by_row(shared.sum(axis=-1), B) + own.sum(axis=-1)
  of_prompt = product("PKQL,PKLH->PKQH", shared.astype(dtype), prefix_v_PKLH)
  of_row = product("BKRM,BKMH->BKRH", own.astype(dtype), v_BKMH)
  out = (_by_row(of_prompt, B) + of_row) / total[..., None]
  return out.astype(dtype).reshape(B, N, H)


def _block(slots: int, row_bytes: int) -> int:
  """Slots of a block: all, or a multiple of the lanes that fits."""
  fits = max(BLOCK_BYTES // row_bytes // LANES, 1) * LANES
  return min(slots, BLOCK_SLOTS, fits)


def _slot_bytes(prefix_k, k) -> int:
  """Of one slot in the rings of all samples of a prompt."""
  samples = k.shape[0] // prefix_k.shape[0]
  return samples * k.shape[3] * k.dtype.itemsize


def _obstacle(prefix_k, k) -> str | None:
  """Why the kernel cannot take these arrays, None where it can."""
  needed = min(k.shape[2], LANES) * _slot_bytes(prefix_k, k)
  if needed > BLOCK_BYTES:
    return (
      f"{LANES} slots of all samples of a prompt have {needed} bytes of keys, "
      f"more than the {BLOCK_BYTES} of a block"
    )
  return None


def _used_blocks(kept: Array, block: int) -> tuple[Array, Array]:
  """Blocks that hold something: ([P, n] int32 the used first, [P] count)."""
  P, slots = kept.shape
  missing = -slots % block
  kept = jnp.pad(kept, ((0, 0), (0, missing)))
  used = kept.reshape(P, -1, block).any(axis=-1)
  order = jnp.argsort(~used, axis=-1, stable=True).astype(jnp.int32)
  return order, used.sum(axis=-1, dtype=jnp.int32)


def _index_maps():
  """Where the kernel finds its blocks: of heads, prompts, masks and rings."""

  def prompt_block(p, i, order, count):
    return order[p, jnp.clip(i, 0, jnp.maximum(count[p] - 1, 0))]

  def at_prompt(p, h, i, order, count, *_):
    return p, h, prompt_block(p, i, order, count), 0

  def at_mask(p, h, i, order, count, *_):
    return p, 0, prompt_block(p, i, order, count)

  def at_rings(p, h, i, _, before, order, count, *__):
    last = jnp.maximum(count[p] - 1, 0)
    return p, 0, h, order[p, jnp.clip(i - before[p], 0, last)], 0

  def at_head(p, h, i, *_):
    return p, h, 0, 0

  return at_head, at_prompt, at_mask, at_rings


@functools.partial(jax.jit, static_argnames="interpret")
def _decode(
  q_BNH, prefix_k, prefix_v, prefix_mask, k_BKMH, v_BKMH, slot, ages, interpret
):
  """The kernel: prompts by key heads by blocks, of the prompt, then of rings.

  How many blocks there are is known when it runs: those in which some row of
  some prompt has something. A prompt that needs fewer repeats its last one,
  which is not read again, and skips the work.
  """
  B, N, H = q_BNH.shape
  P, K, L, _ = prefix_k.shape
  G, R, M = B // P, N // K, k_BKMH.shape[2]
  q_BKRH = (q_BNH * (H**-0.5)).reshape(B, K, R, H)
  of_prompt = _block(L, H * prefix_k.dtype.itemsize)
  of_rings = _block(M, _slot_bytes(prefix_k, k_BKMH))
  kept = _attended(slot, ages, M).reshape(P, G, M).any(axis=1)
  prompt_order, prompt_count = _used_blocks(prefix_mask, of_prompt)
  ring_order, ring_count = _used_blocks(kept, of_rings)
  steps = jnp.max(prompt_count + ring_count)

  at_head, at_prompt, at_mask, at_rings = _index_maps()
  rows = pl.BlockSpec((None, None, G * R, H), at_head)
  prefix = pl.BlockSpec((None, None, of_prompt, H), at_prompt)
  rings = pl.BlockSpec((None, G, None, of_rings, H), at_rings)
  out = pl.pallas_call(
    functools.partial(_kernel, prompt_slots=L, ring_slots=M),
    out_shape=jax.ShapeDtypeStruct((P, K, G * R, H), v_BKMH.dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=6,
      grid=(P, K, steps),
      in_specs=[
        rows,
        prefix,
        prefix,
        pl.BlockSpec((None, 1, of_prompt), at_mask),
        rings,
        rings,
      ],
      out_specs=rows,
      scratch_shapes=[
        pltpu.VMEM((G * R, 1), jnp.float32),
        pltpu.VMEM((G * R, 1), jnp.float32),
        pltpu.VMEM((G * R, H), jnp.float32),
      ],
    ),
    interpret=interpret,
    name="decode_attention",
  )(
    *(prompt_order, prompt_count, ring_order, ring_count),
    *(jnp.reshape(slot, 1).astype(jnp.int32), ages.astype(jnp.int32)),
    *(_by_prompt(q_BKRH, P), prefix_k, prefix_v),
    prefix_mask[:, None].astype(jnp.int32),
    *(x.reshape(P, G, K, M, H) for x in (k_BKMH, v_BKMH)),
  )
  return _by_row(out, B).reshape(B, N, H)


def _kernel(
  prompt_order,
  prompt_count,
  ring_order,
  ring_count,
  slot,
  ages,
  q,
  prefix_k,
  prefix_v,
  prefix_mask,
  k,
  v,
  out,
  highest,
  total,
  summed,
  *,
  prompt_slots,
  ring_slots,
):
  """One block of keys, added to a running softmax of the queries."""
  p, i = pl.program_id(0), pl.program_id(2)
  before, after = prompt_count[p], ring_count[p]
  samples = k.shape[0]
  R = q.shape[0] // samples

  @pl.when(i == 0)
  def _():
    highest[...] = jnp.full_like(highest, MASKED_SCORE)
    total[...] = jnp.zeros_like(total)
    summed[...] = jnp.zeros_like(summed)

  @pl.when(i < before)
  def _():
    first = prompt_order[p, i] * prefix_k.shape[0]
    kept = (prefix_mask[...] != 0) & (
      first + _lane(1, prefix_k.shape[0]) < prompt_slots
    )
    values = _there(prefix_v[...], first, prompt_slots)
    every = slice(None)
    _add(q[...], prefix_k[...], values, kept, every, highest, total, summed)

  @pl.when((i >= before) & (i < before + after))
  def _():
    index = jnp.maximum(i - before, 0)
    first = ring_order[p, index] * k.shape[1]
    at = first + _lane(1, k.shape[1])
    behind = slot[0] - at
    behind = jnp.where(behind < 0, behind + ring_slots, behind)
    for g in range(samples):
      rows = slice(g * R, (g + 1) * R)
      kept = (behind < ages[p * samples + g]) & (at < ring_slots)
      values = _there(v[g], first, ring_slots)
      _add(q[rows], k[g], values, kept, rows, highest, total, summed)

  @pl.when(i == jnp.maximum(before + after - 1, 0))
  def _():
    out[...] = (summed[...] / total[...]).astype(out.dtype)


def _lane(*shape: int) -> Array:
  """Number of each lane."""
  return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)


def _there(values: Array, first: Array, slots: int) -> Array:
  """Values with 0 after the last slot, where a block holds anything at all."""
  if slots % values.shape[0] == 0:
    return values
  at = first + jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)
  return jnp.where(at < slots, values, jnp.zeros_like(values))


def _add(q, k, v, kept, rows, highest, total, summed) -> None:
  """Updates the running maximum, sum and weighted values of some queries."""
  scores = jax.lax.dot_general(
    q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )
  scores = jnp.where(kept, scores, MASKED_SCORE)
  old = highest[rows]
  new = jnp.maximum(old, scores.max(axis=1, keepdims=True))
  # Of blocks before the first with a key for a query the weights are 1: they
  # shrink to nothing when that comes, and one does, for a row sees itself.
  weights = jnp.exp(scores - new)
  shrink = jnp.exp(old - new)
  highest[rows] = new
  total[rows] = shrink * total[rows] + weights.sum(axis=1, keepdims=True)
  summed[rows] = shrink * summed[rows] + jnp.dot(
    weights.astype(v.dtype), v, preferred_element_type=jnp.float32
  )
