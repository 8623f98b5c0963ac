"""Credit assignment: from step rewards to step returns.

Rewards r_1..r_n of one response become returns g_1..g_n. PURE (arXiv
2504.15275) replaces the sum of future rewards by their minimum, so that many
good steps cannot pay for a bad one. The forms have one signature:

  sum      g_t = sum over k >= t of discount^(k - t) r_k
  mean     r*_i = r_i / n, then g_t = sum over k >= t of r*_k
  min      g_t = min over k >= t of r_k, the reverse cumulative minimum
  softmin  r*_i = softmax(-r / T)_i r_i, then g_t = sum over k >= t of r*_k

All of them work on arrays with any leading axes and take a mask of the steps
that exist. A masked step is the identity of the operation (+inf for min,
weight 0 for softmin). The returns of a response without steps are zeros, and S
may be 0. Rewards of 16 bits are cumulated in float32. With
`segment_ids`, equal and contiguous within a response, one row can hold several
responses: nothing crosses a segment boundary.
"""

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax import masked
from pure_jax.settings import CreditConfig

# Of softmin, in units of reward. A T below 1e-38 may be 0 in float32, and 0 / T
# is NaN. Gradients grow as 1 / T; from 1e-19 on their squares are finite.
LOWEST_TEMPERATURE = 1e-19


def _segment_ends(segment_ids: Array, values: Array) -> Array:
  """Returns bool of values' shape, True on the last step of each segment."""
  segment_ids = jnp.broadcast_to(segment_ids, values.shape)
  changes = segment_ids[..., 1:] != segment_ids[..., :-1]
  final = jnp.ones_like(segment_ids[..., :1], dtype=bool)
  return jnp.concatenate([changes, final], axis=-1)


def _last_axis_scan(operation, elements, reverse):
  """Runs an associative scan along the last axis of a pytree of arrays."""
  # jax 0.10 rejects a negative axis together with reverse.
  axis = jax.tree.leaves(elements)[0].ndim - 1
  return jax.lax.associative_scan(
    operation, elements, reverse=reverse, axis=axis
  )


def _scan(operation, values, segment_ids, reverse):
  """Cumulates values along the last axis and starts anew in each segment.

  With segments the scan carries (value, boundary) pairs. A pair that begins
  a segment (in scan order) ignores the pairs before it, which keeps the
  operation associative.
  """
  if segment_ids is None:
    return _last_axis_scan(operation, values, reverse=reverse)
  if reverse:
    boundary = _segment_ends(segment_ids, values)
  else:
    backwards = jnp.flip(segment_ids, -1)
    boundary = jnp.flip(_segment_ends(backwards, values), -1)

  def combine(before, after):
    value_before, boundary_before = before
    value_after, boundary_after = after
    joined = operation(value_before, value_after)
    value = jnp.where(boundary_after, value_after, joined)
    return value, boundary_before | boundary_after

  scanned, _ = _last_axis_scan(combine, (values, boundary), reverse=reverse)
  return scanned


def sum_returns(
  step_rewards: Array,
  step_mask: Array,
  *,
  discount: float = 1.0,
  segment_ids: Array | None = None,
) -> Array:
  """Returns the discounted sum of rewards to go, the canonical form.

  g_t = r_t + discount * g_{t+1}. A masked step adds nothing and costs no
  discount. With process rewards this form is known to collapse (arXiv
  2504.15275).

  >>> import jax.numpy as jnp
  >>> rewards, mask = jnp.array([0.5, -1.0, 0.25]), jnp.ones(3, bool)
  >>> sum_returns(rewards, mask).tolist()
  [-0.25, -0.75, 0.25]

  Args:
    step_rewards: [..., S] float; NaN allowed where masked.
    step_mask: [..., S] bool, True where the step exists.
    discount: 0..1, per existing step.
    segment_ids: [S] or [..., S] int or None, the response of each step.

  Returns:
    [..., S] like step_rewards, 0 where masked. Linear in the rewards.

  Raises:
    ValueError: discount is a Python number outside 0..1.
  """
  if isinstance(discount, (int, float)) and not 0 <= discount <= 1:
    raise ValueError(f"discount must lie in 0..1, not {discount}.")
  rewards = masked.zero_masked(masked.widened(step_rewards), step_mask)
  if discount == 1:
    returns = _scan(jnp.add, rewards, segment_ids, reverse=True)
    return masked.narrowed(masked.zero_masked(returns, step_mask), step_rewards)
  factor = jnp.where(step_mask, discount, 1.0).astype(rewards.dtype)
  if segment_ids is not None:
    factor = jnp.where(_segment_ends(segment_ids, factor), 0, factor)

  def compose(later, earlier):
    # x -> reward + factor * x, the earlier map applied to the later one.
    factor_later, reward_later = later
    factor_earlier, reward_earlier = earlier
    return (
      factor_earlier * factor_later,
      reward_earlier + factor_earlier * reward_later,
    )

  _, returns = _last_axis_scan(compose, (factor, rewards), reverse=True)
  return masked.narrowed(masked.zero_masked(returns, step_mask), step_rewards)


def mean_returns(
  step_rewards: Array,
  step_mask: Array,
  *,
  segment_ids: Array | None = None,
) -> Array:
  """Returns the sum to go of rewards that all weigh 1 / n.

  g_t = sum over k >= t of r_k / n, with n the number of existing steps, so
  that g_1 is the mean score. It is the canonical form of the reference's main
  branch (`--disable_weighted_reward`). Its returns stay within -1..1, but a
  bad step can still be paid for by good ones.

  >>> import jax.numpy as jnp
  >>> rewards, mask = jnp.array([0.5, -1.0, 0.25, 1.0]), jnp.ones(4, bool)
  >>> mean_returns(rewards, mask).tolist()
  [0.1875, 0.0625, 0.3125, 0.25]

  Args:
    step_rewards: [..., S] float; NaN allowed where masked.
    step_mask: [..., S] bool, True where the step exists.
    segment_ids: [S] or [..., S] int or None, the response of each step.

  Returns:
    [..., S] like step_rewards, 0 where masked. Linear in the rewards.
  """
  count = _segment_total(jnp.add, step_mask.astype(jnp.float32), segment_ids)
  rewards = masked.zero_masked(masked.widened(step_rewards), step_mask)
  weighted = masked.safe_divide(rewards, count)
  returns = sum_returns(weighted, step_mask, segment_ids=segment_ids)
  return masked.narrowed(returns, step_rewards)


def min_returns(
  step_rewards: Array,
  step_mask: Array,
  *,
  zero_after_worst: bool = False,
  segment_ids: Array | None = None,
) -> Array:
  """Returns the least reward to go.

  By default g_t = min over k >= t of r_k. With zero_after_worst it is the
  paper's Eq. 3: g_t = r_w for t <= w and 0 after, where w is the worst step.
  If several steps are equally bad, w is the last of them, so each of them
  keeps its blame. Softmin does the same: its limit at T -> 0 shares r_w
  equally among all ties, and g_t is the share of those still to come, so it is
  nonzero on exactly the same steps. (If w were the first of them, a second
  step of reward -1 would pass. Saturated scores make such ties common.)

  >>> import jax.numpy as jnp
  >>> rewards, mask = jnp.array([0.75, -0.5, 0.25, 1.0]), jnp.ones(4, bool)
  >>> min_returns(rewards, mask).tolist()
  [-0.5, -0.5, 0.25, 1.0]
  >>> min_returns(rewards, mask, zero_after_worst=True).tolist()
  [-0.5, -0.5, 0.0, 0.0]

  Args:
    step_rewards: [..., S] float; NaN allowed where masked.
    step_mask: [..., S] bool, True where the step exists.
    zero_after_worst: False for the suffix minimum, True for Eq. 3.
    segment_ids: [S] or [..., S] int or None, the response of each step.

  Returns:
    [..., S] like step_rewards, 0 where masked, all 0 without a step. The
    gradient goes to the minimising reward.
  """
  rewards = jnp.where(step_mask, step_rewards, jnp.inf)
  to_go = _scan(jnp.minimum, rewards, segment_ids, reverse=True)
  if zero_after_worst:
    so_far = _scan(jnp.minimum, rewards, segment_ids, reverse=False)
    to_go = jnp.where(to_go <= so_far, to_go, jnp.zeros_like(to_go))
  return masked.zero_masked(to_go, step_mask)


def softmin_rewards(
  step_rewards: Array,
  step_mask: Array,
  *,
  temperature: float = 0.1,
  segment_ids: Array | None = None,
) -> Array:
  """Returns Eq. 5: rewards weighted by how bad they are.

  r*_i = exp(-r_i / T) / (sum over k of exp(-r_k / T)) * r_i. Their sum
  approximates the minimum from above: [.9, .8, .95, .85, .7] at T = 0.1
  gives .765. The paper scores a whole answer by this sum in best-of-N.

  Args:
    step_rewards: [..., S] float; NaN allowed where masked.
    step_mask: [..., S] bool, True where the step exists.
    temperature: T > 0, in units of reward. T -> 0 is the minimum, shared
      equally among the steps that have it, and T -> inf the mean. A T below
      `LOWEST_TEMPERATURE` is raised to it.
    segment_ids: [S] or [..., S] int or None, the response of each step.

  Returns:
    [..., S] like step_rewards, 0 where masked. It is differentiable. A row
    without a step gives no NaN in value or gradient. A single worst step gets
    the whole gradient for T -> 0; that of tied steps grows as 1 / T, unless
    they are summed.

  Raises:
    ValueError: temperature is a Python number that is not positive.
  """
  if isinstance(temperature, (int, float)) and not temperature > 0:
    raise ValueError(f"temperature must be > 0, not {temperature}.")
  # A Python number stays one: it is a constant of the program.
  highest = max if isinstance(temperature, (int, float)) else jnp.maximum
  temperature = highest(temperature, LOWEST_TEMPERATURE)
  rewards = masked.zero_masked(masked.widened(step_rewards), step_mask)
  worst = _segment_total(
    jnp.minimum, jnp.where(step_mask, rewards, jnp.inf), segment_ids
  )
  # Without a step the worst is +inf. Any finite shift will do there.
  shift = jnp.where(step_mask, rewards - worst, jnp.zeros_like(rewards))
  weight = masked.zero_masked(jnp.exp(-shift / temperature), step_mask)
  total = _segment_total(jnp.add, weight, segment_ids)
  weighted = masked.safe_divide(weight, total) * rewards
  return masked.narrowed(weighted, step_rewards)


def _segment_total(operation, values, segment_ids):
  """Reduces each segment (or the last axis) and broadcasts to its steps."""
  forward = _scan(operation, values, segment_ids, reverse=False)
  if segment_ids is None:
    return jnp.broadcast_to(forward[..., -1:], values.shape)
  # The last step of a segment has its total: carry it back to the others.
  return following_returns(forward, _segment_ends(segment_ids, forward))


def softmin_returns(
  step_rewards: Array,
  step_mask: Array,
  *,
  temperature: float = 0.1,
  segment_ids: Array | None = None,
) -> Array:
  """Returns Eq. 6: the sum to go of softmin-weighted rewards (Eq. 5).

  g_t = sum over k >= t of r*_k. Without ties it tends to Eq. 3 as T -> 0,
  which is `min_returns(..., zero_after_worst=True)`; for ties see there.

  Args:
    step_rewards: [..., S] float; NaN allowed where masked.
    step_mask: [..., S] bool, True where the step exists.
    temperature: T > 0, in units of reward, as in `softmin_rewards`.
    segment_ids: [S] or [..., S] int or None, the response of each step.

  Returns:
    [..., S] like step_rewards, 0 where masked.
  """
  rewards = softmin_rewards(
    masked.widened(step_rewards),
    step_mask,
    temperature=temperature,
    segment_ids=segment_ids,
  )
  returns = sum_returns(rewards, step_mask, segment_ids=segment_ids)
  return masked.narrowed(returns, step_rewards)


def step_returns(
  step_rewards: Array,
  step_mask: Array,
  config: CreditConfig,
  segment_ids: Array | None = None,
) -> Array:
  """Returns step returns in the form the config names.

  Args:
    step_rewards: [..., S] float; NaN allowed where masked.
    step_mask: [..., S] bool, True where the step exists.
    config: CreditConfig; form, temperature and discount are read.
    segment_ids: [S] or [..., S] int or None, the response of each step.

  Returns:
    [..., S] like step_rewards, 0 where masked.

  Raises:
    ValueError: form is "min_dense", which exists on token rows only.
  """
  if config.form == "sum":
    return sum_returns(
      step_rewards, step_mask, discount=config.discount, segment_ids=segment_ids
    )
  if config.form == "mean":
    return mean_returns(step_rewards, step_mask, segment_ids=segment_ids)
  if config.form in ("min", "min_eq3"):
    return min_returns(
      step_rewards,
      step_mask,
      zero_after_worst=config.form == "min_eq3",
      segment_ids=segment_ids,
    )
  if config.form == "softmin":
    return softmin_returns(
      step_rewards,
      step_mask,
      temperature=config.temperature,
      segment_ids=segment_ids,
    )
  raise ValueError(f"form {config.form!r} has no step returns.")


def following_returns(
  returns: Array, step_mask: Array, *, segment_ids: Array | None = None
) -> Array:
  """Gives masked steps the return of the next existing step.

  Args:
    returns: [..., S] float, step returns.
    step_mask: [..., S] bool, True where the step exists.
    segment_ids: [S] or [..., S] int or None, the response of each step.

  Returns:
    [..., S] like returns, unchanged where the step exists, 0 where no
    existing step follows in the segment.
  """
  known = step_mask
  if segment_ids is not None:
    # A segment's last step is known to be followed by nothing.
    returns = masked.zero_masked(returns, known)
    known = known | _segment_ends(segment_ids, returns)

  def combine(later, earlier):
    value_later, known_later = later
    value_earlier, known_earlier = earlier
    value = jnp.where(known_earlier, value_earlier, value_later)
    return value, known_later | known_earlier

  filled, _ = _last_axis_scan(
    combine, (masked.zero_masked(returns, known), known), reverse=True
  )
  return filled


def transformed_rewards(
  returns: Array,
  step_mask: Array,
  *,
  discount: float = 1.0,
  segment_ids: Array | None = None,
) -> Array:
  """Returns the rewards whose sum to go is the given return.

  r*_t = g_t - discount * g_{t+1}. This inverts `sum_returns`. It recovers
  Eq. 5 from `softmin_returns` and turns a minimum into rewards that add up.

  Args:
    returns: [..., S] float, step returns.
    step_mask: [..., S] bool, True where the step exists.
    discount: 0..1, as in `sum_returns`.
    segment_ids: [S] or [..., S] int or None, the response of each step.

  Returns:
    [..., S] like returns, 0 where masked.
  """
  filled = following_returns(returns, step_mask, segment_ids=segment_ids)
  nothing = jnp.zeros_like(filled[..., :1])
  following = jnp.concatenate([filled[..., 1:], nothing], axis=-1)
  if segment_ids is not None:
    ends = _segment_ends(segment_ids, following)
    following = jnp.where(ends, jnp.zeros_like(following), following)
  return masked.zero_masked(returns - discount * following, step_mask)
