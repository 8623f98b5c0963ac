"""One score for a response, against loops over its steps."""

import math

import numpy as np
import pytest

from pure_jax.host.evaluation.response_scores import (
  AGGREGATIONS,
  last_score,
  minimum_score,
  probability_good,
  product_score,
  softmin_score,
)


def softmin(rewards, temperature):
  weights = [math.exp(-r / temperature) for r in rewards]
  weighted = [w * r for w, r in zip(weights, rewards, strict=True)]
  return sum(weighted) / sum(weights)


# By definition, for the rewards of the steps that exist, in order.
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


def test_the_aggregations_are_those_defined_here():
  assert list(AGGREGATIONS) == list(DEFINITIONS)


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("shape", [(40, 6), (5, 4, 3), (30, 1)])
def test_agrees_with_its_definition(name, shape):
  """Any leading axes; a response without steps is 0, not NaN, and not the
  1 that an empty product or the 0.5 that a reward of 0 would be.
  """
  rewards, mask = random_steps(len(shape), shape)
  found = AGGREGATIONS[name](rewards, mask)
  assert found.shape == shape[:-1]
  rows = zip(
    found.ravel(),
    rewards.reshape(-1, shape[-1]),
    mask.reshape(-1, shape[-1]),
    strict=True,
  )
  for value, r, there in rows:
    kept = r[there].tolist()
    expected = DEFINITIONS[name](kept) if kept else 0.0
    assert value == pytest.approx(expected, abs=1e-12)


def test_the_methods_example():
  """r = [.8, -.6, .4, .9]. The product of rewards instead of probabilities
  would be -.17; the sum form would be 1.5.
  """
  rewards, mask = np.array([[0.8, -0.6, 0.4, 0.9, 0.5]]), np.ones((1, 5), bool)
  mask[0, 4] = False
  found = {name: f(rewards, mask)[0] for name, f in AGGREGATIONS.items()}
  assert found == pytest.approx(
    {
      "minimum": 0.2,
      "softmin": 0.200023,  # The reward is -.59995: softmin is above the min.
      "last": 0.95,
      "product": 0.9 * 0.2 * 0.7 * 0.95,
      "mean": 2.75 / 4,
    },
    abs=1e-6,
  )


def test_softmin_goes_to_the_minimum_and_to_the_mean():
  rewards, mask = random_steps(7)
  rewards, mask = rewards[1:], mask[1:]
  np.testing.assert_allclose(
    softmin_score(rewards, mask, temperature=0.002),
    minimum_score(rewards, mask),
    atol=0.002,  # The bias is of the order of the temperature.
  )
  np.testing.assert_allclose(
    softmin_score(rewards, mask, temperature=1e6),
    AGGREGATIONS["mean"](rewards, mask),
    atol=1e-6,
  )


def test_one_step_is_its_own_score():
  for function in AGGREGATIONS.values():
    found = function(np.array([[-0.5, 9.0]]), np.array([[True, False]]))
    assert found.tolist() == pytest.approx([0.25], abs=1e-12)


def test_the_last_step_is_the_last_that_exists():
  """Not the last column, nor, where none exists, the first."""
  rewards = np.array([[0.2, 0.4, 0.6]] * 2)
  mask = np.array([[True, True, False], [False, False, False]])
  assert last_score(rewards, mask).tolist() == pytest.approx([0.7, 0.0])


def test_long_responses_lose_by_the_product_alone():
  """What a PRM is sure of to .99 is .37 after 100 steps."""
  long = np.full((1, 100), 0.98)
  there = np.ones_like(long, bool)
  assert product_score(long, there)[0] == pytest.approx(0.99**100, abs=1e-12)
  assert minimum_score(long, there)[0] == pytest.approx(0.99, abs=1e-12)


def test_rewards_that_are_none_are_refused_by_name():
  mask = np.ones((2, 3), bool)
  rewards = np.zeros((2, 3))
  rewards[1, 2] = 3.5
  for function in AGGREGATIONS.values():
    with pytest.raises(ValueError, match=r"row \[1\], step 2 is 3.5.*logit"):
      function(rewards, mask)
  rewards[1, 2] = np.nan
  with pytest.raises(ValueError, match=r"row \[1\], step 2 is nan"):
    minimum_score(rewards, mask)
  with pytest.raises(ValueError, match=r"bool of shape \(2, 2\)"):
    minimum_score(rewards, mask[:, :2])
  with pytest.raises(ValueError, match="mask is int64"):
    minimum_score(rewards, mask.astype(np.int64))


def test_rounding_past_one_is_not_an_error():
  reward = np.nextafter(np.float32(1), np.float32(2))
  found = probability_good(np.array([reward, -reward]), np.ones(2, bool))
  assert found.tolist() == [1.0, 0.0]
