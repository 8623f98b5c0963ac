"""Attention of whole texts to themselves, as training and prefill need it.

Nothing here is a kernel of our own: jax ships them. `splash` is its Pallas
kernel for TPUs, which skips blocks of keys that come later and holds no scores
in main memory; `cudnn` is NVIDIA's, through `jax.nn.dot_product_attention`.

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
# Of queries and of keys; more tokens are cut into the largest that divides.
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
  """Causal grouped-query attention within segments, softmax in float32.

  Equal to ``attend(q, k, v, attention_mask(ids))`` of
  `models.transformer`: a token sees itself and earlier tokens of its segment,
  padding (segment 0) sees padding.

  Args:
    q_BTNH: [B, T, N, H] float, rotated queries.
    k_BKTH: [B, K, T, H] float, rotated keys of the same tokens: of a cache
      that a prefill fills from its start, the first T slots.
    v_BKTH: [B, K, T, H] float, values.
    segment_ids: [B, T] int32.
    implementation: None or "xla", all scores at once; "splash", on a TPU, T
      filled up to whole blocks; "cudnn", on a GPU in 16 bits, with a mask
      [B, 1, T, T] in memory.
    interpret: runs splash step by step on any device, to test it.

  Returns:
    [B, T, N, H] in the dtype of the values. Differentiable once, in reverse
    mode.

  Raises:
    ValueError: shapes do not fit, or the implementation named cannot run.
  """
  (B, T, N, H), K = q_BTNH.shape, k_BKTH.shape[1]
  for name, found, wanted in (
    ("k_BKTH", k_BKTH.shape, (B, K, T, H)),
    ("v_BKTH", v_BKTH.shape, (B, K, T, H)),
    ("segment_ids", segment_ids.shape, (B, T)),
  ):
    if found != wanted:
      raise ValueError(f"{name} has shape {found}, not {wanted}.")
  if N % K:
    raise ValueError(f"{N} query heads are no multiple of {K} key heads.")
  obstacles = {"splash": None, "cudnn": None}
  if implementation == "cudnn":
    obstacles["cudnn"] = _cudnn_obstacle(q_BTNH)
  chosen = choose(implementation, obstacles, interpret)
  if chosen == "splash":
    return _splash(q_BTNH, k_BKTH, v_BKTH, segment_ids, interpret)
  return reference(q_BTNH, k_BKTH, v_BKTH, segment_ids, chosen)


def reference(
  q_BTNH: Array,
  k_BKTH: Array,
  v_BKTH: Array,
  segment_ids: Array,
  implementation: str = "xla",
) -> Array:
  """`segment_attention` by `jax.nn.dot_product_attention` with a mask.

  Args:
    q_BTNH: [B, T, N, H] float.
    k_BKTH: [B, K, T, H] float.
    v_BKTH: [B, K, T, H] float.
    segment_ids: [B, T] int32.
    implementation: "xla" or "cudnn", as that function takes it.

  Returns:
    [B, T, N, H].
  """
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


def _cudnn_obstacle(q) -> str | None:
  """Why cuDNN cannot run here, None where it can."""
  if jax.default_backend() != "gpu":
    return f"it needs a GPU and this is a {jax.default_backend()}"
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f"it takes bfloat16 or float16, not {q.dtype}"
  return None


@functools.partial(jax.jit, static_argnames="interpret")
def _splash(q_BTNH, k_BKTH, v_BKTH, segment_ids, interpret):
  """The kernel that jax ships, on rows filled up to whole blocks.

  What is filled up comes after every token, so that no token sees it.
  """
  T, N, H = q_BTNH.shape[1:]
  missing = -T % LANES
  tokens = T + missing
  block = next(size for size in BLOCKS if tokens % size == 0)
  q_BNTH = jnp.swapaxes(q_BTNH, 1, 2) * (H**-0.5)

  def pad(x, axis):
    width = [(0, 0)] * x.ndim
    width[axis] = (0, missing)
    return jnp.pad(x, width)

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
  ids = pad(segment_ids, 1)
  out_BNTH = jax.vmap(
    lambda q, k, v, ids: run(q, k, v, segment_ids=splash.SegmentIds(ids, ids))
  )(pad(q_BNTH, 2), pad(k_BKTH, 2), pad(v_BKTH, 2), ids)
  return jnp.swapaxes(out_BNTH[:, :, :T], 1, 2).astype(v_BKTH.dtype)
