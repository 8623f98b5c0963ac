"""AdamW by hand, and values no optimizer can use."""

import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax.training import optim


def test_two_steps_equal_adamw_written_out():
  config = optim.OptimConfig(
    learning_rate=0.1, weight_decay=0.2, beta1=0.8, beta2=0.9, max_grad_norm=1
  )
  optimizer = optim.make_optimizer(config)
  weight = np.array([1.0, -2.0], np.float64)
  params = {"w": jnp.asarray(weight, jnp.float32)}
  state = optimizer.init(params)
  first, second = np.zeros(2), np.zeros(2)
  for step, grad in enumerate(([3.0, 4.0], [0.3, -0.1]), 1):
    updates, state = optimizer.update(
      {"w": jnp.asarray(grad, jnp.float32)}, state, params
    )
    params = {"w": params["w"] + updates["w"]}
    grad = np.asarray(grad)
    # Unclipped, [3, 4] would enter with norm 5 instead of 1.
    grad = grad / max(1.0, np.linalg.norm(grad))
    first = 0.8 * first + 0.2 * grad
    second = 0.9 * second + 0.1 * grad**2
    direction = (first / (1 - 0.8**step)) / (
      np.sqrt(second / (1 - 0.9**step)) + 1e-8
    )
    weight = weight - 0.1 * (direction + 0.2 * weight)
    np.testing.assert_allclose(params["w"], weight, rtol=1e-6)


def test_schedules():
  constant = optim.learning_rate_schedule(optim.OptimConfig(0.5))
  assert [constant(step) for step in (0, 10, 10_000)] == [0.5] * 3
  warm = optim.learning_rate_schedule(optim.OptimConfig(0.5, warmup_steps=10))
  np.testing.assert_allclose(
    [warm(step) for step in (0, 5, 10, 99)], [0, 0.25, 0.5, 0.5]
  )
  cosine = optim.learning_rate_schedule(
    optim.OptimConfig(0.5, warmup_steps=10, decay_steps=110)
  )
  np.testing.assert_allclose(
    [cosine(step) for step in (0, 10, 60, 110, 500)],
    [0, 0.5, 0.25, 0, 0],
    atol=1e-7,
  )
  without_warmup = optim.learning_rate_schedule(
    optim.OptimConfig(0.5, decay_steps=100)
  )
  np.testing.assert_allclose(
    [without_warmup(step) for step in (0, 50, 100)], [0.5, 0.25, 0], atol=1e-7
  )


@pytest.mark.parametrize(
  "changes",
  [
    {"learning_rate": 0.0},
    {"learning_rate": float("inf")},
    {"max_grad_norm": -1.0},
    {"beta2": 1.0},
    {"beta1": -0.1},
    {"weight_decay": -1.0},
    {"decay_steps": -1},
  ],
)
def test_impossible_values_are_named(changes):
  with pytest.raises(ValueError, match=next(iter(changes))):
    optim.OptimConfig(**({"learning_rate": 0.1} | changes))
