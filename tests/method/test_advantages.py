"""pure_jax.advantages against per-token loops."""

import dataclasses

import jax
import numpy as np
import pytest
from factories import pad_columns, random_experience, steps_from_ends

from pure_jax import advantages, credit, settings
from pure_jax.settings import CreditConfig

# Compiled once per config and shape: eager, every operation is a program.
_pure_advantages = jax.jit(advantages.pure_advantages, static_argnums=1)

PLAIN = CreditConfig(
  group_size=4, whitening="none", process_coef=1.0, verifiable_coef=0.0
)
PRESETS = (settings.paper, settings.reference_main, settings.reference_verl)


def pure_advantages(batch, config):
  """Advantages and metrics as numpy arrays."""
  return jax.device_get(_pure_advantages(batch, config))


def _step_of(ends, token):
  return sum(end < token for end in ends)


def _loop_process(batch, lists, config):
  """Process advantages token by token, straight from the definitions."""
  lengths, ends = lists["lengths"], lists["ends"]
  rows, width = batch.completion_mask.shape
  k = config.group_size
  returns, rewards = [], []
  scores = np.asarray(batch.step_rewards, np.float64)
  for b in range(rows):
    row = scores[b, : len(ends[b])]
    if config.form == "min":
      g = np.array([row[t:].min() for t in range(len(row))])
    else:
      weight = np.exp(-row / config.temperature)
      g = np.cumsum((weight / weight.sum() * row)[::-1])[::-1]
    returns.append(g)
    rewards.append(g - np.append(g[1:], 0))
  expected = np.zeros((rows, width))
  n = config.baseline_length or width
  for b in range(rows):
    first = b // k * k
    others = [i for i in range(first, first + k) if i != b]
    for t in range(lengths[b]):
      s = _step_of(ends[b], t)
      starts = [0] + [end + 1 for end in ends[b]]
      value = returns[b][s]
      if config.baseline == "paper_a":
        share = sum(rewards[i].sum() for i in others) / ((k - 1) * n)
        value -= sum(share for j in range(t, lengths[b]))
      elif config.baseline == "paper_b":
        value -= sum(
          returns[i][_step_of(ends[i], j)]
          for i in others
          for j in range(lengths[i])
        ) / ((k - 1) * n)
      elif config.baseline == "main":
        share = sum(rewards[i].sum() for i in others) / sum(
          lengths[i] for i in others
        )
        for later in range(s, len(ends[b])):
          tokens = ends[b][later] + 1 - starts[later]
          value -= share * (tokens - (0 if config.count_step_end else 1))
      elif config.baseline == "step":
        share = np.mean([rewards[i].sum() / len(ends[i]) for i in others])
        value -= share * (len(ends[b]) - s)
      expected[b, t] = value
  return expected


@pytest.mark.parametrize("form", ["min", "softmin"])
@pytest.mark.parametrize(
  "changes",
  [
    {"baseline": "none"},
    {"baseline": "paper_a"},
    {"baseline": "paper_a", "baseline_length": 20},
    {"baseline": "paper_b"},
    {"baseline": "paper_b", "baseline_length": 20},
    {"baseline": "main"},
    {"baseline": "main", "count_step_end": False},
    {"baseline": "step"},
  ],
  ids=str,
)
def test_baselines_agree_with_a_loop_over_tokens(form, changes):
  batch, lists = random_experience(1)
  config = dataclasses.replace(PLAIN, form=form, **changes)
  actual, _ = pure_advantages(batch, config)
  expected = _loop_process(batch, lists, config)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


def test_step_baseline_pays_for_fewer_steps():
  # Two samples of equal length and equal return 1; one took 3 steps, the
  # other 1. The step baseline gives their first tokens -2 and +2/3, for
  # nothing but the number of steps; the token baseline gives both 0.
  batch, _ = random_experience(
    0, prompts=1, group_size=2, width=6, max_steps=3, lengths=[6, 6]
  )
  cut = steps_from_ends([[1, 3, 5], [5]], [6, 6], 6, 3)
  rewards = np.float32([[1.0, 1.0, 1.0], [1.0, 0, 0]])
  batch = batch.replace(steps=cut, step_rewards=rewards)
  config = dataclasses.replace(PLAIN, form="min", group_size=2, baseline="step")
  actual, _ = pure_advantages(batch, config)
  np.testing.assert_allclose(actual[:, 0], [1 - 3 * 1.0, 1 - 1 / 3], rtol=1e-6)
  token, _ = pure_advantages(
    batch, dataclasses.replace(config, baseline="main")
  )
  np.testing.assert_allclose(token[:, 0], [0.0, 0.0], atol=1e-6)


def test_kl_in_the_reward_is_paid_by_the_tokens_before_it():
  batch, lists = random_experience(5)
  config = dataclasses.replace(
    PLAIN, process_coef=0.0, kl_in_reward="k2", kl_coef=0.25
  )
  actual, _ = pure_advantages(batch, config)
  difference = np.float64(batch.ref_logp) - np.float64(batch.old_logp)
  expected = np.zeros(difference.shape)
  for b, length in enumerate(lists["lengths"]):
    for t in range(length):
      expected[b, t] = -0.25 * (difference[b, t:length] ** 2 / 2).sum()
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_prompt_without_answer_gets_no_verifiable_term():
  batch, _ = random_experience(6)
  batch = batch.replace(
    has_answer=np.repeat([True, False, True], 4),
    correct=np.float32([1, 0, 0, 1, np.nan, 1, 0, 1, 0, 0, 0, 1]),
  )
  config = dataclasses.replace(PLAIN, process_coef=0.0, verifiable_coef=2.0)
  actual, metrics = pure_advantages(batch, config)
  assert not np.asarray(actual)[4:8].any()
  kept = np.asarray(batch.completion_mask)
  np.testing.assert_allclose(
    actual[0][kept[0]], np.full(kept[0].sum(), 2 * 2 / 3), rtol=1e-6
  )
  # 3 of the 8 that count are right; counting all 12 would give NaN or .25.
  np.testing.assert_allclose(metrics["correct_mean"], 3 / 8)


def test_parts_add_up():
  batch, _ = random_experience(7)
  both = dataclasses.replace(PLAIN, process_coef=0.5, verifiable_coef=2.0)
  process, _ = pure_advantages(batch, PLAIN)
  outcome, _ = pure_advantages(
    batch, dataclasses.replace(PLAIN, process_coef=0.0, verifiable_coef=1.0)
  )
  actual, _ = pure_advantages(batch, both)
  np.testing.assert_allclose(
    actual, 0.5 * process + 2 * outcome, rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize("preset", PRESETS)
def test_padding_changes_nothing(preset):
  batch, _ = random_experience(8)
  config = dataclasses.replace(preset(4)[0], baseline_length=9)
  narrow, _ = pure_advantages(batch, config)
  # NaN in the padding, so that a single stray entry shows.
  wide, metrics = pure_advantages(pad_columns(batch, 3, 2, np.nan), config)
  np.testing.assert_allclose(wide[:, :9], narrow, rtol=1e-5, atol=1e-6)
  assert not np.asarray(wide[:, 9:]).any()
  assert all(np.isfinite(value) for value in metrics.values())


def test_a_prompt_does_not_depend_on_the_others_without_whitening():
  batch, _ = random_experience(9)
  actual, _ = pure_advantages(batch, PLAIN)
  rewards = np.array(batch.step_rewards)
  rewards[4:] = 0.3
  changed = batch.replace(step_rewards=rewards)
  again, _ = pure_advantages(changed, PLAIN)
  np.testing.assert_array_equal(actual[:4], again[:4])
  assert np.abs(actual[4:] - again[4:]).max() > 0.01


def test_whitening_is_over_the_tokens_of_the_batch():
  batch, _ = random_experience(10)
  plain, _ = pure_advantages(batch, PLAIN)
  actual, metrics = pure_advantages(
    batch, dataclasses.replace(PLAIN, whitening="tokens")
  )
  kept = np.asarray(batch.completion_mask)
  tokens = np.asarray(plain, np.float64)[kept]
  expected = np.zeros(kept.shape)
  expected[kept] = (tokens - tokens.mean()) / tokens.std(ddof=1)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(metrics["advantage_mean"], 0, atol=1e-6)


def test_terminal_tokens_get_no_advantage_and_do_not_whiten():
  batch, _ = random_experience(11)
  config = dataclasses.replace(
    PLAIN, whitening="tokens", zero_terminal_advantage=True
  )
  actual, _ = pure_advantages(batch, config)
  plain, _ = pure_advantages(batch, PLAIN)
  ends = np.asarray(batch.terminal_mask)
  inner = np.asarray(batch.completion_mask) & ~ends
  assert not np.asarray(actual)[ends].any()
  tokens = np.asarray(plain, np.float64)[inner]
  np.testing.assert_allclose(
    np.asarray(actual)[inner],
    (tokens - tokens.mean()) / tokens.std(ddof=1),
    rtol=1e-4,
    atol=1e-5,
  )
  # Off by default: EOS keeps its advantage, stopping its gradient.
  assert np.asarray(plain)[ends].all()


def test_nonfinite_rewards_are_counted_and_stay_where_they_are():
  batch, _ = random_experience(12)
  clean, _ = pure_advantages(batch, PLAIN)
  rewards = np.array(batch.step_rewards)
  rewards[0, 0] = np.nan
  broken = batch.replace(step_rewards=rewards)
  actual, metrics = pure_advantages(broken, PLAIN)
  assert float(metrics["nonfinite_step_rewards"]) == 1
  assert np.isfinite(np.asarray(actual)).all()
  # Through a baseline a NaN would reach the group, through whitening all.
  np.testing.assert_array_equal(actual[4:], clean[4:])
  padded = batch.replace(
    step_rewards=np.where(batch.steps.mask, batch.step_rewards, np.nan)
  )
  _, metrics = pure_advantages(padded, PLAIN)
  assert float(metrics["nonfinite_step_rewards"]) == 0


def test_excluded_empty_steps_pass_on_the_return_that_follows():
  batch, _ = random_experience(
    0, prompts=1, group_size=2, width=6, max_steps=3, lengths=[6, 6]
  )
  empty = np.array([[False, True, False], [False, False, False]])
  cut = steps_from_ends([[1, 2, 5], [1, 2, 5]], [6, 6], 6, 3, empty)
  rewards = np.float32([[0.5, -0.9, 0.2], [0.5, -0.9, 0.2]])
  batch = batch.replace(steps=cut, step_rewards=rewards)
  config = dataclasses.replace(
    PLAIN,
    form="min",
    group_size=2,
    baseline="none",
    exclude_empty_steps=True,
  )
  actual, metrics = pure_advantages(batch, config)
  # The empty step's -.9 is gone, and its token takes the .2 that follows;
  # 0 there would reward or punish the separator for nothing.
  np.testing.assert_allclose(actual[0], [0.2] * 6, rtol=1e-6)
  np.testing.assert_allclose(
    actual[1], [-0.9, -0.9, -0.9, 0.2, 0.2, 0.2], rtol=1e-6
  )
  np.testing.assert_allclose(metrics["empty_step_share"], 1 / 6)
  assert float(metrics["no_step_share"]) == 0


def test_dense_minimum_erases_what_the_sound_one_keeps():
  # One response of good steps (.9, .8) with a right answer, one of bad ones.
  batch, _ = random_experience(
    0, prompts=1, group_size=2, width=4, max_steps=2, lengths=[4, 4]
  )
  cut = steps_from_ends([[1, 3], [1, 3]], [4, 4], 4, 2)
  batch = batch.replace(
    steps=cut,
    step_rewards=np.float32([[0.9, 0.8], [-0.5, -0.2]]),
    correct=np.float32([1, 0]),
    has_answer=np.ones(2, bool),
  )
  fault = settings.reference_verl(2, strict_min=True)[0]
  fault = dataclasses.replace(
    fault, baseline="none", kl_in_reward=None, whitening="none"
  )
  actual, _ = pure_advantages(batch, fault)
  # Sums over the same tokens would begin with 2.7; the +1 sits on the last
  # token and still the zero before it wins everywhere else.
  np.testing.assert_allclose(actual[0], [0, 0, 0, 1.8], rtol=1e-6)
  np.testing.assert_allclose(actual[1], [-0.5, -0.5, -0.2, -0.2], rtol=1e-6)
  wide, _ = pure_advantages(pad_columns(batch, 1, 0), fault)
  # And with one column of padding even that is gone.
  np.testing.assert_allclose(wide[0], [0, 0, 0, 0, 0])
  sound = dataclasses.replace(
    fault, form="min", fold_verifiable=False, verifiable_estimator="none"
  )
  actual, _ = pure_advantages(batch, sound)
  np.testing.assert_allclose(actual[0], [1.8] * 4, rtol=1e-6)


def test_dense_minimum_with_its_baseline_agrees_with_a_loop():
  batch, lists = random_experience(17)
  config = settings.reference_verl(4, strict_min=True)[0]
  config = dataclasses.replace(config, whitening="none", kl_coef=0.5)
  rewards = jax.jit(advantages.folded_rewards, static_argnums=2)(
    batch.step_rewards, batch, config
  )
  dense = np.asarray(rewards, np.float64)
  width = dense.shape[1]
  returns = np.zeros(dense.shape)
  for b, length in enumerate(lists["lengths"]):
    for t in range(length):
      returns[b, t] = min(dense[b, t:])  # The zeros of padding count.
  expected = np.zeros(dense.shape)
  for b, length in enumerate(lists["lengths"]):
    first = b // 4 * 4
    others = [i for i in range(first, first + 4) if i != b]
    share = sum(returns[i].sum() for i in others) / (3 * width)
    expected[b, :length] = returns[b, :length] - share
  actual, _ = pure_advantages(batch, config)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_folded_rewards_stand_where_the_events_are():
  batch, lists = random_experience(13)
  config = settings.reference_verl(4)[0]
  config = dataclasses.replace(config, kl_coef=0.5, verifiable_coef=3.0)
  actual = jax.jit(advantages.folded_rewards, static_argnums=2)(
    batch.step_rewards, batch, config
  )
  d = np.float64(batch.ref_logp) - np.float64(batch.old_logp)
  scores, correct, known = map(
    np.asarray, (batch.step_rewards, batch.correct, batch.has_answer)
  )
  expected = np.zeros(d.shape)
  for b, (length, ends) in enumerate(
    zip(lists["lengths"], lists["ends"], strict=True)
  ):
    for s, end in enumerate(ends):
      expected[b, end] += scores[b, s]
    if known[b]:
      expected[b, length - 1] += 3 * correct[b]
    for t in range(length):
      expected[b, t] -= 0.5 * (np.exp(d[b, t]) - d[b, t] - 1)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_row_without_tokens_is_zero():
  batch, _ = random_experience(14, lengths=[0, 3, 4, 5] * 3)
  for preset in PRESETS:
    actual, metrics = pure_advantages(batch, preset(4)[0])
    assert not np.asarray(actual[0]).any()
    assert np.isfinite(np.asarray(actual)).all()
    assert all(np.isfinite(value) for value in metrics.values())


def test_metrics_agree_with_loops():
  batch, lists = random_experience(15)
  _, metrics = pure_advantages(batch, PLAIN)
  least, outcome, returns, agree = [], [], [], []
  scores = np.asarray(batch.step_rewards, np.float64)
  for b, ends in enumerate(lists["ends"]):
    row = scores[b, : len(ends)]
    weight = np.exp(-row / 0.1)
    weighted = weight / weight.sum() * row
    least.append(row.min())
    outcome.append(weighted.sum())
    for t in range(lists["lengths"][b]):
      returns.append(weighted[_step_of(ends, t) :].sum())
    if batch.has_answer[b]:
      agree.append((outcome[-1] > 0) == bool(batch.correct[b]))
  steps_per_response = np.mean([len(ends) for ends in lists["ends"]])
  for name, expected in {
    "min_step_score": np.mean(least),
    "process_outcome": np.mean(outcome),
    "return_mean": np.mean(returns),
    "process_outcome_agreement": np.mean(agree),
    "steps_per_response": steps_per_response,
  }.items():
    np.testing.assert_allclose(
      metrics[name], expected, rtol=1e-4, atol=1e-6, err_msg=name
    )


def test_jit_agrees_and_process_part_stands_alone():
  batch, _ = random_experience(16)
  config = dataclasses.replace(PLAIN, baseline="main")
  expected, _ = pure_advantages(batch, config)
  eager, _ = advantages.pure_advantages(batch, config)
  np.testing.assert_allclose(eager, expected, rtol=1e-6, atol=1e-6)
  mask = batch.steps.mask
  returns = jax.jit(credit.step_returns, static_argnums=2)(
    batch.step_rewards, mask, config
  )
  alone = jax.jit(advantages.process_advantages, static_argnums=3)(
    returns, mask, batch, config
  )
  np.testing.assert_allclose(alone, expected, rtol=1e-6, atol=1e-6)
