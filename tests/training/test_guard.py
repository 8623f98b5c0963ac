"""The guard against high ratios sees the whole batch of an update."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import train_boundary as boundary
from factories import random_experience
from small_models import random_policy

from pure_jax.models import policy
from pure_jax.parallel import sharding
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.training import packing, score, train
from pure_jax.training.passes import policy_gradients
from pure_jax.types import Rollout

LENGTHS = np.array([3, 10, 7, 9, 2, 8, 10, 6])
# With two rows in a micro-batch, rows 0 and 4 are one of four. Its mean ratio
# is 19 and that of the others .9; the mean over the 55 tokens is 2.55.
RATIOS = np.where(np.arange(8) % 4 == 0, 19, 0.9)
MEAN_RATIO = (19 * 5 + 0.9 * 50) / 55
GUARDS = {"fires": 2.5, "does not fire": 2.6}
SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def batch_of_a_run():
  """Parameters, and a batch whose rows have the ratios above."""
  params = random_policy(boundary.MODEL)
  rng = np.random.default_rng(0)
  prompts = boundary.prompts(8)
  batch, _ = random_experience(0, prompts=2, width=10, lengths=LENGTHS)
  mask = np.asarray(batch.completion_mask)
  rollout = Rollout(
    prompt_tokens=prompts.tokens,
    prompt_mask=prompts.mask,
    tokens=np.where(mask, rng.integers(4, 16, mask.shape), 0),
    completion_mask=mask,
    sampled_logp=np.zeros(mask.shape, np.float32),
    full_logp=np.zeros(mask.shape, np.float32),
    truncated=np.zeros(8, bool),
  )
  logp, _ = jax.jit(score.rollout_logp, static_argnums=(1, 2))(
    params, boundary.MODEL, boundary.SAMPLER, rollout
  )
  old_logp = np.where(mask, logp - np.log(RATIOS)[:, None], 0).astype("f4")
  batch = batch.replace(old_logp=old_logp, ref_logp=logp)
  advantages = rng.normal(size=mask.shape).astype(np.float32)
  return params, (rollout, batch, advantages)


def gradients(batch_of_a_run, loss, rows=None, **changes):
  """((loss, metrics by name), gradients) of the batch, as numpy arrays."""
  params, batch = batch_of_a_run
  spec = boundary.spec(sharding.make_layout(), loss=loss, **changes)

  @jax.jit
  def run(params, batch):
    return policy_gradients(spec, params, {}, *batch, rows)

  (value, metrics), grads = jax.device_get(run(params, batch))
  return (value, metrics.to_dict()), grads


def assert_zero(grads):
  jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), grads)


@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean"])
def test_micro_batches_and_packed_rows_are_guarded_as_one_batch(
  batch_of_a_run, aggregate
):
  """In each case the guard lies between the means of two micro-batches."""
  free = LossConfig(aggregate=aggregate, kl_in_loss="k3", entropy_coef=0.1)
  (loss, metrics), grads = gradients(batch_of_a_run, free)
  assert abs(loss) > 0.1 and not {"mean_ratio", "guarded_fraction"} & {*metrics}
  for case, guard in GUARDS.items():
    config = dataclasses.replace(free, ratio_guard=guard)
    for how in (
      {},
      {"micro_batch_rows": 2},
      {"micro_batch_rows": 1},
      {"rows": packing.RowShape(21, 1)},
    ):
      (value, found), slopes = gradients(batch_of_a_run, config, **how)
      np.testing.assert_allclose(found["mean_ratio"], MEAN_RATIO, rtol=1e-5)
      assert found["guarded_fraction"] == (case == "fires")
      np.testing.assert_allclose(
        found["policy_loss"], metrics["policy_loss"], rtol=1e-5, atol=1e-6
      )
      if case == "fires":
        assert value == 0
        assert_zero(slopes)
        continue
      np.testing.assert_allclose(value, loss, rtol=1e-5, atol=1e-6)
      jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        slopes,
        grads,
      )


def test_infinite_ratios_are_guarded(batch_of_a_run):
  """Without a limit of the log-ratio these gradients are not finite."""
  params, (rollout, batch, advantages) = batch_of_a_run
  far = batch.replace(old_logp=batch.old_logp - 200 * batch.completion_mask)
  given = params, (rollout, far, -np.abs(advantages))
  free = LossConfig(log_ratio_limit=None)
  (loss, _), _ = gradients(given, free)
  assert not np.isfinite(loss)
  for how in ({}, {"micro_batch_rows": 2}):
    (loss, metrics), grads = gradients(
      given, dataclasses.replace(free, ratio_guard=10.0), **how
    )
    assert loss == 0 and metrics["guarded_fraction"] == 1
    assert_zero(grads)


def test_a_guard_does_not_hide_that_texts_do_not_fit(batch_of_a_run):
  config = LossConfig(ratio_guard=GUARDS["fires"])
  (loss, _), _ = gradients(
    batch_of_a_run, config, packing.RowShape(11, 8, False)
  )
  assert np.isnan(loss)


def test_each_mini_batch_has_a_guard_of_its_own(batch_of_a_run):
  """Only the first of two mini-batches has high ratios, and changes nothing."""
  params, (rollout, batch, _) = batch_of_a_run
  high = np.arange(8)[:, None] < 4
  old_logp = batch.old_logp + np.log(RATIOS)[:, None].astype("f4")
  old_logp -= np.where(high, np.log(19), 0).astype("f4")
  old_logp = np.where(batch.completion_mask, old_logp, 0)
  layout = sharding.make_layout()
  scored = score.ScoredBatch(
    rollout,
    score.Scores(batch.steps, batch.step_rewards, old_logp, batch.ref_logp),
    np.arange(8) % 3 == 0,
    np.ones(8, bool),
    order=np.arange(8)[None],
  )
  results = []
  for guard in (10.0, 0):
    spec = boundary.spec(
      layout,
      loss=LossConfig(ratio_guard=guard or None),
      credit=CreditConfig(group_size=4, baseline="none"),
      mini_batches=2,
    )
    state = train.start_state(
      params, policy.declare_policy(boundary.MODEL), SGD, layout
    )
    results.append(train.make_update(spec, SGD)(state, scored, {}))
  (_, metrics), (_, free) = jax.device_get(results)
  assert metrics["guarded_fraction_per_update"].tolist() == [1, 0]
  assert metrics["guarded_fraction"] == 0.5
  assert metrics["grad_norm_per_update"][0] == 0
  assert metrics["grad_norm_per_update"][1] > 1e-3
  assert (free["grad_norm_per_update"] > 1e-3).all()
  np.testing.assert_allclose(
    metrics["mean_ratio_per_update"], [19, 1], rtol=1e-4
  )
