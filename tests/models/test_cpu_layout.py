"""Products in the CPU layout, and the gradient of a large table."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, random_policy

from pure_jax.models import cpu_layout, policy

M, D, V = 5, 8, 11


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "f4")


@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_gradients_are_those_of_numpy(tied):
  x, table, dy = draw(M, D), draw(V, D, seed=1), draw(M, V, seed=2)
  stored = table if tied else table.T
  logits, pull = jax.vjp(
    lambda x, table: cpu_layout.vocab_logits(x, table, tied), x, stored
  )
  np.testing.assert_allclose(logits, np.asarray(x) @ np.asarray(table).T, 1e-5)
  by_x, by_table = pull(dy)
  np.testing.assert_allclose(by_x, np.asarray(dy) @ np.asarray(table), 1e-4)
  expected = np.asarray(dy).T @ np.asarray(x)
  np.testing.assert_allclose(by_table, expected if tied else expected.T, 1e-4)


def test_the_gradient_is_the_same_on_accelerators_and_cpus():
  x, dy = draw(M, D), draw(M, V, seed=2)
  np.testing.assert_allclose(
    cpu_layout._packed_cotangent(x, dy),
    cpu_layout._packed_tokens(x, dy),
    rtol=1e-5,
  )


def test_a_product_of_16_bits_is_the_rounded_product_in_float32():
  """So are its gradients; a sum that is rounded on the way is not."""
  x, y, dy = draw(M, 512), draw(512, V, seed=1), draw(M, V, seed=2)
  x, y, dy = (array.astype(jnp.bfloat16) for array in (x, y, dy))
  product, pull = jax.vjp(cpu_layout.matrix_product, x, y)
  wide_x, wide_y, wide_dy = (np.asarray(a, np.float64) for a in (x, y, dy))
  for ours, exact in zip(
    (product, *pull(dy)),
    (wide_x @ wide_y, wide_dy @ wide_y.T, wide_x.T @ wide_dy),
    strict=True,
  ):
    assert ours.dtype == jnp.bfloat16 and ours.shape == exact.shape
    # Half a unit of the last of 8 bits, and float32's own rounding.
    np.testing.assert_allclose(
      np.asarray(ours, np.float64), exact, rtol=2**-8, atol=1e-4
    )


def test_a_product_of_16_bits_leaves_in_float32_on_a_cpu():
  """Otherwise XLA takes a path that is slower than float32."""
  x, y = draw(M, D).astype(jnp.bfloat16), draw(D, V).astype(jnp.bfloat16)

  def loss(x, y):
    return jnp.sum(jnp.square(cpu_layout.matrix_product(x, y)))

  text = jax.jit(jax.grad(loss, (0, 1))).lower(x, y).as_text()
  results = re.findall(r"dot_general.*-> tensor<\d+x\d+x(\w+)>", text)
  assert results == ["f32"] * 3
  assert "transpose" not in text


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_16_bits_leave_the_table_as_it_is(tied, monkeypatch):
  """In a loop XLA would multiply a transposed one in float32."""
  monkeypatch.setattr(cpu_layout, "LARGE_TABLE", 0)
  config = dataclasses.replace(TINY, tied_embeddings=tied)
  V, D = config.vocab_size, config.width
  name, shape = ("embedding", (V, D)) if tied else ("head", (D, V))
  table = draw(*shape).astype(jnp.bfloat16)
  hidden = draw(2, 3, D, seed=1).astype(jnp.bfloat16)

  def loss(hidden):
    return jnp.sum(jnp.square(policy.logits({name: table}, config, hidden)))

  text = jax.jit(jax.grad(loss)).lower(hidden).as_text()
  factors = re.findall(
    r"dot_general.*: \((.*)\) -> tensor<\d+x\d+x(\w+)>", text
  )
  of_table = "x".join(map(str, shape)) + "xbf16"
  assert len(factors) == 2
  assert all(of_table in x and result == "f32" for x, result in factors)
  assert "transpose" not in text


@pytest.mark.parametrize("tied", [True, False])
def test_a_large_table_gives_the_log_probs_of_a_small_one(tied, monkeypatch):
  """So do their gradients."""
  config = dataclasses.replace(TINY, tied_embeddings=tied)
  params, hidden = random_policy(config), draw(2, 3, config.width)

  def loss(params, hidden):
    scores = policy.logits(params, config, hidden)
    return jnp.sum(jax.nn.log_softmax(scores)[..., 2]), scores

  def compute():
    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, hidden)

  small = compute()
  monkeypatch.setattr(cpu_layout, "LARGE_TABLE", 0)
  large = compute()
  assert float(small[0][0]) != 0
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
    large,
    small,
  )


def test_a_column_matrix_multiplies_as_its_weight():
  weight = jax.random.normal(jax.random.key(0), (6, 2, 3))
  x = jax.random.normal(jax.random.key(1), (4, 1, 6))
  matrix = cpu_layout.ColumnMatrix(weight.reshape(6, -1).T, (2, 3))
  np.testing.assert_allclose(
    matrix.times(x), np.einsum("btd,dnh->btnh", x, weight), rtol=1e-5, atol=1e-6
  )


def test_a_column_matrix_of_16_bits_is_multiplied_as_it_is_stored():
  """A transposed factor or a result of 16 bits is slow on a CPU."""
  weight, x = draw(D, V).astype(jnp.bfloat16), draw(M, 1, D, seed=1)
  x = x.astype(jnp.bfloat16)
  matrix = cpu_layout.ColumnMatrix(weight.T, (V,))
  y = matrix.times(x)
  expected = np.asarray(x[:, 0], np.float64) @ np.asarray(weight, np.float64)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(y[:, 0], np.float64), expected, 2**-8)
  # Logits are not rounded: equal ones would be common.
  params = {"readout": matrix}
  logits = policy.logits(params, TINY, x)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits[:, 0], expected, 1e-5)
  text = jax.jit(cpu_layout.ColumnMatrix.times).lower(matrix, x).as_text()
  product = r"dot_general.*\(tensor<11x8xbf16>, tensor<5x8xbf16>\) -> "
  assert re.search(product + "tensor<11x5xf32>", text)
