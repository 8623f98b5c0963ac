"""Weights laid out for products with few vectors."""

import jax
import numpy as np

from pure_jax.models import cpu_layout


def test_cpu_layout_are_products_with_the_weight():
  weight = jax.random.normal(jax.random.key(0), (6, 2, 3))
  x = jax.random.normal(jax.random.key(1), (4, 1, 6))
  matrix = cpu_layout.ColumnMatrix(weight.reshape(6, -1).T, (2, 3))
  np.testing.assert_allclose(
    matrix.times(x), np.einsum("btd,dnh->btnh", x, weight), rtol=1e-5, atol=1e-6
  )
