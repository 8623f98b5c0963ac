"""Scores and updates in packed rows equal those with one text per row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from factories import random_experience
from small_models import random_params

from pure_jax import losses, steps
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.settings import CreditConfig, LossConfig, ScoreConfig
from pure_jax.training import packing, row_choice, score, train
from pure_jax.training.packing import RowShape, ScoreRows
from pure_jax.training.step_spec import Layouts, StepSpec
from pure_jax.types import (
  PackedExperience,
  Prompts,
  Rollout,
  SeparatorTable,
)

PAD, EOS, SCORE, SEPARATOR = 0, 1, 2, 3
B, L, C, S = 16, 5, 14, 4
MODEL = ModelConfig(
  vocab_size=16,
  width=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_width=24,
)
SAMPLER = SamplingConfig(
  max_new_tokens=C, pad_id=PAD, stop_ids=(EOS,), temperature=0.8
)
CREDIT = CreditConfig(
  form="softmin", baseline="main", group_size=4, kl_in_reward="k1"
)
LOSS = LossConfig(kl_in_loss="k3", kl_coef=0.1, entropy_coef=0.01)
TABLE = SeparatorTable(
  ends_step=np.arange(16) == SEPARATOR,
  half=np.zeros(16, bool),
  stem=np.zeros(16, np.int32),
  has_stem=np.zeros(16, bool),
  score_id=np.int32(SCORE),
  eos_ids=np.array([EOS], np.int32),
  pad_id=np.int32(PAD),
)
# Rows of 21 columns hold a text of up to 19 tokens or several short ones; the
# PRM reads up to 23 tokens of a text.
ROWS = ScoreRows(RowShape(21, 2), RowShape(23, 4))
SGD = optax.sgd(1e-2, momentum=0.9)


def responses(seed=0, samples=1):
  """A rollout of uneven lengths, one of a single token, and PRM prompts.

  So many consecutive responses have the same prompt.
  """
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, C + 1, B)
  lengths[:3] = C, 1, 2
  mask = np.arange(C) < lengths[:, None]
  tokens = rng.integers(4, 16, (B, C))
  tokens[rng.random((B, C)) < 0.25] = SEPARATOR
  ends = mask & (np.arange(C) == lengths[:, None] - 1)
  tokens[ends] = EOS
  prompts = []
  for _ in range(2):
    prompt_mask = np.arange(L)[::-1] < rng.integers(1, L + 1, (B, 1))
    ids = np.where(prompt_mask, rng.integers(4, 16, (B, L)), PAD)
    of_sample = np.arange(B) // samples * samples
    ids = ids.astype(np.int32)[of_sample]
    prompts.append(Prompts(ids, prompt_mask[of_sample]))
  rollout = Rollout(
    prompt_tokens=prompts[0].tokens,
    prompt_mask=prompts[0].mask,
    tokens=np.where(mask, tokens, PAD).astype(np.int32),
    completion_mask=mask,
    sampled_logp=np.where(mask, -rng.exponential(2, (B, C)), 0).astype("f4"),
    full_logp=np.where(mask, -rng.exponential(2, (B, C)), 0).astype("f4"),
    truncated=np.zeros(B, bool),
  )
  return rollout, prompts[1]


def spec(layout, **changes):
  made = StepSpec(
    *(MODEL, MODEL, SAMPLER, ScoreConfig(S), TABLE, Layouts.same(layout)),
    *(CREDIT, LOSS),
  )
  return dataclasses.replace(made, **changes)


def step(layout, rows, samples=1):
  """Scores, metrics and weights after one update, from the same start."""
  sharded = sharding.batch_sharding(layout)
  rollout, prm_prompts = jax.device_put(responses(0, samples), sharded)
  declared = policy.declare_policy(MODEL)
  params = random_params(declared, 0)
  reference = random_params(declared, 1)
  prm_params = random_params(prm.declare_prm(MODEL), 2)
  scores, drift = score.make_score(spec(layout), rows)(
    params, reference, prm_params, rollout, prm_prompts
  )
  # The policy has moved since it sampled: ratios are clipped on both sides.
  rng = np.random.default_rng(3)
  moved = scores.old_logp + 0.3 * rng.normal(size=(B, C)).astype("f4")
  moved = jnp.where(rollout.completion_mask, moved, 0)
  batch = score.ScoredBatch(
    rollout,
    scores.replace(old_logp=jax.device_put(moved, sharded)),
    correct=jax.device_put((np.arange(B) % 3 == 0).astype("f4"), sharded),
    has_answer=jax.device_put(np.arange(B) < 8, sharded),
  )
  update = train.make_update(spec(layout), SGD, rows and rows.policy)
  state = train.start_state(params, declared, SGD, layout)
  state, metrics = update(state, batch, {})
  return jax.device_get((scores, drift, metrics, state.params))


@pytest.fixture(scope="module")
def unpacked():
  return step(sharding.make_layout(), None)


def assert_same(packed_step, unpacked_step):
  """To 1e-5 relative: attention sums the keys of a row in another order."""
  scores, drift, metrics, params = packed_step
  other_scores, other_drift, other_metrics, other_params = unpacked_step
  jax.tree.map(np.testing.assert_array_equal, scores.steps, other_scores.steps)
  for field in ("step_rewards", "old_logp", "ref_logp"):
    np.testing.assert_allclose(
      getattr(scores, field),
      getattr(other_scores, field),
      rtol=1e-5,
      atol=1e-5,
      err_msg=field,
    )
  np.testing.assert_allclose(drift, other_drift, rtol=1e-5, atol=1e-5)
  assert {*metrics} - {*other_metrics} <= {"row_fill"}
  for name, value in other_metrics.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name
    )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=5e-6, atol=2e-6),
    params,
    other_params,
  )


@pytest.mark.parametrize(
  ("rows", "processed"),
  [
    (ROWS, 8),
    # Shorter rows and no neighbours, all at once.
    (ScoreRows(RowShape(19, 16, False), RowShape(23, 16, False)), 16),
  ],
  ids=["shared rows", "own rows"],
)
def test_packed_equals_unpacked(unpacked, rows, processed):
  """Texts that saw each other would move log-probs by about 0.1."""
  packed_step = step(sharding.make_layout(), rows)
  assert_same(packed_step, unpacked)
  # The gain of packing: 16 texts in the columns of fewer or shorter rows.
  rollout, _ = responses()
  tokens = rollout.prompt_mask.sum() + rollout.completion_mask.sum()
  fill = tokens / (processed * rows.policy.columns)
  np.testing.assert_allclose(packed_step[2]["row_fill"], fill, rtol=1e-5)


def test_an_update_on_its_own_old_log_probs_needs_no_scores_of_the_policy():
  """Packed or not, it is the update on those that `score` computes."""
  layout, credit = sharding.make_layout(), CreditConfig(group_size=4)
  declared = policy.declare_policy(MODEL)
  rollout, prm_prompts = responses()
  params, reference = (random_params(declared, seed) for seed in (0, 1))
  prm_params = random_params(prm.declare_prm(MODEL), 2)
  scores, _ = score.make_score(spec(layout))(
    params, reference, prm_params, rollout, prm_prompts
  )

  def updated(rows, **changes):
    made = spec(layout, credit=credit, **changes)
    old_logp = None if made.own_old_logp else scores.old_logp
    batch = score.ScoredBatch(
      rollout,
      scores.replace(old_logp=old_logp),
      correct=(np.arange(B) % 3 == 0).astype("f4"),
      has_answer=np.arange(B) < 8,
    )
    state = train.start_state(
      jax.tree.map(jnp.copy, params), declared, SGD, layout
    )
    state, metrics = train.make_update(made, SGD, rows)(state, batch, {})
    return jax.device_get((state.params, metrics))

  expected, metrics = updated(None)
  assert "logp_drift_max" not in metrics  # `score` measures it.
  difference = np.abs(scores.old_logp - rollout.sampled_logp)
  for rows in (None, ROWS.policy):
    new, metrics = updated(rows, own_old_logp=True)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=5e-6, atol=2e-6),
      new,
      expected,
    )
    np.testing.assert_allclose(
      metrics["logp_drift_max"],
      difference[rollout.completion_mask].max(),
      rtol=1e-5,
    )
  assert not np.allclose(
    expected["layers"]["up"], params["layers"]["up"], atol=1e-5
  )


@pytest.fixture(scope="module")
def unpacked_groups():
  return step(sharding.make_layout(), None, 4)


@pytest.mark.parametrize(("samples", "processed"), [(2, 6), (4, 4)])
def test_samples_that_share_their_prompt_equal_unpacked(
  unpacked_groups, samples, processed
):
  """A sample that saw another would move log-probs by about 0.1.

  A gradient of the prompt from one sample instead of all, too, would differ.
  """
  prm_rows = RowShape(23, 4)
  rows = RowShape(L + samples * C, 2, samples=samples)
  packed_step = step(sharding.make_layout(), ScoreRows(rows, prm_rows), 4)
  assert_same(packed_step, unpacked_groups)
  # Prompts count once for the samples that share them.
  rollout, _ = responses(0, 4)
  mask = rollout.completion_mask
  tokens = rollout.prompt_mask[::samples].sum() + mask.sum()
  fill = tokens / (processed * rows.columns)
  np.testing.assert_allclose(packed_step[2]["row_fill"], fill, rtol=1e-5)


def test_shared_prompts_on_eight_devices_equal_unpacked_on_one(
  unpacked_groups,
):
  rows = ScoreRows(RowShape(L + 2 * C, 8, samples=2), RowShape(23, 8))
  assert_same(step(sharding.make_layout(2, 4), rows, 4), unpacked_groups)


def test_packed_on_eight_devices_equals_unpacked_on_one(unpacked):
  """Responses of one prompt may lie on different devices."""
  rows = ScoreRows(RowShape(21, 8), RowShape(23, 8))
  assert_same(step(sharding.make_layout(2, 4), rows), unpacked)


@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean"])
def test_losses_of_shared_rows_weigh_responses_as_before(aggregate):
  """Means over rows would weigh a response by its neighbours' lengths."""
  rng = np.random.default_rng(0)
  config = LossConfig(aggregate=aggregate, kl_in_loss="k3", entropy_coef=0.1)
  mask = np.arange(C) < rng.integers(0, C + 1, (B, 1))
  new, old, ref, entropy, advantages = rng.normal(size=(5, B, C)).astype("f4")
  experience = random_experience(0, prompts=B // 4, width=C)[0].replace(
    completion_mask=mask, old_logp=old, ref_logp=ref
  )
  expected = jax.jit(losses.policy_objective, static_argnums=4)(
    new, entropy, advantages, experience, config
  )
  lengths = np.broadcast_to(mask.sum(1, keepdims=True), mask.shape)

  @jax.jit
  def loss_of_rows(new, entropy, advantages, mask, *of_tokens):
    source = packing.pack(mask, RowShape(30, B)).source[0]
    new, entropy, advantages, *packed = (
      packing.gather(x, source)
      for x in (new, entropy, advantages, mask, *of_tokens)
    )
    return losses.policy_objective(
      *(new, entropy, advantages, PackedExperience(*packed), config),
      losses.loss_denominator(mask, config),
    )

  packed_loss = loss_of_rows(new, entropy, advantages, mask, old, ref, lengths)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    packed_loss,
    expected,
  )


def test_batches_of_many_lengths_compile_two_updates():
  layout = sharding.make_layout()
  declared = policy.declare_policy(MODEL)
  slow = optax.sgd(1e-9)  # Log-probs that no policy had: large gradients.
  measure = row_choice.make_measure(spec(layout))
  shapes = packing.row_shapes(L + C, B, 2, buckets=2, packed_tokens=8)
  updates = {
    shape: train.make_update(spec(layout), slow, shape)
    for shape in sorted(shapes, key=lambda shape: shape.columns)
  }
  state = train.start_state(random_params(declared, 0), declared, slow, layout)
  lengths = set()
  for longest in range(1, 13, 2):
    rollout, _ = responses(seed=longest)
    mask = rollout.completion_mask & (np.arange(C) < longest)
    rollout = rollout.replace(completion_mask=mask)
    scores = score.Scores(
      steps=steps.split_steps(rollout.tokens, mask, TABLE, max_steps=S),
      step_rewards=np.zeros((B, S), np.float32),
      old_logp=rollout.sampled_logp,
      ref_logp=rollout.sampled_logp,
    )
    batch = score.ScoredBatch(
      rollout, scores, np.zeros(B, np.float32), np.ones(B, bool)
    )
    length = np.asarray(measure(rollout, None))
    state, metrics = row_choice.choose(updates, length)(state, batch, {})
    lengths.add(int(length[0]))
    assert metrics["skipped_updates"] == 0
  assert len(lengths) > 4 and min(lengths) <= 10 < max(lengths)
  assert measure._cache_size() == 1
  assert [update._cache_size() for update in updates.values()] == [1, 1]

  # In rows that are too short the update must not use what fits.
  too_short = updates[min(updates, key=lambda shape: shape.columns)]
  before = jax.device_get(state.params)
  state, metrics = too_short(state, batch, {})
  assert metrics["skipped_updates"] == 1
  jax.tree.map(np.testing.assert_array_equal, state.params, before)


@pytest.mark.slow
def test_responses_of_8192_tokens_are_scored_and_updated_on():
  """The longest responses of the paper, in rows of 9,216 columns."""
  long, columns, texts = 8192, 1024, 4
  model = dataclasses.replace(MODEL, attention_chunk=512, logits_chunk=1024)
  rng = np.random.default_rng(0)
  lengths = np.array([long, 300, 2500, 17])
  mask = np.arange(long) < lengths[:, None]
  tokens = rng.integers(4, 16, mask.shape)
  tokens[rng.random(mask.shape) < 0.02] = SEPARATOR
  prompt_mask = np.arange(columns)[::-1] < np.array(
    [[1024], [90], [700], [200]]
  )
  rollout = Rollout(
    prompt_tokens=rng.integers(4, 16, prompt_mask.shape).astype(np.int32),
    prompt_mask=prompt_mask,
    tokens=np.where(mask, tokens, PAD).astype(np.int32),
    completion_mask=mask,
    sampled_logp=np.where(mask, -2.0, 0).astype("f4"),
    full_logp=np.where(mask, -2.0, 0).astype("f4"),
    truncated=lengths == long,
  )
  prompts = Prompts(rollout.prompt_tokens, prompt_mask)
  layout, declared = sharding.make_layout(), policy.declare_policy(model)
  params = random_params(declared, 0)
  reference = random_params(declared, 1)
  prm_params = random_params(prm.declare_prm(model), 2)
  long_spec = spec(
    layout, model=model, prm_model=model, scoring=ScoreConfig(512),
    micro_batch_rows=1,
  )  # fmt: skip
  results = []
  for rows in (None, ScoreRows(RowShape(9216, 1), RowShape(9216 + 512, 1))):
    scores, drift = score.make_score(long_spec, rows)(
      params, reference, prm_params, rollout, prompts
    )
    update = train.make_update(long_spec, optax.sgd(1e-4), rows and rows.policy)
    state = train.start_state(params, declared, optax.sgd(1e-4), layout)
    batch = score.ScoredBatch(
      rollout, scores, np.ones(texts, np.float32), np.ones(texts, bool)
    )
    state, metrics = update(state, batch, {})
    results.append(jax.device_get((scores, drift, metrics, state.params)))
  # 2,014 step tokens and 12,023 others in two rows instead of four.
  assert_same(*reversed(results))
  scores, _, metrics, _ = results[1]
  fill = (prompt_mask.sum() + mask.sum()) / (2 * 9216)
  np.testing.assert_allclose(metrics["row_fill"], fill, rtol=1e-5)
  assert np.abs(scores.old_logp[0]).min() > 0  # To the last of the 8,192.
  assert scores.steps.mask.sum(1)[0] > 100
