"""A training step on any layout, to compare with that of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from train_boundary import CREDIT, LOSS, SAMPLER, TABLE, grown, prompts

from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.settings import ScoreConfig
from pure_jax.training import rollouts, score, train, weight_copies
from pure_jax.training.step_spec import StepSpec
from pure_jax.types import Prompts

# Eight query heads and two key heads: more tensor shards than key heads.
MODEL = ModelConfig(
  vocab_size=16,
  width=16,
  num_layers=2,
  num_heads=8,
  num_kv_heads=2,
  head_dim=4,
  mlp_width=24,
  tied_embeddings=False,
)
PRM_MODEL = prm.extend_config(MODEL, 1)
SGD = optax.sgd(1e-3, momentum=0.9)  # The momentum is the gradient.


def one_step(layouts):
  """Two rollouts, their scores and updates; as arrays on the host."""
  declared = policy.declare_policy(MODEL)
  start = train.make_init(declared, SGD, layouts.training)(jax.random.key(0))
  state = train.start_state(
    grown(start.params), declared, SGD, layouts.training
  )
  prm_declared = prm.declare_prm(PRM_MODEL)
  prm_params = jax.jit(
    lambda start: prm.init_prm_from_policy(jax.random.key(1), start, MODEL, 1),
    out_shardings=sharding.weight_shardings(prm_declared, layouts.training),
  )(state.params)
  prm_params = weight_copies.make_compute_copy(
    prm_declared, PRM_MODEL, layouts.training, layouts.prm
  )(prm_params)
  to_rollout, to_reference = (
    weight_copies.make_compute_copy(declared, MODEL, layouts.training, target)
    for target in (layouts.rollout, layouts.reference)
  )
  reference = jax.tree.map(jnp.copy, to_reference(state.params))
  generate = rollouts.make_generate(
    MODEL, SAMPLER, 4, layouts.rollout, layouts.training
  )
  spec = StepSpec(
    MODEL, PRM_MODEL, SAMPLER, ScoreConfig(4), TABLE, layouts, CREDIT, LOSS
  )
  score_rollout = score.make_score(spec)
  update = train.make_update(spec, SGD)
  history = []
  for number in range(2):
    rollout = generate(
      to_rollout(state.params), prompts(8), jax.random.key(2 + number)
    )
    prm_prompts = Prompts(rollout.prompt_tokens, rollout.prompt_mask)
    scores, drift = score_rollout(
      state.params, reference, prm_params, rollout, prm_prompts
    )
    correct = (jnp.sum(rollout.tokens, axis=1) % 2).astype(jnp.float32)
    known = jnp.arange(32) // 4 % 2 == 0
    rows = sharding.batch_sharding(layouts.training)
    outcome = jax.device_put((correct, known), rows)
    batch = score.ScoredBatch(rollout, scores, *outcome)
    state, metrics = update(state, batch, {})
    history.append(jax.device_get((rollout, scores, drift, metrics)))
  return jax.device_get(state), history


def assert_same(actual, expected):
  """Tokens exactly, the rest to 1e-5."""
  for (rollout, *rest), (other, *others) in zip(
    actual[1], expected[1], strict=True
  ):
    np.testing.assert_array_equal(rollout.tokens, other.tokens)
    np.testing.assert_array_equal(rollout.truncated, other.truncated)
    close(rest, others)
  close(actual[0], expected[0])


def close(actual, expected):
  def check(path, x, y):
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=name)

  jax.tree_util.tree_map_with_path(check, actual, expected)
