"""Matrices of int8 with a scale per output channel, for sampling alone.

W is stored as round(W / scale) with scale = max |W| / 127 over the inputs of
each output: symmetric, so that zero stays zero and x W = (x W8) * scale. An
entry is off by scale / 2 at most. Embedding, head, biases and norms stay as
they are: a step of the logits' own matrix would be seen in every token.

What a sampler so made draws is not quite the policy's: `pure_jax.importance`
weighs it, and the drift of its log-probs is a metric.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array

from pure_jax.models.config import MATRICES

LARGEST = 127


@struct.dataclass
class QuantizedMatrix:
  """A stack of matrices, or one of them.

  Attributes:
    values: [layers, ...inputs, ...outputs] int8, -127..127.
    scale: [layers, ...outputs] float32, what a step of 1 in `values` stands
      for, >= 0; 0 where all inputs of an output are 0.
  """

  values: Any
  scale: Any

  def times(self, x_BTD: Array) -> Array:
    """Applies one matrix to every token: (x W8) * scale.

    The product is that of x with integers, which every compute dtype holds
    exactly; the scales follow in float32.

    Args:
      x_BTD: [B, T, D] float, D the product of the input axes.

    Returns:
      [B, T, ...outputs] in the dtype of x.
    """
    B, T, D = x_BTD.shape
    values = self.values.astype(x_BTD.dtype).reshape(D, -1)
    product = x_BTD.reshape(B * T, D) @ values
    scaled = product.astype(jnp.float32) * self.scale.reshape(1, -1)
    return scaled.astype(x_BTD.dtype).reshape(B, T, *self.scale.shape)


def input_axes(name: str) -> tuple[int, ...]:
  """Axes of a stacked matrix that a product sums over.

  Args:
    name: one of `config.MATRICES`.

  Returns:
    Their numbers; axis 0 are the layers.
  """
  return (1, 2) if name == "output" else (1,)  # From heads: [N, H].


def quantize(weight: Array, inputs: tuple[int, ...]) -> QuantizedMatrix:
  """Rounds a stack of matrices to 255 levels for each output channel.

  >>> import jax.numpy as jnp
  >>> found = quantize(jnp.array([[[127.0, 0.5], [-63.6, 0.25]]]), (1,))
  >>> found.values.tolist()
  [[[127, 127], [-64, 64]]]

  Args:
    weight: [layers, ...inputs, ...outputs] float.
    inputs: axes of the inputs.

  Returns:
    The matrices, each entry off by scale / 2 at most.
  """
  weight = weight.astype(jnp.float32)
  scale = jnp.max(jnp.abs(weight), axis=inputs, keepdims=True) / LARGEST
  steps = weight / jnp.where(scale > 0, scale, 1)
  values = jnp.clip(jnp.round(steps), -LARGEST, LARGEST).astype(jnp.int8)
  return QuantizedMatrix(values, jnp.squeeze(scale, inputs))


def quantize_layers(layers: dict[str, Any]) -> dict[str, Any]:
  """Stacked layers with their matrices in int8, all else as it was.

  Args:
    layers: of a decoder, arrays.

  Returns:
    The same names.
  """
  return layers | {
    name: quantize(layers[name], input_axes(name)) for name in MATRICES
  }


def declare_quantized(layers: dict[str, Any]) -> dict[str, Any]:
  """Declarations of what `quantize_layers` makes.

  Scales are split over devices as the outputs of their matrix.

  Args:
    layers: declared weights, see `params.declare_layers`.

  Returns:
    The same names; a matrix is a `QuantizedMatrix` of two declarations.
  """

  def declare(name, weight):
    inputs = input_axes(name)
    kept = [n for n in range(len(weight.shape)) if n not in inputs]
    return QuantizedMatrix(
      values=dataclasses.replace(weight, dtype="int8"),
      scale=dataclasses.replace(
        weight,
        shape=tuple(weight.shape[n] for n in kept),
        dtype="float32",
        logical_axes=tuple(weight.logical_axes[n] for n in kept),
      ),
    )

  return layers | {name: declare(name, layers[name]) for name in MATRICES}
