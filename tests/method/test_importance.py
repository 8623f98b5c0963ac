"""Weights for a sampler that is not quite the policy, by loop and by sum."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_boundary as boundary
from factories import pad_columns, random_experience
from small_models import random_policy

from pure_jax import importance, losses
from pure_jax.advantages import pure_advantages
from pure_jax.parallel import sharding
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.training import packing, score, train
from pure_jax.training.passes import policy_gradients
from pure_jax.types import Rollout

policy_objective = jax.jit(losses.policy_objective, static_argnums=4)
CAP = 1.5
AGGREGATES = [
  LossConfig(),
  LossConfig(aggregate="sequence_mean"),
  LossConfig(aggregate="constant_length", constant_length=20),
]


def drawn(seed=0):
  """A batch whose sampler is off by a lot; (batch, lists, new, entropy, A)."""
  batch, lists = random_experience(seed)
  rng = np.random.default_rng(seed)
  shape = batch.old_logp.shape
  off = np.where(batch.completion_mask, rng.normal(0, 0.7, shape), 0)
  old = np.asarray(batch.old_logp)
  batch = batch.replace(sampled_logp=old + off.astype("f4"))
  moved = rng.normal(0, 0.3, shape).astype("f4")
  new_logp = np.where(batch.completion_mask, old + moved, np.float32(0))
  entropy, advantages = rng.normal(size=(2, *shape)).astype("f4")
  return jax.device_get(batch), lists, new_logp, entropy, advantages


def aggregate(rows, config):
  """Of lists of numbers, one list a response."""
  if config.aggregate == "token_mean":
    return sum(map(sum, rows)) / sum(map(len, rows))
  if config.aggregate == "sequence_mean":
    return sum(sum(row) / len(row) for row in rows) / len(rows)
  return sum(map(sum, rows)) / (len(rows) * config.constant_length)


@pytest.mark.parametrize("config", AGGREGATES, ids=lambda c: c.aggregate)
def test_the_weighted_loss_agrees_with_a_loop(config):
  """Weighing the mean in place of its terms would give another number."""
  config = dataclasses.replace(
    config, importance_cap=CAP, kl_in_loss="k3", kl_coef=0.3, entropy_coef=0.1
  )
  batch, lists, new_logp, entropy, advantages = drawn()
  loss, groups = policy_objective(new_logp, entropy, advantages, batch, config)
  metrics = groups.to_dict()
  names = ("policy", "importance_weight", "importance_truncated", "sampler_kl")
  rows = {name: [] for name in (*names, "penalty", "entropy")}
  for b, length in enumerate(lists["lengths"]):
    for name in rows:
      rows[name].append([])
    for t in range(length):
      new, old, ref, mu, advantage = (
        float(x[b, t])
        for x in (
          *(new_logp, batch.old_logp, batch.ref_logp),
          *(batch.sampled_logp, advantages),
        )
      )
      weight = math.exp(old) / math.exp(mu)
      ratio = math.exp(new) / math.exp(old)
      clipped = min(max(ratio, 0.8), 1.2)
      value = -min(ratio * advantage, clipped * advantage)
      here = {
        "policy": min(weight, CAP) * value,
        "importance_weight": min(weight, CAP),
        "importance_truncated": float(weight > CAP),
        "sampler_kl": weight - 1 - math.log(weight),
        "penalty": math.exp(ref - new) - (ref - new) - 1,
        "entropy": float(entropy[b, t]),
      }
      for name, number in here.items():
        rows[name][-1].append(number)
  expected = {name: aggregate(found, config) for name, found in rows.items()}
  total = expected["policy"] + 0.3 * expected["penalty"]
  np.testing.assert_allclose(loss, total - 0.1 * expected["entropy"], rtol=1e-5)
  np.testing.assert_allclose(
    metrics["policy_loss"], expected["policy"], rtol=1e-5
  )
  for name in names[1:]:
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
  assert 0 < metrics["importance_truncated"] < 1
  # Another batch's padding changes nothing, whatever stands in it.
  wider = pad_columns(batch, 3, 0, fill=np.nan)
  wider = wider.replace(
    sampled_logp=np.pad(
      batch.sampled_logp, ((0, 0), (0, 3)), constant_values=-np.inf
    )
  )
  again, _ = policy_objective(
    *(np.pad(x, ((0, 0), (0, 3))) for x in (new_logp, entropy, advantages)),
    wider,
    config,
  )
  np.testing.assert_allclose(again, loss, rtol=1e-6)


def test_the_gradient_is_weighed_and_reaches_the_policy_alone():
  """A gradient through the weight would push the sampler's tokens away."""
  batch, _, _, entropy, advantages = drawn(1)
  config = LossConfig(importance_cap=CAP)

  def loss(new_logp, old_logp, sampled_logp):
    given = batch.replace(old_logp=old_logp, sampled_logp=sampled_logp)
    value, _ = losses.policy_objective(
      new_logp, entropy, advantages, given, config
    )
    return value

  old = batch.old_logp
  new, *others = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(
    old, old, batch.sampled_logp
  )
  mask = batch.completion_mask
  weight = np.minimum(np.exp(old - batch.sampled_logp), CAP)
  expected = np.where(mask, -weight * advantages / mask.sum(), 0)
  np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-8)
  for gradient in others:
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_weights_turn_the_samplers_tokens_into_the_policys():
  """The gradient over mu's tokens is that over the policy's, term by term.

  Four tokens of a vocabulary, as often as mu draws them. Unweighted, the
  gradient is that of another policy.
  """
  mu_counts = np.array([4, 2, 1, 1])
  drawn_tokens = np.repeat(np.arange(4), mu_counts)
  mu = np.log(mu_counts / 8)
  logits = np.float32([0.1, -0.4, 0.7, 0.2])
  gain = np.float32([1.0, -2.0, 0.5, 3.0])
  batch, _ = random_experience(0, prompts=2, width=1, lengths=[1] * 8)
  old = logits - np.log(np.exp(logits).sum())

  def loss(logits, cap):
    new_logp = jax.nn.log_softmax(logits)[drawn_tokens][:, None]
    given = batch.replace(
      old_logp=old[drawn_tokens][:, None],
      sampled_logp=np.float32(mu)[drawn_tokens][:, None],
    )
    value, _ = losses.policy_objective(
      new_logp,
      jnp.zeros((8, 1)),
      gain[drawn_tokens][:, None],
      given,
      LossConfig(importance_cap=cap),
    )
    return value

  def expected_gain(logits):
    return -jnp.sum(jax.nn.softmax(logits) * gain)

  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  wanted = jax.jit(jax.grad(expected_gain))(logits)
  np.testing.assert_allclose(gradient(logits, 100.0), wanted, atol=1e-6)
  unweighted = gradient(logits, None)
  assert np.abs(unweighted - wanted).max() > 0.05


def test_without_a_cap_the_sampler_is_not_read():
  batch, _, new_logp, entropy, advantages = drawn(2)
  arguments = new_logp, entropy, advantages
  expected = policy_objective(
    *arguments, batch.replace(sampled_logp=None), LossConfig()
  )
  poison = np.full_like(batch.sampled_logp, np.nan)
  found = policy_objective(
    *arguments, batch.replace(sampled_logp=poison), LossConfig()
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert "importance_weight" not in found[1].sums
  with pytest.raises(ValueError, match=r"experience\.sampled_logp, which is"):
    losses.policy_objective(
      *arguments,
      batch.replace(sampled_logp=None),
      LossConfig(importance_cap=CAP),
    )
  with pytest.raises(ValueError, match=r"experience\.sampled_logp has shape"):
    pure_advantages(
      batch.replace(sampled_logp=batch.sampled_logp[0]), CreditConfig()
    )


def test_an_exact_sampler_has_weight_one():
  weights, truncated = importance.importance_weights(
    jnp.array([-1.0, -300.0, 0.0]), jnp.array([-1.0, -300.0, -300.0]), 4.0
  )
  assert weights.tolist() == [1.0, 1.0, 4.0]  # exp(300) is infinite.
  assert truncated.tolist() == [False, False, True]


@pytest.fixture(scope="module")
def batch_of_a_run():
  """Parameters, and a rollout whose log-probs the sampler got wrong."""
  params = random_policy(boundary.MODEL)
  rng = np.random.default_rng(0)
  prompts = boundary.prompts(8)
  mask = np.arange(10) < rng.integers(1, 11, (8, 1))
  rollout = Rollout(
    prompt_tokens=prompts.tokens,
    prompt_mask=prompts.mask,
    tokens=np.where(mask, rng.integers(1, 16, mask.shape), 0),
    completion_mask=mask,
    sampled_logp=np.zeros(mask.shape, np.float32),
    full_logp=np.zeros(mask.shape, np.float32),
    truncated=np.zeros(8, bool),
  )
  logp, _ = jax.jit(score.rollout_logp, static_argnums=(1, 2))(
    params, boundary.MODEL, boundary.SAMPLER, rollout
  )
  off = rng.normal(0, 0.7, mask.shape).astype("f4")
  batch, _ = random_experience(0, prompts=2, width=10)
  batch = batch.replace(
    completion_mask=rollout.completion_mask,
    old_logp=logp,
    ref_logp=logp,
    sampled_logp=np.where(mask, logp + off, np.float32(0)),
  )
  advantages = rng.normal(size=mask.shape).astype(np.float32)
  return params, (rollout, batch, advantages)


def test_micro_batches_and_packed_rows_weigh_as_one_batch(batch_of_a_run):
  """A packed token with its neighbour's weight would show here."""
  params, batch = batch_of_a_run
  spec = boundary.spec(
    sharding.make_layout(),
    loss=LossConfig(aggregate="sequence_mean", importance_cap=CAP),
  )

  def gradients(spec, rows=None):
    (loss, metrics), grads = jax.jit(
      lambda params, batch: policy_gradients(spec, params, {}, *batch, rows)
    )(params, batch)
    return (loss, metrics.to_dict()), grads

  (loss, metrics), grads = gradients(spec)
  assert 0 < metrics["importance_truncated"] < 1
  for other in (
    gradients(dataclasses.replace(spec, micro_batch_rows=2)),
    gradients(spec, packing.RowShape(21, 2)),
  ):
    (other_loss, other_metrics), other_grads = other
    np.testing.assert_allclose(other_loss, loss, atol=1e-6)
    for key, value in metrics.items():
      np.testing.assert_allclose(
        other_metrics[key], value, rtol=1e-5, atol=1e-6, err_msg=key
      )
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
      other_grads,
      grads,
    )


def test_the_update_is_given_what_the_sampler_said(batch_of_a_run):
  """Not the log-probs that were read again, whose weight is always 1."""
  _, (rollout, batch, _) = batch_of_a_run
  rollout = rollout.replace(sampled_logp=batch.sampled_logp)
  scores = score.Scores(
    batch.steps, batch.step_rewards, batch.old_logp, batch.ref_logp
  )
  scored = score.ScoredBatch(rollout, scores, batch.correct, batch.has_answer)
  experience = jax.jit(train.experience_from)(scored, boundary.TABLE)
  np.testing.assert_array_equal(experience.sampled_logp, rollout.sampled_logp)
  np.testing.assert_array_equal(experience.old_logp, scores.old_logp)
