"""Reductions over the True entries of a mask: where means divide.

Every mean of the library has its denominator here. An empty reduction is 0, not
NaN. Masked entries may have any value, NaN included: they are replaced before
the arithmetic, so they affect neither values nor gradients.
"""

import jax.numpy as jnp
from jax import Array

Axis = int | tuple[int, ...] | None


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
  return jnp.sum(jnp.where(mask, x, jnp.zeros_like(x)), axis=axis)


def safe_divide(total: Array, count: Array) -> Array:
  """Returns total / count; 0 where count is 0.

  Args:
    total: [...] float, numerator.
    count: [...] float or int, same shape as total, >= 0, denominator.

  Returns:
    [...] in the dtype of total; no NaN in value or gradient at count 0.
  """
  count = jnp.asarray(count).astype(total.dtype)
  nothing = count == 0
  safe_count = jnp.where(nothing, jnp.ones_like(count), count)
  return jnp.where(nothing, jnp.zeros_like(total), total / safe_count)


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
  return safe_divide(masked_sum(x, mask, axis), jnp.sum(mask, axis=axis))


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
  count = jnp.sum(mask, axis=axis, keepdims=True)
  total = jnp.sum(jnp.where(mask, x, jnp.zeros_like(x)), axis, keepdims=True)
  centred = x - safe_divide(total, count)
  squares = masked_sum(jnp.square(jnp.where(mask, centred, 0)), mask, axis)
  return safe_divide(squares, jnp.maximum(jnp.sum(mask, axis=axis) - ddof, 0))


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
  variance = masked_var(x, mask)
  size = masked_mean(jnp.where(mask, jnp.square(x), 0), mask)
  rest = safe_divide(masked_var(x - predicted, mask), variance)
  return jnp.where(variance > 1e-10 * size, 1 - rest, jnp.zeros_like(rest))


def masked_min(x: Array, mask: Array, axis: Axis = None) -> Array:
  """Returns the least kept entry; 0 if no entry is kept.

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, same shape as x, True keeps.
    axis: int, tuple of int or None (all axes), the axes to reduce.

  Returns:
    x reduced over axis. Masked entries count as +inf, the identity of min.
  """
  least = jnp.min(jnp.where(mask, x, jnp.inf), axis=axis)
  return jnp.where(jnp.any(mask, axis=axis), least, jnp.zeros_like(least))


def masked_max(x: Array, mask: Array, axis: Axis = None) -> Array:
  """Returns the greatest kept entry; 0 if no entry is kept.

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, same shape as x, True keeps.
    axis: int, tuple of int or None (all axes), the axes to reduce.

  Returns:
    x reduced over axis. Masked entries count as -inf, the identity of max.
  """
  return -masked_min(-x, mask, axis)


def whiten(x: Array, mask: Array, epsilon: float = 1e-8) -> Array:
  """Shifts and scales kept entries to mean 0 and variance 1.

  (x - mean) / sqrt(variance + epsilon), over all kept entries of the array
  together, with Bessel's correction (count - 1).

  Args:
    x: [...] float, values; entries outside the mask may be NaN.
    mask: [...] bool, same shape as x, True keeps.
    epsilon: > 0, keeps a constant batch at 0 rather than NaN.

  Returns:
    [...] like x, 0 where masked; all 0 if at most one entry is kept.
  """
  variance = masked_var(x, mask, ddof=1)
  centred = jnp.where(mask, x - masked_mean(x, mask), jnp.zeros_like(x))
  return centred / jnp.sqrt(variance + epsilon)


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
  nonzero = mask & (x != 0)
  count = jnp.sum(nonzero)
  mean = masked_mean(x, nonzero)
  centred = jnp.where(nonzero, x - mean, jnp.zeros_like(x))
  left_out = (jnp.sum(within) - count).astype(x.dtype)
  squares = jnp.sum(jnp.square(centred)) + jnp.square(mean) * left_out
  variance = safe_divide(squares, count)
  return centred / jnp.sqrt(jnp.maximum(variance, 1e-8))
