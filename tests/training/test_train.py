"""One training step: what its result may and may not depend on."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_boundary import MODEL, PRM_MODEL, SAMPLER, grown, prompts, spec

from pure_jax.models import policy, prm
from pure_jax.parallel import sharding
from pure_jax.training import micro_batches as parts
from pure_jax.training import rollouts, score, train
from pure_jax.training.optim import OptimConfig, make_optimizer
from pure_jax.types import MetricGroups, Prompts

OPTIMIZER = make_optimizer(OptimConfig(learning_rate=1e-2))
# Where two ways to sum must give the same weights: Adam would blow up the
# last place of a gradient that is almost 0 to a whole step, and large steps
# would blow up the difference of the first update in the second rollout.
SGD = optax.sgd(1e-3, momentum=0.9)


@dataclasses.dataclass
class Step:
  """What one iteration gave, on the host."""

  rollout: Any
  scores: Any
  drift: Any
  metrics: dict


@functools.cache
def compiled(layout, micro_batch_rows=None):
  """The three functions of a step."""
  step_spec = spec(layout, micro_batch_rows=micro_batch_rows)
  return (
    rollouts.make_generate(MODEL, SAMPLER, 4, layout),
    score.make_score(step_spec),
    train.make_update(step_spec, SGD),
  )


@functools.cache
def start_params(layout):
  """The policy before the first step."""
  init = train.make_init(policy.declare_policy(MODEL), SGD, layout)
  return grown(init(jax.random.key(0)).params)


@functools.cache
def start_prm(layout):
  return jax.jit(
    lambda key, start: prm.init_prm_from_policy(key, start, MODEL, 1),
    out_shardings=sharding.weight_shardings(prm.declare_prm(PRM_MODEL), layout),
  )(jax.random.key(1), start_params(layout))


def iterate(layout, steps=2, poison=False, micro_batch_rows=None):
  """Rollouts, scores and updates from the same start: (state, steps)."""
  declared = policy.declare_policy(MODEL)
  reference, prm_params = start_params(layout), start_prm(layout)
  state = train.start_state(reference, declared, SGD, layout)
  functions = compiled(layout, micro_batch_rows)
  generate, score_rollout, update = functions
  rows, history = sharding.batch_sharding(layout), []
  for number in range(steps):
    rollout = generate(state.params, prompts(8), jax.random.key(2 + number))
    prm_prompts = Prompts(rollout.prompt_tokens, rollout.prompt_mask)
    scores, drift = score_rollout(
      state.params, reference, prm_params, rollout, prm_prompts
    )
    if poison:
      old_logp = scores.old_logp.at[3, 0].set(jnp.nan)
      scores = scores.replace(old_logp=jax.device_put(old_logp, rows))
    correct = (jnp.sum(rollout.tokens, axis=1) % 2).astype(jnp.float32)
    has_answer = jnp.arange(32) // 4 % 2 == 0
    outcome = jax.device_put((correct, has_answer), rows)
    batch = score.ScoredBatch(rollout, scores, *outcome)
    state, metrics = update(state, batch, {})
    history.append(Step(*jax.device_get((rollout, scores, drift, metrics))))
  assert [function._cache_size() for function in functions] == [1, 1, 1]
  return jax.device_get(state), history


def assert_close(metrics, expected):
  for name, value in expected.items():
    np.testing.assert_allclose(
      metrics[name], value, atol=1e-5, rtol=1e-5, err_msg=name
    )


def assert_same_run(run, expected):
  """Tokens and steps are equal; sums are taken in another order."""
  (state, history), (other_state, other_history) = run, expected
  for step, other in zip(history, other_history, strict=True):
    for field in ("tokens", "completion_mask"):
      np.testing.assert_array_equal(
        getattr(step.rollout, field), getattr(other.rollout, field)
      )
    jax.tree.map(
      np.testing.assert_array_equal, step.scores.steps, other.scores.steps
    )
    for field in ("step_rewards", "old_logp", "ref_logp"):
      np.testing.assert_allclose(
        getattr(step.scores, field),
        getattr(other.scores, field),
        atol=1e-5,
        err_msg=field,
      )
    np.testing.assert_allclose(step.drift, other.drift, atol=1e-5)
    assert_close(step.metrics, other.metrics)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6),
    state.params,
    other_state.params,
  )


@pytest.fixture(scope="module")
def one_device():
  return iterate(sharding.make_layout())


@pytest.mark.parametrize(
  ("shape", "micro_batch_rows"),
  [
    pytest.param((8, 1), None, marks=pytest.mark.slow),
    pytest.param((1, 8), None, marks=pytest.mark.slow),
    ((2, 4), 8),
  ],
)
def test_eight_devices_equal_one(one_device, shape, micro_batch_rows):
  layout = sharding.make_layout(*shape)
  run = iterate(layout, micro_batch_rows=micro_batch_rows)
  assert_same_run(run, one_device)


def test_four_micro_batches_equal_one_batch(one_device):
  """Dividing each by its own count would weigh short micro-batches more."""
  run = iterate(sharding.make_layout(), micro_batch_rows=8)
  assert_same_run(run, one_device)


def test_the_states_shardings_are_kept_by_an_update():
  layout = sharding.make_layout(1, 8)
  places = train.state_shardings(
    policy.declare_policy(MODEL), OPTIMIZER, layout
  )
  state = train.make_init(policy.declare_policy(MODEL), OPTIMIZER, layout)(
    jax.random.key(0)
  )
  jax.tree.map(
    lambda x, place: np.testing.assert_(
      x.sharding.is_equivalent_to(place, x.ndim)
    ),
    state,
    places,
  )
  embedding = state.params["embedding"]
  assert embedding.addressable_shards[0].data.shape == (16, 2)
  moments = [
    x for x in jax.tree.leaves(state.opt_state) if x.shape == embedding.shape
  ]
  assert len(moments) == 2  # Adam's, split as their weight is.
  for moment in moments:
    assert moment.addressable_shards[0].data.shape == (16, 2)


def test_at_the_first_iteration_ratios_are_1_and_kl_is_0(one_device):
  """A sampled PAD or a shifted log-prob would show here."""
  _, (first, second) = one_device
  # The two forwards are compiled apart: a few units in the last place.
  np.testing.assert_allclose(first.metrics["ratio_max"], 1, atol=2e-6)
  np.testing.assert_allclose(first.metrics["ratio_min"], 1, atol=2e-6)
  assert abs(first.metrics["kl_reference"]) < 1e-9
  assert first.metrics["clip_fraction"] == 0
  assert first.drift < 1e-5
  assert second.metrics["kl_reference"] > 0  # The policy has moved.
  # Only several updates of a rollout have lists.
  assert {np.ndim(value) for value in first.metrics.values()} == {0}


def test_a_micro_batch_takes_rows_of_every_device_and_returns_them():
  split = parts.split_rows(jnp.arange(8), 2)
  np.testing.assert_array_equal(split, [[0, 2, 4, 6], [1, 3, 5, 7]])
  np.testing.assert_array_equal(parts.join_rows(split), jnp.arange(8))


def test_a_loop_over_micro_batches_holds_the_model_once():
  """A first micro-batch before the loop would compile the model twice.

  The initial values of sums must not change minima and maxima.
  """

  def objective(params, part):
    value = jnp.sum(jnp.tanh(part @ params))
    return value, MetricGroups(
      sums={"rows": jnp.float32(len(part))},
      maxima={"largest": jnp.max(part)},
      minima={"smallest": jnp.min(part)},
    )

  params, batch = jnp.ones((6, 6)), jnp.arange(72.0).reshape(12, 6) - 100
  lowered = jax.jit(
    lambda params, batch: parts.accumulate_gradients(
      objective, params, batch, 4
    )
  ).lower(params, batch)
  assert lowered.as_text().count("dot_general") == 2
  (_, metrics), _ = lowered.compile()(params, batch)
  assert metrics.to_dict() == {"rows": 12, "largest": -29, "smallest": -100}


@pytest.mark.parametrize(
  ("rows", "limit", "expected"),
  [(12, 12, 1), (12, 13, 1), (12, 11, 2), (12, 5, 3), (7, 3, 7), (12, None, 1)],
)
def test_parts_are_equal_few_and_small_enough(rows, limit, expected):
  assert parts.count_micro_batches(rows, limit) == expected


def test_parts_of_a_batch_can_be_split_over_devices():
  # Two parts of 10 rows would leave 2.5 to each of four shards.
  assert parts.count_micro_batches(20, 16, shards=4) == 5
  with pytest.raises(ValueError, match="cannot be split over 4 shards"):
    parts.count_micro_batches(20, 3, shards=4)


def test_an_update_that_is_not_finite_changes_only_the_counters():
  layout = sharding.make_layout()
  state, (step,) = iterate(layout, 1, poison=True)
  assert not np.isfinite(step.metrics["grad_norm"])
  assert step.metrics["skipped_updates"] == 1
  assert (state.step, state.skipped, state.skipped_in_a_row) == (1, 1, 1)
  jax.tree.map(
    np.testing.assert_array_equal,
    state.params,
    jax.device_get(start_params(layout)),
  )
  for moment in jax.tree.leaves(state.opt_state):
    np.testing.assert_array_equal(moment, np.zeros_like(moment))


def test_without_a_prm_steps_are_split_and_score_0(one_device):
  layout = sharding.make_layout()
  params = start_params(layout)
  step = one_device[1][0]
  scores, _ = score.make_score(spec(layout, prm_model=None))(
    params, params, None, step.rollout, None
  )
  assert scores.step_rewards.shape == step.scores.step_rewards.shape
  assert not scores.step_rewards.any() and step.scores.step_rewards.any()
  jax.tree.map(np.testing.assert_array_equal, scores.steps, step.scores.steps)
  for field in ("old_logp", "ref_logp"):
    np.testing.assert_allclose(
      getattr(scores, field), getattr(step.scores, field), atol=1e-6
    )


def test_the_update_reads_the_sampled_distribution():
  """Log-probs at temperature 1 would make every ratio of iteration 0 wrong."""
  sampler = dataclasses.replace(SAMPLER, temperature=0.6, banned_ids=(7,))
  layout = sharding.make_layout()
  params = start_params(layout)
  rollout = rollouts.make_generate(MODEL, sampler, 4, layout)(
    params, prompts(8), jax.random.key(1)
  )
  logp, _ = jax.jit(score.rollout_logp, static_argnums=(1, 2))(
    params, MODEL, sampler, rollout
  )
  np.testing.assert_allclose(logp, rollout.sampled_logp, atol=1e-5)
