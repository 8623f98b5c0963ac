"""Updates of the PRM on rollouts: labels by hand, the PRM's own loss."""

import dataclasses

import jax
import numpy as np
import pytest
from test_supervised_steps import (
  CONFIG,
  EOS,
  MODEL,
  OPTIMIZER,
  PAD,
  TABLE,
  demonstrations,
  prm_params,
)

from pure_jax.models import prm
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import supervised, train
from pure_jax.training.online_prm import label_worst_steps, make_prm_update
from pure_jax.training.step_spec import Layouts, StepSpec
from pure_jax.types import Prompts, Rollout

LAYOUT = sharding.make_layout()
SPEC = StepSpec(
  MODEL,
  MODEL,
  SamplingConfig(max_new_tokens=5, pad_id=PAD, stop_ids=(EOS,)),
  CONFIG,
  TABLE,
  Layouts.same(LAYOUT),
)


def start():
  return train.start_state(
    prm_params(), prm.declare_prm(MODEL), OPTIMIZER, LAYOUT
  )


def rollout_and_labels():
  """The demonstrations as a rollout; the PRM reads their own prompts."""
  batch, labels, known = demonstrations()
  zeros = np.zeros(batch.tokens.shape, np.float32)
  rollout = Rollout(
    batch.prompt_tokens + 1,  # Of the policy.
    batch.prompt_mask,
    batch.tokens,
    batch.completion_mask,
    zeros,
    zeros,
    np.zeros(4, bool),
  )
  texts = Prompts(batch.prompt_tokens, batch.prompt_mask)
  return rollout, texts, labels, known


@pytest.mark.parametrize("rows", [None, 2, 1])
def test_an_update_is_one_of_the_prms_training(rows):
  """In micro-batches of any size, of responses with one to three labels."""
  batch, labels, known = demonstrations()
  step = supervised.make_prm_step(
    MODEL, CONFIG, OPTIMIZER, TABLE, LAYOUT, head_only=False
  )
  expected, of_training = step(start(), {}, batch, labels, known)
  spec = dataclasses.replace(SPEC, micro_batch_rows=rows)
  update = make_prm_update(spec, OPTIMIZER)
  state, metrics = update(start(), *rollout_and_labels())
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5),
    state.params,
    expected.params,
  )
  for name, other in (
    ("prm_update_loss", "loss"),
    ("prm_update_accuracy", "accuracy"),
    ("prm_update_steps", "labelled_steps"),
    ("prm_grad_norm", "grad_norm"),
    ("prm_skipped_updates", "skipped_updates"),
  ):
    np.testing.assert_allclose(metrics[name], of_training[other], rtol=1e-4)
  assert metrics["prm_update_steps"] == 8 and state.step == 1


def test_without_a_labelled_step_nothing_moves():
  """Neither weights, which decay, nor the moments of an earlier update."""
  update = make_prm_update(SPEC, OPTIMIZER)
  rollout, texts, labels, known = rollout_and_labels()
  state, _ = update(start(), rollout, texts, labels, known)
  before = jax.device_get(state)
  absent = np.zeros_like(known)
  absent[2, 1] = True  # A label of a step that is not there.
  state, metrics = update(state, rollout, texts, labels, absent)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
  assert metrics["prm_update_steps"] == 0 == metrics["prm_update_loss"]


def test_the_worst_step_gets_the_verdict():
  """No response without a step, none whose verdict may not be used."""
  rewards = np.float32(
    [[0.8, -0.6, 0.4], [0.9, 0.5, 0], [0.2, 0, 0], [0, 0, 0], [0.1, 0.2, 0.3]]
  )
  steps = np.array([3, 2, 1, 0, 3])
  mask = np.arange(3) < steps[:, None]
  correct = np.array([1, 0, 1, 1, 0], np.float32)
  known = np.array([1, 1, 1, 1, 0], bool)
  labels, labelled = jax.jit(label_worst_steps)(rewards, mask, correct, known)
  expected = np.array(
    [[0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool
  )
  np.testing.assert_array_equal(labelled, expected)
  np.testing.assert_array_equal(labels == 1, expected & (correct == 1)[:, None])


def test_verdicts_teach_the_minimum_to_tell_right_from_wrong():
  """A response with a 7 is wrong; nothing says which step is at fault."""
  rollout, texts, _, _ = rollout_and_labels()
  batch, _, known = demonstrations()
  correct = np.array([0, 0, 1, 0], np.float32)
  update = make_prm_update(SPEC, OPTIMIZER)
  evaluate = supervised.make_prm_evaluation(MODEL, CONFIG, TABLE, LAYOUT)
  label, state = jax.jit(label_worst_steps), start()
  for _ in range(80):
    rewards = evaluate(state.params, batch)
    labels = label(rewards, known, correct, np.ones(4, bool))
    state, _ = update(state, rollout, texts, *labels)
  rewards = np.asarray(evaluate(state.params, batch))
  worst = np.where(known, rewards, 1).min(1)
  np.testing.assert_array_equal(worst > 0, correct == 1)
