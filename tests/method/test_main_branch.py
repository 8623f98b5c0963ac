"""The preset `reference_main` against small examples and a loop over tokens.

The branch computes token rewards, sums them to go, zeroes step ends and the
last token, and whitens what is not 0. The loop below does the same one
response at a time, in float64.
"""

import dataclasses

import jax
import numpy as np
import pytest
from factories import pad_columns, random_experience, steps_from_ends

from pure_jax import advantages, masked, settings

# Compiled once per config and shape: eager, every operation is a program.
_pure_advantages = jax.jit(advantages.pure_advantages, static_argnums=1)
whiten_nonzero = jax.jit(masked.whiten_nonzero)
OUTCOME_ONLY = dataclasses.replace(
  settings.reference_main(2)[0], process_coef=0.0, kl_in_reward=None
)


def pure_advantages(batch, config):
  """The advantages as a numpy array."""
  return np.asarray(_pure_advantages(batch, config)[0])


def _responses(lengths, correct, truncated=None):
  """Responses of one step whose last token is EOS, unless truncated."""
  rows, width = len(lengths), max(lengths)
  batch, _ = random_experience(
    0, prompts=rows // 2, group_size=2, width=width, max_steps=1,
    lengths=lengths,
  )  # fmt: skip
  truncated = np.zeros(rows, bool) if truncated is None else truncated
  cut = steps_from_ends([[n - 1] for n in lengths], lengths, width, 1)
  return batch.replace(
    steps=cut,
    correct=np.float32(correct),
    has_answer=np.ones(rows, bool),
    terminal_mask=np.asarray(cut.end_mask) & ~truncated[:, None],
    truncated=truncated,
  )


def test_variance_counts_the_mean_at_every_terminal_token():
  # w w w EOS and w EOS. With n - 1 and the kept tokens alone: .5 and -1.5.
  actual = pure_advantages(_responses([4, 2], [1, 0]), OUTCOME_ONLY)
  np.testing.assert_allclose(actual[0], [0.5345225] * 3 + [0], rtol=1e-6)
  np.testing.assert_allclose(actual[1], [-1.6035675, 0, 0, 0], rtol=1e-6)


def test_a_group_without_signal_is_left_out_and_gets_no_gradient():
  # Counting the second group's zeros: .8165, -1.633, -.4082 and -.4082.
  batch = _responses([4, 2, 2, 2], [1, 0, 0, 0])
  actual = pure_advantages(batch, OUTCOME_ONLY)
  np.testing.assert_allclose(actual[0, :3], [0.4714045] * 3, rtol=1e-6)
  np.testing.assert_allclose(actual[1, 0], -1.4142135, rtol=1e-6)
  np.testing.assert_array_equal(actual[2:], np.zeros((2, 4)))
  solved = pure_advantages(_responses([4, 2, 2, 2], [1, 0, 1, 1]), OUTCOME_ONLY)
  np.testing.assert_array_equal(solved, actual)


def test_a_batch_without_signal_is_zero():
  actual = pure_advantages(_responses([4, 2], [1, 1]), OUTCOME_ONLY)
  np.testing.assert_array_equal(actual, np.zeros((2, 4)))


def test_the_last_token_of_a_truncated_response_gets_no_advantage():
  truncated = np.array([True, False])
  batch = _responses([3, 2], [1, 0], truncated)
  plain = dataclasses.replace(OUTCOME_ONLY, whitening="none")
  actual = pure_advantages(batch, plain)
  assert actual.tolist() == [[1, 1, 0], [-1, 0, 0]]
  kept = dataclasses.replace(plain, zero_truncated_end=False)
  assert pure_advantages(batch, kept).tolist() == [[1, 1, 1], [-1, 0, 0]]
  # A truncated response that ends a step, or has no token left.
  ends = batch.replace(terminal_mask=batch.steps.end_mask)
  np.testing.assert_array_equal(pure_advantages(ends, plain), actual)
  single = _responses([1, 2], [1, 0], truncated)
  assert pure_advantages(single, plain).tolist() == [[0, 0], [-1, 0]]


@pytest.mark.usefixtures("compiled_well")
def test_a_return_that_equals_its_baseline_is_exactly_zero():
  # Rewards r and r over 4 and 3 tokens: the first response pays r / 3 for
  # each of its 3 tokens before EOS. A fused multiply-add leaves 1e-8, which
  # whitening would take for a signal.
  rng = np.random.default_rng(0)
  scores = rng.uniform(-1, 1, 64).astype(np.float32)
  share = scores / np.float32(3)
  product = share * np.float32(3)
  batch = _responses([4, 3] * 64, [0, 0] * 64)
  batch = batch.replace(step_rewards=np.repeat(scores, 2)[:, None])
  config = dataclasses.replace(OUTCOME_ONLY, process_coef=1.0)
  actual = pure_advantages(batch, config)[::2, 0]
  np.testing.assert_array_equal(actual == 0, scores == product)
  assert 32 < (actual == 0).sum() < 64


def test_truncation_must_be_known_to_be_zeroed():
  batch = _responses([3, 2], [1, 0]).replace(truncated=None)
  with pytest.raises(ValueError, match="zero_truncated_end reads"):
    pure_advantages(batch, OUTCOME_ONLY)
  plain = dataclasses.replace(OUTCOME_ONLY, zero_truncated_end=False)
  assert pure_advantages(batch, plain).any()
  wrong = batch.replace(truncated=np.zeros((2, 3), bool))
  with pytest.raises(ValueError, match="truncated has shape"):
    pure_advantages(wrong, plain)


def test_arrays_of_numpy_stay_as_they_are_without_jit():
  # `mask &= other` would write into the caller's array.
  batch = jax.tree.map(np.array, _responses([3, 2], [1, 0], np.ones(2, bool)))
  before = jax.tree.map(np.copy, batch)
  config = settings.reference_main(2)[0]
  eager, _ = advantages.pure_advantages(batch, config)
  jax.tree.map(np.testing.assert_array_equal, batch, before)
  jitted = pure_advantages(batch, config)
  np.testing.assert_allclose(eager, jitted, rtol=1e-6, atol=1e-6)


def _token_rewards(batch, lists, config, b):
  """The branch's token rewards of one response, as a list."""
  k = config.group_size
  first = b // k * k
  others = [i for i in range(first, first + k) if i != b]
  scores = np.asarray(batch.step_rewards, np.float64)
  weighted = {}
  for i in range(first, first + k):
    row = scores[i, : len(lists["ends"][i])]
    weights = np.exp(-row / config.temperature)
    weighted[i] = weights / weights.sum() * row
  length, ends = lists["lengths"][b], lists["ends"][b]
  rewards = [0.0] * length
  share = sum(weighted[i].sum() for i in others) / sum(
    lists["lengths"][i] for i in others
  )
  start = 0
  for end, reward in zip(ends, weighted[b], strict=True):
    rewards[end] += config.process_coef * (reward - share * (end - start))
    start = end + 1
  # A response without an answer counts as solved, so that the group's
  # differences vanish.
  solved = np.where(batch.has_answer, batch.correct, 1.0)
  outcome = solved[b] - np.mean([solved[i] for i in others])
  rewards[-1] += config.verifiable_coef * outcome
  logp = np.asarray(batch.old_logp, np.float64)
  for t in range(length):
    kl = logp[b, t] - np.float64(batch.ref_logp[b, t])
    rewards[t] -= config.kl_coef * kl
  return rewards


def _loop(batch, lists, config):
  """The branch's advantages, whitened by its replay buffer's rule."""
  rows = []
  for b, length in enumerate(lists["lengths"]):
    rewards = _token_rewards(batch, lists, config, b)
    row = [sum(rewards[t:]) for t in range(length)]
    for end in lists["ends"][b]:
      row[end] = 0.0
    rows.append(row)
  every = [value for row in rows for value in row]
  kept = [value for value in every if value != 0]
  if kept:
    mean = sum(every) / len(kept)
    variance = sum((value - mean) ** 2 for value in every) / len(kept)
    scale = max(variance, 1e-8) ** -0.5
    rows = [[v and (v - mean) * scale for v in row] for row in rows]
  width = batch.completion_mask.shape[1]
  return np.array([row + [0.0] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"verifiable_coef": 0.1, "kl_coef": 0.0},
    {"process_coef": 0.0, "kl_coef": 0.0},
  ],
  ids=str,
)
def test_the_preset_agrees_with_a_loop(seed, changes):
  # Without process rewards and KL, whole groups are 0.
  config = dataclasses.replace(settings.reference_main(4)[0], **changes)
  batch, lists = random_experience(20 + seed, prompts=4)
  rng = np.random.default_rng(seed)
  truncated = rng.random(16) < 0.4
  inner = np.asarray(batch.terminal_mask).copy()
  for b, length in enumerate(lists["lengths"]):
    inner[b, length - 1] = not truncated[b]
  batch = batch.replace(terminal_mask=inner, truncated=truncated)
  actual = pure_advantages(batch, config)
  expected = _loop(batch, lists, config)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=5e-6)
  wide = pure_advantages(pad_columns(batch, 3, 1, fill=np.nan), config)
  np.testing.assert_allclose(wide[:, :9], actual, rtol=1e-5, atol=1e-6)


def test_whitening_without_zeros_is_that_of_the_population():
  rng = np.random.default_rng(0)
  x = rng.normal(2, 3, (4, 5)).astype(np.float32)
  every = np.ones(x.shape, bool)
  actual = whiten_nonzero(x, every, every)
  expected = (x - x.mean()) / x.std()
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_whitening_of_nothing_or_one_entry_is_zero():
  x, none = np.full(3, np.nan, np.float32), np.zeros(3, bool)
  assert whiten_nonzero(x, none, none).tolist() == [0, 0, 0]
  one = np.array([True, False, False])
  assert whiten_nonzero(np.float32([7, np.nan, 0]), one, one).tolist() == [
    *(0, 0, 0)
  ]
