"""An update is applied only if all that it leaves behind is finite.

The gradients and the loss are finite in every case: only the state after the
update is not.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pure_jax.training import train

# What overflows: (optimizer, dtype of the weights, weights, gradients).
OVERFLOWS = {
  "a weight": (optax.sgd(1e38), "float32", 1.0, 10.0),
  "the cast of a weight": (optax.sgd(1e30), "bfloat16", 3.389e38, -1.2e6),
  "a moment alone": (
    optax.chain(optax.scale(1e20), optax.adam(1e-3)),
    *("float32", 1.0, 1.0),
  ),
  "a learning rate": (optax.adamw(1e39), "float32", 1.0, 1.0),
}


def first_state(params, optimizer):
  """A state that shares no array with the weights, nor one with itself."""
  return jax.tree.map(jnp.copy, train.new_state(params, optimizer))


def next_state(state, grads, optimizer):
  """The next state, compiled, with the old one donated as in training."""

  def update(state, grads):
    return train.apply_gradients(state, grads, jnp.zeros(()), optimizer)[0]

  return jax.jit(update, donate_argnums=0)(state, grads)


@pytest.mark.parametrize("what", OVERFLOWS)
@pytest.mark.parametrize("devices", [1, 8])
def test_an_update_that_overflows_is_skipped_and_counted(what, devices):
  """One of 16 entries overflows, and so only on one of 8 devices."""
  optimizer, dtype, weight, grad = OVERFLOWS[what]
  mesh = Mesh(np.asarray(jax.devices()[:devices]), "fsdp")
  split = NamedSharding(mesh, PartitionSpec("fsdp"))
  weights = jax.device_put(jnp.full(16, weight, dtype), split)
  grads = jax.device_put(jnp.zeros(16).at[11].set(grad), split)
  state = first_state({"w": weights, "b": jnp.ones(())}, optimizer)
  before = jax.device_get(state)
  state = next_state(state, {"w": grads, "b": jnp.ones(())}, optimizer)
  after = jax.device_get(state)
  assert (after.step, after.skipped, after.skipped_in_a_row) == (1, 1, 1)
  for old, new in zip(
    jax.tree.leaves((before.params, before.opt_state)),
    jax.tree.leaves((after.params, after.opt_state)),
    strict=True,
  ):
    assert old.dtype == new.dtype
    np.testing.assert_array_equal(old, new)
  assert state.params["w"].sharding.is_equivalent_to(split, 1)


def test_a_finite_update_after_a_skipped_one_is_the_optimizers():
  optimizer = optax.adamw(0.1, weight_decay=0.1)
  params, grads = {"w": jnp.arange(3.0)}, {"w": jnp.array([1.0, -2.0, 0.5])}
  state = first_state(params, optimizer)
  expected, moments = params, optimizer.init(params)
  state = next_state(state, {"w": jnp.full(3, jnp.inf)}, optimizer)
  for _ in range(2):
    updates, moments = jax.jit(optimizer.update)(grads, moments, expected)
    expected = optax.apply_updates(expected, updates)
    state = next_state(state, grads, optimizer)
  assert (state.step, state.skipped, state.skipped_in_a_row) == (3, 1, 0)
  np.testing.assert_allclose(state.params["w"], expected["w"], rtol=1e-6)
  np.testing.assert_allclose(
    state.opt_state[0].nu["w"], moments[0].nu["w"], rtol=1e-6
  )
