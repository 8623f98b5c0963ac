"""Where old log-probs come from, and that it makes no difference to a step."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import train_boundary as boundary

from pure_jax.models import policy, prm
from pure_jax.parallel import sharding
from pure_jax.training import packing, rollouts, score, train
from pure_jax.types import Prompts

# A step as long as the gradient, so that two of them can be told apart.
PLAIN = optax.sgd(1.0)
CONFIG = score.ScoreConfig(4)
ROWS = packing.RowShape(15, 4), packing.RowShape(19, 4)


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


def score_with(drawn, old_logp, layout=None, **options):
  params, reference, judge, rollout = drawn
  function = score.make_score(
    boundary.MODEL,
    boundary.PRM_MODEL,
    boundary.SAMPLER,
    CONFIG,
    boundary.TABLE,
    layout or sharding.make_layout(),
    old_logp=old_logp,
    **options,
  )
  asked = Prompts(rollout.prompt_tokens, rollout.prompt_mask)
  return function, (params, reference, judge, rollout, asked)


def update_with(params, rollout, scores):
  """One update of a copy of the policy; (its weights, metrics)."""
  layout = sharding.make_layout()
  update = train.make_update(
    boundary.MODEL,
    boundary.SAMPLER,
    boundary.CREDIT,
    boundary.LOSS,
    PLAIN,
    boundary.TABLE,
    layout,
  )
  declared = policy.declare_policy(boundary.MODEL)
  state = train.start_state(params, declared, PLAIN, layout)
  correct = (np.asarray(rollout.tokens).sum(1) % 2).astype(np.float32)
  known = np.arange(len(correct)) // 4 % 2 == 0
  state, metrics = update(state, rollout, scores, correct, known)
  return jax.device_get((state.params, metrics))


def test_sampled_log_probs_give_the_update_of_those_read_again(drawn):
  params, _, _, rollout = drawn
  found = {}
  for kind in score.OLD_LOGP:
    function, arguments = score_with(drawn, kind)
    found[kind] = function(*arguments)
  read, sampled, checked = (found[kind] for kind in score.OLD_LOGP)
  for kind in ("sampled", "checked"):
    np.testing.assert_array_equal(found[kind].old_logp, rollout.full_logp)
    jax.tree.map(np.testing.assert_array_equal, found[kind].steps, read.steps)
    np.testing.assert_allclose(found[kind].ref_logp, read.ref_logp, atol=1e-6)
  assert sampled.drift_max is None
  np.testing.assert_allclose(checked.drift_max, read.drift_max, atol=2e-6)
  weights, metrics = update_with(params, rollout, read)
  for kind in ("sampled", "checked"):
    theirs, others = update_with(params, rollout, found[kind])
    for name, value in metrics.items():
      np.testing.assert_allclose(
        others[name], value, atol=1e-5, rtol=1e-5, err_msg=name
      )
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), theirs, weights
    )
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), weights, params)
  assert max(jax.tree.leaves(moved)) > 0.05  # There was a step to compare.


def products(function, arguments):
  return function.lower(*arguments).as_text().count("dot_general")


def test_the_policy_is_not_read_for_what_the_sampler_knows(drawn):
  """It must not cost a forward pass whose result nobody takes."""
  function, arguments = score_with(drawn, "sampled")
  nothing = jax.tree.map(lambda x: np.full_like(x, np.nan), arguments[0])
  found = function(nothing, *arguments[1:])
  for x in (found.old_logp, found.ref_logp, found.step_rewards):
    assert np.isfinite(x).all()
  without = products(function, arguments)
  checked = products(*score_with(drawn, "checked"))
  assert checked == products(*score_with(drawn, "score"))
  # PRM and reference are read in both.
  assert checked / 2 < without < checked


@pytest.mark.parametrize("packed", [False, True])
def test_a_check_finds_a_sampler_that_is_off(drawn, packed):
  """At one token of one row: a mean over the batch would hide it."""
  params, reference, judge, rollout = drawn
  row = int(np.argmax(np.asarray(rollout.completion_mask).sum(1)))
  off = rollout.full_logp.at[row, 1].add(-0.25)
  given = params, reference, judge, rollout.replace(full_logp=off)
  options = {"row_shapes": ROWS} if packed else {}
  function, arguments = score_with(given, "checked", **options)
  found = function(*arguments)
  np.testing.assert_allclose(found.drift_max, 0.25, atol=1e-5)
  np.testing.assert_array_equal(found.old_logp, off)
  # Masked tokens are nobody's.
  padded = jax.numpy.where(rollout.completion_mask, rollout.full_logp, -9.0)
  given = params, reference, judge, rollout.replace(full_logp=padded)
  function, arguments = score_with(given, "checked", **options)
  assert function(*arguments).drift_max < 1e-5


def test_the_reference_is_read_alone_in_packed_rows_and_on_many_devices(drawn):
  expected = score_with(drawn, "score")
  expected = expected[0](*expected[1])
  layout = sharding.make_layout(2, 4)
  for place, options in ((None, {"row_shapes": ROWS}), (layout, {})):
    function, arguments = score_with(drawn, "sampled", place, **options)
    found = function(*jax.device_get(arguments))
    np.testing.assert_allclose(found.ref_logp, expected.ref_logp, atol=1e-5)
    np.testing.assert_array_equal(
      found.old_logp, jax.device_get(arguments[3]).full_logp
    )


def test_filters_stay_out_of_what_the_update_compares_with(drawn):
  """A filter raises the log-prob of all that it keeps."""
  params, reference, _, _ = drawn
  sampler = dataclasses.replace(boundary.SAMPLER, top_k=3, temperature=0.7)
  layout = sharding.make_layout()
  generate = rollouts.make_generate(boundary.MODEL, sampler, 4, layout)
  rollout = generate(params, boundary.prompts(8), jax.random.key(3))
  asked = Prompts(rollout.prompt_tokens, rollout.prompt_mask)
  checked = score.make_score(
    boundary.MODEL,
    None,
    sampler,
    CONFIG,
    boundary.TABLE,
    layout,
    old_logp="checked",
  )(params, reference, None, rollout, asked)
  assert checked.drift_max < 1e-5
  mask = np.asarray(rollout.completion_mask)
  raised = np.asarray(rollout.sampled_logp - checked.old_logp)[mask]
  assert raised.min() >= 0 and raised.mean() > 0.05


def test_a_greedy_sampler_has_no_log_probs_to_take():
  sampler = dataclasses.replace(boundary.SAMPLER, temperature=0.0)

  def make(old_logp):
    return score.make_score(
      boundary.MODEL,
      None,
      sampler,
      CONFIG,
      boundary.TABLE,
      sharding.make_layout(),
      old_logp=old_logp,
    )

  for kind in ("sampled", "checked"):
    with pytest.raises(ValueError, match="set a temperature > 0"):
      make(kind)
  make("score")
  with pytest.raises(ValueError, match="must be one of"):
    make("none")
