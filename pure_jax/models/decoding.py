"""Decoding: one token per row at a time, from a cache of keys and values.

Letters: P prompts, B rows, B = P G; L prompt tokens, M slots of the ring, S
slots of a row; N query heads, K key heads, H head dimension.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.columns import unstack_layers
from pure_jax.models.config import ModelConfig
from pure_jax.models.kv_cache import KVCache, Stored, begin_cache, store
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
  samples: int = 1,
  slots: int = 1,
  shared: bool = False,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[Array, KVCache]:
  """Runs prompts through the model, each once for all of its samples.

  Args:
    params: policy weights, layers stacked.
    config: the architecture.
    tokens: [P, L] int32, left-padded.
    mask: [P, L] bool.
    samples: G, rows of each prompt.
    slots: M, of the ring, at least 1.
    shared: True keeps one copy of a prompt for its G rows, False one for each.
    act_sharding: of activations and cache, without split tokens.

  Returns:
    (hidden [P, 1, D] of the last token, from which the first token of all G
    samples is drawn; the cache of B = P G rows, samples of a prompt
    contiguous).
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
    config, *present, mask, samples, slots, shared, act_sharding
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
    params: policy weights, layers stacked or as `columns.decoding_params`
      gives them.
    config: the architecture.
    tokens: [B] int32.
    positions: [B] int32, position of each token within its text.
    cache: what came before, of at most M tokens beside the prompt in any row
      that is still read.
    act_sharding: of activations and cache, without split tokens.

  Returns:
    (hidden [B, 1, D] after the final norm, the cache with the tokens in it).
  """
  layers = params["layers"]
  if isinstance(layers, dict):
    layers = unstack_layers(layers)
  B, S = cache.mask.shape
  cache = cache.replace(
    mask=jax.lax.dynamic_update_slice(
      cache.mask, jnp.ones((B, 1), bool), (0, cache.slot)
    )
  )
  rotary = rotary_tables(
    positions[:, None], config.head_dim, config.rope_theta, config.rope_scaling
  )
  x_BTD = embed(params, config, tokens[:, None], act_sharding)
  keys, values = [], []
  for index, layer in enumerate(layers):

    def attention(q_BTNH, k_BKTH, v_BKTH, index=index):
      k = _write(cache.keys[index], k_BKTH, cache.slot)
      v = _write(cache.values[index], v_BKTH, cache.slot)
      parts = [(k, v, cache.mask)]
      if cache.prompt_mask is not None:
        prompt = cache.prompt_keys[index], cache.prompt_values[index]
        parts.insert(0, (*prompt, cache.prompt_mask))
      read = act_sharding.decode_attention or attend_to_parts
      return read(q_BTNH, parts), (k, v)

    x_BTD, (k, v) = decoder_layer(
      config, act_sharding, rotary, layer, x_BTD, attention
    )
    keys.append(k)
    values.append(v)
  following = jnp.where(cache.slot + 1 < S, cache.slot + 1, cache.first)
  cache = cache.replace(keys=tuple(keys), values=tuple(values), slot=following)
  return rms_norm(x_BTD, params["final_norm"], config.norm_eps), cache


def attend_to_parts(
  q_BTNH: Array, parts: list[tuple[Stored, Stored, Array]]
) -> Array:
  """Attention of one token per row to slots that lie in several arrays.

  One softmax over all of them, in float32. A part of Q rows, of which B is a
  multiple, is read by B / Q neighbours each.

  Args:
    q_BTNH: [B, 1, N, H] float, rotated queries.
    parts: keys [Q, K, M, H], values [Q, K, M, H] and a mask [Q, M], True on
      slots that may be read. Every row may read some slot.

  Returns:
    [B, 1, N, H] in the dtype of the queries.
  """
  B, _, N, H = q_BTNH.shape
  K = parts[0][0].data.shape[1]
  q_BKGH = q_BTNH.reshape(B, K, N // K, H) * (H**-0.5)
  scores = [_part_scores(q_BKGH, k, mask) for k, _, mask in parts]
  weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
  out, start = 0.0, 0
  for _, v, mask in parts:
    end = start + mask.shape[1]
    out = out + _part_values(weights[..., start:end], v, q_BTNH.dtype)
    start = end
  return out.reshape(B, 1, N, H)


def _part_scores(q_BKGH, keys, mask_QM):
  """Scores [B, K, G, M] of one part, float32."""
  B, _, G, _ = q_BKGH.shape
  grouped = _to_groups(q_BKGH, mask_QM.shape[0])
  scores = jax.lax.platform_dependent(
    grouped,
    keys.data.astype(grouped.dtype),
    cpu=_keys_times_queries,
    default=_queries_times_keys,
  )
  if keys.scale is not None:
    scores = scores * keys.scale[:, :, None]
  scores = jnp.where(mask_QM[:, None, None], scores, MASKED_SCORE)
  return _from_groups(scores, B, G)


def _queries_times_keys(q_QKXH, k_QKMH):
  """Products [Q, K, X, M], float32."""
  return jnp.einsum(
    "QKXH,QKMH->QKXM", q_QKXH, k_QKMH, preferred_element_type=jnp.float32
  )


def _keys_times_queries(q_QKXH, k_QKMH):
  """The same, keys first: a CPU need not copy them, see `columns`."""
  columns = jax.lax.optimization_barrier(jnp.swapaxes(q_QKXH, 2, 3))
  scores = jnp.einsum(
    "QKMH,QKHX->QKMX", k_QKMH, columns, preferred_element_type=jnp.float32
  )
  return jnp.swapaxes(jax.lax.optimization_barrier(scores), 2, 3)


def _part_values(weights_BKGM, values, dtype):
  """Weighted sums [B, K, G, H] of one part."""
  B, _, G, _ = weights_BKGM.shape
  weights = _to_groups(weights_BKGM, values.data.shape[0])
  if values.scale is not None:
    weights = weights * values.scale[:, :, None]
  out = jnp.einsum(
    "QKXM,QKMH->QKXH", weights.astype(dtype), values.data.astype(dtype)
  )
  return _from_groups(out, B, G)


def _to_groups(x_BKGY, count):
  """[B, K, G, Y] -> [Q, K, (B / Q) G, Y]: neighbours in one product."""
  B, K, G, Y = x_BKGY.shape
  if count == B:
    return x_BKGY
  x = x_BKGY.reshape(count, B // count, K, G, Y)
  return jnp.swapaxes(x, 1, 2).reshape(count, K, -1, Y)


def _from_groups(x_QKXY, rows, G):
  """The inverse of `_to_groups`."""
  Q, K, _, Y = x_QKXY.shape
  if rows == Q:
    return x_QKXY
  x = x_QKXY.reshape(Q, K, rows // Q, G, Y)
  return jnp.swapaxes(x, 1, 2).reshape(rows, K, G, Y)


def _write(kept, x_BK1H, slot):
  """Puts the newest token's keys or values into its slot."""
  new = store(x_BK1H, str(kept.data.dtype))
  data = jax.lax.dynamic_update_slice(kept.data, new.data, (0, 0, slot, 0))
  if kept.scale is None:
    return Stored(data, None)
  return Stored(
    data, jax.lax.dynamic_update_slice(kept.scale, new.scale, (0, 0, slot))
  )
