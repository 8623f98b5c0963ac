"""The supervised stages: what they train, what they leave alone."""

import functools

import jax
import numpy as np
import pytest

from pure_jax import steps
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.settings import ScoreConfig
from pure_jax.training import score, supervised, train
from pure_jax.training.optim import OptimConfig, make_optimizer
from pure_jax.training.step_spec import Layouts, StepSpec
from pure_jax.types import Prompts, Rollout, SeparatorTable

PAD, EOS, SCORE, DOT, BREAK, DOT_BREAK = 0, 1, 2, 3, 4, 5
MODEL = ModelConfig(
  vocab_size=12,
  width=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_width=24,
)
TABLE = SeparatorTable(
  ends_step=np.isin(np.arange(12), (BREAK, DOT_BREAK)),
  half=np.zeros(12, bool),
  stem=np.where(np.arange(12) == DOT_BREAK, DOT, 0).astype(np.int32),
  has_stem=np.arange(12) == DOT_BREAK,
  score_id=np.int32(SCORE),
  eos_ids=np.array([EOS], np.int32),
  pad_id=np.int32(PAD),
)
CONFIG = ScoreConfig(max_steps=3)
OPTIMIZER = make_optimizer(OptimConfig(learning_rate=1e-2))


def demonstrations():
  """Rows whose labels follow from one token: 6 is good, 7 is bad."""
  tokens = np.array(
    [
      [6, BREAK, 7, EOS, PAD],
      [7, DOT_BREAK, 6, EOS, PAD],
      [6, EOS, PAD, PAD, PAD],
      [6, BREAK, 6, BREAK, 7],
    ],
    np.int32,
  )
  batch = supervised.Demonstrations(
    prompt_tokens=np.full((4, 2), 8, np.int32),
    prompt_mask=np.ones((4, 2), bool),
    tokens=tokens,
    completion_mask=tokens != PAD,
  )
  labels = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]], np.int32)
  known = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1]], bool)
  return batch, labels, known


@functools.cache
def init_policy():
  """A function from a key to the policy's state."""
  return train.make_init(
    policy.declare_policy(MODEL), OPTIMIZER, sharding.make_layout()
  )


@functools.cache
def prm_params():
  declared, layout = prm.declare_prm(MODEL), sharding.make_layout()
  return train.make_init(declared, OPTIMIZER, layout)(jax.random.key(0)).params


def test_supervised_loss_is_the_mean_over_response_tokens():
  """Per row and then over rows would weigh the short row more."""
  layout = sharding.make_layout()
  state = init_policy()(jax.random.key(0))
  batch, *_ = demonstrations()
  logp, _ = jax.jit(
    policy.token_logp, static_argnums=1, static_argnames="banned_ids"
  )(
    state.params,
    MODEL,
    batch.prompt_tokens,
    batch.prompt_mask,
    batch.tokens,
    batch.completion_mask,
    banned_ids=(PAD,),
  )
  expected = -np.asarray(logp)[batch.completion_mask].mean()
  step = supervised.make_supervised_step(MODEL, OPTIMIZER, (PAD,), layout)
  losses = []
  for _ in range(30):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  np.testing.assert_allclose(losses[0], expected, rtol=1e-5)
  # Four rows can be told apart only by chance at their first token.
  assert losses[-1] < 0.6 * losses[0]


def test_the_head_stage_leaves_the_trunk_alone_and_has_no_state_for_it():
  layout = sharding.make_layout()
  params = prm_params()
  trained, frozen = supervised.split_prm_params(params, head_only=True)
  assert set(trained) == {"score"}
  assert set(trained) | set(frozen) == set(params)
  declared, _ = supervised.split_prm_params(prm.declare_prm(MODEL), True)
  state = train.start_state(trained, declared, OPTIMIZER, layout)
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  weights = jax.tree.leaves(trained)
  assert sum(x.size for x in moments) == 2 * sum(x.size for x in weights)
  before = jax.device_get(frozen)
  step = supervised.make_prm_step(MODEL, CONFIG, OPTIMIZER, TABLE, layout, True)
  batch, labels, known = demonstrations()
  state, _ = step(state, frozen, batch, labels, known)
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(frozen))
  assert (
    np.abs(state.params["score"]["kernel"] - trained["score"]["kernel"]).max()
    > 0
  )


def test_prm_training_learns_the_labels_of_the_right_steps():
  layout = sharding.make_layout()
  params = prm_params()
  declared = prm.declare_prm(MODEL)
  state = train.start_state(params, declared, OPTIMIZER, layout)
  step = supervised.make_prm_step(
    MODEL, CONFIG, OPTIMIZER, TABLE, layout, False
  )
  batch, labels, known = demonstrations()
  for _ in range(60):
    state, metrics = step(state, {}, batch, labels, known)
  assert metrics["accuracy"] == 1
  evaluate = supervised.make_prm_evaluation(MODEL, CONFIG, TABLE, layout)
  rewards = np.asarray(evaluate(state.params, batch))
  np.testing.assert_array_equal((rewards > 0)[known], (labels == 1)[known])
  # A step that is not there has no score.
  np.testing.assert_array_equal(rewards[2, 1:], [0, 0])


def test_training_evaluation_and_rl_give_the_prm_the_same_ids():
  """Ids by hand: the merged separator keeps its punctuation, EOS gives way."""
  batch, *_ = demonstrations()
  rollout = Rollout(
    batch.prompt_tokens,
    batch.prompt_mask,
    batch.tokens,
    batch.completion_mask,
    np.zeros((4, 5), np.float32),
    np.zeros((4, 5), np.float32),
    np.array([False, False, False, True]),
  )
  expected = [
    [8, 8, 6, SCORE, 7, SCORE, PAD, PAD, PAD, PAD],
    [8, 8, 7, DOT, SCORE, 6, SCORE, PAD, PAD, PAD],
    [8, 8, 6, SCORE, PAD, PAD, PAD, PAD, PAD, PAD],
    [8, 8, 6, SCORE, 6, SCORE, 7, SCORE, PAD, PAD],
  ]
  params = prm_params()
  forward = jax.jit(score.prm_forward, static_argnums=(1, 2))
  for record in (batch, rollout):
    _, inputs = forward(params, MODEL, CONFIG, TABLE, record)
    np.testing.assert_array_equal(inputs.tokens, expected)
    scored = np.sum(inputs.score_mask, axis=1)
    np.testing.assert_array_equal(scored, [2, 2, 1, 3])


@pytest.mark.parametrize("reward", [None, -0.5])
def test_the_guard_for_empty_steps(reward):
  """`6, break, break, EOS`: the second and third step hold nothing."""
  layout = sharding.make_layout()
  tokens = np.array([[6, BREAK, BREAK, EOS]], np.int32)
  ones = np.ones((1, 4), bool)
  rollout = Rollout(
    np.full((1, 2), 8, np.int32),
    np.ones((1, 2), bool),
    tokens,
    ones,
    np.zeros((1, 4), np.float32),
    np.zeros((1, 4), np.float32),
    np.zeros(1, bool),
  )
  sampler = SamplingConfig(max_new_tokens=4, pad_id=PAD, stop_ids=(EOS,))
  policy_params = init_policy()(jax.random.key(1)).params
  config = ScoreConfig(max_steps=3, empty_step_reward=reward)
  spec = StepSpec(MODEL, MODEL, sampler, config, TABLE, Layouts.same(layout))
  scores, _ = score.make_score(spec)(
    policy_params,
    policy_params,
    prm_params(),
    rollout.replace(prompt_tokens=rollout.prompt_tokens + 1),
    Prompts(rollout.prompt_tokens, rollout.prompt_mask),  # What the PRM reads.
  )
  plain = supervised.make_prm_evaluation(MODEL, CONFIG, TABLE, layout)(
    prm_params(),
    supervised.Demonstrations(
      rollout.prompt_tokens, rollout.prompt_mask, tokens, ones
    ),
  )
  expected = np.asarray(plain).copy()
  if reward is not None:
    expected[0, 1:] = reward
  np.testing.assert_allclose(scores.step_rewards, expected, atol=1e-6)
  np.testing.assert_array_equal(scores.steps.empty, [[False, True, True]])


def test_separators_and_eos_are_terminal_and_a_cut_off_end_is_not():
  tokens = np.array([[6, BREAK, DOT_BREAK, 7, EOS], [6, 6, 6, 6, 6]])
  actual = jax.jit(steps.terminal_mask)(tokens, np.ones((2, 5), bool), TABLE)
  np.testing.assert_array_equal(actual, [[0, 1, 1, 0, 1], [0] * 5])


def states_of(batch):
  """The states of the trunk that the head reads of a batch."""
  trained, trunk = supervised.split_prm_params(prm_params(), head_only=True)
  inputs = jax.jit(score.prm_inputs, static_argnums=0)(CONFIG, TABLE, batch)
  forward = supervised.make_trunk_forward(MODEL, sharding.make_layout())
  hidden = forward(trunk, inputs)
  return trained, trunk, supervised.StepStates(hidden, inputs.score_mask)


def test_the_head_learns_the_same_from_states_as_through_the_trunk():
  layout = sharding.make_layout()
  batch, labels, known = demonstrations()
  trained, trunk, states = states_of(batch)
  assert states.hidden.shape == (4, 3, MODEL.width)
  assert states.hidden.dtype == np.float32
  # Row 2 has one step: what the head might read of others is 0.
  np.testing.assert_array_equal(states.hidden[2, 1:], 0)
  declared, _ = supervised.split_prm_params(prm.declare_prm(MODEL), True)
  by_tokens = supervised.make_prm_step(
    MODEL, CONFIG, OPTIMIZER, TABLE, layout, head_only=True
  )
  by_states = supervised.make_head_step(MODEL, OPTIMIZER, layout)
  one, two = (
    train.start_state(trained, declared, OPTIMIZER, layout) for _ in range(2)
  )
  for _ in range(3):
    one, expected = by_tokens(one, trunk, batch, labels, known)
    two, actual = by_states(two, states, labels, known)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_allclose(actual[name], value, rtol=2e-5, err_msg=name)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
    two.params,
    one.params,
  )
  assert np.abs(two.params["score"]["kernel"]).max() > 0


def test_step_rewards_from_states_are_those_of_the_whole_prm():
  layout = sharding.make_layout()
  batch, *_ = demonstrations()
  head, _, states = states_of(batch)
  whole = supervised.make_prm_evaluation(MODEL, CONFIG, TABLE, layout)
  expected = np.asarray(whole(prm_params(), batch))
  assert np.unique(expected).size > 5
  actual = supervised.make_head_evaluation(MODEL, layout)(head, states)
  np.testing.assert_allclose(actual, expected, atol=1e-6)
