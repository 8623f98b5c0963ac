"""Metrics of a batch of responses, against loops over each response."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import steps_from_ends

from pure_jax.host.evaluation.rollout_metrics import (
  ResponseFacts,
  response_facts,
  rollout_metrics,
)
from pure_jax.types import Rollout

# One response per row: tokens, step ends, step scores, step texts, correct,
# cut by the length limit, empty steps, steps merged into the last one.
RIGHT = ([5, 6, 7, 8], [1, 3], [0.9, 0.4], ["3+5=8", "box"], 1, False, [], 0)
HACKED = ([4] * 6, [1, 3, 5], [0.9, 0.6, 0.8], ["um"] * 3, 0, True, [1], 2)
WRONG = ([5, 6, 9], [0, 2], [0.7, -0.5], ["3+5=9", "box"], 0, False, [], 0)
EMPTY = ([], [], [], [], 0, False, [], 0)
LONG_RIGHT = ([9] * 8, [7], [-0.2], ["box"], 1, True, [], 0)
WIDTH, MAX_STEPS = 8, 4


def batch(responses):
  """Arguments of `metrics`; padding holds ids, not zeros."""
  lengths = [len(tokens) for tokens, *_ in responses]
  tokens = np.full((len(responses), WIDTH), 4, np.int32)
  rewards = np.full((len(responses), MAX_STEPS), -0.9, np.float32)
  empty = np.zeros((len(responses), MAX_STEPS), bool)
  for row, (ids, _, scores, _, _, _, blank, _) in enumerate(responses):
    tokens[row, : len(ids)] = ids
    rewards[row, : len(scores)] = scores
    empty[row, blank] = True
  steps = steps_from_ends(
    [r[1] for r in responses], lengths, WIDTH, MAX_STEPS, empty
  )
  mask = np.arange(WIDTH) < np.asarray(lengths)[:, None]
  rollout = Rollout(
    prompt_tokens=np.zeros((len(responses), 1), np.int32),
    prompt_mask=np.ones((len(responses), 1), bool),
    tokens=tokens,
    completion_mask=mask,
    sampled_logp=np.zeros(mask.shape, np.float32),
    full_logp=np.zeros(mask.shape, np.float32),
    truncated=np.asarray([r[5] for r in responses]),
  )
  overflow = jnp.asarray([r[7] for r in responses], jnp.int32)
  correct = np.asarray([r[4] for r in responses], np.float32)
  texts = [r[3] for r in responses]
  return rollout, steps.replace(overflow=overflow), rewards, correct, texts


def metrics(rollout, steps, rewards, correct, texts, is_vacuous):
  facts = response_facts(rollout, steps, rewards, texts, is_vacuous)
  return rollout_metrics(facts, correct)


def repetition(tokens):
  """Shared prefixes of neighbouring sorted suffixes, normalised."""
  suffixes = sorted(tokens[i:] for i in range(len(tokens)))
  shared = 0
  for first, second in itertools.pairwise(suffixes):
    for a, b in zip(first, second, strict=False):
      if a != b:
        break
      shared += 1
  return 2 * shared / (len(tokens) * (len(tokens) + 1)) if tokens else 0.0


def softmin(scores):
  """Eq. 5's rewards of one response, summed, in Python floats."""
  weights = [math.exp(-score / 0.1) for score in scores]
  pairs = zip(weights, scores, strict=True)
  return sum(w * s for w, s in pairs) / sum(weights)


def described(responses):
  """All metrics by a loop over the responses."""
  batch_metrics = {}

  def note(name, value):
    batch_metrics.setdefault(name, []).append(float(value))

  for tokens, ends, scores, texts, right, cut, blank, merged in responses:
    high = repetition(tokens) > 0.2
    note("accuracy", right)
    note("process_outcome", softmin(scores) if scores else 0.0)
    note("response_tokens", len(tokens))
    note("steps_per_response", len(ends))
    note("truncated", cut)
    note("repetition", repetition(tokens))
    note("high_repetition", high)
    note("step_overflow", merged > 0)
    if right:
      note("truncated_given_correct", cut)
      note("high_repetition_given_correct", high)
    if scores:
      note("min_step_score", min(scores))
    if scores and not right:
      note("hacked_given_wrong", min(scores) > 0)
    for step, text in enumerate(texts):
      note("vacuous_step_share", text == "um")
      note("empty_step_share", step in blank)
  return {
    name: sum(values) / len(values) for name, values in batch_metrics.items()
  }


@pytest.mark.parametrize(
  ("responses", "absent"),
  [
    ([RIGHT, HACKED, WRONG, EMPTY, LONG_RIGHT], set()),
    ([RIGHT, LONG_RIGHT], {"hacked_given_wrong"}),
    # No step to be hacked with, though the response is wrong.
    ([RIGHT, EMPTY], {"hacked_given_wrong"}),
    (
      [HACKED, WRONG],
      {"truncated_given_correct", "high_repetition_given_correct"},
    ),
    (
      [EMPTY, EMPTY],
      {
        "hacked_given_wrong",
        "truncated_given_correct",
        "high_repetition_given_correct",
        "min_step_score",
        "vacuous_step_share",
        "empty_step_share",
      },
    ),
  ],
  ids=["mixed", "all right", "no steps but wrong", "all wrong", "no tokens"],
)
def test_each_metric_agrees_with_a_loop_over_the_responses(responses, absent):
  """A mean over an empty set is absent; 0 would read as "never hacked"."""
  batch_metrics = metrics(*batch(responses), lambda text: text == "um")
  expected = described(responses)
  assert batch_metrics.keys() == expected.keys()
  assert not absent & batch_metrics.keys()
  for name, value in expected.items():
    # Step scores are float32.
    assert batch_metrics[name] == pytest.approx(value, abs=1e-6), name
    assert type(batch_metrics[name]) is float  # Plain, so that JSON takes it.


def test_without_a_prm_foundof_step_rewards_are_absent():
  """Zeros would read as a PRM that is undecided about every step."""
  responses = [RIGHT, HACKED, WRONG, EMPTY, LONG_RIGHT]
  rollout, steps, _, *rest = batch(responses)
  batch_metrics = metrics(rollout, steps, None, *rest, lambda t: t == "um")
  expected = described(responses)
  for name in ("process_outcome", "min_step_score", "hacked_given_wrong"):
    del expected[name]
  assert batch_metrics == pytest.approx(expected, abs=1e-6)


def test_the_hacked_share_is_of_wrong_responses_with_steps():
  """Of the two wrong ones with a step, one scores above 0 throughout; over
  all five responses it would be 0.2, with the empty one counted 1/3.
  """
  responses = [RIGHT, HACKED, WRONG, EMPTY, LONG_RIGHT]
  batch_metrics = metrics(*batch(responses), lambda text: False)
  assert batch_metrics["hacked_given_wrong"] == 0.5
  # The padding holds -0.9.
  assert batch_metrics["min_step_score"] == pytest.approx(
    (0.4 + 0.6 - 0.5 - 0.2) / 4
  )


def test_facts_computed_in_shares_give_the_foundof_the_whole_batch():
  """A mean of the shares' means would weigh responses unequally."""
  responses = [RIGHT, HACKED, WRONG, EMPTY, LONG_RIGHT]
  *arrays, correct, texts = batch(responses)

  def facts(rows):
    part = jax.tree.map(lambda x: np.asarray(x)[rows], arrays)
    return response_facts(*part, texts[rows], lambda text: text == "um")

  shares = [vars(facts(slice(0, 3))), vars(facts(slice(3, 5)))]
  joined = jax.tree.map(lambda *x: np.concatenate(x), *shares)
  whole = metrics(*arrays, correct, texts, lambda text: text == "um")
  assert rollout_metrics(ResponseFacts(**joined), correct) == whole
