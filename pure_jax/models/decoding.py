"""Prefill and decoding: one token per row at a time, from a KV cache.

The legend of axes is in `pure_jax.types`. Here Q = N / K is the number of query
heads of a key head, and M the number of entries of a KV segment.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.config import ModelConfig
from pure_jax.models.cpu_layout import unstack_layers
from pure_jax.models.kv_cache import KVCache, KVSegment, begin_cache, store
from pure_jax.models.rotary import rotary_tables
from pure_jax.models.transformer import (
  MASKED_SCORE,
  decoder_layer,
  embed,
  forward,
  positions_from_mask,
  rms_norm,
)


def prefill(
  params: Any,
  config: ModelConfig,
  tokens: Array,
  mask: Array,
  group_size: int = 1,
  ring_length: int = 1,
  share_prompts: bool = False,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[Array, KVCache]:
  """Runs prompts through the model, each once for all of its samples.

  Args:
    params: policy weights, layers stacked.
    config: the architecture.
    tokens: [P, L] int32, left-padded.
    mask: [P, L] bool.
    group_size: G, rows of each prompt.
    ring_length: see `kv_cache.begin_cache`.
    share_prompts: see `kv_cache.begin_cache`.
    act_sharding: sharding of activations and cache. It must not split tokens.

  Returns:
    (hidden [P, 1, D] of the last token, which gives the first token of all G
    samples; the cache of B = P G rows, samples of a prompt contiguous).
  """
  hidden, present = forward(
    params,
    config,
    tokens,
    positions_from_mask(mask),
    mask.astype(jnp.int32),
    act_sharding,
    keeps_cache=True,
  )
  cache = begin_cache(
    config,
    *present,
    mask,
    group_size,
    ring_length,
    share_prompts,
    act_sharding,
  )
  return hidden[:, -1:], cache


def decode_token(
  params: Any,
  config: ModelConfig,
  tokens: Array,
  positions: Array,
  cache: KVCache,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[Array, KVCache]:
  """Appends one token to every row.

  Args:
    params: policy weights, layers stacked or from
      `cpu_layout.decoding_params`.
    config: the architecture.
    tokens: [B] int32.
    positions: [B] int32, position of each token within its text.
    cache: keys and values of the tokens before. The ring must be longer than
      the number of generated tokens of every row that is still used.
    act_sharding: sharding of activations and cache. It must not split tokens.

  Returns:
    (hidden [B, 1, D] after the final norm, the cache with the tokens in it).
  """
  layers = params["layers"]
  if isinstance(layers, dict):
    layers = unstack_layers(layers)
  B, M = cache.mask.shape
  cache = cache.replace(
    mask=jax.lax.dynamic_update_slice(
      cache.mask, jnp.ones((B, 1), bool), (0, cache.write_index)
    )
  )
  rotary = rotary_tables(positions[:, None], config)
  x_BTD = embed(params, config, tokens[:, None], act_sharding)
  keys, values = [], []
  for index, layer in enumerate(layers):

    def attention(q_BTNH, k_BKTH, v_BKTH, index=index):
      k = _write(cache.keys[index], k_BKTH, cache.write_index)
      v = _write(cache.values[index], v_BKTH, cache.write_index)
      segments = [KVSegment(k, v, cache.mask)]
      if cache.prompt_mask is not None:
        prompt = cache.prompt_keys[index], cache.prompt_values[index]
        segments.insert(0, KVSegment(*prompt, cache.prompt_mask))
      attend = act_sharding.decode_attention or attend_to_cache
      return attend(q_BTNH, segments), (k, v)

    x_BTD, (k, v) = decoder_layer(
      config, act_sharding, rotary, layer, x_BTD, attention
    )
    keys.append(k)
    values.append(v)
  after = cache.write_index + 1
  cache = cache.replace(
    keys=tuple(keys),
    values=tuple(values),
    write_index=jnp.where(after < M, after, cache.ring_start),
  )
  return rms_norm(x_BTD, params["final_norm"], config.norm_eps), cache


def attend_to_cache(q_BTNH: Array, segments: Sequence[KVSegment]) -> Array:
  """Attention of one token per row to a cache that lies in several arrays.

  The softmax is over all segments, in float32. Row p of a segment with P rows
  is shared by the B / P queries of the rows p B / P, ..., (p + 1) B / P - 1.

  Args:
    q_BTNH: [B, 1, N, H] float, rotated queries.
    segments: keys, values and masks. Every row may attend to some entry.

  Returns:
    [B, 1, N, H] in the dtype of the queries.
  """
  B, _, N, H = q_BTNH.shape
  K = segments[0].keys.data.shape[1]
  q_BKQH = q_BTNH.reshape(B, K, N // K, H) * (H**-0.5)
  scores = [_segment_scores(q_BKQH, x.keys, x.mask) for x in segments]
  weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
  out, start = 0.0, 0
  for segment in segments:
    end = start + segment.mask.shape[1]
    out = out + _segment_values(
      weights[..., start:end], segment.values, q_BTNH.dtype
    )
    start = end
  return out.reshape(B, 1, N, H)


def _segment_scores(q_BKQH, keys, mask_PM):
  """Scores [B, K, Q, M] of one segment, float32."""
  B, _, Q, _ = q_BKQH.shape
  grouped = _group_rows(q_BKQH, mask_PM.shape[0])
  scores = jax.lax.platform_dependent(
    grouped,
    keys.data.astype(grouped.dtype),
    cpu=_keys_times_queries,
    default=_queries_times_keys,
  )
  if keys.scale is not None:
    scores = scores * keys.scale[:, :, None]
  scores = jnp.where(mask_PM[:, None, None], scores, MASKED_SCORE)
  return _ungroup_rows(scores, B, Q)


def _queries_times_keys(q_PKXH, k_PKMH):
  """Products [P, K, X, M], float32; X are the queries that share a row."""
  return jnp.einsum(
    "PKXH,PKMH->PKXM", q_PKXH, k_PKMH, preferred_element_type=jnp.float32
  )


def _keys_times_queries(q_PKXH, k_PKMH):
  """The same with the keys first, so that a CPU copies the queries."""
  columns = jax.lax.optimization_barrier(jnp.swapaxes(q_PKXH, 2, 3))
  scores = jnp.einsum(
    "PKMH,PKHX->PKMX", k_PKMH, columns, preferred_element_type=jnp.float32
  )
  return jnp.swapaxes(jax.lax.optimization_barrier(scores), 2, 3)


def _segment_values(weights_BKQM, values, dtype):
  """Weighted sums [B, K, Q, H] over one segment."""
  B, _, Q, _ = weights_BKQM.shape
  weights = _group_rows(weights_BKQM, values.data.shape[0])
  if values.scale is not None:
    weights = weights * values.scale[:, :, None]
  # With a result of 16 bits a CPU would not use its instructions for them.
  out = jnp.einsum(
    "PKXM,PKMH->PKXH",
    weights.astype(dtype),
    values.data.astype(dtype),
    preferred_element_type=jnp.float32,
  )
  return _ungroup_rows(out.astype(dtype), B, Q)


def _group_rows(x_BKQY, P):
  """[B, K, Q, Y] -> [P, K, (B / P) Q, Y]: rows that share keys, together."""
  B, K, Q, Y = x_BKQY.shape
  if P == B:
    return x_BKQY
  x = x_BKQY.reshape(P, B // P, K, Q, Y)
  return jnp.swapaxes(x, 1, 2).reshape(P, K, -1, Y)


def _ungroup_rows(x_PKXY, B, Q):
  """The inverse of `_group_rows`."""
  P, K, _, Y = x_PKXY.shape
  if B == P:
    return x_PKXY
  x = x_PKXY.reshape(P, K, B // P, Q, Y)
  return jnp.swapaxes(x, 1, 2).reshape(B, K, Q, Y)


def _write(stored, x_BK1H, index):
  """Writes the newest token's keys or values at an index of the cache."""
  return jax.tree.map(
    lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, index, 2),
    stored,
    store(x_BK1H, str(stored.data.dtype)),
  )
