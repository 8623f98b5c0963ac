"""The int8 copy of the weights for rollouts, on any layout."""

import dataclasses

import jax
import numpy as np
import pytest
import train_boundary as boundary
from small_models import dequantize, random_policy

from pure_jax.models import int8, policy
from pure_jax.models import params as weights
from pure_jax.models.config import MATRICES
from pure_jax.parallel import sharding
from pure_jax.training import rollouts, score, weight_copies

# Sizes that every set of rules below divides.
MODEL = dataclasses.replace(boundary.MODEL, num_heads=4, num_kv_heads=2)
INT8 = dataclasses.replace(MODEL, int8_matrices=True)
DECLARED = policy.declare_policy(MODEL)
LAYOUTS = {
  "fsdp": sharding.make_layout(2, 4),
  "tensor": sharding.make_layout(4, 1, 2, rules="tensor"),
  "fsdp+tensor": sharding.make_layout(2, 2, 2, rules="fsdp+tensor"),
}


def copied(layout, source=None):
  make = weight_copies.make_int8_copy(DECLARED, MODEL, source or layout, layout)
  return make(random_policy(MODEL))


@pytest.mark.usefixtures("compiled_well")
@pytest.mark.parametrize("rules", LAYOUTS)
def test_a_copy_is_the_same_in_every_layout(rules):
  """The largest entry of an output is the largest on all devices."""
  layout = LAYOUTS[rules]
  params = random_policy(MODEL)
  expected = jax.jit(int8.quantize_layers)(params["layers"])
  actual = copied(layout, sharding.make_layout(1, 8))
  weights.check_params(actual, policy.declare_policy(INT8))
  jax.tree.map(np.testing.assert_array_equal, actual["layers"], expected)
  np.testing.assert_array_equal(actual["embedding"], params["embedding"])
  shardings = sharding.weight_shardings(policy.declare_policy(INT8), layout)
  jax.tree.map(
    lambda x, place: np.testing.assert_(
      x.sharding.is_equivalent_to(place, x.ndim)
    ),
    actual,
    shardings,
  )
  gate = actual["layers"]["gate"]
  parts = gate.values.sharding.shard_shape(gate.values.shape)
  # Layers, then outputs: a scale lies where its outputs are.
  assert gate.scale.sharding.shard_shape(gate.scale.shape) == (
    parts[0],
    parts[2],
  )
  assert ("tensor" in rules) == (parts[2] < gate.values.shape[2])


def test_rollouts_sample_from_the_dequantised_weights():
  """Their log-probs differ from the policy's, as `drift_max` reports."""
  one, many = sharding.make_layout(), LAYOUTS["fsdp+tensor"]
  sampler = dataclasses.replace(boundary.SAMPLER, temperature=0.8)
  params = random_policy(MODEL)
  drawn = []
  for layout in (one, many):
    generate = rollouts.make_generate(INT8, sampler, 4, layout)
    drawn.append(
      jax.device_get(
        generate(copied(layout), boundary.prompts(8), jax.random.key(1))
      )
    )
  rollout, other = drawn
  np.testing.assert_array_equal(rollout.tokens, other.tokens)
  np.testing.assert_allclose(
    rollout.sampled_logp, other.sampled_logp, atol=1e-5
  )
  layers = int8.quantize_layers(params["layers"])
  plain = {name: dequantize(layers[name], name) for name in MATRICES}
  plain = params | {"layers": layers | plain}
  read = jax.jit(score.rollout_logp, static_argnums=(1, 2))
  expected, _ = read(plain, MODEL, sampler, rollout)
  np.testing.assert_allclose(rollout.sampled_logp, expected, atol=1e-5)
  trained, _ = read(params, MODEL, sampler, rollout)
  assert np.abs(trained - rollout.sampled_logp).max() > 1e-3
