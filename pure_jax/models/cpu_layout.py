"""Matrix products in the operand order that is fast in XLA's CPU backend.

Before a product, the CPU backend copies (packs) its second operand. The larger
operand must therefore be the first one.

* A decoding step multiplies every weight with one vector per row, so the
  weight comes first: y = (W x^T)^T with W stored as [outputs, inputs]. On one
  core, the MLPs of 30 layers of width 576 on 32 vectors take 57 ms this way
  and 71 ms as x W; logits over 49,152 ids take 20 ms and 31 ms.
* A loop would slice its weights from their stack of layers, and the backend
  would copy every slice again for every token. The layers are unstacked before
  the loop.
* The gradient of a vocabulary table W in y = x W^T is dy^T x. Copying dy^T, an
  array over tokens and vocabulary, is slow; x^T dy copies x, which is far
  smaller. This saves 4 % of an update of a 135M model on 2,048 tokens with a
  vocabulary of 49,152 ids, on one core.
* Matrices of 16 bits are multiplied faster than float32 on a processor with
  instructions for them, but only if the product leaves in float32 and no factor
  is transposed first. For example, 576 vectors of 4,864 entries times the
  transpose of a weight [896, 4864], on an AMD EPYC with AVX512-BF16: 212 GFLOP
  in a CPU second as one contraction with a float32 result, 94 if the result is
  bfloat16 or the weight is transposed before, 99 in float32. A decoding step
  sums over the last axes of W and x, without x^T: two cores of an Intel Xeon
  with AMX multiply 64 vectors of 896 entries by a weight [4864, 896] at 1,180
  GFLOP/s, at 200 with a bfloat16 result, and at 240 in float32.

The legend of axes is in `pure_jax.types`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pure_jax.models.config import MATRICES, ModelConfig
from pure_jax.models.int8 import Int8Matrix

# Entries of a vocabulary table from which on its gradient is computed by
# `vocab_logits`. The order of sums differs; smaller tables gain nothing.
LARGE_TABLE = 2**17


@struct.dataclass
class ColumnMatrix:
  """A weight [D, ...] stored for products with few vectors.

  Attributes:
    rows: [O, D] float, O the product of `outputs`.
    outputs: the axes of the weight after the first.
  """

  rows: Array
  outputs: tuple[int, ...] = struct.field(pytree_node=False)

  def times(self, x_BTD: Array) -> Array:
    """x W for every token, [B, T, *outputs] in the dtype of x."""
    return self.times_in_float32(x_BTD).astype(x_BTD.dtype)

  def times_in_float32(self, x_BTD: Array) -> Array:
    """The same, float32: the sums are not rounded to the dtype of x."""
    B, T, D = x_BTD.shape
    x_MD = x_BTD.reshape(B * T, D)
    rows = self.rows.astype(x_MD.dtype)
    if x_MD.dtype == jnp.float32:
      # Without the barriers the compiler swaps the operands back.
      y = rows @ jax.lax.optimization_barrier(x_MD.T)
    else:
      y = jax.lax.dot_general(
        rows,
        x_MD,
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
      )
    return jax.lax.optimization_barrier(y).T.reshape(B, T, *self.outputs)


def unstack_layers(layers: Any) -> tuple[Any, ...]:
  """Splits weights stacked over layers into one tree per layer.

  Args:
    layers: pytree of arrays [layers, ...].

  Returns:
    A tuple of trees of arrays [...].
  """
  depth = layers["attention_norm"].shape[0]
  return tuple(
    jax.tree.map(lambda stacked, i=i: stacked[i], layers) for i in range(depth)
  )


def decoding_params(params: Any, config: ModelConfig) -> Any:
  """Copies weights into the layout that a decode loop on a CPU reads fastest.

  Args:
    params: policy weights, as `policy.declare_policy` declares them, with or
      without adapters.
    config: the architecture.

  Returns:
    A tree for `decoding.decode_token` and `policy.logits`: a tuple of layers
    with a `ColumnMatrix` for each matrix, and the `ColumnMatrix` ``readout``
    in place of the head. Adapters and int8 matrices are unchanged.
  """

  def to_columns(name, weight):
    if name not in MATRICES or isinstance(weight, Int8Matrix):
      return weight
    if name == "output":  # Its inputs are heads: [N, H, D].
      weight = weight.reshape(-1, weight.shape[-1])
    return _column_matrix(weight)

  layers = tuple(
    {name: to_columns(name, weight) for name, weight in layer.items()}
    for layer in unstack_layers(params["layers"])
  )
  if config.tied_embeddings:
    readout = ColumnMatrix(params["embedding"], (config.vocab_size,))
  else:
    readout = _column_matrix(params["head"])
  rest = {k: v for k, v in params.items() if k not in ("layers", "head")}
  # Without the barrier the compiler would move the copies into the loop.
  return jax.lax.optimization_barrier(
    rest | {"layers": layers, "readout": readout}
  )


def _column_matrix(weight: Array) -> ColumnMatrix:
  """Transposes a weight [D, ...]."""
  return ColumnMatrix(
    jnp.asarray(weight.reshape(weight.shape[0], -1).T), weight.shape[1:]
  )


def matrix_product(x_MD: Array, y_DN: Array) -> Array:
  """x y, with float32 sums and then rounded to the dtype of both.

  Args:
    x_MD: [M, D] float.
    y_DN: [D, N] float in the dtype of x.

  Returns:
    [M, N]. Differentiable once in both arguments if they have 16 bits, in
    reverse mode.
  """
  if x_MD.dtype == jnp.float32:
    return x_MD @ y_DN
  return _rounded_product(x_MD, y_DN)


@jax.custom_vjp
def _rounded_product(x, y):
  """`matrix_product` of 16-bit matrices."""
  return _contract(x, 1, y, 0)


def _contract(x, axis, y, other_axis):
  """Sums over an axis of x and one of y, in float32, then rounds."""
  dimensions = (((axis,), (other_axis,)), ((), ()))
  if x.dtype == jnp.float32:
    return jax.lax.dot_general(x, y, dimensions)

  def in_float32(x, y):
    product = jax.lax.dot_general(
      x, y, dimensions, preferred_element_type=jnp.float32
    )
    return product.astype(x.dtype)

  return jax.lax.platform_dependent(
    x,
    y,
    cpu=in_float32,
    default=lambda x, y: jax.lax.dot_general(x, y, dimensions),
  )


def _rounded_product_forward(x, y):
  """The product and the residuals of its gradient."""
  return _rounded_product(x, y), (x, y)


def _rounded_product_backward(residuals, dy):
  """Gradients of both factors, rounded like the product."""
  x, y = residuals
  return _contract(dy, 1, y, 1), _contract(x, 0, dy, 0)


_rounded_product.defvjp(_rounded_product_forward, _rounded_product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def vocab_logits(x_MD: Array, table: Array, tied: bool) -> Array:
  """Computes logits over a large vocabulary, with float32 sums.

  Args:
    x_MD: [M, D] float, M tokens.
    table: [V, D] if tied, as an embedding, else [D, V], as a head; float in the
      dtype of x.
    tied: says which.

  Returns:
    [M, V] float32. Differentiable once in both arrays, in reverse mode; the
    cotangent is rounded to the dtype of x before it is multiplied.
  """
  return jnp.einsum(
    "MD,VD->MV" if tied else "MD,DV->MV",
    x_MD,
    table,
    preferred_element_type=jnp.float32,
  )


def _packed_cotangent(x, dy):
  """dy^T x, in the order that the compiler chooses."""
  return jnp.einsum("MV,MD->VD", dy, x, preferred_element_type=jnp.float32)


def _packed_tokens(x, dy):
  """(x^T dy)^T, which copies x^T."""
  columns = jax.lax.optimization_barrier(x.T)
  return jnp.matmul(columns, dy, preferred_element_type=jnp.float32).T


def _vocab_logits_forward(x, table, tied):
  """The logits and the residuals of their gradient."""
  return vocab_logits(x, table, tied), (x, table)


def _vocab_logits_backward(tied, residuals, dy):
  """Gradients of tokens and table, dy^T x with float32 sums."""
  x, table = residuals
  dy = dy.astype(x.dtype)
  by_tokens = _contract(dy, 1, table, 0 if tied else 1)
  by_table = jax.lax.platform_dependent(
    x, dy, cpu=_packed_tokens, default=_packed_cotangent
  )
  return by_tokens, (by_table if tied else by_table.T).astype(table.dtype)


vocab_logits.defvjp(_vocab_logits_forward, _vocab_logits_backward)
