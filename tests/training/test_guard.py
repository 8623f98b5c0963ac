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
MODEL = dataclasses.replace(boundary.MODEL, num_layers=1)
SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def batch_of_a_run():
  """Parameters, and a batch whose rows have the ratios above."""
  params = random_policy(MODEL)
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
    params, MODEL, boundary.SAMPLER, rollout
  )
  old_logp = np.where(mask, logp - np.log(RATIOS)[:, None], 0).astype("f4")
  batch = batch.replace(old_logp=old_logp, ref_logp=logp)
  advantages = rng.normal(size=mask.shape).astype(np.float32)
  return params, (rollout, batch, advantages)


def gradients(loss, batches, rows=None, **changes):
  """((loss, metrics by name), gradients) of each batch, as numpy arrays."""
  spec = boundary.spec(
    sharding.make_layout(), model=MODEL, loss=loss, **changes
  )

  @jax.jit
  def run(params, batch):
    (value, metrics), grads = policy_gradients(spec, params, {}, *batch, rows)
    return (value, metrics.to_dict()), grads

  return [jax.device_get(run(*batch)) for batch in batches]


def test_micro_batches_and_packed_rows_are_guarded_as_one_batch(
  batch_of_a_run,
):
  """The guard lies between the means of micro-batches in both cases."""
  params, (rollout, batch, advantages) = batch_of_a_run
  # The loss is divided by the responses, the mean ratio by the tokens.
  free = LossConfig(aggregate="sequence_mean", kl_in_loss="k3")
  guarded = dataclasses.replace(free, ratio_guard=2.5)
  moved = batch.old_logp + np.where(batch.completion_mask, np.log(1.1), 0)
  lower = batch.replace(old_logp=moved.astype("f4"))
  below = (params, (rollout, lower, advantages))
  (loss, metrics), grads = gradients(free, [below])[0]
  assert abs(loss) > 0.1 and not {"mean_ratio", "guarded_fraction"} & {*metrics}
  for how in (
    {},
    {"micro_batch_rows": 2},
    {"rows": packing.RowShape(21, 1)},
  ):
    above, under = gradients(guarded, [batch_of_a_run, below], **how)
    (value, found), slopes = above
    np.testing.assert_allclose(found["mean_ratio"], MEAN_RATIO, rtol=1e-5)
    assert found["guarded_fraction"] == 1 and found["policy_loss"] != 0
    assert value == 0
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), slopes)
    (value, found), slopes = under
    np.testing.assert_allclose(found["mean_ratio"], MEAN_RATIO / 1.1, rtol=1e-5)
    assert found["guarded_fraction"] == 0
    np.testing.assert_allclose(value, loss, rtol=1e-5, atol=1e-6)
    for name, expected in metrics.items():
      np.testing.assert_allclose(
        found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name
      )
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
      slopes,
      grads,
    )


def test_a_guard_does_not_hide_that_texts_do_not_fit(batch_of_a_run):
  too_short = packing.RowShape(11, 8, False)
  config = LossConfig(ratio_guard=1.5)
  [((loss, metrics), _)] = gradients(config, [batch_of_a_run], too_short)
  assert np.isnan(loss) and metrics["guarded_fraction"] == 0


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
    (np.arange(8) % 3 == 0).astype("f4"),
    np.ones(8, bool),
    order=np.arange(8, dtype=np.int32)[:, None],
  )
  spec = boundary.spec(
    layout,
    model=MODEL,
    loss=LossConfig(ratio_guard=10.0),
    credit=CreditConfig(group_size=4, baseline="none"),
    mini_batches=2,
  )
  state = train.start_state(params, policy.declare_policy(MODEL), SGD, layout)
  _, metrics = jax.device_get(train.make_update(spec, SGD)(state, scored, {}))
  assert metrics["guarded_fraction_per_update"].tolist() == [1, 0]
  assert metrics["guarded_fraction"] == 0.5
  assert metrics["grad_norm_per_update"][0] == 0
  assert metrics["grad_norm_per_update"][1] > 1e-3
  np.testing.assert_allclose(
    metrics["mean_ratio_per_update"], [19, 1], rtol=1e-4
  )
