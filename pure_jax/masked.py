"""Reductions over the True entries of a mask: where means divide.

Every mean of the library has its denominator here. An empty reduction is 0, not
NaN, also over an axis of size 0. Masked entries may have any value, NaN
included: `zero_masked` replaces them before the arithmetic, so they affect
neither values nor gradients. (A `where` after the arithmetic keeps the values,
but 0 times the derivative of what is not finite is NaN.)

Entries of 16 bits are reduced in float32, and the result has their dtype: what
it cannot hold, such as a sum above 65,504 in float16, is inf.
"""

import jax.numpy as jnp
from jax import Array

Axis = int | tuple[int, ...] | None

# Entries that differ by no more than this share of the largest are equal up to
# the rounding of what computed them in float32.
ROUNDING = 1e-6


def zero_masked(x: Array, mask: Array) -> Array:
  """Returns `x` where `mask` is True, and 0 elsewhere.

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, True keeps; same shape as x, or broadcast to it.

  Returns:
    [...] like x. The gradient is 1 on kept entries and exactly 0 elsewhere.
  """
  return jnp.where(mask, x, jnp.zeros_like(x))


def widened(x: Array) -> Array:
  """Returns floats of fewer than 32 bits as float32, and others unchanged.

  In float16 a count ends at 65,504, and in bfloat16 256 + 1 is 256.

  Args:
    x: [...] of any dtype.

  Returns:
    [...] with the same values.
  """
  x = jnp.asarray(x)
  narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
  return x.astype(jnp.float32) if narrow else x


def narrowed(result: Array, x: Array) -> Array:
  """Returns a result that was computed from `widened(x)` in the dtype of x.

  Args:
    result: array of any shape.
    x: array of any shape; its dtype is read.

  Returns:
    Like result; unchanged if x is not float.
  """
  dtype = jnp.asarray(x).dtype
  return result.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else result


def masked_sum(x: Array, mask: Array, axis: Axis = None) -> Array:
  """Returns the sum of `x` where `mask` is True; 0 if no entry is kept.

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, same shape as x, True keeps.
    axis: int, tuple of int or None (all axes), the axes to reduce.

  Returns:
    x reduced over axis, in the dtype of x. The gradient is 1 on kept entries
    and exactly 0 elsewhere.
  """
  return narrowed(jnp.sum(zero_masked(widened(x), mask), axis=axis), x)


def safe_divide(total: Array, count: Array) -> Array:
  """Returns total / count; 0 where count is 0.

  Args:
    total: [...] float, numerator.
    count: [...] float or int, same shape as total, >= 0, denominator.

  Returns:
    [...] in the dtype of total; no NaN in value or gradient at count 0.
  """
  wide = widened(total)
  count = jnp.asarray(count).astype(wide.dtype)
  nothing = count == 0
  safe_count = jnp.where(nothing, jnp.ones_like(count), count)
  ratio = jnp.where(nothing, jnp.zeros_like(wide), wide / safe_count)
  return narrowed(ratio, total)


def masked_mean(x: Array, mask: Array, axis: Axis = None) -> Array:
  """Returns the mean over kept entries: sum of kept / number of kept.

  >>> import jax.numpy as jnp
  >>> x, mask = jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False])
  >>> float(masked_mean(x, mask))
  2.0

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, same shape as x, True keeps.
    axis: int, tuple of int or None (all axes), the axes to reduce.

  Returns:
    x reduced over axis; 0 where no entry is kept.
  """
  total = masked_sum(widened(x), mask, axis)
  return narrowed(safe_divide(total, jnp.sum(mask, axis=axis)), x)


def masked_var(
  x: Array, mask: Array, axis: Axis = None, ddof: int = 0
) -> Array:
  """Returns the variance over kept entries.

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, same shape as x, True keeps.
    axis: int, tuple of int or None (all axes), the axes to reduce.
    ddof: 0 or 1, subtracted from the count; 1 gives Bessel's unbiased estimate.

  Returns:
    x reduced over axis; 0 where no more than ddof entries are kept.
  """
  wide = widened(x)
  count = jnp.sum(mask, axis=axis, keepdims=True)
  total = jnp.sum(zero_masked(wide, mask), axis, keepdims=True)
  centred = zero_masked(wide - safe_divide(total, count), mask)
  squares = masked_sum(jnp.square(centred), mask, axis)
  count = jnp.maximum(jnp.sum(mask, axis=axis) - ddof, 0)
  return narrowed(safe_divide(squares, count), x)


def masked_std(
  x: Array, mask: Array, axis: Axis = None, ddof: int = 0
) -> Array:
  """Returns the standard deviation over kept entries.

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, same shape as x, True keeps.
    axis: int, tuple of int or None (all axes), the axes to reduce.
    ddof: as in `masked_var`.

  Returns:
    x reduced over axis; 0 where no more than ddof entries are kept. Where it is
    0, its gradient is 0 too, although that of a square root is infinite there.
  """
  variance = masked_var(widened(x), mask, axis, ddof)
  varies = variance != 0  # True for NaN, which must not become 0.
  deviation = jnp.sqrt(jnp.where(varies, variance, jnp.ones_like(variance)))
  return narrowed(zero_masked(deviation, varies), x)


def differ(x: Array, mask: Array, axis: Axis = None) -> Array:
  """Tells whether kept entries differ by more than rounding.

  The mean of equal entries is rounded, so they differ from it a little. Divided
  by a deviation of almost 0, these differences would be large.

  >>> import jax.numpy as jnp
  >>> x = jnp.array([[0.3, 0.3, 9.0], [0.3, 0.4, 9.0]])
  >>> differ(x, x < 1, axis=1).tolist()
  [False, True]

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, same shape as x, True keeps.
    axis: int, tuple of int or None (all axes), the axes to reduce.

  Returns:
    bool, x reduced over axis: True if the difference of the greatest and the
    least entry exceeds `ROUNDING` times the largest magnitude, or a kept entry
    is not finite: then what is computed from them is not, either. False if at
    most one entry is kept, which is finite.
  """
  x = widened(x)
  lowest, highest = masked_min(x, mask, axis), masked_max(x, mask, axis)
  spread, size = highest - lowest, jnp.maximum(highest, -lowest)
  return ~(spread <= ROUNDING * size) | jnp.isinf(spread)


def explained_variance(x: Array, predicted: Array, mask: Array) -> Array:
  """Returns the share of the variance of kept entries that is predicted.

  1 - variance(x - predicted) / variance(x): 1 for a perfect prediction, 0 for
  a constant one, negative for one that is worse. A constant error does not
  count.

  >>> import jax.numpy as jnp
  >>> x, mask = jnp.array([0.0, 1.0, 2.0]), jnp.ones(3, bool)
  >>> float(explained_variance(x, x / 2, mask))
  0.75

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    predicted: [...] float, same shape as x, their predictions.
    mask: [...] bool, same shape as x, True keeps.

  Returns:
    [] in the dtype of x; 0 if the kept entries of x are constant up to rounding
    (a deviation of 1e-5 of their size), or there are none.
  """
  wide = zero_masked(widened(x), mask)
  variance = masked_var(wide, mask)
  size = masked_mean(jnp.square(wide), mask)
  error = wide - zero_masked(widened(predicted), mask)
  rest = safe_divide(masked_var(error, mask), variance)
  return narrowed(zero_masked(1 - rest, ~(variance <= 1e-10 * size)), x)


def masked_min(x: Array, mask: Array, axis: Axis = None) -> Array:
  """Returns the least kept entry; 0 if no entry is kept.

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, same shape as x, True keeps.
    axis: int, tuple of int or None (all axes), the axes to reduce.

  Returns:
    x reduced over axis. Masked entries count as +inf, the identity of min. The
    gradient goes to the least entry, and in equal shares to several.
  """
  if not jnp.size(x):
    # `jnp.min` raises; the sums are zeros of the right shape.
    return masked_sum(x, mask, axis)
  least = jnp.min(jnp.where(mask, x, jnp.inf), axis=axis)
  return zero_masked(least, jnp.any(mask, axis=axis))


def masked_max(x: Array, mask: Array, axis: Axis = None) -> Array:
  """Returns the greatest kept entry; 0 if no entry is kept.

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, same shape as x, True keeps.
    axis: int, tuple of int or None (all axes), the axes to reduce.

  Returns:
    x reduced over axis. Masked entries count as -inf, the identity of max. The
    gradient goes to the greatest entry, and in equal shares to several.
  """
  return -masked_min(-x, mask, axis)


def whiten(x: Array, mask: Array, epsilon: float = 1e-8) -> Array:
  """Shifts and scales kept entries to mean 0 and variance 1.

  (x - mean) / sqrt(variance + epsilon), over all kept entries of the array
  together, with Bessel's correction (count - 1).

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, same shape as x, True keeps.
    epsilon: > 0, in units of the variance.

  Returns:
    [...] like x, 0 where masked. All 0, and no gradient, if at most one entry
    is kept, or the kept ones are equal up to rounding (`differ`).
  """
  wide = widened(x)
  variance = masked_var(wide, mask, ddof=1)
  centred = zero_masked(wide - masked_mean(wide, mask), mask)
  whitened = centred / jnp.sqrt(variance + epsilon)
  return narrowed(zero_masked(whitened, differ(wide, mask)), x)


def whiten_nonzero(x: Array, mask: Array, within: Array) -> Array:
  """Whitens as the reference's main branch does, with its two faults.

  An entry that is exactly 0 is left out and stays 0. n is the number of the
  other kept entries, and m is their mean. The variance has no correction, and
  it adds m^2 for every entry of `within` that is left out:

    v = (sum of (x - m)^2 over the n + m^2 * (size of `within` - n)) / n

  The result is (x - m) / sqrt(max(v, 1e-8)).

  >>> import jax.numpy as jnp
  >>> x, every = jnp.array([1.0, 1, 1, 0, -1, 0]), jnp.ones(6, bool)
  >>> whitened = whiten_nonzero(x, every, every)  # m = 1/2, v = 7/8.
  >>> [round(float(each), 4) for each in whitened]
  [0.5345, 0.5345, 0.5345, 0.0, -1.6036, 0.0]

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, same shape as x, True keeps.
    within: [...] bool, same shape as x, True on the entries that the variance
      counts; it holds for every kept entry.

  Returns:
    [...] like x, 0 where masked; all 0 if no entry is kept.
  """
  wide = widened(x)
  nonzero = mask & (wide != 0)
  count = jnp.sum(nonzero)
  mean = masked_mean(wide, nonzero)
  centred = zero_masked(wide - mean, nonzero)
  left_out = (jnp.sum(within) - count).astype(wide.dtype)
  squares = jnp.sum(jnp.square(centred)) + jnp.square(mean) * left_out
  variance = safe_divide(squares, count)
  return narrowed(centred / jnp.sqrt(jnp.maximum(variance, 1e-8)), x)
