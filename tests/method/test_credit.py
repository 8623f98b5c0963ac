"""pure_jax.credit against loops over one response at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax import credit
from pure_jax.settings import CreditConfig

TABLE_REWARDS = [0.8, -0.6, 0.4, 0.9]
# Compiled once per shape: eager, every operation would be a program.
sum_returns = jax.jit(credit.sum_returns, static_argnames="discount")
mean_returns = jax.jit(credit.mean_returns)
min_returns = jax.jit(credit.min_returns, static_argnames="zero_after_worst")
softmin_returns = jax.jit(credit.softmin_returns, static_argnames="temperature")
softmin_rewards = jax.jit(credit.softmin_rewards)
following_returns = jax.jit(credit.following_returns)
transformed_rewards = jax.jit(
  credit.transformed_rewards, static_argnames="discount"
)
FORMS = {
  "sum": sum_returns,
  "sum_discounted": functools.partial(sum_returns, discount=0.7),
  "mean": mean_returns,
  "min": min_returns,
  "min_eq3": functools.partial(min_returns, zero_after_worst=True),
  "softmin": softmin_returns,
  "softmin_warm": functools.partial(softmin_returns, temperature=0.8),
}


def _loop(form, rewards):
  """Returns of one response without padding, in float64."""
  rewards = np.asarray(rewards, np.float64)
  steps = range(len(rewards))
  if form in ("sum", "sum_discounted"):
    discount = 0.7 if form == "sum_discounted" else 1.0
    return [
      sum(discount ** (k - t) * rewards[k] for k in steps if k >= t)
      for t in steps
    ]
  if form == "mean":
    return [sum(rewards[t:]) / len(rewards) for t in steps]
  if form == "min":
    return [min(rewards[t:]) for t in steps]
  if form == "min_eq3":
    least = min(rewards) if len(rewards) else None
    worst = max((i for i in steps if rewards[i] == least), default=-1)
    return [least if t <= worst else 0.0 for t in steps]
  temperature = 0.8 if form == "softmin_warm" else 0.1
  weights = [np.exp(-r / temperature) for r in rewards]
  weighted = [
    w / sum(weights) * r for w, r in zip(weights, rewards, strict=True)
  ]
  return [sum(weighted[t:]) for t in steps]


def _random_rows(seed, count=40, longest=7):
  rng = np.random.default_rng(seed)
  return [
    rng.uniform(-1, 1, rng.integers(0, longest + 1)).astype(np.float32)
    for _ in range(count)
  ]


def _pad(rows, width, fill=np.nan):
  rewards = np.full((len(rows), width), fill, np.float32)
  mask = np.zeros((len(rows), width), bool)
  for b, row in enumerate(rows):
    rewards[b, : len(row)] = row
    mask[b, : len(row)] = True
  return rewards, mask


@pytest.mark.parametrize(
  "form, expected",
  [
    ("sum", [1.5, 0.7, 1.3, 0.9]),
    ("mean", [0.375, 0.175, 0.325, 0.225]),
    ("min", [-0.6, -0.6, 0.4, 0.9]),
    ("min_eq3", [-0.6, -0.6, 0.0, 0.0]),
    ("softmin", [-0.6, -0.6, 0.0, 0.0]),
  ],
)
def test_returns_table_of_the_method(form, expected):
  # A forward scan gives [.8, -.6, -.6, -.6] for min, [.8, .2, .6, 1.5] for
  # sum. The softmin row is printed to three digits.
  config = CreditConfig(form=form)
  rewards, mask = np.array(TABLE_REWARDS, np.float32), np.ones(4, bool)
  actual = jax.jit(credit.step_returns, static_argnums=2)(rewards, mask, config)
  # -.6 is off by 4.5e-5 at T = .1: that is the method, not rounding.
  tolerance = 5e-4 if form == "softmin" else 1e-6
  np.testing.assert_allclose(actual, expected, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_a_loop_over_each_response(form):
  rows = _random_rows(1)
  rewards, mask = _pad(rows, 7)
  actual = np.asarray(FORMS[form](rewards, mask))
  assert actual.dtype == jnp.float32
  for b, row in enumerate(rows):
    expected = np.zeros(7)
    expected[: len(row)] = _loop(form, row)
    np.testing.assert_allclose(actual[b], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_masked_steps_are_the_identity_wherever_they_stand(form):
  # With 0 as the identity of min, [.9, absent, .8] gives [0, 0, .8] and
  # every response of good steps returns 0.
  rows = _random_rows(2)
  rng = np.random.default_rng(3)
  rewards = np.full((len(rows), 11), np.nan, np.float32)
  mask = np.zeros(rewards.shape, bool)
  for b, row in enumerate(rows):
    mask[b, rng.choice(11, len(row), replace=False)] = True
    rewards[b, mask[b]] = row
  actual = np.asarray(FORMS[form](rewards, mask))
  for b, row in enumerate(rows):
    np.testing.assert_allclose(
      actual[b, mask[b]], _loop(form, row), rtol=1e-5, atol=1e-6
    )
  assert not actual[~mask].any()


def test_zero_padding_would_erase_positive_returns():
  rewards = np.array([0.9, 0.8, 0.0, 0.0], np.float32)
  mask = np.array([True, True, False, False])
  # A minimum over the padded row would be [0, 0, 0, 0].
  actual = min_returns(rewards, mask)
  np.testing.assert_allclose(actual, [0.8, 0.8, 0, 0])
  # A softmin over it would weigh the padding exp(0) = 1 against 3e-4.
  actual = softmin_returns(rewards, mask)
  np.testing.assert_allclose(actual[0], 0.8268941, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_no_step_at_all_is_zero_in_value_and_gradient(form):
  rewards, mask = np.full((2, 3), np.nan, np.float32), np.zeros((2, 3), bool)

  def total(rewards):
    return FORMS[form](rewards, mask).sum()

  value, gradient = jax.value_and_grad(total)(rewards)
  assert float(value) == 0.0
  np.testing.assert_array_equal(gradient, np.zeros((2, 3)))
  assert FORMS[form](rewards[:, :0], mask[:, :0]).shape == (2, 0)


@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_nothing(form):
  rows = _random_rows(4)
  narrow = FORMS[form](*_pad(rows, 7))
  wide = FORMS[form](*_pad(rows, 11))
  np.testing.assert_allclose(
    np.asarray(wide)[:, :7], narrow, rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize("form", FORMS)
def test_packed_equals_unpacked(form):
  # Ignoring the boundary would give the first response the second's minimum:
  # [.5, .2 | -.9] -> [-.9, -.9 | -.9] instead of [.2, .2 | -.9].
  rows = [row for row in _random_rows(5, 30) if len(row)]
  packed = np.concatenate(rows)
  ids = np.concatenate([np.full(len(r), i) for i, r in enumerate(rows)])
  # A gap between responses, and masked steps within them.
  packed = np.concatenate([packed, np.full(3, np.nan, np.float32)])
  ids = np.concatenate([ids, np.full(3, -1)])
  mask = np.random.default_rng(6).random(len(packed)) < 0.8
  mask[-3:] = False
  actual = np.asarray(FORMS[form](packed, mask, segment_ids=ids))
  assert not actual[~mask].any()
  for i in range(len(rows)):
    inside = (ids == i) & mask
    np.testing.assert_allclose(
      actual[inside], _loop(form, packed[inside]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("form", FORMS)
def test_one_row_of_segments_serves_all_rows(form):
  rewards = np.random.default_rng(8).uniform(-1, 1, (2, 3, 6))
  rewards = rewards.astype(np.float32)
  mask = np.ones(rewards.shape, bool)
  segments = np.array([0, 0, 1, 1, 1, 2])
  expected = FORMS[form](
    rewards, mask, segment_ids=np.broadcast_to(segments, rewards.shape)
  )
  actual = FORMS[form](rewards, mask, segment_ids=segments)
  np.testing.assert_array_equal(actual, expected)
  filled = transformed_rewards(actual, mask, segment_ids=segments)
  again = sum_returns(filled, mask, segment_ids=segments)
  np.testing.assert_allclose(again, actual, atol=1e-6)


def test_a_discount_above_one_raises():
  with pytest.raises(ValueError, match=r"in 0\.\.1, not 5"):
    credit.sum_returns(np.ones(2), np.ones(2, bool), discount=5.0)


def test_packed_wrong_value_named():
  rewards = np.array([0.5, 0.2, -0.9], np.float32)
  segments = np.array([0, 0, 1])
  actual = min_returns(rewards, np.ones(3, bool), segment_ids=segments)
  np.testing.assert_allclose(actual, [0.2, 0.2, -0.9])


@pytest.mark.parametrize("form", FORMS)
def test_leading_axes_vmap_and_jit_agree(form):
  rewards, mask = _pad(_random_rows(7), 7)
  function = FORMS[form]
  flat = np.asarray(function(rewards, mask))
  cube = function(rewards.reshape(2, 4, 5, 7), mask.reshape(2, 4, 5, 7))
  np.testing.assert_allclose(
    cube, flat.reshape(2, 4, 5, 7), rtol=1e-6, atol=1e-6
  )
  mapped = jax.vmap(function)(rewards, mask)
  np.testing.assert_allclose(mapped, flat, rtol=1e-6, atol=1e-6)


def test_softmin_tends_to_eq_3():
  rewards, mask = _pad(_random_rows(8), 7)
  cold = softmin_returns(rewards, mask, temperature=1e-5)
  eq_3 = min_returns(rewards, mask, zero_after_worst=True)
  np.testing.assert_allclose(cold, eq_3, atol=1e-5)


def test_ties_end_at_the_last_worst_step():
  rewards = np.array([0.5, -1.0, 0.5, -1.0, 0.5], np.float32)
  mask = np.ones(5, bool)
  eq_3 = min_returns(rewards, mask, zero_after_worst=True)
  # Ending at the first tie would give [-1, -1, 0, 0, 0]: the second step of
  # reward -1 would go unpunished.
  assert eq_3.tolist() == [-1, -1, -1, -1, 0]
  # The limit of softmin blames the same steps, sharing the blame.
  cold = softmin_returns(rewards, mask, temperature=1e-4)
  np.testing.assert_allclose(cold, [-1, -1, -0.5, -0.5, 0], atol=1e-6)


def test_min_forms_are_one_argument_apart():
  rewards, mask = _pad(_random_rows(9), 7)
  suffix = np.asarray(min_returns(rewards, mask))
  eq_3 = np.asarray(min_returns(rewards, mask, zero_after_worst=True))
  worst = suffix[:, :1]
  expected = np.where((suffix == worst) & mask, suffix, 0)
  np.testing.assert_array_equal(eq_3, expected)


def test_softmin_bias_of_five_good_steps():
  # The minimum is .70: at T = .1 the softmin sum stays above it.
  rewards = np.array([0.9, 0.8, 0.95, 0.85, 0.7], np.float32)
  actual = np.asarray(softmin_rewards(rewards, np.ones(5, bool))).sum()
  np.testing.assert_allclose(actual, 0.765, atol=5e-4)


def test_prm_error_stays_small_in_min_form_only():
  # |r - r*| <= e: the minimum is off by at most e, a sum of n by up to n e.
  rng = np.random.default_rng(10)
  truth = rng.uniform(-1, 1, (50, 20)).astype(np.float32)
  mask, error = np.ones((50, 20), bool), 0.1
  noisy = truth + np.float32(error)
  least, total = (
    np.asarray(returns(noisy, mask)) - np.asarray(returns(truth, mask))
    for returns in (min_returns, sum_returns)
  )
  assert np.abs(least).max() <= error + 1e-6
  np.testing.assert_allclose(total[:, 0], 20 * error, rtol=1e-4)


@pytest.mark.parametrize("form", ["sum", "mean", "min", "min_eq3", "softmin"])
def test_transformed_rewards_sum_back_to_the_return(form):
  rng = np.random.default_rng(11)
  rewards = rng.uniform(-1, 1, (30, 9)).astype(np.float32)
  mask = rng.random((30, 9)) < 0.7
  segments = np.sort(rng.integers(0, 3, (30, 9)), axis=1)
  returns = FORMS[form](rewards, mask, segment_ids=segments)
  parts = transformed_rewards(returns, mask, segment_ids=segments)
  again, parts = np.zeros((30, 9)), np.asarray(parts)
  for b in range(30):
    for t in range(9):
      if mask[b, t]:
        same = (segments[b] == segments[b, t]) & (np.arange(9) >= t)
        again[b, t] = parts[b][same].sum()
  np.testing.assert_allclose(again, returns, rtol=1e-5, atol=1e-6)


def test_transformed_rewards_undo_the_sum_and_softmin():
  rewards, mask = _pad(_random_rows(12), 7, fill=0.0)
  discounted = sum_returns(rewards, mask, discount=0.7)
  undone = transformed_rewards(discounted, mask, discount=0.7)
  np.testing.assert_allclose(undone, rewards, atol=1e-6)
  weighted = softmin_rewards(rewards, mask)
  undone = transformed_rewards(softmin_returns(rewards, mask), mask)
  np.testing.assert_allclose(undone, weighted, atol=1e-6)


def test_following_returns_fill_absent_steps():
  returns = np.array([0.0, 2.0, 0.0, 3.0, 0.0], np.float32)
  mask = np.array([False, True, False, True, False])
  actual = following_returns(returns, mask)
  assert actual.tolist() == [2, 2, 3, 3, 0]
  segments = np.array([0, 0, 0, 1, 1])
  actual = following_returns(returns, mask, segment_ids=segments)
  assert actual.tolist() == [2, 2, 0, 3, 0]


@pytest.mark.parametrize("form", FORMS)
def test_float64_in_float64_out(form):
  with jax.enable_x64(True):
    rows = _random_rows(13)
    rewards, mask = _pad(rows, 7)
    actual = np.asarray(FORMS[form](rewards.astype(np.float64), mask))
    assert actual.dtype == jnp.float64
    for b, row in enumerate(rows):
      np.testing.assert_allclose(
        actual[b, : len(row)], _loop(form, row), rtol=1e-12, atol=1e-12
      )


def test_takes_plain_numpy_arrays():
  rewards, mask = np.array(TABLE_REWARDS), np.ones(4, bool)
  actual = credit.min_returns(rewards, mask, segment_ids=np.zeros(4, int))
  np.testing.assert_allclose(actual, [-0.6, -0.6, 0.4, 0.9], atol=1e-6)


def test_impossible_temperature_raises():
  with pytest.raises(ValueError, match="temperature must be > 0"):
    credit.softmin_returns(np.ones(2), np.ones(2, bool), temperature=0.0)


def test_dense_minimum_has_no_step_returns():
  config = CreditConfig(
    form="min_dense", baseline="paper_b", fold_verifiable=True
  )
  with pytest.raises(ValueError, match="no step returns"):
    credit.step_returns(np.ones(2), np.ones(2, bool), config)
