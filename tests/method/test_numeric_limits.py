"""The ends of number formats: 16 bits, exponents, temperatures, no axis."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import random_experience

from pure_jax import credit, estimators, losses, masked, ranges, ratios
from pure_jax.models import token_logp
from pure_jax.rollout import sampling
from pure_jax.settings import AdaptiveKLConfig, LossConfig

# float16 ends at 65,504, and counts by ones to 2,048; bfloat16 to 256.
MANY, FEW = 70_000, 3_001


def _reductions(ones):
  """Reductions of many 16-bit numbers, each with its value in float64."""
  every = np.ones(MANY, bool)
  half = np.arange(MANY) % 2 == 0
  alternate = jnp.asarray(half, ones.dtype)
  rows, of_rows = ones.reshape(7, -1), every.reshape(7, -1)
  sequences = LossConfig(aggregate="sequence_mean")
  lengths, one = np.full(rows.shape, 3_001), jnp.array(1.0)
  few, steps = ones[:FEW], every[:FEW]
  return (
    (masked.masked_sum(ones / 4, half), MANY / 8),
    (masked.masked_mean(ones, every), 1),
    (masked.masked_var(alternate, every), 0.25),
    (masked.masked_std(alternate, every), 0.5),
    (masked.safe_divide(ones * 3, jnp.full(MANY, MANY)), 3 / MANY),
    (masked.explained_variance(alternate, alternate / 2, every), 0.75),
    (masked.whiten(alternate, every), 2.0 * half - 1),
    (masked.whiten(ones / 10, every), 0),
    (losses.aggregate_loss(rows, of_rows, LossConfig()), 1),
    (losses.aggregate_loss(rows, of_rows, sequences), 1),
    (
      losses.aggregate_loss(rows, of_rows, sequences, one, lengths),
      MANY / 3_001,
    ),
    (credit.sum_returns(few / 8, steps)[0], FEW / 8),
    (credit.mean_returns(few, steps)[0], 1),
    (credit.softmin_returns(few, steps)[0], 1),
    (estimators.others_sum(few, FEW), FEW - 1),
    (estimators.grpo_advantages(few / 10, steps, FEW), 0),
    (estimators.rloo_advantages(few, steps, FEW), 0),
    (estimators.gae_advantages(few / 8, 0 * few, steps)[0][0], FEW / 8),
  )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_16_bits_are_summed_in_float32(dtype):
  for number, (actual, expected) in enumerate(
    jax.jit(_reductions)(jnp.ones(MANY, dtype))
  ):
    assert actual.dtype == dtype, number
    # One rounding, of the result.
    np.testing.assert_allclose(
      actual.astype(jnp.float32),
      np.broadcast_to(expected, actual.shape),
      rtol=float(jnp.finfo(dtype).eps),
      atol=1e-6,
      err_msg=str(number),
    )


def test_equal_values_whiten_to_zero():
  # The rounding of the mean, divided by a deviation of 1e-4, was about -0.5.
  x, every = np.full(MANY, 1234.567, np.float32), np.ones(MANY, bool)
  whiten = jax.jit(lambda x: jax.vjp(lambda x: masked.whiten(x, every), x)[0])
  assert not np.any(whiten(x))
  x[0] += 0.02  # A difference of 2e-5 of the values is one.
  assert float(whiten(x)[0]) > 100


@pytest.mark.parametrize(
  "shape, axis",
  [((0,), None), ((3, 0), 1), ((0, 3), 1), ((3, 0), (0, 1)), ((0, 3), 0)],
)
def test_an_empty_axis_reduces_to_zeros(shape, axis):
  x, mask = jnp.ones(shape), np.ones(shape, bool)
  for function in (masked.masked_min, masked.masked_max, masked.masked_mean):
    for run in (function, jax.jit(function, static_argnums=2)):
      actual = run(x, mask, axis)
      np.testing.assert_array_equal(actual, np.zeros(np.sum(x, axis).shape))


@pytest.mark.parametrize("magnitude", [0, 1, 0.1])
def test_equal_outcomes_have_no_advantage_and_no_nan(magnitude):
  # The square root of a variance of 0 has an infinite derivative.
  x = np.full((7, 3), magnitude, np.float32)
  every = np.ones(x.shape, bool)

  @jax.jit
  def run(x):
    def function(x):
      scaled = estimators.grpo_step_rewards(x, every, 7)
      return scaled, estimators.grpo_advantages(x[:, 0], every[:, 0], 7)

    values, back = jax.vjp(function, x)
    return values, back(jax.tree.map(lambda x: jnp.cos(x + 1), values))

  for each in jax.tree.leaves(run(x)):
    assert not np.any(each)


def _softmin(rewards, temperature):
  """Eq. 5 in float64: the gradient of the sum, and the rewards."""
  lowest = rewards.min()
  with np.errstate(over="ignore"):
    weight = np.exp(-(rewards - lowest) / temperature)
  weight /= weight.sum()
  weighted = weight * rewards
  with np.errstate(over="ignore", invalid="ignore"):
    pull = np.where(weight > 0, (rewards - weighted.sum()) / temperature, 0)
  # At T -> 0 tied steps share the minimum: the difference above is rounding.
  pull = pull if temperature > 1e-6 else 0
  return weight * (1 - pull), weighted


TEMPERATURES = (
  *(1e-45, 1e-39, 1e-38, 1e-30, 1e-19, 1e-10, 1e-3, 0.1, 1, 1e10, 1e30),
)


@pytest.mark.parametrize("rewards", [[0.25, -0.5, 1], [-0.5, 0.75, -0.5], [1]])
def test_softmin_has_limits(rewards):
  rewards = np.float32(rewards)
  mask = np.ones(rewards.shape, bool)

  def function(rewards, temperature):
    weighted = credit.softmin_rewards(rewards, mask, temperature=temperature)
    return weighted.sum(), weighted

  slope = jax.grad(function, has_aux=True)
  constants = jax.jit(lambda x: [slope(x, t) for t in TEMPERATURES])(rewards)
  arrays = jax.jit(jax.vmap(slope, (None, 0)))(
    rewards, np.float32(TEMPERATURES)
  )
  for number, temperature in enumerate(TEMPERATURES):
    expected = _softmin(rewards.astype(np.float64), temperature)
    for actual in constants[number], [x[number] for x in arrays]:
      for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
  lowest = credit.softmin_returns(rewards, mask, temperature=1e-45)
  if len({*rewards}) == len(rewards):
    np.testing.assert_array_equal(
      lowest, credit.min_returns(rewards, mask, zero_after_worst=True)
    )


def _kl(kind, d):
  """The estimate of d = ref_logp - logp in float64, and its slope."""
  with np.errstate(over="ignore"):
    return {
      "k1": (-d, -np.ones_like(d)),
      "k2": (d**2 / 2, d),
      "k3": (np.expm1(d) - np.minimum(d, 1e4), np.expm1(d)),
    }[kind]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_a_limited_kl_has_no_gradient_beyond_its_limit(dtype):
  d = [-np.inf, -1e4, -100, -11, -9, 0, 0.5, 2, 3, 14, 61, 85, 100, np.inf]
  d = np.asarray(d).astype(dtype).astype(np.float64)
  cases = [*itertools.product(("k1", "k2", "k3"), (10.0, 1e6, 1e20))]

  @jax.jit
  def run(ref_logp, logp):
    results = []
    for kind, limit in cases:
      value, back = jax.vjp(
        lambda *both, kind=kind, limit=limit: estimators.kl_estimate(
          *both, kind, limit
        ),
        *(logp, ref_logp),
      )
      results.append((value, *back(jnp.ones_like(value))))
    return results

  results = run(jnp.asarray(d, dtype), jnp.zeros(d.shape, dtype))
  largest = float(jnp.finfo(dtype).max)
  for (kind, limit), (value, by_logp, by_ref) in zip(
    cases, results, strict=True
  ):
    assert value.dtype == by_ref.dtype == dtype
    estimate, slope = _kl(kind, d)
    slope = np.where(np.abs(estimate) > limit, 0, slope)
    for actual, expected in (
      (value, np.clip(estimate, -limit, limit)),
      (by_ref, slope),
      (by_logp, -slope),
    ):
      held = np.abs(expected) < largest  # The dtype has inf for the others.
      np.testing.assert_allclose(
        actual.astype(jnp.float32),
        np.where(held, expected, np.copysign(np.inf, expected)),
        rtol=max(1e-5, float(jnp.finfo(dtype).eps)),
        atol=1e-6,
      )


@pytest.mark.parametrize(
  "limit, dual_clip", [(None, None), (None, 3.0), (20.0, None), (60.0, 3.0)]
)
def test_log_ratios_of_any_size_give_finite_losses(limit, dual_clip):
  batch, _ = random_experience(0, prompts=1, group_size=4, lengths=[9] * 4)
  batch = batch.replace(sampled_logp=batch.old_logp)
  d = np.resize([1e4, -1e4, 100, -100, 50, 0], (4, 9)).astype(np.float32)
  signs = np.resize([1, -1, 0, 1, -1], d.shape).astype(np.float32)
  config = LossConfig(
    log_ratio_limit=limit,
    dual_clip=dual_clip,
    ratio_guard=10.0,
    kl_in_loss="k3",
    importance_cap=2.0,
  )

  def objective(new_logp):
    loss, metrics = losses.policy_objective(
      new_logp, d, signs, batch, config, jnp.array(1e9), None, d.size
    )
    return loss, metrics

  gradients, metrics = jax.jit(jax.grad(objective, has_aux=True))(
    batch.old_logp + d
  )
  for x in jax.tree.leaves((gradients, metrics)):
    assert np.isfinite(x).all()
  guarded, metrics = ratios.apply_guard(gradients, metrics, 10.0)
  assert float(metrics.sums["guarded_fraction"]) == 1
  assert not np.any(guarded)


def test_adaptive_kl_at_its_shortest_horizon():
  config = AdaptiveKLConfig(target=0.1, horizon=1)
  for kl, factor in ((0.0, 0.2), (1e38, 1.8), (np.inf, 1), (np.nan, 1)):
    coefficient = estimators.adaptive_kl_coef(jnp.array(1e-3), kl, config, 4)
    np.testing.assert_allclose(coefficient, 1e-3 * factor, rtol=1e-6)


FILTERS = (
  {"top_p": ranges.TOP_P[0]},
  {"top_p": 0.5, "top_k": 2},
  {"min_p": 5e-324},
  {"temperature": ranges.TEMPERATURE[0]},
  {"temperature": ranges.TEMPERATURE[1], "top_p": 0.9},
  {"temperature": 0.0},
)


@pytest.mark.parametrize("filters", FILTERS)
def test_a_single_possible_id_is_certain(filters):
  scores = jnp.full((3, 5), -jnp.inf).at[:, 2].set(jnp.array([0, 1e8, -1e8]))
  config = sampling.SamplingConfig(4, 0, (1,), **filters)
  keys = jax.random.split(jax.random.key(0), 3)
  sample = jax.jit(lambda *of: sampling.sample_tokens(of[0], config, of[1]))
  tokens, logp, full_logp = sample(scores, keys)
  assert tokens.tolist() == [2, 2, 2]
  assert logp.tolist() == full_logp.tolist() == [0, 0, 0]
  empty = sample(scores[:0], keys[:0])
  assert [x.shape for x in empty] == [(0,)] * 3


def test_log_probs_of_a_single_possible_id():
  scores = jnp.float32([[-jnp.inf, 1e38, -jnp.inf], [1e38, -1e38, 0]])

  def function(scores):
    logp, entropy = token_logp.logp_and_entropy(scores, jnp.array([1, 0]))
    return (logp + entropy).sum(), (logp, entropy)

  gradient, (logp, entropy) = jax.jit(jax.grad(function, has_aux=True))(scores)
  assert not np.any(logp)
  assert not np.any(entropy)
  assert not np.any(gradient)


@pytest.mark.parametrize("temperature", [-1.0, 1e-30, 5e-324, 1e300, np.nan])
def test_sampler_and_trainer_refuse_the_same_temperatures(temperature):
  for make in (
    lambda: token_logp.Readout(True, temperature, (), 4),
    lambda: sampling.SamplingConfig(4, 0, (1,), temperature=temperature),
  ):
    with pytest.raises(
      ValueError, match=r"^temperature must be between 0\.0001"
    ):
      make()
