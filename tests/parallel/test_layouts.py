"""A training step on any layout of eight devices equals that of one device.

Tokens are equal. Everything else is equal up to the order of sums: 1e-5, as for
the logits of a model.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layout_steps import (
  MODEL,
  SGD,
  assert_same,
  one_step,
)
from small_models import random_params
from train_boundary import PAD, SAMPLER, prompts

from pure_jax.models import policy
from pure_jax.parallel import sharding
from pure_jax.training import rollouts, train, weight_copies
from pure_jax.training.step_spec import Layouts

SHAPES = [
  (data, fsdp, tensor, sequence)
  for data in (1, 2, 4, 8)
  for fsdp in (1, 2, 4, 8)
  for tensor in (1, 2, 4, 8)
  for sequence in (1, 2, 4, 8)
  if data * fsdp * tensor * sequence == 8 and min(tensor, sequence) == 1
]


def rules_for(shape):
  """The rule set that uses the axes of a shape."""
  _, fsdp, tensor, sequence = shape
  if sequence > 1:
    return "fsdp+sequence"
  if tensor > 1:
    return "fsdp+tensor" if fsdp > 1 else "tensor"
  return "fsdp"


@pytest.fixture(scope="module")
def alone():
  return one_step(Layouts.same(sharding.make_layout()))


def shape_id(shape):
  return "x".join(map(str, shape))


def test_the_rows_of_the_batch_differ(alone):
  """Equal rows would look right in the wrong place."""
  (rollout, scores, _, metrics), _ = alone[1]
  assert len({tuple(row) for row in rollout.tokens}) > 24
  assert np.std(scores.step_rewards[scores.steps.mask]) > 0.01
  assert metrics["grad_norm"] > 1e-2
  assert (rollout.tokens == PAD).any()


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_every_layout_does_what_one_device_does(alone, shape):
  layout = sharding.make_layout(*shape, rules=rules_for(shape))
  assert_same(one_step(Layouts.same(layout)), alone)


def test_four_models_in_four_layouts_are_those_of_one_device(alone):
  layouts = Layouts(
    training=sharding.make_layout(fsdp=4, sequence=2, rules="fsdp+sequence"),
    rollout=sharding.make_layout(data=4, tensor=2, rules="tensor"),
    reference=sharding.make_layout(fsdp=8),
    prm=sharding.make_layout(fsdp=4, tensor=2, rules="fsdp+tensor"),
  )
  assert_same(one_step(layouts), alone)


BF16 = dataclasses.replace(MODEL, compute_dtype="bfloat16")


@pytest.mark.usefixtures("compiled_well")
def test_a_compute_copy_changes_no_sample_and_no_norm():
  """Norms rounded to bfloat16 would change the log-probs."""
  layout = sharding.make_layout()
  declared = policy.declare_policy(BF16)
  params = random_params(declared)
  scale = params["final_norm"]  # Not representable in bfloat16.
  copy = weight_copies.make_compute_copy(declared, BF16, layout, layout)(params)
  assert copy["layers"]["query"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(copy["final_norm"], scale)
  generate = rollouts.make_generate(BF16, SAMPLER, 4, layout)
  first, second = (
    generate(weights, prompts(8), jax.random.key(2))
    for weights in (params, copy)
  )
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_an_equal_copy_is_not_made():
  layout = sharding.make_layout(fsdp=2)
  declared = policy.declare_policy(MODEL)
  params = train.make_init(declared, SGD, layout)(jax.random.key(0)).params
  assert (
    weight_copies.make_compute_copy(declared, MODEL, layout, layout)(params)
    is params
  )


def test_weights_do_not_move_between_devices_in_another_order():
  layout = sharding.make_layout(fsdp=8)
  turned = sharding.make_layout(fsdp=8, devices=jax.devices()[::-1])
  declared = policy.declare_policy(MODEL)
  with pytest.raises(ValueError, match="the same devices in the same order"):
    weight_copies.make_compute_copy(declared, MODEL, layout, turned)
