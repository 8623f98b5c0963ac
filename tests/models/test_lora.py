"""Adapters: the base is frozen, the trained part is small, merging is exact."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core
from small_models import TINY, random_policy
from train_boundary import (
  CREDIT,
  LOSS,
  MODEL,
  SAMPLER,
  TABLE,
  grown,
  prompts,
)

from pure_jax.models import lora, policy, prm, transformer
from pure_jax.models import params as weights
from pure_jax.models.config import MATRICES, LoraConfig
from pure_jax.parallel import sharding
from pure_jax.settings import ScoreConfig
from pure_jax.training import packing, rollouts, score, supervised, train
from pure_jax.training.optim import OptimConfig, make_optimizer
from pure_jax.training.step_spec import Layouts, StepSpec

RANK = 3
ADAPTED = dataclasses.replace(TINY, lora=LoraConfig(RANK, alpha=1.5))
TOKENS = jnp.asarray(np.random.default_rng(2).integers(1, 23, (3, 9)))


def logits(params, config):
  segments = jnp.ones(TOKENS.shape, jnp.int32)
  positions = jnp.cumsum(segments, axis=1) - 1
  hidden, _ = transformer.forward(params, config, TOKENS, positions, segments)
  return policy.logits(params, config, hidden)


def merged_by_hand(params, config):
  """Merges adapters by loops over layers, in float64."""
  adapters, base = lora.split_adapters(params)
  layers = {k: np.array(v, np.float64) for k, v in base["layers"].items()}
  for name in config.lora.targets:
    a, b = (
      np.asarray(adapters["layers"][f"{name}_lora_{x}"], np.float64)
      for x in "ab"
    )
    for layer in range(len(a)):
      A = a[layer].reshape(-1, config.lora.rank)
      B = b[layer].reshape(config.lora.rank, -1)
      layers[name][layer] += (config.lora.alpha / config.lora.rank) * (
        A @ B
      ).reshape(layers[name][layer].shape)
  return base | {"layers": {k: jnp.float32(v) for k, v in layers.items()}}


@pytest.mark.parametrize("targets", [MATRICES, ("query", "output")])
def test_adapters_compute_what_merged_weights_do(targets):
  config = dataclasses.replace(
    ADAPTED, lora=dataclasses.replace(ADAPTED.lora, targets=targets)
  )
  params = random_policy(config)
  by_hand = merged_by_hand(params, config)
  merged = lora.merge(params, config)
  weights.check_params(merged, policy.declare_policy(TINY))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6),
    merged,
    by_hand,
  )
  run = jax.jit(logits, static_argnums=1)
  expected = run(by_hand, TINY)
  np.testing.assert_allclose(
    run(params, config), expected, rtol=0, atol=2e-6 * np.abs(expected).max()
  )
  # The adapters change the logits.
  base = lora.split_adapters(params)[1]
  assert np.abs(run(base, TINY) - expected).max() > 0.1


def test_the_base_is_initialised_as_without_adapters():
  params, base = jax.jit(
    lambda key: (
      weights.init_params(key, policy.declare_policy(ADAPTED)),
      weights.init_params(key, policy.declare_policy(TINY)),
    )
  )(jax.random.key(0))
  adapters, without = lora.split_adapters(params)
  jax.tree.map(np.testing.assert_array_equal, without, base)
  assert len(adapters["layers"]) == 2 * len(MATRICES)
  for name, value in adapters["layers"].items():
    assert np.any(value) == name.endswith("_lora_a"), name


@pytest.mark.usefixtures("compiled_well")
def test_a_model_starts_as_its_base():
  """Bit by bit, with the zeros of the test above."""
  params = random_policy(ADAPTED)
  layers = {
    name: np.zeros_like(value) if name.endswith("_lora_b") else value
    for name, value in params["layers"].items()
  }
  params = params | {"layers": layers}
  base = lora.split_adapters(params)[1]
  run = jax.jit(logits, static_argnums=1)
  np.testing.assert_array_equal(run(params, ADAPTED), run(base, TINY))


def test_splitting_and_joining_copy_nothing():
  params = random_policy(ADAPTED)
  adapters, base = lora.trained_and_frozen(params, ADAPTED)
  joined = lora.join_params(base, adapters)
  jax.tree.map(lambda x, y: np.testing.assert_(x is y), joined, params)
  assert lora.trained_and_frozen(base, TINY) == (base, {})
  count = weights.count_params(
    lora.split_adapters(policy.declare_policy(ADAPTED))[0]
  )
  sizes = {
    "query": (16, 24),
    "key": (16, 12),
    "value": (16, 12),
    "output": (24, 16),
    "gate": (16, 20),
    "up": (16, 20),
    "down": (20, 16),
  }
  assert count == 2 * RANK * sum(map(sum, sizes.values()))


def products(jaxpr):
  """Shapes of all matrix products of a program, in loops and calls too."""
  shapes = set()
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      shapes.add(equation.outvars[0].aval.shape)
    for value in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
    ):
      if isinstance(value, core.ClosedJaxpr):
        shapes |= products(value.jaxpr)
      elif isinstance(value, core.Jaxpr):
        shapes |= products(value)
  return shapes


def test_merged_weights_and_their_gradients_are_never_computed():
  """Either would be a product with the shape of a matrix of the base."""
  params = random_policy(ADAPTED)
  adapters, base = lora.split_adapters(params)

  def loss(trained, base, config):
    return jnp.sum(logits(lora.join_params(base, trained), config) ** 2)

  traced = jax.make_jaxpr(jax.grad(loss), static_argnums=2)
  of_adapters = products(traced(adapters, base, ADAPTED).jaxpr)
  of_everything = products(traced(base, {}, TINY).jaxpr)
  of_mlp = {(16, 20), (20, 16)}
  assert of_everything & of_mlp  # Without adapters there are such products.
  assert not of_adapters & of_mlp
  assert any(RANK in shape for shape in of_adapters)


def test_adapters_of_a_bfloat16_base_are_float32():
  config = dataclasses.replace(ADAPTED, param_dtype="bfloat16")
  declared = policy.declare_policy(config)
  adapters, base = lora.split_adapters(declared)
  is_weight = weights.is_weight
  kinds = {w.dtype for w in jax.tree.leaves(adapters, is_leaf=is_weight)}
  assert kinds == {"float32"}
  kinds = {w.dtype for w in jax.tree.leaves(base, is_leaf=is_weight)}
  assert kinds == {"bfloat16"}


def updated(layout, steps=2, row_shape=None):
  """Rollouts, scores and updates of adapters: (state, base, log-probs)."""
  model = dataclasses.replace(MODEL, lora=LoraConfig(2, alpha=8.0))
  # Adam could turn equal gradients into different weights.
  optimizer = optax.sgd(0.05, momentum=0.9)
  declared = policy.declare_policy(model)
  adapters, frozen = lora.trained_and_frozen(declared, model)
  init = jax.jit(lambda key: weights.init_params(key, frozen))
  base = grown(init(jax.random.key(0)))
  base = jax.device_put(base, sharding.weight_shardings(frozen, layout))
  before = jax.device_get(base)
  state = train.make_init(adapters, optimizer, layout)(jax.random.key(1))
  generate = rollouts.make_generate(model, SAMPLER, 4, layout)
  spec = StepSpec(
    *(model, None, SAMPLER, ScoreConfig(4), TABLE, Layouts.same(layout)),
    *(CREDIT, LOSS),
    micro_batch_rows=16,
  )
  score_rollout = score.make_score(spec)
  update = train.make_update(spec, optimizer, row_shape)
  rows = sharding.batch_sharding(layout)
  known = jax.device_put(np.ones(32, bool), rows)
  for step in range(steps):
    whole = lora.join_params(base, state.params)
    rollout = generate(whole, prompts(8), jax.random.key(step))
    scores, _ = score_rollout(whole, base, None, rollout, None)
    correct = (jnp.sum(rollout.tokens, axis=1) % 2).astype(jnp.float32)
    correct = jax.device_put(correct, rows)
    batch = score.ScoredBatch(rollout, scores, correct, known)
    state, metrics = update(state, batch, base)
    assert metrics["skipped_updates"] == 0
    if step == 0:
      np.testing.assert_array_equal(scores.old_logp, scores.ref_logp)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(base), before)
  return model, jax.device_get(state), before, jax.device_get(scores)


@pytest.fixture(scope="module")
def alone():
  return updated(sharding.make_layout())


def test_an_update_changes_adapters_only_and_starts_at_the_reference(alone):
  model, state, base, scores = alone
  declared = policy.declare_policy(model)
  weights.check_params(state.params, lora.split_adapters(declared)[0])
  # Momentum has the size of the adapters, not of the model.
  count = weights.count_params(lora.split_adapters(declared)[0])
  moments = jax.tree.leaves(state.opt_state)
  assert sum(x.size for x in moments) == count
  for name, value in state.params["layers"].items():
    assert np.abs(value).max() > 0, name
  # By the last rollout the policy has left its reference.
  assert np.abs(scores.old_logp - scores.ref_logp).max() > 1e-3
  merged = lora.merge(lora.join_params(base, state.params), model)
  changed = np.abs(merged["layers"]["gate"] - base["layers"]["gate"]).max()
  assert changed > 1e-4


@pytest.mark.parametrize(
  "row_shape",
  [
    # Packed rows cover this case by default.
    pytest.param(None, marks=pytest.mark.slow),
    packing.RowShape(20, 8),
  ],
)
def test_eight_devices_train_the_same_adapters(alone, row_shape):
  """With one text per row and with packed rows."""
  layout = sharding.make_layout(1, 4, 2, rules="fsdp+tensor")
  _, state, _, _ = updated(layout, row_shape=row_shape)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6),
    state.params,
    alone[1].params,
  )


def test_a_prm_trains_adapters_and_its_head():
  model = dataclasses.replace(MODEL, lora=LoraConfig(2, alpha=4.0))
  layout = sharding.make_layout()
  optimizer = make_optimizer(OptimConfig(learning_rate=1e-2))
  declared = prm.declare_prm(model)
  init = jax.jit(lambda key: weights.init_params(key, declared))
  params = init(jax.random.key(0))
  trained, frozen = supervised.split_prm_params(params, head_only=False)
  assert set(trained) == {"layers", "score"}
  before = jax.device_get(frozen)
  declared, _ = supervised.split_prm_params(declared, head_only=False)
  state = train.start_state(trained, declared, optimizer, layout)
  moments = jax.tree.leaves(state.opt_state)
  count = sum(math.prod(x.shape) for x in moments if x.ndim)
  assert count == 2 * weights.count_params(declared)
  step = supervised.make_prm_step(
    model, ScoreConfig(4), optimizer, TABLE, layout, head_only=False
  )
  rng = np.random.default_rng(0)
  tokens = np.where(np.arange(10) % 3 == 2, 3, rng.integers(4, 16, (32, 10)))
  batch_prompts = prompts(32)
  batch = supervised.Demonstrations(
    batch_prompts.tokens,
    batch_prompts.mask,
    tokens.astype(np.int32),
    np.ones(tokens.shape, bool),
  )
  # A step is good if its first token is even: the head alone cannot learn it.
  labels = (tokens[:, ::3] % 2 == 0).astype(np.int32)
  losses = []
  for _ in range(30):
    state, metrics = step(state, frozen, batch, labels, labels >= 0)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.8 * losses[0]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), before)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"rank": 0}, "rank must be at least 1, got 0"),
    ({"alpha": 0.0}, "alpha must be between 1e-06 and"),
    ({"targets": ()}, "targets must be some of"),
    ({"targets": ("query", "q_proj")}, r"'down'\), got .*q_proj"),
  ],
)
def test_rank_scale_and_targets_are_validated(fields, message):
  with pytest.raises(ValueError, match=message):
    LoraConfig(**({"rank": 2, "alpha": 4.0} | fields))


def test_matrices_lists_all_matrices_of_a_layer():
  """An unlisted matrix would never get adapters."""
  layers = weights.declare_layers(TINY, 1)
  matrices = {
    name
    for name, weight in layers.items()
    if len(weight.shape) > 2 and not name.endswith(("_bias", "_norm"))
  }
  assert matrices == set(MATRICES)
