"""Int8 matrices: their values and their effect on log-probs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, dequantize, random_policy, random_prompts

from pure_jax.models import int8, policy
from pure_jax.models import params as weights
from pure_jax.models.config import MATRICES, LoraConfig

FULL = dataclasses.replace(TINY, attention_bias=True, tied_embeddings=False)


def in_int8(config):
  return dataclasses.replace(config, int8_matrices=True)


quantize_layers = jax.jit(int8.quantize_layers)


def rounded(params):
  """(weights with int8 matrices, the same in float32)."""
  layers = quantize_layers(params["layers"])
  plain = layers | {name: dequantize(layers[name], name) for name in MATRICES}
  return params | {"layers": layers}, params | {"layers": plain}


def text(seed=0):
  """Prompts and completions [3, 4] and [3, 5], ragged."""
  rng = np.random.default_rng(seed)
  prompt, prompt_mask = random_prompts(rng, [4, 2, 3], 4)
  mask = np.arange(5) < np.array([[5], [3], [4]])
  tokens = rng.integers(1, TINY.vocab_size, mask.shape).astype(np.int32)
  return prompt, prompt_mask, np.where(mask, tokens, 0), mask


@functools.partial(jax.jit, static_argnums=1)
def logp(params, config):
  return policy.token_logp(params, config, *text())[0]


@pytest.mark.parametrize("name", ["query", "output", "down"])
def test_every_output_has_a_step_of_its_own(name):
  """One step for the whole matrix would round small outputs to zero."""
  weight = np.array(random_policy()["layers"][name])
  weight *= 10.0 ** np.linspace(-4, 4, weight.shape[-1])
  weight[1, ..., 2] = 0
  inputs = int8.input_axes(name)
  actual = jax.jit(int8.quantize, static_argnums=1)(weight, inputs)
  assert actual.values.dtype == jnp.int8 and actual.scale.dtype == jnp.float32
  step = np.abs(weight).max(inputs, keepdims=True) / 127
  np.testing.assert_allclose(actual.scale, step.squeeze(inputs), rtol=1e-6)
  off = np.abs(dequantize(actual, name) - weight)
  # Half a step, not a whole one as after rounding toward zero.
  assert (off <= step * 0.5 * (1 + 1e-5)).all()
  largest = np.abs(np.asarray(actual.values)).max(inputs)
  assert set(np.unique(largest)) == {0, 127}
  assert np.asarray(actual.scale)[1, ..., 2].max() == 0


@pytest.mark.parametrize(
  "config",
  [
    pytest.param(FULL, id="unrolled"),
    pytest.param(dataclasses.replace(TINY, num_layers=9), id="scanned"),
    pytest.param(
      dataclasses.replace(TINY, lora=LoraConfig(rank=2, alpha=3.0)), id="lora"
    ),
  ],
)
def test_the_model_computes_with_the_dequantised_matrices(config):
  """A scale of another layer or head would change the log-probs."""
  params, plain = rounded(random_policy(config))
  declared = policy.declare_policy(in_int8(config))
  weights.check_params(params, declared)
  np.testing.assert_allclose(
    logp(params, in_int8(config)), logp(plain, config), atol=1e-5
  )


def test_products_in_bfloat16_are_rounded_twice():
  """Integers are exact in bfloat16; the product and the scaling round."""
  _, plain = rounded(random_policy())
  layers = quantize_layers(random_policy()["layers"])
  x = np.random.default_rng(0).normal(size=(2, 3, TINY.width))
  x = x.astype(jnp.bfloat16)
  product = np.asarray(
    jax.jit(
      lambda query, x: jax.tree.map(lambda stacked: stacked[1], query).times(x)
    )(layers["query"], x)
  )
  expected = np.einsum(
    "BTD,DNH->BTNH", x.astype(np.float32), plain["layers"]["query"][1]
  )
  assert product.dtype == jnp.bfloat16
  assert product.shape == expected.shape
  np.testing.assert_allclose(
    product.astype(np.float32), expected, rtol=2 * 2.0**-8, atol=1e-6
  )


def test_log_probs_change_by_no_more_than_the_rounding_allows():
  """Every entry is off by at most half a step: |d logp| <= sum |g| step / 2.

  By the mean value theorem g is the gradient at a point between the plain and
  the rounded weights; the largest of five points stands for it.
  """
  params = random_policy(FULL)
  compact, near = rounded(params)
  before, after = logp(params, FULL), logp(compact, in_int8(FULL))
  matrices = {name: np.asarray(params["layers"][name]) for name in MATRICES}
  half = {
    name: np.expand_dims(
      np.asarray(compact["layers"][name].scale) / 2, int8.input_axes(name)
    )
    for name in MATRICES
  }

  def at(matrices):
    layers = params["layers"] | matrices
    return logp(params | {"layers": layers}, FULL)

  gradient = jax.jit(jax.jacrev(at))
  bounds = []
  for t in (0.0, 0.25, 0.5, 0.75, 1.0):
    between = {
      name: (1 - t) * matrices[name] + t * near["layers"][name]
      for name in MATRICES
    }
    actual = jax.device_get(gradient(between))
    bounds.append(
      sum(
        np.einsum(
          "BTN,N->BT",
          np.abs(actual[name]).reshape(*before.shape, -1),
          np.broadcast_to(half[name], matrices[name].shape).reshape(-1),
        )
        for name in MATRICES
      )
    )
  drift, bound = np.abs(after - before), np.max(bounds, axis=0)
  assert (drift <= bound).all()
  # Errors of both signs cancel: far less than the worst case, and not nothing.
  assert 1e-4 < drift.max() < bound.max() / 4
