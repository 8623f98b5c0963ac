"""One score for a response, against loops over its steps."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax import credit
from pure_jax.host.evaluation.response_scores import (
  probability_good,
  response_scores,
  softmin_outcome,
)


def softmin(rewards, temperature):
  weights = [math.exp(-r / temperature) for r in rewards]
  weighted = [w * r for w, r in zip(weights, rewards, strict=True)]
  return sum(weighted) / sum(weights)


# Definitions, for the rewards of the steps that exist, in order.
DEFINITIONS = {
  "minimum": lambda r: (min(r) + 1) / 2,
  "softmin": lambda r: (softmin(r, 0.1) + 1) / 2,
  "last": lambda r: (r[-1] + 1) / 2,
  "product": lambda r: math.prod((x + 1) / 2 for x in r),
  "mean": lambda r: sum((x + 1) / 2 for x in r) / len(r),
}


def random_steps(seed, shape=(40, 6)):
  """Rewards and a mask with gaps; NaN and wild numbers where masked."""
  rng = np.random.default_rng(seed)
  rewards = rng.uniform(-1, 1, shape)
  mask = rng.random(shape) < 0.6
  mask.reshape(-1, shape[-1])[:2] = [[False] * shape[-1], [True] * shape[-1]]
  return np.where(mask, rewards, rng.choice([np.nan, 7.0, -7.0], shape)), mask


@pytest.mark.parametrize("shape", [(40, 6), (5, 4, 3), (30, 1)])
def test_each_score_agrees_with_its_definition(shape):
  """With any leading axes. A response without steps scores 0, not NaN, not 1
  as an empty product, and not 0.5 as a reward of 0.
  """
  rewards, mask = random_steps(len(shape), shape)
  scores = response_scores(rewards, mask)
  assert list(scores) == list(DEFINITIONS)
  rows = list(
    zip(
      rewards.reshape(-1, shape[-1]), mask.reshape(-1, shape[-1]), strict=True
    )
  )
  for name, definition in DEFINITIONS.items():
    expected = [
      definition(rewards[mask].tolist()) if mask.any() else 0.0
      for rewards, mask in rows
    ]
    np.testing.assert_allclose(
      scores[name], np.reshape(expected, shape[:-1]), atol=1e-12
    )


def test_scores_of_an_example_by_hand():
  """r = [.8, -.6, .4, .9]. The product of rewards instead of probabilities
  would be -.17; the sum form would be 1.5.
  """
  rewards, mask = np.array([[0.8, -0.6, 0.4, 0.9, 0.5]]), np.ones((1, 5), bool)
  mask[0, 4] = False
  scores = response_scores(rewards, mask)
  assert {name: values[0] for name, values in scores.items()} == pytest.approx(
    {
      "minimum": 0.2,
      "softmin": 0.200023,  # The reward is -.59995: softmin is above the min.
      "last": 0.95,
      "product": 0.9 * 0.2 * 0.7 * 0.95,
      "mean": 2.75 / 4,
    },
    abs=1e-6,
  )


def test_softmin_tends_to_the_minimum_and_to_the_mean():
  rewards, mask = random_steps(7)
  rewards, mask = rewards[1:], mask[1:]
  scores = response_scores(rewards, mask)
  has_steps = mask.any(1)
  for temperature, limit, error in (
    (0.002, "minimum", 0.002),  # The bias is of the order of the temperature.
    (1e6, "mean", 1e-6),
  ):
    outcome = softmin_outcome(rewards, mask, temperature)[has_steps]
    np.testing.assert_allclose(
      (outcome + 1) / 2, scores[limit][has_steps], atol=error
    )


def test_a_single_step_gives_its_own_score():
  scores = response_scores(np.array([[-0.5, 9.0]]), np.array([[True, False]]))
  for values in scores.values():
    assert values.tolist() == pytest.approx([0.25], abs=1e-12)


def test_the_last_step_is_the_last_one_that_exists():
  """Not the last column; without steps not the first column either."""
  rewards = np.array([[0.2, 0.4, 0.6]] * 2)
  mask = np.array([[True, True, False], [False, False, False]])
  last = response_scores(rewards, mask)["last"]
  assert last.tolist() == pytest.approx([0.7, 0.0])


def test_only_the_product_penalises_length():
  """100 steps of p(good) = .99 have a product of .37."""
  long = np.full((1, 100), 0.98)
  mask = np.ones_like(long, bool)
  for name, values in response_scores(long, mask).items():
    expected = 0.99**100 if name == "product" else 0.99
    assert values[0] == pytest.approx(expected, abs=1e-12)


def test_invalid_rewards_raise_with_their_index():
  mask = np.ones((2, 3), bool)
  rewards = np.zeros((2, 3))
  rewards[1, 2] = 3.5
  with pytest.raises(ValueError, match=r"row \[1\], step 2 is 3.5.*logit"):
    response_scores(rewards, mask)
  rewards[1, 2] = np.nan
  with pytest.raises(ValueError, match=r"row \[1\], step 2 is nan"):
    response_scores(rewards, mask)
  with pytest.raises(ValueError, match=r"bool of shape \(2, 2\)"):
    response_scores(rewards, mask[:, :2])
  with pytest.raises(ValueError, match="mask is int64"):
    response_scores(rewards, mask.astype(np.int64))


def test_rounding_past_one_is_not_an_error():
  reward = np.nextafter(np.float32(1), np.float32(2))
  scores = probability_good(np.array([reward, -reward]), np.ones(2, bool))
  assert scores.tolist() == [1.0, 0.0]


def test_softmin_outcome_of_five_good_steps():
  """0.765; the minimum is 0.70."""
  scores = [0.9, 0.8, 0.95, 0.85, 0.7]
  outcome = softmin_outcome(np.asarray([scores]), np.ones((1, 5), bool))
  assert outcome[0] == pytest.approx(0.765, abs=5e-4)
  assert outcome[0] == pytest.approx(softmin(scores, 0.1), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.03, 0.1, 1.0])
def test_softmin_outcome_is_the_sum_of_the_rewards_of_credit(temperature):
  """Host and device agree, also on masked steps."""
  rng = np.random.default_rng(0)
  scores = rng.uniform(-1, 1, (64, 6)).astype(np.float32)
  mask = rng.random((64, 6)) < 0.7
  mask[0] = False
  device = credit.softmin_rewards(
    jnp.asarray(scores), jnp.asarray(mask), temperature=temperature
  ).sum(1)
  garbage = np.where(mask, scores, np.nan)
  outcome = softmin_outcome(garbage, mask, temperature)
  np.testing.assert_allclose(outcome, device, atol=1e-6)
  for row, value in enumerate(outcome):
    rewards = scores[row][mask[row]].astype(float).tolist()
    expected = softmin(rewards, temperature) if rewards else 0.0
    assert value == pytest.approx(expected, abs=1e-9)
  assert outcome[0] == 0  # Not NaN: no step exists.


@pytest.mark.filterwarnings("error")
def test_scores_see_nothing_masked_and_softmin_has_limits():
  rewards = np.array([[0.5, -0.25, 0], [0.125, 0, 0], [0, 0, 0]])
  mask = np.array([[True, True, False], [True, False, False], [False] * 3])
  expected = response_scores(rewards, mask)
  for filler in (np.nan, np.inf, -np.inf, 1e308):
    hostile = response_scores(np.where(mask, rewards, filler), mask)
    for name, scores in expected.items():
      np.testing.assert_array_equal(hostile[name], scores)
  for temperature, first in ((5e-324, -0.25), (1e-300, -0.25), (1e300, 0.125)):
    actual = softmin_outcome(rewards, mask, temperature)
    np.testing.assert_allclose(actual, [first, 0.125, 0])
