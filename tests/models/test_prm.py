"""The PRM is the policy's trunk with another head, and may grow layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, random_params, random_policy, random_prompts

from pure_jax.models import params as weights
from pure_jax.models import prm, transformer
from pure_jax.types import PRMInputs

forward = jax.jit(transformer.forward, static_argnums=1)
prm_logits = jax.jit(prm.prm_logits, static_argnums=1)
init_prm_from_policy = jax.jit(prm.init_prm_from_policy, static_argnums=(2, 3))


def inputs_of(tokens, mask):
  rows = len(tokens)
  return PRMInputs(
    tokens=tokens,
    mask=mask,
    score_position=np.zeros((rows, 1), np.int32),
    score_mask=np.ones((rows, 1), bool),
  )


@pytest.fixture
def inputs():
  return inputs_of(*random_prompts(np.random.default_rng(5), [8, 5, 2], 8))


def test_logits_are_the_head_on_the_trunk(inputs):
  params = random_params(prm.declare_prm(TINY))
  tokens, mask = inputs.tokens, inputs.mask
  actual = np.asarray(prm_logits(params, TINY, inputs))
  assert actual.shape == (3, 8, 2)
  for row in range(3):
    # Without left padding.
    length = mask[row].sum()
    text = np.zeros((1, 8), np.int32)
    text[0, :length] = tokens[row][mask[row]]
    positions = np.arange(8)[None]
    hidden, _ = forward(
      params, TINY, text, positions, (positions < length).astype(np.int32)
    )
    hidden = np.asarray(hidden)[0, :length]
    expected = hidden @ np.asarray(params["score"]["kernel"])
    expected = expected + np.asarray(params["score"]["bias"])
    np.testing.assert_allclose(
      actual[row][mask[row]], expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("extra_layers", [1, 2])
def test_extra_layers_start_as_the_identity(inputs, extra_layers):
  policy_params = random_policy()
  key = jax.random.key(2)
  plain = init_prm_from_policy(key, policy_params, TINY)
  grown = init_prm_from_policy(key, policy_params, TINY, extra_layers)
  weights.check_params(plain, prm.declare_prm(TINY))
  weights.check_params(grown, prm.declare_prm(TINY, extra_layers))
  config = prm.extend_config(TINY, extra_layers)
  weights.check_params(grown, prm.declare_prm(config))
  expected = prm_logits(plain, TINY, inputs)
  assert np.std(expected) > 0.1
  np.testing.assert_allclose(
    prm_logits(grown, config, inputs), expected, rtol=1e-6, atol=1e-6
  )


def test_extra_layers_can_learn(inputs):
  params = init_prm_from_policy(jax.random.key(2), random_policy(), TINY, 1)

  def loss(params):
    return jnp.sum(prm_logits(params, TINY, inputs)[..., 0])

  gradient = jax.device_get(jax.jit(jax.grad(loss))(params))["layers"]
  # All-zero layers would have no gradient anywhere; zero projections into the
  # residual stream have one.
  for name in ("output", "down"):
    assert np.abs(gradient[name][-1]).max() > 1e-3


def test_the_trunk_is_the_policys_and_the_rest_is_new():
  policy_params = random_policy()
  one, two = (
    jax.device_get(
      init_prm_from_policy(jax.random.key(seed), policy_params, TINY, 2)
    )
    for seed in (0, 1)
  )
  np.testing.assert_array_equal(one["embedding"], policy_params["embedding"])
  np.testing.assert_array_equal(one["final_norm"], policy_params["final_norm"])
  for name, values in policy_params["layers"].items():
    np.testing.assert_array_equal(one["layers"][name][:2], values)
  assert (one["score"]["kernel"] != two["score"]["kernel"]).all()
  assert (one["layers"]["query"][2:] != two["layers"]["query"][2:]).all()
  assert (one["layers"]["query"][2] != one["layers"]["query"][3]).all()


def test_an_untied_head_of_the_policy_is_left_behind(inputs):
  config = dataclasses.replace(TINY, tied_embeddings=False)
  params = init_prm_from_policy(
    jax.random.key(0), random_policy(config), config, 1
  )
  weights.check_params(params, prm.declare_prm(config, 1))


def test_padding_on_either_side_changes_nothing(inputs):
  params = random_params(prm.declare_prm(TINY))
  plain = prm_logits(params, TINY, inputs)
  wider = inputs_of(
    np.pad(inputs.tokens, ((0, 0), (2, 3)), constant_values=9),
    np.pad(inputs.mask, ((0, 0), (2, 3))),
  )
  plain, padded = map(np.asarray, (plain, prm_logits(params, TINY, wider)))
  padded, mask = padded[:, 2:-3], inputs.mask
  np.testing.assert_allclose(padded[mask], plain[mask], rtol=1e-5, atol=1e-5)


def test_scores_of_bfloat16_are_float32(inputs):
  params = random_params(prm.declare_prm(TINY))
  config = dataclasses.replace(TINY, compute_dtype="bfloat16")
  rounded = prm_logits(params, config, inputs)
  assert rounded.dtype == jnp.float32
  exact = np.asarray(prm_logits(params, TINY, inputs))
  mask = inputs.mask
  # Ten roundings of 2^-9 as a random walk, four of those, of the largest.
  tolerance = 4 * np.sqrt(10) * 2**-9 * np.abs(exact).max()
  assert 0 < np.abs(rounded - exact)[mask].max() < tolerance


def test_layers_cannot_be_taken_away():
  with pytest.raises(ValueError, match="extra_layers must be at least 0"):
    prm.declare_prm(TINY, -1)
