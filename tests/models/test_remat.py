"""Rematerialisation saves less and computes the same gradients."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, random_policy

from pure_jax.models import transformer
from pure_jax.models.attention import CAUSAL_GROUPS
from pure_jax.models.config import REMAT
from pure_jax.models.params import abstract_params, declare_decoder


def loss(params, config, tokens):
  segments = jnp.ones(tokens.shape, jnp.int32)
  positions = jnp.cumsum(segments, axis=1) - 1
  hidden, _ = transformer.forward(params, config, tokens, positions, segments)
  return jnp.sum(hidden[..., 0])


def gradient(config):
  tokens = jnp.asarray(np.random.default_rng(5).integers(0, 23, (3, 9)))
  function = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  return function(random_policy(), config, tokens)


@pytest.fixture(scope="module")
def expected():
  """With unrolled layers, which save everything."""
  return gradient(TINY)


@pytest.mark.parametrize(
  ("name", "limit"),
  [("attention", 1), ("dots", 1), ("layer", 8), ("offload", 1)],
)
def test_gradients_equal_those_of_layers_that_save_everything(
  expected, name, limit, monkeypatch
):
  monkeypatch.setattr(transformer, "UNROLLED_LAYERS", limit)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=1e-6, atol=1e-6 * max(1.0, np.abs(y).max())
    ),
    gradient(dataclasses.replace(TINY, remat=name)),
    expected,
  )


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_every_policy_saves_less_than_the_one_before(compute_dtype):
  """Compiled only. A policy that is not applied would save as much."""

  def temporary_bytes(name):
    config = dataclasses.replace(
      TINY,
      num_layers=transformer.UNROLLED_LAYERS + 1,
      remat=name,
      compute_dtype=compute_dtype,
    )
    function = jax.jit(jax.grad(loss), static_argnums=1)
    compiled = function.lower(
      abstract_params(declare_decoder(config)),
      config,
      jax.ShapeDtypeStruct((2, 128), jnp.int32),
    ).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # A CPU is its own host: there is nowhere to offload to.
  saved = [temporary_bytes(name) for name in REMAT if name != "offload"]
  for more, less in itertools.pairwise(saved):
    assert less < 0.8 * more


def test_a_gradient_computes_the_scores_of_chunks_twice():
  """Without the saved output of attention it would be three times."""
  config = dataclasses.replace(
    TINY, num_layers=9, remat="dots", attention_chunk=4
  )
  traced = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(
    random_policy(config), config, jnp.zeros((2, 16), jnp.int32)
  )
  # A softmax for each of four groups of chunks.
  assert len(re.findall(r"= exp ", str(traced))) == 2 * CAUSAL_GROUPS


def test_only_the_inputs_of_layers_are_offloaded():
  config = dataclasses.replace(TINY, num_layers=9, remat="offload")
  traced = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(
    random_policy(config), config, jnp.zeros((2, 5), jnp.int32)
  )
  on_host = set(re.findall(r"f32<host>\[([\d,]+)\]", str(traced)))
  # One layer's, and all of them stacked by the scan.
  assert on_host == {"2,5,16", "9,2,5,16"}


def test_an_unknown_policy_raises_with_the_known_ones():
  with pytest.raises(ValueError, match=r"remat must be one of \('none', .*'x'"):
    dataclasses.replace(TINY, remat="x")
