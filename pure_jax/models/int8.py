"""Int8 matrices with one scale per output channel, for sampling only.

W is stored as round(W / scale) with scale = max |W| / 127 over the inputs of
each output. This is symmetric: zero stays zero, and x W = (x W8) * scale. An
entry is off by at most scale / 2. Embedding, head, biases and norms are not
quantised, because rounding the head would change the logits of every token.

The sampler's distribution then differs from the policy's.
`pure_jax.importance` corrects for it, and the drift of the log-probs is a
metric.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array

from pure_jax.models.config import MATRICES

LARGEST = 127


@struct.dataclass
class Int8Matrix:
  """A stack of int8 matrices, or one of them.

  Attributes:
    values: [layers, ...inputs, ...outputs] int8, -127..127.
    scale: [layers, ...outputs] float32, >= 0, the size of one integer step; 0
      if all weights of an output are 0.
  """

  values: Any
  scale: Any

  def times(self, x_BTD: Array) -> Array:
    """(x W8) * scale for every token, [B, T, ...outputs] in the dtype of x.

    D is the product of one matrix's input axes. Every compute dtype holds the
    integers exactly; the scales are applied in float32.
    """
    B, T, D = x_BTD.shape
    values = self.values.astype(x_BTD.dtype).reshape(D, -1)
    product = x_BTD.reshape(B * T, D) @ values
    scaled = product.astype(jnp.float32) * self.scale.reshape(1, -1)
    return scaled.astype(x_BTD.dtype).reshape(B, T, *self.scale.shape)


def input_axes(name: str) -> tuple[int, ...]:
  """Lists the axes of a stacked matrix that a product sums over.

  Args:
    name: one of `config.MATRICES`.

  Returns:
    The axes; axis 0 is the layer.
  """
  return (1, 2) if name == "output" else (1,)  # "output" reads heads: [N, H].


def quantize(weight: Array, inputs: tuple[int, ...]) -> Int8Matrix:
  """Rounds a stack of matrices to 255 levels for each output channel.

  >>> import jax.numpy as jnp
  >>> matrix = quantize(jnp.array([[[127.0, 0.5], [-63.6, 0.25]]]), (1,))
  >>> matrix.values.tolist()
  [[[127, 127], [-64, 64]]]

  Args:
    weight: [layers, ...inputs, ...outputs] float.
    inputs: axes of the inputs.

  Returns:
    The matrices; each entry is off by at most scale / 2.
  """
  weight = weight.astype(jnp.float32)
  scale = jnp.max(jnp.abs(weight), axis=inputs, keepdims=True) / LARGEST
  steps = weight / jnp.where(scale > 0, scale, 1)
  values = jnp.clip(jnp.round(steps), -LARGEST, LARGEST).astype(jnp.int8)
  return Int8Matrix(values, jnp.squeeze(scale, inputs))


def quantize_layers(layers: dict[str, Any]) -> dict[str, Any]:
  """Quantises the matrices of stacked layers.

  Args:
    layers: arrays of a decoder's layers.

  Returns:
    The same names; each matrix is an `Int8Matrix`, all else is unchanged.
  """
  return layers | {
    name: quantize(layers[name], input_axes(name)) for name in MATRICES
  }


def declare_quantized(layers: dict[str, Any]) -> dict[str, Any]:
  """Declares the weights that `quantize_layers` makes.

  Scales are split over devices as the outputs of their matrix are.

  Args:
    layers: declared weights, see `params.declare_layers`.

  Returns:
    The same names; each matrix is an `Int8Matrix` of two declarations.
  """

  def declare(name, weight):
    inputs = input_axes(name)
    outputs = [n for n in range(len(weight.shape)) if n not in inputs]
    return Int8Matrix(
      values=dataclasses.replace(weight, dtype="int8"),
      scale=dataclasses.replace(
        weight,
        shape=tuple(weight.shape[n] for n in outputs),
        dtype="float32",
        logical_axes=tuple(weight.logical_axes[n] for n in outputs),
      ),
    )

  return layers | {name: declare(name, layers[name]) for name in MATRICES}
