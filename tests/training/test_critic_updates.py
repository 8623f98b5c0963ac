"""The critic's values and updates, and what they may not depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import initial_params, random_params
from train_boundary import EOS, PAD, SEPARATOR, TABLE, grown
from train_boundary import MODEL as TWO_LAYERS
from train_boundary import spec as spec_of_training

from pure_jax import steps
from pure_jax.advantages import pure_advantages, value_targets
from pure_jax.models import critic
from pure_jax.models.config import LoraConfig
from pure_jax.parallel import sharding
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.training import score, train
from pure_jax.training.critic import make_critic_update, make_values
from pure_jax.training.optim import OptimConfig, make_optimizer
from pure_jax.training.packing import RowShape
from pure_jax.types import Rollout

B, L, C = 16, 5, 10
MODEL = dataclasses.replace(TWO_LAYERS, num_layers=1)
CREDIT = CreditConfig(
  form="min",
  baseline="gae",
  gae_lambda=0.9,
  fold_verifiable=True,
  kl_in_reward="k1",
  group_size=4,
)
SGD = optax.sgd(1e-2, momentum=0.9)
jitted_advantages = jax.jit(pure_advantages, static_argnums=1)
jitted_targets = jax.jit(value_targets, static_argnums=1)


def spec(layout, **changes):
  """The training step with a critic of one layer."""
  changes = {"model": MODEL, "prm_model": None, "credit": CREDIT} | changes
  return spec_of_training(layout, **changes)


@functools.cache
def compiled_values(layout, rows=None):
  """The critic's values, which depend on no other setting."""
  return make_values(spec(layout), rows)


@functools.cache
def compiled_update(layout, rows=None, **changes):
  """The critic's update with values clipped at 0.2, compiled once."""
  return make_critic_update(spec(layout, **changes), SGD, 0.2, rows)


@functools.partial(jax.jit, static_argnums=2)
def split_steps(tokens, mask, max_steps):
  return steps.split_steps(tokens, mask, TABLE, max_steps=max_steps)


def responses(seed=0):
  """A rollout of uneven lengths, one of a single token."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, C + 1, B)
  lengths[:3] = C, 1, 2
  mask = np.arange(C) < lengths[:, None]
  tokens = rng.integers(4, 16, (B, C))
  tokens[:, 1:][rng.random((B, C - 1)) < 0.25] = SEPARATOR
  tokens[mask & (np.arange(C) == lengths[:, None] - 1)] = EOS
  prompt_mask = np.arange(L)[::-1] < rng.integers(1, L + 1, (B, 1))
  prompt = np.where(prompt_mask, rng.integers(4, 16, (B, L)), PAD)
  logp = np.where(mask, -rng.exponential(2, (B, C)), 0).astype("f4")
  return Rollout(
    prompt_tokens=prompt.astype(np.int32),
    prompt_mask=prompt_mask,
    tokens=np.where(mask, tokens, PAD).astype(np.int32),
    completion_mask=mask,
    sampled_logp=logp,
    full_logp=logp,
    truncated=np.zeros(B, bool),
  )


def batch_of(step_spec, rollout, values, seed=0):
  """A scored batch with step rewards and outcomes of no meaning."""
  rng = np.random.default_rng(seed)
  boundaries = split_steps(rollout.tokens, rollout.completion_mask, 4)
  rewards = rng.uniform(-1, 1, boundaries.mask.shape).astype("f4")
  scores = score.Scores(
    boundaries,
    np.where(boundaries.mask, rewards, 0),
    rollout.full_logp,
    rollout.full_logp + 0.1,
  )
  sharded = sharding.batch_sharding(step_spec.layouts.training)
  return jax.device_put(
    score.ScoredBatch(
      rollout,
      scores,
      correct=(np.arange(B) % 3 == 0).astype("f4"),
      has_answer=np.arange(B) < 8,
      values=values,
    ),
    sharded,
  )


def step(layout, rows=None, **changes):
  """Values, metrics and weights after two updates on one rollout."""
  step_spec = spec(layout, **changes)
  params = random_params(critic.declare_critic(MODEL))
  declared = critic.declare_critic(MODEL)
  rollout = jax.device_put(responses(), sharding.batch_sharding(layout))
  values = compiled_values(layout, rows)(params, {}, rollout)
  batch = batch_of(step_spec, rollout, values)
  update = compiled_update(layout, rows, **changes)
  state = train.start_state(params, declared, SGD, layout)
  state, first = update(state, batch, {}, None)
  state, second = update(state, batch, {}, None)
  return jax.device_get((values, first, second, state.params))


@pytest.fixture(scope="module")
def one_device():
  return step(sharding.make_layout())


def assert_same(actual, expected):
  """To rounding: sums are taken in another order."""
  values, *metrics, params = actual
  other_values, *other_metrics, other_params = expected
  np.testing.assert_allclose(values, other_values, rtol=1e-5, atol=1e-5)
  for row, other in zip(metrics, other_metrics, strict=True):
    for name in other:
      np.testing.assert_allclose(
        row[name], other[name], rtol=1e-5, atol=1e-5, err_msg=name
      )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=5e-6, atol=5e-6),
    params,
    other_params,
  )


def test_four_micro_batches_equal_one_batch(one_device):
  """Dividing each by its own count would weigh short micro-batches more."""
  assert_same(step(sharding.make_layout(), micro_batch_rows=4), one_device)


@pytest.mark.slow  # On eight devices it is a default test.
def test_packed_rows_equal_rows_of_one_text(one_device):
  assert_same(step(sharding.make_layout(), RowShape(18, 2)), one_device)


@pytest.mark.slow  # With packed rows it is a default test.
def test_eight_devices_equal_one(one_device):
  assert_same(step(sharding.make_layout(2, 4)), one_device)


def test_packed_rows_on_eight_devices_equal_one_device(one_device):
  assert_same(step(sharding.make_layout(2, 4), RowShape(18, 8)), one_device)


def test_metrics_are_those_of_the_batch_before_and_of_the_update(one_device):
  values, first, second, _ = one_device
  step_spec = spec(sharding.make_layout())
  batch = batch_of(step_spec, responses(), values)
  experience = train.experience_from(batch, step_spec.table)
  mask = np.asarray(experience.completion_mask)
  targets = np.asarray(jitted_targets(experience, CREDIT))
  _, of_credit = jitted_advantages(experience, CREDIT)
  for name, value in of_credit.items():
    np.testing.assert_allclose(first[name], value, atol=1e-6, err_msg=name)
  errors = (targets - values)[mask]
  explained = 1 - errors.var() / targets[mask].var()
  np.testing.assert_allclose(first["explained_variance"], explained, rtol=1e-5)
  np.testing.assert_allclose(
    first["value_mean"], values[mask].mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    first["value_target_mean"], targets[mask].mean(), atol=1e-6
  )
  # In the first update no value has moved, so none is clipped.
  np.testing.assert_allclose(
    first["value_loss"], (errors**2).mean() / 2, rtol=1e-5
  )
  assert first["value_clip_fraction"] == 0 < second["value_clip_fraction"]
  assert second["explained_variance"] == first["explained_variance"]


def test_sequence_mean_weighs_responses_alike_in_packed_rows(one_device):
  """A token mean would let long responses outweigh short ones."""
  loss = LossConfig(aggregate="sequence_mean")
  layout = sharding.make_layout()
  values, first, *_ = step(layout, RowShape(18, 2), loss=loss)
  np.testing.assert_allclose(values, one_device[0], rtol=1e-5, atol=1e-5)
  step_spec = spec(layout)
  experience = train.experience_from(
    batch_of(step_spec, responses(), values), step_spec.table
  )
  targets = np.asarray(jitted_targets(experience, CREDIT))
  squares = np.where(experience.completion_mask, (targets - values) ** 2, 0)
  lengths = np.asarray(experience.completion_mask).sum(axis=1)
  expected = (squares.sum(axis=1) / lengths).mean() / 2
  np.testing.assert_allclose(first["value_loss"], expected, rtol=1e-5)


@pytest.mark.slow  # The loss of packed rows by hand is a default test.
def test_sequence_mean_is_the_same_in_packed_rows_and_rows_of_one_text():
  layout, loss = sharding.make_layout(), LossConfig(aggregate="sequence_mean")
  assert_same(step(layout, RowShape(18, 2), loss=loss), step(layout, loss=loss))


def test_mini_batches_are_updates_one_after_the_other():
  """Old values and targets are those of the whole batch, before any update."""
  layout = sharding.make_layout()
  params = random_params(critic.declare_critic(MODEL))
  declared = critic.declare_critic(MODEL)
  rollout = jax.device_put(responses())
  step_spec = spec(layout)
  values = compiled_values(layout)(params, {}, rollout)
  batch = batch_of(step_spec, rollout, values)
  rng = np.random.default_rng(0)
  order = np.stack([rng.permutation(B) for _ in range(2)], 1).astype(np.int32)
  several = dataclasses.replace(step_spec, mini_batches=2, epochs=2)
  state = train.start_state(params, declared, SGD, layout)
  state, metrics = make_critic_update(several, SGD, 0.2)(
    state, batch.replace(order=jnp.asarray(order)), {}, None
  )

  experience = train.experience_from(batch, step_spec.table)
  targets = jitted_targets(experience, CREDIT)

  @jax.jit
  def one_update(params, moments, rows):
    taken = jax.tree.map(lambda x: x[rows], rollout)
    mask = taken.completion_mask

    def loss(params):
      new = critic.token_values(
        *(params, MODEL, taken.prompt_tokens, taken.prompt_mask),
        *(taken.tokens, mask),
      )
      near = jnp.clip(new - values[rows], -0.2, 0.2) + values[rows]
      errors = jnp.maximum(
        (new - targets[rows]) ** 2, (near - targets[rows]) ** 2
      )
      return jnp.where(mask, errors, 0).sum() / mask.sum() / 2

    value, grads = jax.value_and_grad(loss)(params)
    updates, moments = SGD.update(grads, moments)
    return optax.apply_updates(params, updates), moments, value

  expected, moments, each = params, SGD.init(params), []
  for rows in order.T.reshape(4, -1):
    expected, moments, value = one_update(expected, moments, rows)
    each.append(float(value))
  np.testing.assert_allclose(metrics["value_loss_per_update"], each, rtol=1e-4)
  np.testing.assert_allclose(metrics["value_loss"], np.mean(each), rtol=1e-4)
  assert metrics["explained_variance"].shape == ()
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
    state.params,
    expected,
  )


def test_targets_are_made_with_the_kl_coefficient_of_the_state():
  """It is adapted: that of the config would be another penalty."""
  layout = sharding.make_layout()
  step_spec = spec(layout)
  params = random_params(critic.declare_critic(MODEL))
  batch = batch_of(step_spec, responses(), np.zeros((B, C), "f4"))
  update = compiled_update(layout)
  targets = []
  for kl_coef in (None, jnp.float32(CREDIT.kl_coef), jnp.float32(0.5)):
    state = train.start_state(params, critic.declare_critic(MODEL), SGD, layout)
    _, metrics = update(state, batch, {}, kl_coef)
    targets.append(float(metrics["value_target_mean"]))
  np.testing.assert_allclose(targets[1], targets[0], rtol=1e-5)
  experience = train.experience_from(batch, step_spec.table)
  other = dataclasses.replace(CREDIT, kl_coef=0.5)
  mask = np.asarray(experience.completion_mask)
  expected = np.asarray(jitted_targets(experience, other))[mask].mean()
  np.testing.assert_allclose(targets[2], expected, rtol=1e-5)
  assert abs(targets[2] - targets[0]) > 0.01


def test_an_update_that_is_not_finite_changes_only_the_counters():
  layout = sharding.make_layout()
  step_spec = spec(layout)
  params = random_params(critic.declare_critic(MODEL))
  values = np.zeros((B, C), "f4")
  batch = batch_of(step_spec, responses(), values)
  correct = batch.correct.at[0].set(jnp.inf)
  update = compiled_update(layout)
  state = train.start_state(params, critic.declare_critic(MODEL), SGD, layout)
  state, metrics = update(state, batch.replace(correct=correct), {}, None)
  assert not np.isfinite(metrics["critic_grad_norm"])
  assert metrics["critic_skipped_updates"] == 1
  assert metrics["critic_skipped_in_a_row"] == state.skipped_in_a_row == 1
  jax.tree.map(np.testing.assert_array_equal, state.params, params)


def test_with_adapters_only_they_and_the_head_are_trained():
  model = dataclasses.replace(MODEL, lora=LoraConfig(rank=2, alpha=4.0))
  layout = sharding.make_layout()
  step_spec = spec(layout, model=model)
  declared, _ = critic.trained_and_frozen(critic.declare_critic(model), model)
  params = random_params(critic.declare_critic(model))
  trained, base = critic.trained_and_frozen(params, model)
  rollout = jax.device_put(responses())
  values = make_values(step_spec)(trained, base, rollout)
  batch = batch_of(step_spec, rollout, values)
  state = train.start_state(trained, declared, SGD, layout)
  state, metrics = make_critic_update(step_spec, SGD)(state, batch, base, None)
  assert {*state.params} == {"layers", "value"}
  assert {*state.params["layers"]} == {*declared["layers"]}
  assert 0 < metrics["critic_grad_norm"] < np.inf
  moved = jax.tree.map(
    lambda x, y: bool(jnp.any(x != y)), state.params, trained
  )
  assert all(jax.tree.leaves(moved))


def test_the_critic_learns_a_known_value_function():
  """All tokens are odd or all even, and odd ones are right.

  Before the first token the value is the mean, and then it is the outcome.
  """
  layout = sharding.make_layout()
  config = dataclasses.replace(
    CREDIT, process_coef=0.0, kl_in_reward=None, gae_lambda=1.0
  )
  step_spec = spec(layout, credit=config)
  optimizer = make_optimizer(OptimConfig(learning_rate=1e-2))
  declared = critic.declare_critic(MODEL)
  start = grown(initial_params(declared))
  state = train.start_state(start, declared, optimizer, layout)
  values = compiled_values(layout)
  update = make_critic_update(step_spec, optimizer)
  history = []
  for seed in range(100):
    rng, rollout = np.random.default_rng(seed), responses(seed)
    correct = rng.integers(0, 2, B).astype("f4")
    tokens = 4 + 2 * rng.integers(0, 6, (B, C)) + correct[:, None]
    rollout = jax.device_put(rollout.replace(tokens=tokens.astype(np.int32)))
    old = values(state.params, {}, rollout)
    batch = batch_of(step_spec, rollout, old).replace(
      correct=jnp.asarray(correct), has_answer=jnp.ones(B, bool)
    )
    state, metrics = update(state, batch, {}, None)
    history.append(jax.device_get(metrics))
  assert history[0]["explained_variance"] == 0  # All values are 0.
  # What is left is chance: whether the first token is odd.
  late = history[-20:]
  assert np.median([row["explained_variance"] for row in late]) > 0.5
  first_loss = history[0]["value_loss"]
  assert np.mean([row["value_loss"] for row in late]) < first_loss / 8
  mask, predicted = np.asarray(rollout.completion_mask), np.asarray(old)
  assert np.abs(predicted[:, 0].mean() - 0.5) < 0.2
  errors = np.abs(predicted - correct[:, None])[:, 1:]
  assert errors[mask[:, 1:]].mean() < 0.1


def test_at_the_start_advantages_are_the_returns_of_no_baseline():
  """Values of 0 leave the sum of token rewards to go, at gae_lambda = 1."""
  layout = sharding.make_layout()
  config = dataclasses.replace(CREDIT, gae_lambda=1.0)
  step_spec = spec(layout, credit=config)
  params = random_params(critic.declare_critic(MODEL))
  params["value"] = jax.tree.map(jnp.zeros_like, params["value"])
  rollout = jax.device_put(responses())
  values = compiled_values(layout)(params, {}, rollout)
  assert not np.asarray(values).any()
  batch = batch_of(step_spec, rollout, values)
  experience = train.experience_from(batch, step_spec.table)
  bare = dataclasses.replace(config, baseline="none")
  np.testing.assert_allclose(
    jitted_advantages(experience, config)[0],
    jitted_advantages(experience, bare)[0],
    atol=1e-6,
  )
