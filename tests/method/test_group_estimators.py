"""GRPO and REINFORCE++ on process rewards, and the adaptive coefficient.

The oracles are loops over one response and the published definitions: GRPO
with process supervision (arXiv 2402.03300, Section 4.1.3), appendix F.2 of the
PURE paper (arXiv 2504.15275), and the controller of verl and OpenRLHF (arXiv
1909.08593, Section 2.2).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from factories import pad_columns, random_experience

from pure_jax import advantages, credit, estimators
from pure_jax.settings import AdaptiveKLConfig, CreditConfig

# Compiled once per config and shape: eager, every operation is a program.
_pure_advantages = jax.jit(advantages.pure_advantages, static_argnums=1)
grpo_step_rewards = jax.jit(estimators.grpo_step_rewards, static_argnums=(2, 3))
adaptive_kl_coef = jax.jit(estimators.adaptive_kl_coef, static_argnums=(2, 3))
GRPO = CreditConfig(
  baseline="grpo",
  verifiable_estimator="grpo",
  group_size=4,
  whitening="none",
)
# Appendix F.2: outcome and transformed rewards to go, with no baseline. KL in
# the reward and whitening are those of REINFORCE++ (arXiv 2501.03262).
REINFORCE_PP = CreditConfig(
  baseline="none",
  verifiable_estimator="none",
  kl_in_reward="k1",
  kl_coef=0.5,
  whitening="tokens",
  group_size=1,
)


def pure_advantages(batch, config):
  """The advantages as a numpy array."""
  return np.asarray(_pure_advantages(batch, config)[0])


def _transformed(batch, lists, form):
  """Each response's rewards whose sum to go is the return."""
  rows = []
  for b, ends in enumerate(lists["ends"]):
    row = np.asarray(batch.step_rewards[b, : len(ends)], np.float64)
    if form == "sum":
      rows.append(row)
    elif form == "softmin":
      weights = np.exp(-row / 0.1)
      rows.append(weights / weights.sum() * row)
    else:
      least = np.minimum.accumulate(row[::-1])[::-1]
      rows.append(least - np.append(least[1:], 0))
  return rows


@pytest.mark.parametrize("form", ["sum", "softmin", "min"])
def test_grpo_sums_normalised_rewards_to_go(form):
  batch, lists = random_experience(31)
  config = dataclasses.replace(GRPO, form=form, verifiable_coef=0.0)
  rewards = _transformed(batch, lists, form)
  expected = np.zeros(batch.completion_mask.shape)
  for b, length in enumerate(lists["lengths"]):
    first = b // 4 * 4
    # The published R: the rewards of all steps of the group. torch's standard
    # deviation, as in TRL and verl, has Bessel's correction.
    group = torch.tensor(np.concatenate(rewards[first : first + 4]))
    scaled = (rewards[b] - group.mean().item()) / (group.std().item() + 1e-6)
    for t in range(length):
      ends = lists["ends"][b]
      expected[b, t] = sum(
        value for value, end in zip(scaled, ends, strict=True) if end >= t
      )
  actual = pure_advantages(batch, config)
  np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-5)
  wide = pure_advantages(pad_columns(batch, 2, 2, fill=np.nan), config)
  np.testing.assert_allclose(wide[:, :9], actual, rtol=1e-5, atol=1e-6)


def test_grpo_adds_the_normalised_outcome():
  batch, _ = random_experience(32)
  batch = batch.replace(has_answer=np.ones(12, bool))
  process = dataclasses.replace(GRPO, verifiable_coef=0.0)
  added = pure_advantages(batch, GRPO) - pure_advantages(batch, process)
  groups = np.asarray(batch.correct, np.float64).reshape(3, 4)
  deviation = groups.std(axis=1, ddof=1, keepdims=True)
  expected = (groups - groups.mean(axis=1, keepdims=True)) / (deviation + 1e-6)
  mask = np.asarray(batch.completion_mask)
  expected = np.where(mask, expected.reshape(12, 1), 0)
  np.testing.assert_allclose(added, expected, rtol=1e-4, atol=1e-5)


def test_grpo_leaves_out_absent_steps_and_equal_groups():
  rewards = np.full((4, 3), np.nan, np.float32)
  mask = np.zeros((4, 3), bool)
  mask[0, :2], mask[1, 0] = True, True
  rewards[mask] = [1.0, -1.0, 0.0]
  mask[2, 1], mask[3] = True, True
  rewards[2, 1], rewards[3] = 0.25, 0.25
  actual = np.asarray(grpo_step_rewards(rewards, mask, 2, 0.0))
  np.testing.assert_allclose(actual[0], [1, -1, 0], rtol=1e-6)
  assert actual[1].tolist() == [0, 0, 0]
  actual = np.asarray(grpo_step_rewards(rewards, mask, 2, 1e-6))
  np.testing.assert_array_equal(actual[2:], np.zeros((2, 3)))
  # A single step, and no step at all, have nothing to compare with.
  mask[1:], mask[0, 1] = False, False
  np.testing.assert_array_equal(
    grpo_step_rewards(rewards, mask, 2, 1e-6), np.zeros((4, 3))
  )


def test_grpo_is_that_of_the_outcomes_if_each_response_has_one_step():
  rng = np.random.default_rng(1)
  rewards = rng.uniform(-1, 1, 8).astype(np.float32)
  mask = rng.random(8) < 0.8
  by_step = grpo_step_rewards(rewards[:, None], mask[:, None], 4, 1e-6)
  by_outcome = estimators.grpo_advantages(rewards, mask, 4)
  np.testing.assert_allclose(by_step[:, 0], by_outcome, rtol=1e-5, atol=1e-6)


def test_groups_of_one_raise():
  with pytest.raises(ValueError, match="at least 2"):
    estimators.grpo_step_rewards(np.ones((4, 2)), np.ones((4, 2), bool), 1)
  with pytest.raises(ValueError, match="no multiple"):
    estimators.grpo_step_rewards(np.ones((5, 2)), np.ones((5, 2), bool), 2)
  with pytest.raises(ValueError, match="leaves no other sample"):
    dataclasses.replace(GRPO, verifiable_coef=0.0, group_size=1)


@pytest.mark.parametrize("form", ["softmin", "sum", "mean"])
def test_reinforce_pp_on_process_rewards_agrees_with_a_loop(form):
  batch, lists = random_experience(33)
  config = dataclasses.replace(REINFORCE_PP, form=form)
  rewards = [
    row / len(row) if form == "mean" else row
    for row in _transformed(batch, lists, "sum" if form == "mean" else form)
  ]
  old, ref = np.float64(batch.old_logp), np.float64(batch.ref_logp)
  tokens, values = [], []
  for b, length in enumerate(lists["lengths"]):
    outcome = float(batch.correct[b]) * bool(batch.has_answer[b])
    for t in range(length):
      to_go = sum(
        reward
        for reward, end in zip(rewards[b], lists["ends"][b], strict=True)
        if end >= t
      )
      cost = 0.5 * sum(old[b, j] - ref[b, j] for j in range(t, length))
      tokens.append((b, t))
      values.append(outcome + to_go - cost)
  values = np.array(values)
  expected = np.zeros(batch.completion_mask.shape)
  whitened = (values - values.mean()) / values.std(ddof=1)
  for (b, t), value in zip(tokens, whitened, strict=True):
    expected[b, t] = value
  actual = pure_advantages(batch, config)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_reinforce_pp_of_outcomes_agrees_with_a_loop_and_its_configuration():
  batch, lists = random_experience(3)
  config = dataclasses.replace(REINFORCE_PP, process_coef=0.0)
  batch = batch.replace(has_answer=np.ones(12, bool))
  penalty = 0.5 * (np.asarray(batch.old_logp) - np.asarray(batch.ref_logp))
  reinforce_pp = jax.jit(estimators.reinforce_pp_advantages)
  direct = reinforce_pp(batch.correct, penalty, batch.completion_mask)
  direct = np.asarray(direct)
  costs = np.asarray(penalty, np.float64)
  tokens = [
    (b, t, float(batch.correct[b]) - costs[b, t:length].sum())
    for b, length in enumerate(lists["lengths"])
    for t in range(length)
  ]
  values = np.array([value for _, _, value in tokens])
  scaled = (values - values.mean()) / values.std(ddof=1)
  for (b, t, _), value in zip(tokens, scaled, strict=True):
    np.testing.assert_allclose(direct[b, t], value, rtol=1e-4, atol=1e-5)
  actual = pure_advantages(batch, config)
  np.testing.assert_allclose(actual, direct, rtol=1e-5, atol=1e-6)


def test_the_mean_form_is_the_sum_form_over_the_number_of_steps():
  batch, lists = random_experience(34)
  plain = dataclasses.replace(
    REINFORCE_PP, kl_in_reward=None, whitening="none", verifiable_coef=0.0
  )
  total = pure_advantages(batch, dataclasses.replace(plain, form="sum"))
  mean = pure_advantages(batch, dataclasses.replace(plain, form="mean"))
  counts = np.array([[len(ends)] for ends in lists["ends"]])
  np.testing.assert_allclose(mean * counts, total, rtol=1e-5, atol=1e-6)
  # The first token of a response has the mean of its scores.
  scores = [
    np.asarray(batch.step_rewards[b, : len(ends)]).mean()
    for b, ends in enumerate(lists["ends"])
  ]
  np.testing.assert_allclose(mean[:, 0], scores, rtol=1e-5, atol=1e-6)


def test_an_empty_step_that_is_excluded_has_no_weight_in_the_mean():
  rewards, mask = np.float32([0.6, 9.0, 0.2]), np.array([True, False, True])
  actual = jax.jit(credit.mean_returns)(rewards, mask)
  np.testing.assert_allclose(actual, [0.4, 0, 0.1], rtol=1e-6)


def _controller(value, kl, target, horizon, steps):
  """The update of verl's and OpenRLHF's AdaptiveKLController."""
  error = np.clip(kl / target - 1, -0.2, 0.2)
  return value * (1 + error * steps / horizon)


def test_the_adaptive_coefficient_is_the_published_controller():
  config = AdaptiveKLConfig(target=0.05, horizon=1000)
  expected = actual = np.float32(1e-3)
  for kl in (0.0, 0.02, 0.045, 0.05, 0.055, 0.06, 0.2, 5.0, 1e30):
    expected = _controller(expected, kl, 0.05, 1000, 512)
    actual = adaptive_kl_coef(actual, np.float32(kl), config, 512)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert actual.dtype == jnp.float32


def test_the_adaptive_coefficient_moves_towards_the_target():
  config = AdaptiveKLConfig(target=0.1, horizon=100)
  coefficients = [
    float(adaptive_kl_coef(1e-3, kl, config, 50)) for kl in (0.0, 0.1, 9.0)
  ]
  np.testing.assert_allclose(coefficients, [0.9e-3, 1e-3, 1.1e-3], rtol=1e-5)
  for kl in (np.nan, np.inf):
    kept = adaptive_kl_coef(np.float32(1e-3), np.float32(kl), config, 50)
    assert kept == np.float32(1e-3)


def test_an_impossible_controller_raises():
  config = AdaptiveKLConfig(target=0.1, horizon=100)
  with pytest.raises(ValueError, match=r"in 0\.\.499 .* not 500"):
    estimators.adaptive_kl_coef(jnp.ones(()), 0.1, config, 500)
  with pytest.raises(ValueError, match="not -1"):
    estimators.adaptive_kl_coef(jnp.ones(()), 0.1, config, -1)
  for target in (0.0, -1.0, float("nan"), float("inf")):
    with pytest.raises(ValueError, match="target must be between"):
      AdaptiveKLConfig(target=target)
  with pytest.raises(ValueError, match="horizon must be >= 1"):
    AdaptiveKLConfig(horizon=0)


@pytest.mark.parametrize("reward", [0.9, 0.7, 1 / 3])
def test_equal_rewards_of_a_group_are_0_in_spite_of_rounding(reward):
  """The mean of equal numbers is not exact, nor are equal shares of one."""
  rewards, mask = jnp.full((8, 5), reward), jnp.ones((8, 5), bool)
  np.testing.assert_array_equal(grpo_step_rewards(rewards, mask, 8, 1e-6), 0)
  returns = credit.softmin_returns(rewards, mask)
  shares = credit.transformed_rewards(returns, mask)
  np.testing.assert_array_equal(grpo_step_rewards(shares, mask, 8, 1e-6), 0)
