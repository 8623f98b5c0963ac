"""The decoder: RMSNorm, rotary grouped-query attention, SwiGLU, residuals.

A pure function of a parameter tree. The same layer serves training (no cache,
layers scanned) and sampling (with a cache, layers unrolled so that each
layer's cache is updated in place), so their log-probs agree.

Letters: B rows, T tokens of this call, M cache length, D width, N query
heads, K key heads, G = N / K query heads per key head, H head dimension, F
MLP width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pure_jax.models.attention import attend_in_chunks
from pure_jax.models.config import ModelConfig
from pure_jax.models.placement import (
  HIDDEN,
  KEYS,
  LOCAL,
  MLP,
  QUERIES,
  Placement,
)
from pure_jax.models.remat import remat_attention, remat_layer
from pure_jax.models.rotary import rotary_tables, rotate

# Stands for -inf under the softmax: finite, so no row can become NaN.
MASKED_SCORE = -1e30

# A scan stacks what the backward pass needs of every layer: measured on a CPU,
# 3 layers of width 64 took a fifth longer than unrolled. Deep models are
# scanned, because the time to compile an unrolled one grows with its depth.
UNROLLED_LAYERS = 8


@struct.dataclass
class KVCache:
  """Keys and values of the tokens seen so far, one pair per layer.

  Attributes:
    keys: one [B, K, M, H] array per layer, already rotated.
    values: one [B, K, M, H] array per layer.
    segment_ids: [B, M] int32, segment of each slot; 0 for padding.
    length: [] int32, 0..M, slots written; the same for every row.
  """

  keys: tuple[Array, ...]
  values: tuple[Array, ...]
  segment_ids: Array
  length: Array


def init_cache(
  config: ModelConfig, rows: int, length: int, placement: Placement = LOCAL
) -> KVCache:
  """An empty cache.

  Args:
    config: the architecture.
    rows: B.
    length: M, the most tokens a row will hold, padding included.
    placement: where its rows and heads live.

  Returns:
    A cache of zeros in the compute dtype.
  """
  shape = (rows, config.num_kv_heads, length, config.head_dim)
  dtype = jnp.dtype(config.compute_dtype)

  def zeros():
    return tuple(
      placement.constrain(jnp.zeros(shape, dtype), KEYS)
      for _ in range(config.num_layers)
    )

  return KVCache(
    keys=zeros(),
    values=zeros(),
    segment_ids=jnp.zeros((rows, length), jnp.int32),
    length=jnp.zeros((), jnp.int32),
  )


def positions_from_mask(mask: Array) -> Array:
  """Position of each token among the kept tokens of its row.

  >>> import jax.numpy as jnp
  >>> positions_from_mask(jnp.array([[False, True, True]])).tolist()
  [[0, 0, 1]]

  Args:
    mask: [B, T] bool, True on tokens, False on padding on either side.

  Returns:
    [B, T] int32, 0 for the first token; 0 on leading padding.
  """
  return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
  """x / sqrt(mean(x^2) + epsilon) * scale, in float32.

  Args:
    x: [..., D] float; a head's vectors have H for D.
    scale: [D] float.
    epsilon: > 0.

  Returns:
    [..., D] in the dtype of x; 0 where a vector is 0.
  """
  x32 = x.astype(jnp.float32)
  mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
  normed = x32 * jax.lax.rsqrt(mean_square + epsilon)
  scale = jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))
  return (normed * scale).astype(x.dtype)


def project_tokens(
  x_BTD: Array, weight: Array, placement: Placement = LOCAL
) -> Array:
  """Applies one matrix to every token: x W.

  Rows and tokens are laid out as the rows of one matrix, unless both are split
  over devices: no one axis could be split like the two. XLA's CPU backend has
  a fast product for that, and not for three axes: measured on two cores, a
  training step of 256 rows of 61 tokens through 4 layers of width 64 took 307
  ms so and 443 ms with ``einsum("BTD,DF->BTF")``.

  Args:
    x_BTD: [B, T, D] float.
    weight: [D, ...] float, the output's axes after the first.
    placement: of the tokens.

  Returns:
    [B, T, ...] in their common dtype.
  """
  if placement.token_shards > 1:
    return jnp.tensordot(x_BTD, weight, axes=1)
  B, T, D = x_BTD.shape
  product = x_BTD.reshape(B * T, D) @ weight.reshape(D, -1)
  return product.reshape(B, T, *weight.shape[1:])


def attention_mask(
  query_segments: Array, key_segments: Array, first_slot: Array
) -> Array:
  """Which slots a token may attend to: earlier or same, of its own segment.

  Padding (segment 0) sees padding only, so no token sees nothing and no token
  sees padding.

  Args:
    query_segments: [B, T] int32, segments of this call's tokens.
    key_segments: [B, M] int32, segments of the slots.
    first_slot: [] int32, slot of this call's first token.

  Returns:
    [B, T, M] bool, True keeps.
  """
  slot = jnp.arange(key_segments.shape[1])
  query_slot = first_slot + jnp.arange(query_segments.shape[1])
  causal = slot[None, :] <= query_slot[:, None]
  same = query_segments[:, :, None] == key_segments[:, None, :]
  return same & causal[None]


def attend(
  q_BTNH: Array, k_BKMH: Array, v_BKMH: Array, mask_BTM: Array
) -> Array:
  """Grouped-query attention: softmax(q k / sqrt(H)) v, softmax in float32.

  Args:
    q_BTNH: [B, T, N, H] float, rotated queries.
    k_BKMH: [B, K, M, H] float, rotated keys.
    v_BKMH: [B, K, M, H] float, values.
    mask_BTM: [B, T, M] bool, True keeps; every query keeps something.

  Returns:
    [B, T, N, H] in the dtype of the values.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BKMH.shape[1]
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * (H**-0.5)
  scores = jnp.einsum(
    "BTKGH,BKMH->BKGTM",
    q_BTKGH,
    k_BKMH,
    preferred_element_type=jnp.float32,
  )
  scores = jnp.where(mask_BTM[:, None, None], scores, MASKED_SCORE)
  weights = jax.nn.softmax(scores, axis=-1).astype(v_BKMH.dtype)
  out = jnp.einsum("BKGTM,BKMH->BTKGH", weights, v_BKMH)
  return out.reshape(B, T, N, H)


def forward(
  params: Any,
  config: ModelConfig,
  tokens: Array,
  positions: Array,
  segment_ids: Array,
  cache: KVCache | None = None,
  placement: Placement = LOCAL,
  cache_slots: int | None = None,
) -> tuple[Array, KVCache | None]:
  """Runs the decoder.

  Causal within a segment: several texts may share a row under different
  segment ids, and padding (segment 0) on either side changes nothing.

  Args:
    params: the weights of `params.declare_decoder`; others are ignored.
    config: the architecture. The number of layers is that of the weights.
    tokens: [B, T] int32, ids.
    positions: [B, T] int32, position of each token within its text.
    segment_ids: [B, T] int32, the text a token belongs to; 0 is padding.
    cache: what came before these tokens, or None. The caller makes sure that
      cache.length + T <= M.
    placement: of the activations; a cache allows no split tokens.
    cache_slots: M of a new cache that these tokens begin, at least T, in place
      of an empty one; or None.

  Returns:
    (hidden [B, T, D] after the final norm in the compute dtype, the cache
    with these tokens appended, or None without one).
  """
  T = tokens.shape[1]
  depth = params["layers"]["attention_norm"].shape[0]
  if cache_slots is not None and depth <= UNROLLED_LAYERS:
    cache = init_cache(config, tokens.shape[0], cache_slots, placement)
  if cache is None and T % placement.token_shards:
    missing = -T % placement.token_shards
    tokens, positions, segment_ids = (
      jnp.pad(x, ((0, 0), (0, missing)))
      for x in (tokens, positions, segment_ids)
    )
  x_BTD = params["embedding"].astype(jnp.dtype(config.compute_dtype))[tokens]
  x_BTD = placement.constrain(x_BTD, HIDDEN)
  rotary = rotary_tables(
    positions, config.head_dim, config.rope_theta, config.rope_scaling
  )
  layer = functools.partial(_decoder_layer, config, placement, rotary)
  if cache is None:
    mask = attention_mask(segment_ids, segment_ids, jnp.int32(0))
    keeps = cache_slots is not None
    x_BTD, kept = _uncached_layers(
      params["layers"], config, layer, x_BTD, mask, keeps
    )
    x_BTD = x_BTD[:, :T]
    if keeps:
      cache = _begun_cache(*kept, segment_ids, cache_slots, placement)
  else:
    cache = _append_segments(cache, segment_ids)
    mask = attention_mask(segment_ids, cache.segment_ids, cache.length)
    x_BTD, cache = _cached_layers(params["layers"], layer, x_BTD, mask, cache)
  return rms_norm(x_BTD, params["final_norm"], config.norm_eps), cache


def _uncached_layers(layers, config, apply_layer, x_BTD, mask, keeps):
  """All layers without a cache: unrolled when few, else one scan."""

  def body(x, layer):
    x, present = apply_layer(layer, x, mask, None)
    return x, present if keeps else None

  body = remat_layer(body, config.remat)
  depth = layers["attention_norm"].shape[0]
  unroll = depth <= UNROLLED_LAYERS
  return jax.lax.scan(body, x_BTD, layers, unroll=unroll)


def _begun_cache(keys, values, segment_ids, slots, placement):
  """A cache of the first tokens, from stacked [layers, B, K, T, H] arrays.

  Next to an empty cache it spares the queries the slots that nothing is in,
  and the compiler a copy of the program for each layer.
  """
  length = segment_ids.shape[1]
  empty = (0, slots - length)

  def fill(stacked):
    padded = [jnp.pad(x, ((0, 0), (0, 0), empty, (0, 0))) for x in stacked]
    return tuple(placement.constrain(x, KEYS) for x in padded)

  return KVCache(
    keys=fill(keys),
    values=fill(values),
    segment_ids=jnp.pad(segment_ids, ((0, 0), empty)),
    length=jnp.int32(length),
  )


def _cached_layers(layers, apply_layer, x_BTD, mask, cache):
  """All layers with a cache, unrolled: a scan would copy the cache."""
  keys, values = [], []
  for index, (k, v) in enumerate(zip(cache.keys, cache.values, strict=True)):
    layer = jax.tree.map(lambda stacked, i=index: stacked[i], layers)
    x_BTD, (k, v) = apply_layer(layer, x_BTD, mask, (k, v, cache.length))
    keys.append(k)
    values.append(v)
  return x_BTD, cache.replace(
    keys=tuple(keys),
    values=tuple(values),
    length=cache.length + x_BTD.shape[1],
  )


def _append_segments(cache, segment_ids):
  """Writes the segments of new tokens; their keys and values come later."""
  return cache.replace(
    segment_ids=jax.lax.dynamic_update_slice(
      cache.segment_ids, segment_ids, (0, cache.length)
    )
  )


def _decoder_layer(config, placement, rotary, layer, x_BTD, mask, past):
  """One layer: attention and MLP, each added to the residual stream."""
  normed = rms_norm(x_BTD, layer["attention_norm"], config.norm_eps)
  added, present = _attention(
    config, placement, rotary, layer, normed, mask, past
  )
  x_BTD = placement.constrain(x_BTD + added, HIDDEN)
  normed = rms_norm(x_BTD, layer["mlp_norm"], config.norm_eps)
  x_BTD = placement.constrain(
    x_BTD + _mlp(config, placement, layer, normed), HIDDEN
  )
  return x_BTD, present


def _attention(config, placement, rotary, layer, x_BTD, mask, past):
  """Attention of the new tokens to the past ones and to themselves."""
  dtype = x_BTD.dtype

  def project(name):
    y = _project(config, placement, layer, name, x_BTD)
    if config.attention_bias:
      y = y + layer[f"{name}_bias"].astype(dtype)[None, None]
    return y

  def rotated(name):
    y = project(name)
    if config.qk_norm:
      y = rms_norm(y, layer[f"{name}_norm"], config.norm_eps)
    return rotate(y, *rotary)

  q = placement.constrain(rotated("query"), QUERIES)
  k = placement.constrain(jnp.swapaxes(rotated("key"), 1, 2), KEYS)
  v = placement.constrain(jnp.swapaxes(project("value"), 1, 2), KEYS)
  if past is not None:
    past_k, past_v, length = past
    at = (0, 0, length, 0)
    k = jax.lax.dynamic_update_slice(past_k, k, at)
    v = jax.lax.dynamic_update_slice(past_v, v, at)
  if config.attention_chunk is None:
    out_BTNH = remat_attention(attend, config.remat)(q, k, v, mask)
  else:
    out_BTNH = attend_in_chunks(
      attend, q, k, v, mask, config.attention_chunk, placement.token_shards
    )
  out_BTNH = placement.constrain(out_BTNH, QUERIES)
  out_BTF = out_BTNH.reshape(*x_BTD.shape[:2], -1)
  return _project(config, placement, layer, "output", out_BTF), (k, v)


def _mlp(config, placement, layer, x_BTD):
  """SwiGLU: (silu(x gate) * (x up)) down."""
  project = functools.partial(_project, config, placement, layer)
  gate, up = project("gate", x_BTD), project("up", x_BTD)
  return project("down", placement.constrain(jax.nn.silu(gate) * up, MLP))


def _project(config, placement, layer, name, x_BTD):
  """x W, and (alpha / r) (x A) B where W has adapters."""

  def times(x, part):
    weight = layer[part].astype(x_BTD.dtype)
    if name == "output":  # From heads: [N, H, ...] is one axis.
      weight = weight.reshape(-1, weight.shape[-1])
    return project_tokens(x, weight, placement)

  y = times(x_BTD, name)
  if f"{name}_lora_a" not in layer:
    return y  # Of a base, by itself or as the reference, there is no more.
  low = times(times(x_BTD, f"{name}_lora_a"), f"{name}_lora_b")
  return y + config.lora.scale * low
