"""The sampler draws what it says it draws, row by row."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from small_models import PAD

from pure_jax.rollout import sampling
from pure_jax.rollout.sampling import SamplingConfig

# Eager, every operation is a program.
sample_tokens = jax.jit(sampling.sample_tokens, static_argnums=1)
row_keys = jax.jit(sampling.row_keys)
ROWS = 6
FREE = SamplingConfig(max_new_tokens=8, pad_id=PAD, stop_ids=())


def kept_by_hand(scores, banned, temperature, top_k, top_p, min_p=0.0):
  """The distribution sampled, by sorting in float64, ties apart."""
  scores = np.array(scores, np.float64) / temperature
  p = np.exp(scores - scores.max())
  p[list(banned)] = 0
  order = np.argsort(-p)
  unlikely = p < min_p * p[order[0]]
  if top_k:
    p[order[top_k:]] = 0
  p /= p.sum()
  if top_p < 1:
    total = 0.0
    for token in order:
      if total >= top_p:
        p[token] = 0
      total += p[token]
  p[unlikely] = 0
  return p / p.sum()


SCORES = np.array([9.0, 1.2, 0.3, -0.5, 2.0, 1.1, -3.0, 0.0, 1.9, 0.7])


@pytest.mark.parametrize(
  ("temperature", "top_k", "top_p", "min_p"),
  [
    (1.0, 0, 1.0, 0.0),
    (0.5, 0, 1.0, 0.0),
    (2.0, 0, 1.0, 0.0),
    (1.0, 3, 1.0, 0.0),
    (1.0, 0, 0.6, 0.0),
    (1.5, 5, 0.7, 0.0),
    (0.7, 1, 1.0, 0.0),
    (1.0, 0, 1e-6, 0.0),
    (1.0, 99, 1.0, 0.0),
    # Of the likeliest token, e^-1.1 = 0.33 (or e^-0.55 = 0.58) is left.
    (1.0, 0, 1.0, 0.3),
    (2.0, 0, 1.0, 0.3),
    (1.0, 6, 1.0, 0.1),
    (1.5, 0, 0.7, 0.6),
    (1.0, 0, 1.0, 0.999),
  ],
)
def test_frequencies_and_log_probs_are_those_of_the_filtered_distribution(
  temperature, top_k, top_p, min_p
):
  """Of min-p too, whose likeliest token is not the banned one of 9.0."""
  draws = 20_000
  config = SamplingConfig(
    1,
    PAD,
    (),
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    min_p=min_p,
  )
  expected = kept_by_hand(SCORES, (PAD,), temperature, top_k, top_p, min_p)
  unfiltered = kept_by_hand(SCORES, (PAD,), temperature, 0, 1.0)
  tokens, logp, full_logp = sample_tokens(
    np.tile(SCORES.astype(np.float32), (draws, 1)),
    config,
    row_keys(jax.random.key(1), np.arange(draws)),
  )
  tokens = np.asarray(tokens)
  frequency = np.bincount(tokens, minlength=10) / draws
  assert frequency[expected == 0].sum() == 0
  # Unnormalised or unfiltered log-probs would differ by log of what was cut.
  np.testing.assert_allclose(logp, np.log(expected[tokens]), atol=1e-5)
  np.testing.assert_allclose(full_logp, np.log(unfiltered[tokens]), atol=1e-5)
  error = 4 * np.sqrt(expected * (1 - expected) / draws)
  assert (np.abs(frequency - expected) <= error + 1e-9).all()


@pytest.mark.parametrize("min_p", [0.0, 0.3])
def test_a_large_vocabulary_is_drawn_from_in_two_stages(min_p, monkeypatch):
  """With the frequencies and log-probs of one stage."""
  monkeypatch.setattr(sampling, "LARGE_VOCABULARY", 10)
  monkeypatch.setattr(sampling, "GROUP_SIZE", 2)
  draws = 20_000
  config = dataclasses.replace(FREE, min_p=min_p)
  arguments = (
    np.tile(SCORES.astype(np.float32), (draws, 1)),
    config,
    row_keys(jax.random.key(1), np.arange(draws)),
  )
  compiled = jax.jit(
    lambda *x: sampling.sample_tokens(*x), static_argnums=1
  )  # Traced anew, with the sizes above.
  tokens, logp, full_logp = map(np.asarray, compiled(*arguments))
  text = compiled.lower(*arguments).as_text()
  assert f"tensor<{draws}x10xui32>" not in text  # No random number per id.
  assert f"tensor<{draws}x5xui32>" in text
  expected = kept_by_hand(SCORES, (PAD,), 1.0, 0, 1.0, min_p)
  unfiltered = kept_by_hand(SCORES, (PAD,), 1.0, 0, 1.0)
  frequency = np.bincount(tokens, minlength=10) / draws
  assert frequency[expected == 0].sum() == 0
  np.testing.assert_allclose(logp, np.log(expected[tokens]), atol=1e-5)
  np.testing.assert_allclose(full_logp, np.log(unfiltered[tokens]), atol=1e-5)
  error = 4 * np.sqrt(expected * (1 - expected) / draws)
  assert (np.abs(frequency - expected) <= error + 1e-9).all()


def test_the_two_stages_take_independent_noise():
  """With the same noise an id of a likely group would be likelier in it."""
  V = sampling.LARGE_VOCABULARY
  draws = 1000
  tokens, logp, _ = sample_tokens(
    np.zeros((draws, V), np.float32),
    FREE,
    row_keys(jax.random.key(2), np.arange(draws)),
  )
  np.testing.assert_allclose(logp, -np.log(V - 1), rtol=1e-5)
  group, member = np.asarray(tokens) % 128, np.asarray(tokens) // 128
  # Standard deviation of a correlation of independent numbers.
  assert abs(np.corrcoef(group, member)[0, 1]) < 4 / np.sqrt(draws)
  for part in (group, member):
    share = np.bincount(part // 32, minlength=4) / draws
    np.testing.assert_allclose(share, 0.25, atol=4 * np.sqrt(0.1875 / draws))


def test_tokens_tied_with_the_last_one_kept_are_kept():
  scores = np.float32([[1, 3, 1, 0]])
  config = SamplingConfig(1, PAD, (), top_k=2)
  kept = jax.jit(sampling.filter_logits, static_argnums=1)(scores, config)
  assert kept.tolist() == [[1.0, 3.0, 1.0, -np.inf]]


def test_without_filters_nothing_is_sorted():
  def sorts(config):
    text = sample_tokens.lower(
      jax.ShapeDtypeStruct((4, 23), np.float32),
      config,
      row_keys(jax.random.key(0), np.arange(4)),
    ).as_text()
    return bool(re.search(r"stablehlo\.sort|chlo\.top_k", text))

  assert not sorts(FREE)
  assert sorts(dataclasses.replace(FREE, top_p=0.5))
  assert sorts(dataclasses.replace(FREE, top_k=5))
  assert not sorts(dataclasses.replace(FREE, min_p=0.1))


def test_row_keys_depend_on_the_row_number_alone():
  key = jax.random.key(3)
  few, many = (
    np.asarray(jax.random.key_data(row_keys(key, np.array(rows))))
    for rows in ([7, 2], range(10))
  )
  np.testing.assert_array_equal(few, many[[7, 2]])
  assert len({tuple(k) for k in many}) == 10


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_no_numbers_show_in_the_log_probs(temperature):
  """Of a broken policy the tokens alone look like any others."""
  sampler = SamplingConfig(1, PAD, (), temperature=temperature)
  scores = np.ones((ROWS, 7), np.float32)
  scores[2, 3] = np.nan
  keys = row_keys(jax.random.key(8), np.arange(ROWS))
  tokens, logp, full_logp = sample_tokens(scores, sampler, keys)
  assert np.isnan(logp).tolist() == [row == 2 for row in range(ROWS)]
  assert np.isnan(full_logp).tolist() == [row == 2 for row in range(ROWS)]
  assert (np.asarray(tokens) >= 0).all() and (np.asarray(tokens) < 7).all()


def test_greedy_is_certain_and_has_the_log_prob_of_temperature_one():
  """The first of equals, as numpy's argmax takes it; no banned id."""
  scores = np.array([[9.0, 1.0, 3.0, 3.0], [9.0, 2.0, -1.0, 0.5]], np.float32)
  sampler = SamplingConfig(1, PAD, (), temperature=0.0)
  keys = row_keys(jax.random.key(8), np.arange(2))
  tokens, logp, full_logp = map(
    np.asarray, sample_tokens(scores, sampler, keys)
  )
  assert tokens.tolist() == [2, 1]
  assert logp.tolist() == [0.0, 0.0]
  expected = [
    np.log(kept_by_hand(row, (PAD,), 1.0, 0, 1.0)[token])
    for row, token in zip(scores, tokens, strict=True)
  ]
  np.testing.assert_allclose(full_logp, expected, atol=1e-6)


def test_padding_is_banned_unless_it_ends_a_row():
  assert FREE.banned_ids == (PAD,)
  ending = dataclasses.replace(FREE, banned_ids=(7,), stop_ids=(3, PAD))
  assert ending.banned_ids == (7,)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"temperature": -0.1}, "between 0.0001 and 10000, or 0 for greedy"),
    (
      {"temperature": float("nan")},
      "between 0.0001 and 10000, or 0 for greedy",
    ),
    ({"top_p": 0.0}, "top_p must be between 1e-06 and 1"),
    ({"top_p": 1.1}, "top_p must be between 1e-06 and 1"),
    ({"top_k": -1}, "top_k must be at least 0"),
    ({"min_p": -0.1}, "min_p must be between 0 and 0.999999"),
    ({"min_p": 1.0}, "min_p must be between 0 and 0.999999"),
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ({"stop_ids": (PAD, 3), "banned_ids": (3,)}, r"Ids \[3\] are both stop"),
  ],
)
def test_impossible_settings_raise(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(FREE, **change)
