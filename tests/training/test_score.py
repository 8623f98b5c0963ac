"""Stage 2: old log-probs of policy and sampler give the same update."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
import train_boundary as boundary
from factories import random_experience

from pure_jax import losses
from pure_jax.models import policy, prm
from pure_jax.parallel import sharding
from pure_jax.training import packing, rollouts, score, train
from pure_jax.types import Prompts

# A step as long as the gradient, so that two updates differ visibly.
PLAIN = optax.sgd(1.0)
ROWS = packing.ScoreRows(packing.RowShape(15, 4), packing.RowShape(19, 4))


@pytest.fixture(scope="module")
def drawn():
  """A policy, a reference that is another, a PRM and a rollout."""
  layout = sharding.make_layout()
  make = train.make_init(policy.declare_policy(boundary.MODEL), PLAIN, layout)
  params, reference = (
    boundary.grown(make(jax.random.key(seed)).params) for seed in (0, 1)
  )
  judge = prm.init_prm_from_policy(jax.random.key(2), params, boundary.MODEL, 1)
  generate = rollouts.make_generate(boundary.MODEL, boundary.SAMPLER, 4, layout)
  rollout = generate(params, boundary.prompts(8), jax.random.key(3))
  return params, reference, judge, rollout


def spec(layout=None, **changes):
  return boundary.spec(layout or sharding.make_layout(), **changes)


@functools.cache
def compiled(make):
  """A function of stage 2 in rows of one text each, compiled once."""
  return make(spec())


def arguments(drawn):
  """What stage 2 is given: weights, rollout and the PRM's prompts."""
  *_, rollout = drawn
  return *drawn, Prompts(rollout.prompt_tokens, rollout.prompt_mask)


def update_with(update, params, rollout, scores):
  """One update of a copy of the policy; (its weights, metrics)."""
  declared = policy.declare_policy(boundary.MODEL)
  layout = sharding.make_layout()
  state = train.start_state(params, declared, PLAIN, layout)
  correct = (np.asarray(rollout.tokens).sum(1) % 2).astype(np.float32)
  has_answer = np.arange(len(correct)) // 4 % 2 == 0
  batch = score.ScoredBatch(rollout, scores, correct, has_answer)
  state, metrics = update(state, batch, {})
  return jax.device_get((state.params, metrics))


def test_old_log_probs_of_the_sampler_give_the_same_update(drawn):
  given = arguments(drawn)
  params, _, _, rollout, _ = given
  computed, drift = compiled(score.make_score)(*given)
  checked, checked_drift = compiled(score.make_checked_score)(*given)
  sampled = compiled(score.make_sampled_score)(*given[1:])
  np.testing.assert_allclose(checked_drift, drift, atol=2e-6)
  update = train.make_update(spec(), PLAIN)
  weights, metrics = update_with(update, params, rollout, computed)
  for scores in (sampled, checked):
    np.testing.assert_array_equal(scores.old_logp, rollout.full_logp)
    jax.tree.map(np.testing.assert_array_equal, scores.steps, computed.steps)
    np.testing.assert_allclose(scores.ref_logp, computed.ref_logp, atol=1e-6)
    other_weights, other_metrics = update_with(update, params, rollout, scores)
    for name, value in metrics.items():
      np.testing.assert_allclose(
        other_metrics[name], value, atol=1e-5, rtol=1e-5, err_msg=name
      )
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
      other_weights,
      weights,
    )
  change = jax.tree.map(lambda x, y: np.abs(x - y).max(), weights, params)
  assert max(jax.tree.leaves(change)) > 0.05  # The update is not trivial.


def count_products(function, given):
  return function.lower(*given).as_text().count("dot_general")


def test_the_sampled_score_runs_prm_and_reference_only(drawn):
  """A forward pass of the policy whose result is dropped would cost time."""
  given = arguments(drawn)
  full = count_products(compiled(score.make_score), given)
  checked = count_products(compiled(score.make_checked_score), given)
  sampled = count_products(compiled(score.make_sampled_score), given[1:])
  assert full == checked and checked / 2 < sampled < checked


def without_kl(**changes):
  """The specification without a KL penalty."""
  plain = dataclasses.replace(boundary.LOSS, kl_in_loss=None)
  return spec(loss=plain, **changes)


@pytest.mark.parametrize("rows", [None, ROWS], ids=["unpacked", "packed"])
def test_without_a_kl_penalty_only_the_prm_is_read(drawn, rows):
  """A forward pass of the reference would serve one metric."""
  given = arguments(drawn)
  free = without_kl()
  prm_alone = count_products(score.make_step_scores(free, rows), given[2:])
  sampled = score.make_sampled_score(free, rows)
  assert count_products(sampled, given[1:]) == prm_alone
  checked = count_products(score.make_checked_score(free, rows), given)
  full = count_products(score.make_checked_score(spec(), rows), given)
  assert prm_alone < checked < full
  no_prm = score.make_sampled_score(without_kl(prm_model=None), rows)
  assert not count_products(no_prm, (given[1], None, *given[3:]))


def test_without_a_reference_the_update_is_the_same(drawn):
  params, _, _, rollout, _ = given = arguments(drawn)
  known, _ = compiled(score.make_score)(*given)
  scores = score.make_sampled_score(without_kl(), ROWS)(*given[1:])
  assert scores.ref_logp is None
  np.testing.assert_array_equal(scores.old_logp, rollout.full_logp)
  jax.tree.map(np.testing.assert_array_equal, scores.steps, known.steps)
  np.testing.assert_allclose(scores.step_rewards, known.step_rewards, atol=1e-6)
  update = train.make_update(without_kl(), PLAIN, ROWS.policy)
  (weights, metrics), (other_weights, other_metrics) = (
    update_with(update, params, rollout, scores.replace(ref_logp=ref_logp))
    for ref_logp in (known.ref_logp, None)
  )
  assert set(metrics) - set(other_metrics) == {"kl_reference"}
  assert metrics["kl_reference"] > 1e-3  # The reference is another policy.
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
    other_weights,
    weights,
  )


@pytest.mark.parametrize("where", ["kl_in_loss", "kl_in_reward"])
def test_a_kl_penalty_needs_the_reference(where):
  batch, _ = random_experience(0)
  batch, logp = batch.replace(ref_logp=None), batch.old_logp
  configs = {
    "credit": dataclasses.replace(boundary.CREDIT, kl_in_reward=None),
    "loss": dataclasses.replace(boundary.LOSS, kl_in_loss=None),
  }
  _, metrics = losses.pure_loss(logp, -logp, batch, **configs)
  assert "policy_loss" in metrics and "kl_reference" not in metrics
  group = "loss" if where == "kl_in_loss" else "credit"
  configs[group] = dataclasses.replace(configs[group], **{where: "k1"})
  with pytest.raises(ValueError, match=f"{where} .* give its log-probs"):
    losses.pure_loss(logp, -logp, batch, **configs)


@pytest.mark.parametrize("rows", [None, ROWS], ids=["unpacked", "packed"])
def test_a_check_finds_a_sampler_that_is_off_at_one_token(drawn, rows):
  """A mean over the batch would hide it."""
  *weights, rollout = drawn
  function = compiled(score.make_checked_score)
  if rows:
    function = score.make_checked_score(spec(), rows)
  row = int(np.argmax(np.asarray(rollout.completion_mask).sum(1)))
  off = np.array(rollout.full_logp)
  off[row, 1] -= 0.25
  given = arguments((*weights, rollout.replace(full_logp=off)))
  scores, drift = function(*given)
  np.testing.assert_allclose(drift, 0.25, atol=1e-5)
  np.testing.assert_array_equal(scores.old_logp, off)
  # Masked tokens do not count.
  padded = np.where(rollout.completion_mask, rollout.full_logp, -9.0)
  given = arguments((*weights, rollout.replace(full_logp=padded)))
  _, drift = function(*given)
  assert drift < 1e-5


def test_the_sampled_score_in_packed_rows_and_on_many_devices(drawn):
  given = arguments(drawn)
  expected, _ = compiled(score.make_score)(*given)
  for layout, rows in (
    (sharding.make_layout(), ROWS),
    (sharding.make_layout(2, 4), None),
  ):
    function = score.make_sampled_score(spec(layout), rows)
    scores = function(*jax.device_get(given[1:]))
    np.testing.assert_allclose(scores.ref_logp, expected.ref_logp, atol=1e-5)
    np.testing.assert_array_equal(
      scores.old_logp, jax.device_get(given[3]).full_logp
    )


def test_old_log_probs_are_those_before_the_samplers_filters(drawn):
  """A filter raises the log-prob of every token that it keeps."""
  params, reference, _, _ = drawn
  sampler = dataclasses.replace(boundary.SAMPLER, top_k=3, temperature=0.7)
  layout = sharding.make_layout()
  generate = rollouts.make_generate(boundary.MODEL, sampler, 4, layout)
  rollout = generate(params, boundary.prompts(8), jax.random.key(3))
  function = score.make_checked_score(spec(prm_model=None, sampler=sampler))
  scores, drift = function(*arguments((params, reference, None, rollout)))
  assert drift < 1e-5
  mask = np.asarray(rollout.completion_mask)
  raised = np.asarray(rollout.sampled_logp - scores.old_logp)[mask]
  assert raised.min() >= 0 and raised.mean() > 0.05


def test_a_greedy_sampler_has_no_log_probs_to_take():
  greedy = dataclasses.replace(boundary.SAMPLER, temperature=0.0)
  for make in (score.make_sampled_score, score.make_checked_score):
    with pytest.raises(ValueError, match="set a temperature > 0"):
      make(spec(sampler=greedy))
  score.make_score(spec(sampler=greedy))
