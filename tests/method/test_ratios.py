"""Limits on ratios and KL: loops, published definitions, extreme inputs."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from factories import random_experience

from pure_jax import advantages as estimation
from pure_jax import estimators, importance, losses, ratios
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.types import MetricGroups

# Compiled once per config and shape: eager, every operation is a program.
policy_objective = jax.jit(losses.policy_objective, static_argnums=4)
objective_and_slopes = jax.jit(
  jax.value_and_grad(losses.policy_objective, argnums=(0, 1), has_aux=True),
  static_argnums=4,
)
pure_advantages = jax.jit(estimation.pure_advantages, static_argnums=1)
dual_clip = jax.jit(ratios.dual_clip, static_argnums=2)
FAR = [-1e4, -100.0, -20.0, -1.0, -1e-3, 0.0, 0.5, 30.0, 100.0, 1e4]
BATCH, _ = random_experience(0, prompts=1, group_size=4, width=5, max_steps=2)
ONES = BATCH.replace(completion_mask=jnp.ones((4, 5), bool))


def _objective(new, old, ref, advantage, config):
  """Loss, slopes of the log-probs and metrics of tokens, as numpy arrays."""
  tokens = np.broadcast_arrays(*map(np.float32, (new, old, ref, advantage)))
  new, old, ref, advantage = (x.reshape(1, -1) for x in tokens)
  batch = BATCH.replace(
    completion_mask=np.ones(new.shape, bool),
    old_logp=old,
    ref_logp=ref,
    sampled_logp=old,
  )
  (loss, metrics), slopes = objective_and_slopes(
    new, np.zeros(new.shape, np.float32), advantage, batch, config
  )
  return jax.device_get((loss, slopes[0][0] * new.size, metrics.to_dict()))


def test_a_ratio_beyond_the_limit_has_no_gradient():
  # new - old = 100 nats and A = 1: exp overflows, and 0 times inf is NaN.
  loss, slope, metrics = _objective(100, 0, 100, 1, LossConfig())
  np.testing.assert_allclose(loss, -1.2, rtol=1e-6)
  assert slope.tolist() == [0]
  np.testing.assert_allclose(metrics["ratio_max"], np.exp(20.0), rtol=1e-5)
  # A < 0 is not clipped by PPO: the limit alone stops the gradient.
  loss, slope, _ = _objective([100, 19], 0, [100, 19], -1, LossConfig())
  np.testing.assert_allclose(slope, [0, np.exp(19.0)], rtol=1e-5)
  unlimited = LossConfig(log_ratio_limit=None)
  loss, slope, metrics = _objective(100, 0, 100, 1, unlimited)
  assert slope.tolist() == [0]
  np.testing.assert_allclose(metrics["ratio_max"], np.exp(60.0), rtol=1e-5)


def test_a_penalty_beyond_the_limit_has_no_gradient():
  # logp = -10 and ref = -.1: the penalty is 19,919 nats without a limit.
  config = LossConfig(kl_in_loss="k3", kl_coef=1.0)
  loss, slope, _ = _objective(-10, -10, -0.1, 0, config)
  np.testing.assert_allclose(loss, 10.0, rtol=1e-6)
  assert slope.tolist() == [0]
  unlimited = dataclasses.replace(config, kl_limit=None)
  loss, slope, _ = _objective(-10, -10, -0.1, 0, unlimited)
  np.testing.assert_allclose(loss, np.exp(9.9) - 10.9, rtol=1e-5)
  np.testing.assert_allclose(slope, [1 - np.exp(9.9)], rtol=1e-5)
  near = _objective(-1.0, -1.0, -0.5, 0, config)
  far = _objective(-1.0, -1.0, -0.5, 0, unlimited)
  np.testing.assert_array_equal(near[1], far[1])


def _verl_kl(logp, ref_logp, kind, limit):
  """verl's penalty per token; only k3 is clamped there, we clamp each."""
  difference = ref_logp - logp
  if kind == "k1":
    return torch.clamp(-difference, -limit, limit)
  if kind == "k2":
    return torch.clamp(difference**2 / 2, -limit, limit)
  difference = torch.clamp(difference, -20, 20)
  return torch.clamp(torch.exp(difference) - difference - 1, -limit, limit)


def _verl_policy_loss(new, old, advantage, config):
  """verl's clipped loss per token: clamp, clip, dual clip."""
  limit = config.log_ratio_limit
  ratio = torch.exp(torch.clamp(new - old, -limit, limit))
  clipped = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
  loss = torch.maximum(-advantage * ratio, -advantage * clipped)
  if config.dual_clip is None:
    return loss
  lower = torch.minimum(-advantage * config.dual_clip, loss)
  return torch.where(advantage < 0, lower, loss)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("bound", [None, 3.0])
def test_loss_and_gradient_are_those_of_verl(kind, bound):
  rng = np.random.default_rng(0)
  old = -rng.exponential(1, 300)
  new = old + rng.choice([0.1, 1.0, 15.0], 300) * rng.normal(size=300)
  new[:20] += rng.choice([-60.0, 60.0], 20)
  ref = new + rng.choice([0.1, 3.0, 30.0], 300) * rng.normal(size=300)
  advantage = rng.normal(size=300)
  config = LossConfig(
    clip_high=0.28, kl_in_loss=kind, kl_coef=0.5, dual_clip=bound
  )
  new, old, ref, advantage = map(np.float32, (new, old, ref, advantage))
  loss, slope, metrics = _objective(new, old, ref, advantage, config)
  logp = torch.tensor(new, requires_grad=True)
  old, ref, advantage = map(torch.tensor, (old, ref, advantage))
  per_token = _verl_policy_loss(logp, old, advantage, config)
  per_token = per_token + 0.5 * _verl_kl(logp, ref, kind, config.kl_limit)
  per_token.sum().backward()
  np.testing.assert_allclose(loss, per_token.mean().item(), rtol=1e-5)
  np.testing.assert_allclose(slope, logp.grad.numpy(), rtol=1e-4, atol=1e-6)
  if bound is not None:
    above = torch.exp(torch.clamp(logp - old, -20, 20)) > bound
    share = (above & (advantage < 0)).float().mean().item()
    np.testing.assert_allclose(metrics["dual_clip_fraction"], share, rtol=1e-6)


@pytest.mark.parametrize(
  "ratio, advantage, expected, slope",
  [
    (5.0, -1.0, 3.0, 0.0),
    (5.0, -2.0, 6.0, 0.0),
    (2.0, -1.0, 2.0, 2.0),
    # A good token and a token that became rare are those of plain PPO.
    (5.0, 1.0, -1.2, 0.0),
    (0.1, -1.0, 0.8, 0.0),
  ],
)
def test_dual_clip_case_by_case(ratio, advantage, expected, slope):
  loss, gradient, _ = _objective(
    np.log(ratio), 0, np.log(ratio), advantage, LossConfig(dual_clip=3.0)
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, [slope], rtol=1e-6)


def test_a_dual_clip_passes_no_gradient_to_advantages():
  def total(advantages):
    loss, _ = ratios.dual_clip(5 * jnp.ones(3), advantages, 3.0)
    return loss.sum()

  gradient = jax.grad(total)(jnp.array([-1.0, -2.0, 1.0]))
  assert gradient.tolist() == [0, 0, 0]


@pytest.mark.parametrize("other", [{}, {"kl_in_loss": "k3", "kl_coef": 9.0}])
def test_the_guard_drops_the_whole_loss_above_the_mean_ratio(other):
  # TRL's rule: the mean over tokens, > and not >=, and all of the loss.
  config = LossConfig(ratio_guard=10.0, entropy_coef=0.1, **other)
  free = dataclasses.replace(config, ratio_guard=None)
  credit = CreditConfig(group_size=4, baseline="none")
  slopes_of = jax.jit(
    jax.value_and_grad(losses.pure_loss, argnums=(0, 1), has_aux=True),
    static_argnums=(3, 4),
  )

  def run(first, config):
    # 4 x 5 tokens; the mean ratio is (19 + first) / 20.
    ratio = np.ones((4, 5), np.float32)
    ratio[0, 0] = first
    new_logp = ONES.old_logp + np.log(ratio)
    entropy = jnp.ones((4, 5))
    (loss, metrics), slopes = slopes_of(new_logp, entropy, ONES, credit, config)
    return jax.device_get((loss, slopes, metrics))

  loss, slopes, metrics = run(175.0, config)  # Mean 9.7.
  expected = run(175.0, free)
  assert loss == expected[0] != 0
  jax.tree.map(np.testing.assert_array_equal, slopes, expected[1])
  assert slopes[0].any() and slopes[1].any()
  np.testing.assert_allclose(metrics["mean_ratio"], 9.7, rtol=1e-5)
  assert metrics["guarded_fraction"] == 0
  assert {*metrics} - {*expected[2]} == {"mean_ratio", "guarded_fraction"}
  loss, slopes, metrics = run(187.0, config)  # Mean 10.3.
  assert loss == 0 and not slopes[0].any() and not slopes[1].any()
  assert metrics["guarded_fraction"] == 1
  assert metrics["policy_loss"] == run(187.0, free)[2]["policy_loss"] != 0


def test_the_guard_is_exceeded_above_it_only():
  values = [9.0, 10.0, 10.5, np.inf, np.nan]
  for value, fires in zip(values, [0, 0, 1, 1, 0], strict=True):
    metrics = MetricGroups({"mean_ratio": jnp.float32(value)})
    results, metrics = ratios.apply_guard(
      (jnp.float32(3), {"w": jnp.array([1, np.nan, np.inf])}), metrics, 10.0
    )
    loss, grads = jax.device_get(results)
    assert metrics.sums["guarded_fraction"] == fires, value
    expected = [0, 0, 0] if fires else [1, np.nan, np.inf]
    np.testing.assert_array_equal(grads["w"], expected)
    assert loss == (0 if fires else 3)


@pytest.mark.parametrize("low, expected", [(0.9, 9.95), (1.1, 0.0)])
def test_rows_apart_are_guarded_as_rows_together(low, expected):
  # Mean ratios of 9.95 and 10.05; each row alone has 19, and .9 or 1.1.
  config = LossConfig(ratio_guard=10.0)
  new_logp = np.log(np.float32([[19.0, 1.0], [low, 1.0]]))
  mask = np.array([[True, False], [True, False]])
  batch = BATCH.replace(
    completion_mask=mask, old_logp=0 * new_logp, ref_logp=new_logp
  )

  def objective(rows, **counts):
    part = batch.replace(
      completion_mask=mask[rows],
      old_logp=batch.old_logp[rows],
      ref_logp=batch.ref_logp[rows],
    )
    new = new_logp[rows]
    return policy_objective(new, 0 * new, 0 * new - 1, part, config, **counts)

  counts = {"denominator": jnp.float32(2), "token_count": jnp.int32(2)}
  parts = [objective(slice(row, row + 1), **counts) for row in (0, 1)]
  totals = [objective(slice(None))] + [
    (
      first[0] + second[0],
      MetricGroups(jax.tree.map(jnp.add, first[1].sums, second[1].sums)),
    )
    for first, second in [parts]
  ]
  for loss, metrics in totals:
    loss, _ = ratios.apply_guard(loss, metrics, config.ratio_guard)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_mean_ratio_counts_tokens_only():
  mask = np.array([[True, False]])
  new_logp = np.log(np.float32([[9.0, 1e8]]))
  config = LossConfig(ratio_guard=10.0)
  for kept, expected in ((mask, 9.0), (~mask, 1e8), (mask & ~mask, 0.0)):
    batch = BATCH.replace(
      completion_mask=kept, old_logp=0 * new_logp, ref_logp=new_logp
    )
    arguments = (new_logp, 0 * new_logp, 0 * new_logp, batch, config)
    _, metrics = policy_objective(*arguments)
    np.testing.assert_allclose(metrics.sums["mean_ratio"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="give token_count"):
      policy_objective(*arguments, denominator=jnp.float32(2))


def test_a_coefficient_of_the_call_replaces_that_of_the_config():
  batch, _ = random_experience(3)
  new_logp = batch.old_logp - 0.2 * batch.completion_mask
  arguments = (new_logp, 0 * new_logp, new_logp, batch)
  stated, other = (
    LossConfig(kl_in_loss="k3", kl_coef=kl_coef) for kl_coef in (0.7, 0.1)
  )
  expected, _ = policy_objective(*arguments, stated)
  actual, _ = policy_objective(*arguments, other, kl_coef=jnp.float32(0.7))
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  apart = CreditConfig(group_size=4, baseline="none", kl_in_reward="k3")
  folded = dataclasses.replace(apart, fold_verifiable=True)
  for config in (apart, folded):
    stated = dataclasses.replace(config, kl_coef=0.7)
    expected, _ = pure_advantages(batch, stated)
    actual, _ = pure_advantages(batch, config, jnp.float32(0.7))
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


LIMITS = ({}, {"kl_limit": 1e3, "log_ratio_limit": 1.0})
OTHERS = (
  {"clip_low": 1.0, "clip_high": 1e3},
  {"dual_clip": 3.0, "importance_cap": 2.0, "entropy_coef": 0.1},
  {"ratio_guard": 10.0, "aggregate": "sequence_mean"},
)
# Half of all combinations, with every pair of a kind, limits and the others.
EXTREMES = [
  {"kl_in_loss": kind, **LIMITS[(i + j) % 2], **others}
  for i, kind in enumerate((None, "k1", "k2", "k3"))
  for j, others in enumerate(OTHERS)
]


@pytest.mark.parametrize("changes", EXTREMES, ids=str)
def test_every_finite_input_gives_finite_gradients_and_metrics(changes):
  # +-1e4 nats on every side; a NaN here would be a skipped update.
  tokens = np.array(list(itertools.product(FAR, FAR, FAR, (-3.0, 0.0, 3.0))))
  new, old, ref, advantage = np.float32(tokens.T)
  rng = np.random.default_rng(0)
  shape = (4, len(new) // 4)
  order = rng.permutation(len(new)).reshape(shape)
  batch = BATCH.replace(
    completion_mask=rng.random(shape) < 0.9,
    old_logp=old[order],
    ref_logp=ref[order],
    sampled_logp=rng.permutation(old)[order],
  )
  (loss, metrics), slopes = objective_and_slopes(
    new[order],
    np.ones(shape, np.float32),
    advantage[order],
    batch,
    LossConfig(**changes),
  )
  assert np.isfinite(loss)
  for slope in slopes:
    assert np.isfinite(np.asarray(slope)).all()
  for name, value in metrics.to_dict().items():
    assert np.isfinite(np.asarray(value)).all(), name


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("limit", [1.0, 10.0, 1e3, 1e6])
def test_a_limited_penalty_is_the_clipped_one_everywhere(kind, limit):
  # float64 has room for exp(700); further away the clipped value is known.
  d = np.array([-1e4, -500.0, -30.0, -1.0, 0.0, 1.0, 8.0, 30.0, 90.0, 600.0])
  exact = {"k1": -d, "k2": d**2 / 2, "k3": np.exp(d) - d - 1}[kind]
  penalty = jax.jit(estimators.kl_estimate, static_argnums=(2, 3))
  actual = penalty(jnp.zeros(10), jnp.float32(d), kind, limit)
  expected = np.clip(exact, -limit, limit)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
  slope = jax.grad(lambda d: penalty(jnp.zeros(10), d, kind, limit).sum())
  gradient = np.asarray(slope(jnp.float32(d)))
  assert np.isfinite(gradient).all()
  assert not gradient[np.abs(exact) > limit].any()
  inside = np.abs(exact) < limit
  known = {"k1": -np.ones(10), "k2": d, "k3": np.expm1(d)}[kind]
  np.testing.assert_allclose(gradient[inside], known[inside], rtol=1e-5)


def test_importance_weights_of_far_samplers_are_finite():
  far = jnp.array(FAR)
  loss, metrics = importance.weigh(jnp.ones(10), far, -far, 2.0)
  for values in (loss, *metrics.values()):
    assert np.isfinite(np.asarray(values)).all()
