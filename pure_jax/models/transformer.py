"""The decoder: RMSNorm, rotary grouped-query attention, SwiGLU, residuals.

The decoder is a pure function of a parameter tree. `decoding` uses the same
layer for one token at a time, so the log-probs of sampling and training agree.

The legend of axes is in `pure_jax.types`. M is the number of keys, which is T
for whole texts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pure_jax.models.activation_sharding import (
  HIDDEN,
  KEYS,
  LOCAL,
  MLP,
  QUERIES,
  ActivationSharding,
)
from pure_jax.models.attention import attend_in_chunks
from pure_jax.models.config import ModelConfig
from pure_jax.models.cpu_layout import ColumnMatrix, matrix_product
from pure_jax.models.int8 import Int8Matrix
from pure_jax.models.rotary import rotary_tables, rotate

# Used in place of -inf under the softmax: finite, so no row becomes NaN.
MASKED_SCORE = -1e30

# Up to this depth, layers are unrolled. A scan stacks the residuals of every
# layer: on a CPU, 3 layers of width 64 took a fifth longer than unrolled. Deep
# models are scanned, because compile time grows with the unrolled depth.
UNROLLED_LAYERS = 8

# Names of activations that a policy of `config.REMAT` saves. The output of
# attention is as large as that of one product. Attention in chunks computes its
# scores again in its own backward pass. If its output were not saved, the
# layer's backward pass would compute them once more.
_LAYER_INPUT, _ATTENDED, _PRODUCT = "layer_input", "attended", "product"

Attention = Callable[[Array, Array, Array], tuple[Array, Any]]


def positions_from_mask(mask: Array) -> Array:
  """Computes the position of each token among the kept tokens of its row.

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
  """RMSNorm: x / sqrt(mean(x^2) + epsilon) * scale, computed in float32.

  Args:
    x: [..., D] float; H takes the place of D for the vectors of heads.
    scale: [D] float.
    epsilon: > 0.

  Returns:
    [..., D] in the dtype of x; a vector of zeros stays 0.
  """
  x32 = x.astype(jnp.float32)
  mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
  normed = x32 * jax.lax.rsqrt(mean_square + epsilon)
  scale = jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))
  return (normed * scale).astype(x.dtype)


def attention_mask(segment_ids: Array, branches: Array | None = None) -> Array:
  """Makes the causal mask of rows that hold several segments.

  A token attends to itself and to earlier tokens of its segment. Padding
  (segment 0) attends to padding only, so every token attends to something.
  The continuations of one prompt may share it in a segment: each attends to
  the prompt and to itself, not to the others.

  Args:
    segment_ids: [B, T] int32.
    branches: [B, T] int32, 0 on a prompt, from 1 on the number of its
      continuation; None if no segment has several.

  Returns:
    [B, T, T] bool, queries by keys, True keeps.
  """
  column = jnp.arange(segment_ids.shape[1])
  causal = column[None, :] <= column[:, None]
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  if branches is not None:
    of_queries, of_keys = branches[:, :, None], branches[:, None, :]
    same &= (of_keys == 0) | (of_keys == of_queries)
  return same & causal[None]


def attend(
  q_BTNH: Array, k_BKMH: Array, v_BKMH: Array, mask_BTM: Array
) -> Array:
  """Grouped-query attention: softmax(q k / sqrt(H)) v, softmax in float32.

  Args:
    q_BTNH: [B, T, N, H] float, rotated queries.
    k_BKMH: [B, K, M, H] float, rotated keys.
    v_BKMH: [B, K, M, H] float, values.
    mask_BTM: [B, T, M] bool, True keeps; every query keeps some key.

  Returns:
    [B, T, N, H] in the dtype of the values.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BKMH.shape[1]
  q_BTKQH = q_BTNH.reshape(B, T, K, N // K, H) * (H**-0.5)
  scores = jnp.einsum(
    "BTKQH,BKMH->BKQTM", q_BTKQH, k_BKMH, preferred_element_type=jnp.float32
  )
  scores = jnp.where(mask_BTM[:, None, None], scores, MASKED_SCORE)
  weights = jax.nn.softmax(scores, axis=-1).astype(v_BKMH.dtype)
  out = jnp.einsum("BKQTM,BKMH->BTKQH", weights, v_BKMH)
  return out.reshape(B, T, N, H)


def _project_tokens(x_BTD, weight, act_sharding):
  """x W for a weight [D, ...] whose further axes are those of the output.

  Rows and tokens are merged into one axis, unless both are split over devices,
  because no single axis could be split like the two. XLA's CPU backend has a
  fast product for matrices and none for three axes: on two cores, a training
  step of 256 rows of 61 tokens through 4 layers of width 64 took 307 ms this
  way and 443 ms with ``einsum("BTD,DF->BTF")``.
  """
  if act_sharding.token_shards > 1:
    return checkpoint_name(jnp.tensordot(x_BTD, weight, axes=1), _PRODUCT)
  B, T, D = x_BTD.shape
  product = matrix_product(x_BTD.reshape(B * T, D), weight.reshape(D, -1))
  product = checkpoint_name(product, _PRODUCT)
  return product.reshape(B, T, *weight.shape[1:])


def embed(
  params: Any,
  config: ModelConfig,
  tokens: Array,
  act_sharding: ActivationSharding = LOCAL,
) -> Array:
  """Looks up the embeddings of tokens.

  Args:
    params: weights with an ``embedding`` [V, D].
    config: the architecture.
    tokens: [B, T] int32, ids.
    act_sharding: sharding of the output.

  Returns:
    [B, T, D] in the compute dtype.
  """
  table = params["embedding"].astype(jnp.dtype(config.compute_dtype))
  return act_sharding.constrain(table[tokens], HIDDEN)


def forward(
  params: Any,
  config: ModelConfig,
  tokens: Array,
  positions: Array,
  segment_ids: Array,
  act_sharding: ActivationSharding = LOCAL,
  keeps_cache: bool = False,
  branches: Array | None = None,
) -> tuple[Array, tuple[tuple[Array, ...], tuple[Array, ...]] | None]:
  """Runs the decoder on whole texts.

  Attention is causal within a segment. Several texts may share a row under
  different segment ids, and padding (segment 0) on either side changes nothing.

  Args:
    params: the weights of `params.declare_decoder`; others are ignored.
    config: the architecture. The weights decide the number of layers.
    tokens: [B, T] int32, ids.
    positions: [B, T] int32, position of each token within its text.
    segment_ids: [B, T] int32, the text a token belongs to; 0 is padding.
    act_sharding: sharding of the activations. It must not split tokens if keys
      and values are returned.
    keeps_cache: True returns keys and values too.
    branches: as for `attention_mask`; an attention kernel allows only None.

  Returns:
    (hidden [B, T, D] after the final norm in the compute dtype; rotated keys
    and values, one [B, K, T, H] per layer each, or None).

  Raises:
    ValueError: if a kernel is given branches.
  """
  T = tokens.shape[1]
  if T % act_sharding.token_shards:
    missing = -T % act_sharding.token_shards
    tokens, positions, segment_ids, branches = jax.tree.map(
      lambda x: jnp.pad(x, ((0, 0), (0, missing))),
      (tokens, positions, segment_ids, branches),
    )
  x_BTD = embed(params, config, tokens, act_sharding)
  rotary = rotary_tables(positions, config)
  kernel = act_sharding.attention  # It stores neither mask nor scores.
  if kernel is not None and branches is not None:
    raise ValueError(
      "An attention kernel reads segments without branches: give each "
      "continuation its own copy of the prompt, or use no kernel."
    )
  mask = attention_mask(segment_ids, branches) if kernel is None else None

  def attention(q, k, v):
    if kernel is not None:
      return kernel(q, k, v, segment_ids), (k, v)
    return _attend_to_all(config, act_sharding, q, k, v, mask), (k, v)

  def body(x, weights):
    x, present = decoder_layer(
      config, act_sharding, rotary, weights, x, attention
    )
    return x, present if keeps_cache else None

  body = _remat_layer(body, config.remat)
  depth = params["layers"]["attention_norm"].shape[0]
  unroll = depth <= UNROLLED_LAYERS
  x_BTD, kept = jax.lax.scan(body, x_BTD, params["layers"], unroll=unroll)
  if keeps_cache:
    kept = tuple(tuple(stacked) for stacked in kept)
  hidden = rms_norm(x_BTD[:, :T], params["final_norm"], config.norm_eps)
  return hidden, kept


def _attend_to_all(config, act_sharding, q, k, v, mask):
  """Attention among the tokens of the call, in chunks or not."""
  if config.attention_chunk is None:
    # "dots", "layer" and "offload" compute the scores again with the layer.
    read = jax.checkpoint(attend) if config.remat == "attention" else attend
    return read(q, k, v, mask)
  chunk, shards = config.attention_chunk, act_sharding.token_shards
  return attend_in_chunks(attend, q, k, v, mask, chunk, shards)


def _remat_layer(layer, name):
  """A layer (x, weights) that saves what a name in `config.REMAT` says."""
  policies = jax.checkpoint_policies
  if name == "layer":
    return jax.checkpoint(layer)
  if name == "dots":
    policy = policies.save_only_these_names(_ATTENDED, _PRODUCT)
    return jax.checkpoint(layer, policy=policy)
  if name == "offload":
    policy = policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[_LAYER_INPUT],
      offload_src="device",
      offload_dst="pinned_host",
    )
    return jax.checkpoint(
      lambda x, weights: layer(checkpoint_name(x, _LAYER_INPUT), weights),
      policy=policy,
    )
  return layer  # "none" and "attention" save everything of a layer.


def decoder_layer(
  config: ModelConfig,
  act_sharding: ActivationSharding,
  rotary: tuple[Array, Array],
  layer: Any,
  x_BTD: Array,
  attention: Attention,
) -> tuple[Array, Any]:
  """Runs one layer: attention and MLP, each added to the residual stream.

  Args:
    config: the architecture.
    act_sharding: sharding of the activations.
    rotary: cosine and sine of the tokens' positions.
    layer: the layer's weights.
    x_BTD: [B, T, D] float.
    attention: (queries [B, T, N, H], keys [B, K, T, H], values [B, K, T, H])
      -> (output [B, T, N, H], anything).

  Returns:
    ([B, T, D], the second result of `attention`).
  """
  normed = rms_norm(x_BTD, layer["attention_norm"], config.norm_eps)
  added, present = _attention(
    config, act_sharding, rotary, layer, normed, attention
  )
  x_BTD = act_sharding.constrain(x_BTD + added, HIDDEN)
  normed = rms_norm(x_BTD, layer["mlp_norm"], config.norm_eps)
  x_BTD = act_sharding.constrain(
    x_BTD + _mlp(config, act_sharding, layer, normed), HIDDEN
  )
  return x_BTD, present


def _attention(config, act_sharding, rotary, layer, x_BTD, attention):
  """Projects, attends and projects back."""
  dtype = x_BTD.dtype

  def project(name):
    y = _project(config, act_sharding, layer, name, x_BTD)
    if config.attention_bias:
      y = y + layer[f"{name}_bias"].astype(dtype)[None, None]
    return y

  def rotated(name):
    y = project(name)
    if config.qk_norm:
      y = rms_norm(y, layer[f"{name}_norm"], config.norm_eps)
    return rotate(y, *rotary)

  q = act_sharding.constrain(rotated("query"), QUERIES)
  k = act_sharding.constrain(jnp.swapaxes(rotated("key"), 1, 2), KEYS)
  v = act_sharding.constrain(jnp.swapaxes(project("value"), 1, 2), KEYS)
  out_BTNH, present = attention(q, k, v)
  out_BTNH = checkpoint_name(
    act_sharding.constrain(out_BTNH, QUERIES), _ATTENDED
  )
  out_BTF = out_BTNH.reshape(*x_BTD.shape[:2], -1)
  return _project(config, act_sharding, layer, "output", out_BTF), present


def _mlp(config, act_sharding, layer, x_BTD):
  """SwiGLU: (silu(x gate) * (x up)) down."""
  project = functools.partial(_project, config, act_sharding, layer)
  gate, up = project("gate", x_BTD), project("up", x_BTD)
  return project("down", act_sharding.constrain(jax.nn.silu(gate) * up, MLP))


def _project(config, act_sharding, layer, name, x_BTD):
  """x W, and (alpha / r) (x A) B if W has adapters."""

  def times(x, part):
    weight = layer[part]
    if isinstance(weight, ColumnMatrix | Int8Matrix):
      return weight.times(x)
    weight = weight.astype(x_BTD.dtype)
    if name == "output":  # Its inputs are heads: [N, H, ...].
      weight = weight.reshape(-1, weight.shape[-1])
    return _project_tokens(x, weight, act_sharding)

  y = times(x_BTD, name)
  if f"{name}_lora_a" not in layer:
    return y  # Only the base, as in the reference policy.
  low = times(times(x_BTD, f"{name}_lora_a"), f"{name}_lora_b")
  return y + config.lora.scale * low


def read_head(head: dict[str, Any], hidden: Array, dtype: Any) -> Array:
  """Computes the numbers of a head at every token: hidden · kernel + bias.

  Args:
    head: weights as `params.declare_head` declares them.
    hidden: [B, T, D] float, from `forward`.
    dtype: dtype in which the two are multiplied; sums are float32.

  Returns:
    [B, T, n] float32.
  """
  scores = jnp.einsum(
    "BTD,DC->BTC",
    hidden.astype(dtype),
    head["kernel"].astype(dtype),
    preferred_element_type=jnp.float32,
  )
  return scores + head["bias"].astype(jnp.float32)[None, None]
