"""pure_jax.masked against numpy.ma, which counts on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax import masked

RNG_SEED = 7
whiten = jax.jit(masked.whiten)  # Eager, every operation is a program.


def _ragged(seed=RNG_SEED, shape=(5, 6)):
  rng = np.random.default_rng(seed)
  x = rng.normal(2.0, 3.0, shape).astype(np.float32)
  mask = rng.random(shape) < 0.6
  mask[0] = False
  return x, mask


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
@pytest.mark.parametrize(
  "ours, theirs",
  [
    (masked.masked_sum, np.ma.MaskedArray.sum),
    (masked.masked_mean, np.ma.MaskedArray.mean),
    (masked.masked_var, np.ma.MaskedArray.var),
    (masked.masked_min, np.ma.MaskedArray.min),
    (masked.masked_max, np.ma.MaskedArray.max),
  ],
)
def test_agrees_with_numpy_ma(ours, theirs, axis):
  x, mask = _ragged()
  kept = np.ma.array(x, mask=~mask)
  expected = np.ma.filled(np.ma.asarray(theirs(kept, axis=axis)), 0.0)
  actual = jax.jit(ours, static_argnums=2)(x, mask, axis)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
  assert actual.dtype == jnp.float32


def test_mean_divides_by_what_it_kept():
  # Lengths 1 and 3 in width 4: dividing by mask.size gives 6 / 8 = 0.75, and
  # the mean of row means (3 + 1) / 2 = 2.
  x = np.float32([[3, 9, 9, 9], [1, 1, 1, 9]])
  mask = np.array([[True, False, False, False], [True, True, True, False]])
  assert float(masked.masked_mean(x, mask)) == 1.5


@pytest.mark.parametrize(
  "function",
  [
    masked.masked_sum,
    masked.masked_mean,
    masked.masked_var,
    masked.masked_min,
    masked.masked_max,
    masked.whiten,
  ],
)
def test_nothing_kept_is_zero_in_value_and_gradient(function):
  # 0 / 0, log 0 or an infinity here would become NaN in the gradient of
  # every other row.
  x, mask = np.full((2, 3), np.nan, np.float32), np.zeros((2, 3), bool)
  value, gradient = jax.jit(
    jax.value_and_grad(lambda x: function(x, mask).sum())
  )(x)
  assert float(value) == 0.0
  np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


def test_masked_nan_reaches_no_gradient():
  x, mask = np.float32([1, np.nan, 3]), np.array([True, False, True])
  gradient = jax.jit(jax.grad(lambda x: masked.masked_mean(x**2, mask)))(x)
  np.testing.assert_allclose(np.asarray(gradient)[mask], [1.0, 3.0])
  assert float(whiten(x, mask)[1]) == 0.0


def test_whiten_is_bessel_corrected_over_kept_entries():
  x, mask = _ragged()
  kept = x[mask].astype(np.float64)
  expected = np.where(mask, (x - kept.mean()) / kept.std(ddof=1), 0)
  actual = whiten(x, mask)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_whiten_leaves_a_constant_batch_at_zero():
  # One entry, or many equal ones: no division by a deviation of 0.
  constant = whiten(np.full(3, 5, np.float32), np.ones(3, bool))
  single = whiten(np.float32([5, 1, 2]), np.array([True, False, False]))
  np.testing.assert_array_equal(constant, np.zeros(3))
  np.testing.assert_array_equal(single, np.zeros(3))


def test_safe_divide_gradient_is_zero_at_count_zero():
  def total(x):
    return masked.safe_divide(x, jnp.array([0.0, 4.0])).sum()

  gradient = jax.jit(jax.grad(total))(np.float32([2, 2]))
  np.testing.assert_array_equal(gradient, [0.0, 0.25])
