"""Several updates of one rollout: a Python loop over optax is the oracle."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import random_params
from train_boundary import CREDIT, LOSS, SAMPLER, SEPARATOR, TABLE, spec
from train_boundary import MODEL as TWO_LAYERS

from pure_jax import steps
from pure_jax.advantages import pure_advantages
from pure_jax.models import lora, policy
from pure_jax.models.config import LoraConfig
from pure_jax.parallel import sharding
from pure_jax.settings import AdaptiveKLConfig
from pure_jax.training import adaptive_kl, score, train
from pure_jax.training.mini_batches import check_mini_batches, rows_of_updates
from pure_jax.training.packing import RowShape
from pure_jax.types import Rollout

B, L, C, S = 16, 5, 10, 4
MODEL = dataclasses.replace(TWO_LAYERS, num_layers=1)
MAX_GRAD_NORM = 0.2
# Large steps, so that ratios leave the clip range within a few updates. Adam's
# epsilon keeps the rounding of a gradient near 0 from becoming a whole step.
OPTIMIZER = optax.chain(
  optax.clip_by_global_norm(MAX_GRAD_NORM),
  optax.adamw(
    optax.linear_schedule(0.001, 0.003, 3), eps=1e-2, weight_decay=0.1
  ),
)
ADAPTED = dataclasses.replace(MODEL, lora=LoraConfig(2, alpha=8.0))
# Another order in each epoch, as a run draws them.
ORDER = np.stack(
  [np.random.default_rng(seed).permutation(B) for seed in (5, 6)], axis=1
).astype(np.int32)


@functools.cache
def rollout():
  """Responses of 1 to 10 tokens with steps, drawn with numpy."""
  rng = np.random.default_rng(0)
  prompt_mask = np.arange(L)[::-1] < rng.integers(1, L + 1, (B, 1))
  mask = np.arange(C) < rng.permutation(np.arange(B) % C + 1)[:, None]
  tokens = rng.integers(4, 16, (B, C))
  tokens[rng.random((B, C)) < 0.25] = SEPARATOR
  return Rollout(
    prompt_tokens=np.where(prompt_mask, rng.integers(4, 16, (B, L)), 0).astype(
      np.int32
    ),
    prompt_mask=prompt_mask,
    tokens=np.where(mask, tokens, 0).astype(np.int32),
    completion_mask=mask,
    sampled_logp=np.zeros((B, C), np.float32),
    full_logp=np.zeros((B, C), np.float32),
    truncated=np.zeros(B, bool),
  )


def new_logp(params, model, r):
  """Log-probs and entropy of responses, [b, C]."""
  return policy.token_logp(
    *(params, model, r.prompt_tokens, r.prompt_mask),
    *(r.tokens, r.completion_mask),
    banned_ids=SAMPLER.banned_ids,
  )


@functools.cache
def start(model=MODEL):
  """Trained and frozen weights before the first update."""
  return lora.trained_and_frozen(
    random_params(policy.declare_policy(model), 3), model
  )


@functools.cache
def batch(model=MODEL, is_shuffled=False):
  """The scored batch: old log-probs are those of the first weights."""
  rng, responses = np.random.default_rng(1), rollout()
  mask = responses.completion_mask
  trained, frozen = start(model)
  weights = lora.join_params(frozen, trained)
  old_logp = jax.jit(new_logp, static_argnums=1)(weights, model, responses)[0]
  old_logp = np.asarray(old_logp)
  boundaries = steps.split_steps(responses.tokens, mask, TABLE, max_steps=S)
  rewards = rng.uniform(-1, 1, (B, S)).astype(np.float32)
  noise = rng.normal(0, 0.3, mask.shape).astype(np.float32)
  return score.ScoredBatch(
    responses,
    score.Scores(
      steps=jax.device_get(boundaries),
      step_rewards=np.where(boundaries.mask, rewards, 0),
      old_logp=old_logp,
      ref_logp=np.where(mask, old_logp + noise, 0),
    ),
    correct=(rng.random(B) < 0.5).astype(np.float32),
    has_answer=np.arange(B) // 4 % 2 == 0,
    order=ORDER if is_shuffled else None,
  )


@functools.partial(jax.jit, static_argnums=(0, 6))
def step_by_hand(
  model, trained, frozen, opt_state, responses, numbers, kl_coef
):
  """One update of some responses: (weights, optimizer state, metrics).

  The loss is written out: PPO's clipped objective, k3 and the entropy, each a
  mean over the tokens of these responses.
  """
  old, ref, A = numbers
  mask = responses.completion_mask

  def mean(x):
    return jnp.sum(x * mask) / mask.sum()

  def loss(trained):
    weights = lora.join_params(frozen, trained)
    logp, entropy = new_logp(weights, model, responses)
    ratio = jnp.exp(logp - old)
    clipped = jnp.clip(ratio, 0.8, 1.2)
    kl = jnp.exp(ref - logp) - (ref - logp) - 1
    tokens = -jnp.minimum(ratio * A, clipped * A) + kl_coef * kl
    tokens -= LOSS.entropy_coef * entropy
    return mean(tokens), (ratio, clipped * A < ratio * A)

  grads, (ratio, was_clipped) = jax.grad(loss, has_aux=True)(trained)
  changes, opt_state = OPTIMIZER.update(grads, opt_state, trained)
  squares = [jnp.square(x).sum() for x in jax.tree.leaves(grads)]
  metrics = {
    "clip_fraction": mean(was_clipped),
    "ratio_max": jnp.where(mask, ratio, 0).max(),
    "ratio_min": jnp.where(mask, ratio, 9).min(),
    "grad_norm": jnp.sqrt(sum(squares)),
  }
  return optax.apply_updates(trained, changes), opt_state, metrics


def updates_by_hand(
  scored, updates, model=MODEL, kl_coef=LOSS.kl_coef, credit=CREDIT
):
  """A loop over optax: (weights, metrics of each update).

  `updates` lists the responses of each.
  """
  trained, frozen = start(model)
  opt_state, history = OPTIMIZER.init(trained), []
  experience = train.experience_from(scored, TABLE)
  numbers = (
    *(scored.scores.old_logp, scored.scores.ref_logp),
    np.asarray(pure_advantages(experience, credit)[0]),
  )
  for rows in updates:
    responses, of_rows = jax.tree.map(
      lambda x, rows=rows: x[rows], (scored.rollout, numbers)
    )
    trained, opt_state, metrics = step_by_hand(
      model, trained, frozen, opt_state, responses, of_rows, kl_coef
    )
    history.append(jax.device_get(metrics))
  return trained, history


def pieces(mini_batches, epochs, is_shuffled):
  """The responses of each update, as lists."""
  listed = []
  for epoch in range(epochs):
    order = ORDER[:, epoch].tolist() if is_shuffled else list(range(B))
    size = B // mini_batches
    listed += [
      np.array(order[i * size : (i + 1) * size]) for i in range(mini_batches)
    ]
  return listed


@functools.cache
def compiled(layout, rows, model, **changes):
  """The compiled updates."""
  made = spec(layout, model=model, prm_model=None, **changes)
  return train.make_update(made, OPTIMIZER, rows)


def updated(
  scored, layout=None, rows=None, model=MODEL, kl_coef=None, **changes
):
  """State and metrics after the compiled updates."""
  layout = layout or sharding.make_layout()
  update = compiled(layout, rows, model, **changes)
  trained, frozen = start(model)
  declared, declared_base = lora.trained_and_frozen(
    policy.declare_policy(model), model
  )
  base = jax.device_put(
    frozen, sharding.weight_shardings(declared_base, layout)
  )
  scored = jax.device_put(scored, sharding.batch_sharding(layout))
  state = train.start_state(trained, declared, OPTIMIZER, layout, kl_coef)
  return jax.device_get(update(state, scored, base))


def assert_params(actual, expected):
  """To the rounding of sums, as for one update."""
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=5e-6),
    actual,
    expected,
  )


@pytest.mark.parametrize(
  ("mini_batches", "is_shuffled", "options"),
  [
    (2, False, {}),
    (2, True, {"micro_batch_rows": 4}),
    pytest.param(1, False, {"model": ADAPTED}, marks=pytest.mark.slow),
  ],
  ids=["in order", "shuffled", "lora"],
)
def test_updates_of_two_epochs_are_those_of_a_loop(
  mini_batches, is_shuffled, options
):
  """A denominator of the whole batch would halve the loss of a mini-batch."""
  model = options.get("model", MODEL)
  scored = batch(model, is_shuffled)
  updates = pieces(mini_batches, 2, is_shuffled)
  expected, history = updates_by_hand(scored, updates, model)
  state, metrics = updated(
    scored, mini_batches=mini_batches, epochs=2, **options
  )
  assert_params(state.params, expected)
  assert (state.step, state.skipped) == (len(updates), 0)
  joined = {"ratio_max": max, "ratio_min": min}
  for name in history[0]:
    values = [float(of_update[name]) for of_update in history]
    np.testing.assert_allclose(
      metrics[f"{name}_per_update"], values, rtol=2e-4, atol=1e-6
    )
    mean = sum(values) / len(values)
    value = joined[name](values) if name in joined else mean
    np.testing.assert_allclose(metrics[name], value, rtol=2e-4, atol=1e-6)
  # Clipping of ratios and of gradients must have had an effect.
  assert history[-1]["clip_fraction"] > 0.01
  assert max(x["grad_norm"] for x in history) > MAX_GRAD_NORM


def test_the_first_update_has_ratio_1_and_the_second_epoch_changes_weights():
  state, metrics = updated(batch(), mini_batches=2, epochs=2)
  one_epoch, _ = updates_by_hand(batch(), pieces(2, 1, False))
  change = state.params["embedding"] - one_epoch["embedding"]
  assert np.abs(change).max() > 1e-3
  for name in ("ratio_max_per_update", "ratio_min_per_update"):
    assert metrics[name].shape == (4,)
    np.testing.assert_allclose(metrics[name][0], 1, atol=2e-6)
    assert (np.abs(metrics[name][1:] - 1) > 1e-3).all()
  assert metrics["clip_fraction_per_update"][0] == 0
  # Credit is that of the whole rollout, once.
  assert metrics["advantage_std"].shape == ()
  assert "advantage_std_per_update" not in metrics


@pytest.mark.parametrize(
  ("is_shuffled", "options"),
  [
    (False, {"micro_batch_rows": 8}),
    (True, {"rows": RowShape(21, 8)}),
  ],
  ids=["in order", "packed"],
)
def test_eight_devices_equal_one(is_shuffled, options):
  """A mini-batch of 8 consecutive responses lies on half of the devices."""
  scored = batch(is_shuffled=is_shuffled)
  expected, _ = updates_by_hand(scored, pieces(2, 2, is_shuffled))
  layout = sharding.make_layout(2, 4)
  state, metrics = updated(scored, layout, mini_batches=2, epochs=2, **options)
  assert_params(state.params, expected)
  assert metrics["skipped_updates"] == 0


def test_a_mini_batch_that_is_not_finite_is_skipped_by_itself():
  """The last count would hide skips that a good mini-batch follows."""
  updates = pieces(2, 2, is_shuffled=True)
  bad = min({*updates[1]} & {*updates[2]})
  scored = batch(is_shuffled=True)
  old_logp = scored.scores.old_logp.copy()
  old_logp[bad, 0] = np.nan
  scored = scored.replace(scores=scored.scores.replace(old_logp=old_logp))
  state, metrics = updated(scored, mini_batches=2, epochs=2, micro_batch_rows=4)
  expected, _ = updates_by_hand(scored, [updates[0], updates[3]])
  assert_params(state.params, expected)
  counters = (state.step, state.skipped, state.skipped_in_a_row)
  assert counters == (4, 2, 0)
  for name, values in (
    ("skipped_updates", [0, 1, 2, 2]),
    ("skipped_in_a_row", [0, 1, 2, 0]),
  ):
    assert metrics[f"{name}_per_update"].tolist() == values
    assert metrics[name] == 2
  finite = np.isfinite(metrics["grad_norm_per_update"])
  assert finite.tolist() == [True, False, False, True]
  assert not np.isfinite(metrics["grad_norm"])


def kl_by_hand(scored, estimate, without=None):
  """Mean over responses of their mean over tokens, by loops."""
  of_responses = []
  for b, mask in enumerate(scored.rollout.completion_mask):
    if b == without:
      continue
    old, ref = (
      np.float64(x[b, mask])
      for x in (scored.scores.old_logp, scored.scores.ref_logp)
    )
    of_responses.append(np.mean(estimate(ref - old)))
  return np.mean(of_responses)


def test_the_kl_coefficient_is_that_of_the_state_and_follows_the_kl():
  """All updates of a rollout have the old one; the state has the next."""
  config = AdaptiveKLConfig(target=0.04, horizon=64)
  credit = dataclasses.replace(CREDIT, kl_in_reward="k2")
  state, metrics = updated(
    batch(),
    *(None, None, MODEL, 0.5),
    mini_batches=2,
    epochs=2,
    credit=credit,
    adaptive_kl=config,
  )
  expected, _ = updates_by_hand(
    batch(),
    pieces(2, 2, False),
    kl_coef=0.5,
    credit=dataclasses.replace(credit, kl_coef=0.5),
  )
  assert_params(state.params, expected)
  kl = kl_by_hand(batch(), lambda d: d**2 / 2)
  error = kl / 0.04 - 1
  assert 0 < abs(error) < 0.2
  np.testing.assert_allclose(metrics["kl_rollout"], kl, rtol=1e-5)
  assert metrics["kl_coef"] == 0.5
  np.testing.assert_allclose(
    state.kl_coef, 0.5 * (1 + error * B / 64), rtol=1e-5
  )


@pytest.mark.parametrize(
  ("credit", "estimate"),
  [
    (
      dataclasses.replace(CREDIT, kl_in_reward="k2", kl_limit=0.03),
      lambda d: np.minimum(d**2 / 2, 0.03),
    ),
    (CREDIT, lambda d: np.exp(d) - 1 - d),
  ],
  ids=["of the reward", "of the loss"],
)
def test_the_kl_is_measured_by_the_estimator_of_the_penalty(credit, estimate):
  made = spec(
    sharding.make_layout(),
    credit=credit,
    adaptive_kl=AdaptiveKLConfig(target=0.02, horizon=100),
  )
  experience = train.experience_from(batch(), TABLE)
  following, metrics = adaptive_kl.adapt_kl_coef(
    jnp.float32(2e-3), experience, made
  )
  kl = kl_by_hand(batch(), estimate)
  np.testing.assert_allclose(metrics["kl_rollout"], kl, rtol=1e-5)
  error = np.clip(kl / 0.02 - 1, -0.2, 0.2)
  np.testing.assert_allclose(following, 2e-3 * (1 + error * B / 100), rtol=1e-5)
  # A response without a token counts neither as 0 nor as NaN.
  empty = experience.completion_mask.copy()
  empty[4] = False
  rest = kl_by_hand(batch(), estimate, without=4)
  measured = adaptive_kl.rollout_kl(
    experience.replace(completion_mask=empty), made
  )
  np.testing.assert_allclose(measured, rest, rtol=1e-5)
  with pytest.raises(ValueError, match="make the state with a kl_coef"):
    adaptive_kl.adapt_kl_coef(None, experience, made)


def test_what_cannot_be_divided_is_a_sentence():
  with pytest.raises(ValueError, match="16 responses cannot be divided into 3"):
    updated(batch(), mini_batches=3)
  with pytest.raises(ValueError, match="split over 8 shards"):
    check_mini_batches(16, 4, shards=8)
  with pytest.raises(ValueError, match=r"has shape \(16, 2\), not \(16, 3\)"):
    rows_of_updates(ORDER, 16, mini_batches=2, epochs=3)
