"""Attention within whole texts, for training and prefill.

jax ships the kernels. `splash` is a Pallas kernel for TPUs that
skips blocks of later keys and keeps no scores in main memory; `cudnn` is
NVIDIA's kernel, called through `jax.nn.dot_product_attention`.

Letters: B rows, T tokens, N query heads, K key heads, H head dimension.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)

from pure_jax.kernels.dispatch import choose

LANES = 128
# Sizes of a block of queries or keys. The largest divisor of T is taken.
BLOCKS = (512, 384, 256, LANES)


def segment_attention(
  q_BTNH: Array,
  k_BKTH: Array,
  v_BKTH: Array,
  segment_ids: Array,
  *,
  implementation: str | None = None,
  interpret: bool = False,
) -> Array:
  """Computes causal grouped-query attention within segments.

  The softmax is in float32. The result is that of ``attend(q, k, v,
  attention_mask(ids))`` in `models.transformer`: a token attends to itself and
  to earlier tokens of its segment; padding is segment 0.

  Args:
    q_BTNH: [B, T, N, H] float, rotated queries.
    k_BKTH: [B, K, T, H] float, rotated keys of the same tokens, such as the
      first T slots of a cache in a prefill. Keys and values must be finite
      at padding too: a weight of 0 times NaN is NaN.
    v_BKTH: [B, K, T, H] float, values.
    segment_ids: [B, T] int32.
    implementation: None or "xla": all scores at once. "splash": on a TPU, with
      T padded to whole blocks. "cudnn": on a GPU in 16 bits, with T padded to
      an even number and a mask [B, 1, T, T] in memory.
    interpret: runs splash step by step on any device, for tests.

  Returns:
    [B, T, N, H] in the dtype of the values; B and T may be 0. Differentiable
    once, in reverse mode.

  Raises:
    ValueError: if shapes do not match, or the named implementation cannot run.
  """
  (B, T, N, H), K = q_BTNH.shape, k_BKTH.shape[1]
  for name, x, shape in (
    ("k_BKTH", k_BKTH, (B, K, T, H)),
    ("v_BKTH", v_BKTH, (B, K, T, H)),
    ("segment_ids", segment_ids, (B, T)),
  ):
    if x.shape != shape:
      raise ValueError(f"{name} has shape {x.shape}, not {shape}.")
  if N % K:
    raise ValueError(f"{N} query heads are no multiple of {K} key heads.")
  obstacles = {"splash": None, "cudnn": None}
  if implementation == "cudnn":
    # Only then jax looks for its devices.
    obstacles["cudnn"] = _cudnn_obstacle(q_BTNH)
  chosen = choose(implementation, obstacles, interpret)
  if not q_BTNH.size:
    chosen = "xla"  # Kernels have no empty grid.
  if chosen == "splash":
    return _splash(q_BTNH, k_BKTH, v_BKTH, segment_ids, interpret)
  if chosen == "cudnn" and T % 2:
    # With a mask its gradient takes an even number of tokens.
    padded = _pad(q_BTNH, 1, 1), _pad(k_BKTH, 2, 1), _pad(v_BKTH, 2, 1)
    return _reference(*padded, _pad(segment_ids, 1, 1), chosen)[:, :T]
  return _reference(q_BTNH, k_BKTH, v_BKTH, segment_ids, chosen)


def _reference(q_BTNH, k_BKTH, v_BKTH, segment_ids, implementation):
  """jax's attention with a mask, by "xla" or "cudnn"."""
  T = segment_ids.shape[1]
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  causal = jnp.tril(jnp.ones((T, T), bool))
  return jax.nn.dot_product_attention(
    q_BTNH,
    jnp.swapaxes(k_BKTH, 1, 2),
    jnp.swapaxes(v_BKTH, 1, 2),
    mask=(same & causal[None])[:, None],
    implementation=implementation,
  )


def _pad(x: Array, axis: int, missing: int) -> Array:
  """Appends zeros, to which no token attends, since they come after all."""
  width = [(0, 0)] * x.ndim
  width[axis] = (0, missing)
  return jnp.pad(x, width)


def _cudnn_obstacle(q) -> str | None:
  """Explains why cuDNN cannot run; None if it can."""
  if jax.default_backend() != "gpu":
    return f"it needs a GPU and this is a {jax.default_backend()}"
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f"it takes bfloat16 or float16, not {q.dtype}"
  return None


@functools.partial(jax.jit, static_argnames="interpret")
def _splash(q_BTNH, k_BKTH, v_BKTH, segment_ids, interpret):
  """Runs jax's kernel on rows that are padded to whole blocks.

  The padding comes after every token, so that no token attends to it.
  """
  T, N, H = q_BTNH.shape[1:]
  missing = -T % LANES
  tokens = T + missing
  block = next(size for size in BLOCKS if tokens % size == 0)
  q_BNTH = jnp.swapaxes(q_BTNH, 1, 2) * (H**-0.5)

  causal = splash_mask.CausalMask((tokens, tokens))
  run = splash.make_splash_mha(
    splash_mask.MultiHeadMask([causal] * N),
    block_sizes=splash.BlockSizes(
      **dict.fromkeys(
        (
          *("block_q", "block_kv", "block_kv_compute"),
          *("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"),
          *("block_q_dq", "block_kv_dq"),
        ),
        block,
      )
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  ids = _pad(segment_ids, 1, missing)
  out_BNTH = jax.vmap(
    lambda q, k, v, ids: run(q, k, v, segment_ids=splash.SegmentIds(ids, ids))
  )(*(_pad(x, 2, missing) for x in (q_BNTH, k_BKTH, v_BKTH)), ids)
  return jnp.swapaxes(out_BNTH[:, :, :T], 1, 2).astype(v_BKTH.dtype)
