"""Settings of RL that follow from others: groups, updates, coefficients."""

import dataclasses

import jax
import numpy as np
import pytest
from configs import arithmetic
from overrides import with_changes

from pure_jax.runs.planning.planned_spec import read_spec
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config


def changed(**changes):
  """The smoke config with other values; `a__b` is field b of group a."""
  return with_changes(arithmetic.get_config("smoke"), **changes)


def mini_batch_order(iteration, **changes):
  """The order of 32 responses in three epochs of shuffled mini-batches."""
  updates = {"mini_batches": 4, "epochs": 3, "shuffle": True}
  config = changed(**{"rl__updates": updates} | changes)
  settings = settings_from_config(config).for_platform("cpu")
  return read_spec(settings, jax.devices()).mini_batch_order(iteration)


def test_mini_batches_take_every_response_once_in_an_order_of_their_own():
  """A resumed run draws the same orders: seed and iteration say them."""
  first, second = mini_batch_order(1), mini_batch_order(2)
  np.testing.assert_array_equal(first, mini_batch_order(1))
  assert (first.shape, first.dtype) == ((32, 3), np.int32)
  columns = [*first.T, *second.T, *mini_batch_order(1, seed=1).T]
  for order in columns:
    assert sorted(order.tolist()) == list(range(32))
  assert len({tuple(order) for order in columns}) == 9
  assert mini_batch_order(1, rl__updates__shuffle=False) is None


@pytest.mark.parametrize(
  ("changes", "first"),
  [
    ({}, 1e-3),
    ({"rl__loss__kl_coef": 0.5}, 0.5),
    (
      {
        "rl__loss__kl_in_loss": None,
        "rl__credit__kl_in_reward": "k1",
        "rl__credit__kl_coef": 0.25,
      },
      0.25,
    ),
  ],
)
def test_an_adapted_kl_coefficient_starts_at_that_of_the_penalty(
  changes, first
):
  rl = settings_from_config(changed(rl__adaptive_kl={}, **changes)).rl
  assert rl.first_kl_coef == first
  assert (rl.adaptive_kl.target, rl.adaptive_kl.horizon) == (0.1, 10_000)
  assert settings_from_config(changed(**changes)).rl.first_kl_coef is None


def test_credit_gets_its_group_from_the_batch():
  """Groups of another size would compare samples of different prompts."""
  rl = settings_from_config(changed(rl__samples_per_prompt=2)).rl
  assert rl.credit.group_size == 2
  assert dataclasses.replace(rl, samples_per_prompt=4).credit.group_size == 4


@pytest.mark.parametrize("length", [None, 7, 8192])
def test_a_config_may_set_the_length_of_the_baseline(length):
  """It was always that of the longest response."""
  rl = settings_from_config(changed(rl__credit__baseline_length=length)).rl
  assert rl.credit.baseline_length == length


def test_a_schedule_counts_the_updates_of_every_mini_batch():
  """4 iterations of 2 mini-batches in 3 epochs are 24 updates."""
  fields = {"rl__updates__mini_batches": 2, "rl__updates__epochs": 3}
  with pytest.raises(ConfigError, match="ends before the 24 updates"):
    settings_from_config(changed(**fields, rl__optim__decay_steps=23))
  rl = settings_from_config(changed(**fields, rl__optim__decay_steps=24)).rl
  assert rl.num_updates == 24


def test_schedules_of_policy_and_critic_count_their_own_updates():
  """The critic has 24, the policy misses the 6 of a warm-up iteration."""
  fields = {"rl__updates__mini_batches": 2, "rl__updates__epochs": 3}
  fields |= {"rl__credit__baseline": "gae", "rl__credit__fold_verifiable": True}
  fields |= {"rl__critic__warmup_iterations": 1}
  with pytest.raises(ConfigError, match=r"optim\.decay_steps=17 ends before"):
    settings_from_config(changed(**fields, rl__optim__decay_steps=17))
  with pytest.raises(ConfigError, match=r"critic\.optim\.decay_steps=23 ends"):
    settings_from_config(changed(**fields, rl__critic__optim__decay_steps=23))
  rl = settings_from_config(changed(**fields, rl__optim__decay_steps=18)).rl
  assert rl.num_updates == 18


@pytest.mark.parametrize(
  ("process", "verifiable", "mode"),
  [(1.0, 0.5, "prm+vr"), (0.1, 0.0, "prm"), (0.0, 1.0, "vr")],
)
def test_the_reward_mode_follows_from_the_weights(process, verifiable, mode):
  config = changed(
    rl__credit__process_coef=process, rl__credit__verifiable_coef=verifiable
  )
  assert settings_from_config(config).rl.reward_mode == mode
