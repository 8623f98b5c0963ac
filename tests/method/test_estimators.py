"""pure_jax.estimators against numpy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax import estimators

# Compiled once per shape: eager, every operation would be a program.
rloo_advantages = jax.jit(estimators.rloo_advantages, static_argnums=2)
grpo_advantages = jax.jit(estimators.grpo_advantages, static_argnums=2)
kl_estimate = jax.jit(estimators.kl_estimate, static_argnums=(2, 3))


def test_rloo_is_the_outcome_less_the_mean_of_the_others():
  outcome = np.array([1, 0, 0, 1, 1, 1, 1, 1], np.float32)
  actual = rloo_advantages(outcome, np.ones(8, bool), 4)
  # The plain mean of the group, itself included, would give .5 and -.5.
  third = 1 / 3
  expected = [2 * third, -2 * third, -2 * third, 2 * third, 0, 0, 0, 0]
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_rloo_leaves_unknown_outcomes_out_for_everyone():
  outcome = np.array([1.0, 0.0, np.nan, 1.0, np.nan, 0.0], np.float32)
  mask = np.array([True, True, False, True, False, False])
  actual = rloo_advantages(outcome, mask, 3)
  # Group 2 has one known outcome: nothing to compare it with.
  np.testing.assert_allclose(actual, [1.0, -1.0, 0, 0, 0, 0])


def test_grpo_agrees_with_numpy():
  rng = np.random.default_rng(2)
  outcome = rng.normal(size=12).astype(np.float32)
  actual = grpo_advantages(outcome, np.ones(12, bool), 4)
  groups = outcome.reshape(3, 4).astype(np.float64)
  mean, deviation = groups.mean(1, keepdims=True), groups.std(1, ddof=1)
  expected = (groups - mean) / (deviation[:, None] + 1e-6)
  np.testing.assert_allclose(actual, expected.ravel(), rtol=1e-4)
  equal = grpo_advantages(np.ones(12, np.float32), np.ones(12, bool), 4)
  assert equal.tolist() == [0] * 12


@pytest.mark.parametrize(
  "estimator", [estimators.rloo_advantages, estimators.grpo_advantages]
)
def test_groups_that_cannot_be_compared_raise(estimator):
  with pytest.raises(ValueError, match="at least 2"):
    estimator(np.ones(4), np.ones(4, bool), 1)
  with pytest.raises(ValueError, match="no multiple"):
    estimator(np.ones(5), np.ones(5, bool), 2)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimates_agree_with_numpy_and_vanish_at_equality(kind):
  rng = np.random.default_rng(4)
  logp, ref_logp = rng.normal(-2, 1, (2, 50)).astype(np.float32)
  d = ref_logp.astype(np.float64) - logp
  expected = {"k1": -d, "k2": d**2 / 2, "k3": np.exp(d) - d - 1}[kind]
  actual = kl_estimate(logp, ref_logp, kind)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
  same = kl_estimate(logp, logp, kind)
  assert not np.asarray(same).any()


def test_kl_estimates_average_to_the_exact_kl():
  # Exact expectation over a categorical: k1 and k3 are unbiased, and the
  # reversed direction KL(reference || policy) would give .1240.
  p, q = np.float32([0.5, 0.3, 0.2]), np.float32([0.3, 0.3, 0.4])
  exact = (p * np.log(p / q)).sum()
  for kind in ("k1", "k3"):
    each = kl_estimate(np.log(p), np.log(q), kind)
    np.testing.assert_allclose((p * np.asarray(each)).sum(), exact, rtol=1e-5)
  limited = kl_estimate(jnp.zeros(()), jnp.array(9.0), "k3", 10.0)
  assert float(limited) == 10.0
  with pytest.raises(ValueError, match="kind must be one of"):
    estimators.kl_estimate(p, q, "k4")
