"""Rotary position embeddings, in the layout of Qwen and Llama checkpoints.

The legend of axes is in `pure_jax.types`.
"""

import math

import jax.numpy as jnp
from jax import Array

from pure_jax.models.config import ModelConfig, RopeScaling


def rotary_frequencies(
  head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Array:
  """Computes radians per token of each rotated pair, f_i = theta^(-2 i / H).

  With scaling, as in Llama 3.1 (https://arxiv.org/abs/2407.21783): of the
  n_i = L f_i / 2π turns that pair i makes within the original length L, let
  s_i = (n_i - low) / (high - low), clipped to [0, 1]; the frequency is
  s_i f_i + (1 - s_i) f_i / factor.

  Args:
    head_dim: H, even.
    theta: base of the frequencies.
    scaling: how low frequencies are reduced further, or None.

  Returns:
    [H / 2] float32, decreasing.
  """
  exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  frequency = 1.0 / theta**exponent
  if scaling is None:
    return frequency
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  turns = scaling.original_length * frequency / (2 * math.pi)
  share = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return share * frequency + (1.0 - share) * frequency / scaling.factor


def rotary_tables(positions: Array, config: ModelConfig) -> tuple[Array, Array]:
  """Computes cosine and sine of the rotary angles, position * frequency.

  RoFormer, https://arxiv.org/abs/2104.09864, in the layout of Qwen and
  Llama checkpoints: entry i is rotated with entry i + H / 2.

  Args:
    positions: [B, T] int32.
    config: the architecture, with the base and the scaling of frequencies.

  Returns:
    (cosine, sine), each [B, T, 1, H / 2] float32; the axis of one is heads.
  """
  frequency = rotary_frequencies(
    config.head_dim, config.rope_theta, config.rope_scaling
  )
  angles = (
    positions.astype(jnp.float32)[:, :, None, None]
    * frequency[None, None, None]
  )
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, cosine: Array, sine: Array) -> Array:
  """Applies RoPE to queries or keys, in float32.

  Args:
    x: [B, T, N, H] float.
    cosine: [B, T, 1, H / 2] float32.
    sine: [B, T, 1, H / 2] float32.

  Returns:
    [B, T, N, H] in the dtype of x. A rotation does not change norms.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate(
    [first * cosine - second * sine, second * cosine + first * sine], axis=-1
  )
  return turned.astype(x.dtype)
