"""Inputs of the attention kernels, and the attention they are compared with."""

import jax
import jax.numpy as jnp
import numpy as np

from pure_jax.kernels.decode_attention import SegmentArrays
from pure_jax.models.transformer import attend, attention_mask

shape = jax.ShapeDtypeStruct


def text_shapes(B, T, N, K, H, dtype=jnp.float32):
  """(q, k, v, segment ids)."""
  keys = shape((B, K, T, H), dtype)
  return shape((B, T, N, H), dtype), keys, keys, shape((B, T), jnp.int32)


def draw_texts(B, T, N, K, H, dtype=jnp.float32):
  """Rows of padding and three texts, one of them with padding after it."""
  rng = np.random.default_rng(9)
  *floats, ids = text_shapes(B, T, N, K, H, dtype)
  ids = np.sort(rng.integers(0, 4, ids.shape), axis=1).astype(np.int32)
  ids[0, -T // 4 :] = 0
  return *(rng.normal(size=x.shape).astype(dtype) for x in floats), ids


def decode_shapes(P, G, N, K, H, L, M, dtype=jnp.float32, int8=False):
  """(q, segments): prompts of L slots, and own tokens of each row in M."""

  def segment(rows, slots):
    keys = shape((rows, K, slots, H), jnp.int8 if int8 else dtype)
    scale = shape((rows, K, slots), jnp.float32) if int8 else None
    return SegmentArrays(keys, keys, shape((rows, slots), bool), scale, scale)

  return shape((P * G, N, H), dtype), (segment(P, L), segment(P * G, M))


def draw_decode(P, G, N, K, H, L, M, dtype=jnp.float32, int8=False):
  """Left-padded prompts, and rings in which rows have different lengths."""
  rng = np.random.default_rng(5)
  q, segments = decode_shapes(P, G, N, K, H, L, M, dtype, int8)

  def draw(x):
    if x.dtype == jnp.int8:
      return rng.integers(-127, 128, x.shape).astype(np.int8)
    return rng.normal(size=x.shape).astype(dtype)

  def draw_scale(x):
    if x is not None:
      return rng.uniform(0.005, 0.02, x.shape).astype(np.float32)

  prompt_mask = np.arange(L) >= rng.integers(0, L, P)[:, None]
  num_generated = rng.integers(1, M + 1, P * G)
  masks = prompt_mask, ring_mask(rng.integers(M), num_generated, M)
  return draw(q), tuple(
    SegmentArrays(
      draw(segment.keys),
      draw(segment.values),
      mask,
      draw_scale(segment.key_scale),
      draw_scale(segment.value_scale),
    )
    for segment, mask in zip(segments, masks, strict=True)
  )


def ring_mask(slot, num_generated, M):
  """[B, M] bool: the slots of a ring that hold a row's latest tokens."""
  behind = (slot - np.arange(M)) % M
  return behind[None] < np.asarray(num_generated)[:, None]


def model_attention(q, k, v, ids):
  """The attention of the decoder, as the kernels are called."""
  return attend(q, k, v, attention_mask(ids))


def value_and_gradients(function, q, k, v, ids):
  """(output, gradients by q, k and v) for one fixed cotangent."""
  weights = np.random.default_rng(1).normal(size=q.shape).astype(q.dtype)

  @jax.jit
  def run(q, k, v, ids):
    out, back = jax.vjp(lambda *three: function(*three, ids), q, k, v)
    return out, *back(weights)

  return run(q, k, v, ids)
