"""Logits of large tables, and both ways to the gradient of the table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, random_policy

from pure_jax.models import cpu_layout, policy

M, D, V = 5, 8, 11


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "f4")


def test_logits_and_gradients_are_those_of_numpy():
  """A gradient that is transposed, or of the other operand, has no chance."""
  x, table, dy = draw(M, D), draw(V, D, seed=1), draw(M, V, seed=2)
  found, pull = jax.vjp(cpu_layout.vocab_logits, x, table)
  np.testing.assert_allclose(found, np.asarray(x) @ np.asarray(table).T, 1e-5)
  by_x, by_table = pull(dy)
  np.testing.assert_allclose(by_x, np.asarray(dy) @ np.asarray(table), 1e-4)
  np.testing.assert_allclose(by_table, np.asarray(dy).T @ np.asarray(x), 1e-4)


def test_the_gradient_on_an_accelerator_is_that_on_a_cpu():
  x, dy = draw(M, D), draw(M, V, seed=2)
  np.testing.assert_allclose(
    cpu_layout._packed_cotangent(x, dy),
    cpu_layout._packed_tokens(x, dy),
    rtol=1e-5,
  )


@pytest.mark.parametrize("tied", [True, False])
def test_a_large_table_gives_the_log_probs_of_a_small_one(tied, monkeypatch):
  """And their gradients, where the same weights count as large."""
  config = dataclasses.replace(TINY, tied_embeddings=tied)
  params, hidden = random_policy(config), draw(2, 3, config.width)

  def loss(params, hidden):
    scores = policy.logits(params, config, hidden)
    return jnp.sum(jax.nn.log_softmax(scores)[..., 2]), scores

  def found():
    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, hidden)

  small = found()
  monkeypatch.setattr(cpu_layout, "LARGE_TABLE", 0)
  large = found()
  assert float(small[0][0]) != 0
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
    large,
    small,
  )
