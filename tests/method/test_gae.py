"""GAE, the value loss, and how an experience becomes both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import pad_columns, random_experience

from pure_jax import credit, estimators, losses, masked
from pure_jax.advantages import (
  process_advantages,
  pure_advantages,
  value_targets,
)
from pure_jax.settings import CreditConfig, LossConfig

ROWS, COLUMNS = 6, 9
GAE = CreditConfig(
  form="softmin",
  baseline="gae",
  gae_lambda=0.9,
  fold_verifiable=True,
  kl_in_reward="k1",
  kl_coef=0.3,
  verifiable_coef=0.5,
  group_size=1,
  whitening="none",
)


def batch(seed=0, holes=False):
  """Rewards, values and a mask of ragged rows: a full one and an empty one."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, COLUMNS, ROWS)
  lengths[:2] = COLUMNS, 0
  mask = np.arange(COLUMNS) < lengths[:, None]
  if holes:
    mask &= rng.random(mask.shape) < 0.6
  rewards = rng.normal(size=mask.shape).astype(np.float32)
  values = rng.normal(size=mask.shape).astype(np.float32)
  return rewards, values, mask


def loop(rewards, values, mask, discount, gae_lambda):
  """GAE of each row by its recursion over the tokens that exist, in float64."""
  advantages = np.zeros(mask.shape)
  for row in range(len(mask)):
    next_value = next_advantage = 0.0
    for t in reversed(np.flatnonzero(mask[row])):
      error = rewards[row, t] + discount * next_value - values[row, t]
      next_advantage = error + discount * gae_lambda * next_advantage
      next_value = values[row, t]
      advantages[row, t] = next_advantage
  return advantages


def published(rewards, values, mask, gamma, lam):
  """The definition of verl (2025) and TRL: all rows at once, backwards.

  On a masked column, the last advantage and the next value are carried on.
  """
  keep = mask.astype(np.float64)
  carried = np.zeros(len(mask))
  following = np.zeros(len(mask))
  columns = []
  for t in reversed(range(mask.shape[1])):
    delta = rewards[:, t] + gamma * following - values[:, t]
    estimate = delta + gamma * lam * carried
    following = values[:, t] * keep[:, t] + (1 - keep[:, t]) * following
    carried = estimate * keep[:, t] + (1 - keep[:, t]) * carried
    columns.insert(0, carried)
  advantages = np.stack(columns, axis=1)
  return advantages, advantages + values


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(
  ("discount", "gae_lambda"),
  [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.7, 0.0), (0.0, 1.0)],
)
def test_gae_equals_a_loop_and_the_published_definition(
  discount, gae_lambda, holes
):
  """A value behind the last token, or of padding, would show here."""
  rewards, values, mask = batch(holes=holes)
  advantages, returns = estimators.gae_advantages(
    rewards, values, mask, discount, gae_lambda
  )
  expected = loop(rewards, values, mask, discount, gae_lambda)
  np.testing.assert_allclose(advantages, expected, atol=2e-6)
  np.testing.assert_allclose(
    returns, np.where(mask, expected + values, 0), atol=2e-6
  )
  other, other_returns = published(rewards, values, mask, discount, gae_lambda)
  np.testing.assert_allclose(advantages, np.where(mask, other, 0), atol=2e-6)
  np.testing.assert_allclose(
    returns, np.where(mask, other_returns, 0), atol=2e-6
  )


def test_lambda_1_is_the_sum_to_go_minus_the_value():
  rewards, values, mask = batch(1)
  advantages, returns = estimators.gae_advantages(rewards, values, mask)
  to_go = credit.sum_returns(rewards, mask)
  np.testing.assert_allclose(returns, to_go, atol=2e-6)
  np.testing.assert_allclose(
    advantages, np.where(mask, to_go - values, 0), atol=2e-6
  )


def test_lambda_0_is_the_td_error():
  rewards, values, mask = batch(2)
  advantages, _ = estimators.gae_advantages(rewards, values, mask, 0.9, 0.0)
  for row, length in enumerate(mask.sum(axis=1)):
    for t in range(length):
      following = values[row, t + 1] if t + 1 < length else 0
      np.testing.assert_allclose(
        advantages[row, t],
        rewards[row, t] + 0.9 * following - values[row, t],
        atol=1e-6,
      )


def test_padding_and_nan_where_masked_change_nothing():
  rewards, values, mask = batch(3)
  expected = estimators.gae_advantages(rewards, values, mask, 1.0, 0.9)
  rewards, values = (np.where(mask, x, np.nan) for x in (rewards, values))
  padding = ((0, 0), (0, 3))
  padded = estimators.gae_advantages(
    np.pad(rewards, padding, constant_values=np.nan),
    np.pad(values, padding, constant_values=np.nan),
    np.pad(mask, padding),
    1.0,
    0.9,
  )
  for x, y in zip(padded, expected, strict=True):
    np.testing.assert_allclose(x[:, :COLUMNS], y, atol=2e-6)
    assert not x[:, COLUMNS:].any() and not x[1].any()  # Row 1 is empty.


def test_gae_jitted_equals_eager_and_works_on_one_row():
  rewards, values, mask = batch(4)
  jitted = jax.jit(estimators.gae_advantages, static_argnums=(3, 4))
  expected = estimators.gae_advantages(rewards, values, mask, 0.9, 0.8)
  for x, y in zip(
    jitted(rewards, values, mask, 0.9, 0.8), expected, strict=True
  ):
    np.testing.assert_allclose(x, y, atol=1e-6)
  for x, y in zip(
    estimators.gae_advantages(rewards[0], values[0], mask[0], 0.9, 0.8),
    expected,
    strict=True,
  ):
    np.testing.assert_allclose(x, y[0], atol=1e-6)


@pytest.mark.parametrize("name", ["discount", "gae_lambda"])
@pytest.mark.parametrize("number", [-0.1, 1.1, float("nan")])
def test_gae_rejects_weights_outside_0_to_1(name, number):
  with pytest.raises(ValueError, match=f"{name} must lie in 0..1"):
    estimators.gae_advantages(*batch(), **{name: number})


@pytest.mark.parametrize("value_clip", [0.2, 1.5, None])
def test_the_value_loss_equals_the_published_definition(value_clip):
  """verl, TRL and OpenRLHF: half the larger of two squared errors."""
  rng = np.random.default_rng(0)
  new, old, returns = rng.normal(size=(3, 50))
  loss, clipped = losses.clipped_value_loss(
    *jnp.float32([new, old, returns]), value_clip
  )
  for i in range(50):
    error = (new[i] - returns[i]) ** 2
    limit = np.inf if value_clip is None else value_clip
    near = min(max(new[i], old[i] - limit), old[i] + limit)
    other = (near - returns[i]) ** 2
    np.testing.assert_allclose(loss[i], 0.5 * max(error, other), rtol=1e-5)
    assert clipped[i] == (other > error)
  assert clipped.any() == (value_clip is not None)


def test_the_value_loss_moves_only_new_values_and_not_where_clipped():
  new, old = jnp.array([0.75, 0.25, -3.0]), jnp.zeros(3)
  returns = jnp.ones(3)
  by_new, by_old, by_returns = jax.grad(
    lambda *x: losses.clipped_value_loss(*x, 0.5)[0].sum(), (0, 1, 2)
  )(new, old, returns)
  # Clipped towards the target: 0. Clipped away from it: the plain error.
  np.testing.assert_allclose(by_new, [0, -0.75, -4], atol=1e-6)
  assert not by_old.any() and not by_returns.any()


def valued_experience(seed=0, **changes):
  """A batch with a critic's values, and the lists that it came from."""
  experience, lists = random_experience(seed, group_size=2, **changes)
  shape = experience.completion_mask.shape
  values = np.random.default_rng(seed + 100).normal(size=shape)
  return experience.replace(values=jnp.float32(values)), lists


def token_rewards_by_hand(experience, lists, config):
  """Softmin rewards at step ends, the outcome at the last token, less k1."""
  rewards = np.zeros(experience.completion_mask.shape)
  for row, (length, ends) in enumerate(
    zip(lists["lengths"], lists["ends"], strict=True)
  ):
    scores = np.float64(experience.step_rewards[row, : len(ends)])
    weights = np.exp(-scores / config.temperature)
    rewards[row, ends] += scores * weights / weights.sum()
    if experience.has_answer[row]:
      outcome = config.verifiable_coef * experience.correct[row]
      rewards[row, length - 1] += outcome
    kl = experience.old_logp[row] - experience.ref_logp[row]
    rewards[row, :length] -= config.kl_coef * np.float64(kl)[:length]
  return rewards


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_advantages_are_gae_of_process_outcome_and_kl(gae_lambda):
  """One row of token rewards, one critic: no group is needed."""
  config = dataclasses.replace(GAE, gae_lambda=gae_lambda)
  experience, lists = valued_experience()
  rewards = token_rewards_by_hand(experience, lists, config)
  mask, values = experience.completion_mask, np.float64(experience.values)
  expected = loop(rewards, values, np.asarray(mask), 1.0, gae_lambda)
  advantages, _ = pure_advantages(experience, config)
  np.testing.assert_allclose(advantages, expected, atol=1e-5)
  np.testing.assert_allclose(
    value_targets(experience, config),
    np.where(mask, expected + values, 0),
    atol=1e-5,
  )


def test_whitening_changes_advantages_and_no_targets():
  experience, _ = valued_experience(1)
  white = dataclasses.replace(GAE, whitening="tokens")
  advantages, _ = pure_advantages(experience, white)
  kept = np.asarray(advantages)[np.asarray(experience.completion_mask)]
  np.testing.assert_allclose(kept.mean(), 0, atol=1e-6)
  np.testing.assert_allclose(kept.std(ddof=1), 1, atol=1e-5)
  np.testing.assert_array_equal(
    value_targets(experience, white), value_targets(experience, GAE)
  )


def test_padding_of_an_experience_changes_neither_advantages_nor_targets():
  experience, _ = valued_experience(2)
  padded = pad_columns(experience, 3, 2, fill=np.nan).replace(
    values=jnp.pad(experience.values, ((0, 0), (0, 3)), constant_values=jnp.nan)
  )
  for function in (lambda *x: pure_advantages(*x)[0], value_targets):
    np.testing.assert_allclose(
      function(padded, GAE)[:, :-3], function(experience, GAE), atol=1e-6
    )


def test_no_gradient_of_the_policys_loss_reaches_the_values():
  """Else the critic would learn to please the policy."""
  experience, _ = valued_experience(3)
  logp = experience.old_logp + 0.1

  def loss(values):
    return losses.pure_loss(
      logp, logp, experience.replace(values=values), GAE, LossConfig()
    )[0]

  assert not jax.grad(loss)(experience.values).any()
  by_values = jax.grad(
    lambda values: value_targets(experience.replace(values=values), GAE).sum()
  )(experience.values)
  assert not by_values.any()


def test_gae_without_values_or_as_a_process_baseline_is_refused():
  experience, _ = valued_experience(4)
  bare = experience.replace(values=None)
  for function in (pure_advantages, value_targets):
    with pytest.raises(ValueError, match="values is None"):
      function(bare, GAE)
  with pytest.raises(ValueError, match="values has shape"):
    pure_advantages(experience.replace(values=experience.values[:, 1:]), GAE)
  with pytest.raises(ValueError, match="no process part of its own"):
    returns = experience.step_rewards
    process_advantages(returns, experience.steps.mask, experience, GAE)
  with pytest.raises(ValueError, match="baseline='gae', not 'main'"):
    value_targets(experience, CreditConfig(baseline="main"))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"fold_verifiable": False}, "set fold_verifiable=True"),
    ({"form": "min_dense"}, "choose form='min'"),
    ({"gae_lambda": 1.5}, "gae_lambda must be between 0 and 1"),
  ],
)
def test_settings_that_gae_does_not_allow_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(GAE, **changes)


def test_explained_variance_equals_numpys():
  rng = np.random.default_rng(0)
  x, noise = rng.normal(size=(2, ROWS, COLUMNS)).astype(np.float32)
  mask = batch()[2]
  explained = masked.explained_variance(
    jnp.where(mask, x, jnp.nan), x + 0.5 * noise + 3, mask
  )
  expected = 1 - (0.5 * noise[mask]).var() / x[mask].var()
  np.testing.assert_allclose(explained, expected, rtol=1e-5)
  assert masked.explained_variance(x, x, mask) == 1
  assert masked.explained_variance(x, 0 * x, mask) == 0
  # Nothing to explain: 0, and not NaN.
  for constant in (0, 0.3):  # The mean of many .3 is not exact.
    assert masked.explained_variance(0 * x + constant, x, mask) == 0
  assert masked.explained_variance(x, x, mask & False) == 0
