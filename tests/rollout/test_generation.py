"""Every row continues its own text with the distribution of the model."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import (
  PAD,
  TINY,
  next_token_logits,
  random_policy,
  random_prompts,
)

from pure_jax.models import policy
from pure_jax.models.config import ModelConfig
from pure_jax.rollout import generation, sampling
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.types import Prompts

L, C = 5, 8
LENGTHS = [5, 3, 1, 4, 2, 5]
FREE = SamplingConfig(max_new_tokens=C, pad_id=PAD, stop_ids=())

compiled_generate = jax.jit(generation.generate, static_argnums=1)


def generate(params, model, sampler, prompts, keys):
  spec = generation.GenerationSpec(model, sampler)
  return compiled_generate(params, spec, prompts, keys)


@pytest.fixture(scope="module")
def prompts():
  tokens, mask = random_prompts(np.random.default_rng(4), LENGTHS, L)
  return Prompts(jnp.asarray(tokens), jnp.asarray(mask))


@pytest.fixture(scope="module")
def keys():
  return sampling.row_keys(jax.random.key(8), jnp.arange(len(LENGTHS)))


@pytest.fixture(scope="module")
def free(prompts, keys):
  """The rollout without a stop id."""
  return jax.device_get(generate(random_policy(), TINY, FREE, prompts, keys))


token_logp = jax.jit(
  policy.token_logp,
  static_argnums=1,
  static_argnames=("temperature", "banned_ids"),
)


def trainer_logp(params, config, rollout, sampler):
  logp, _ = token_logp(
    params,
    config,
    rollout.prompt_tokens,
    rollout.prompt_mask,
    rollout.tokens,
    rollout.completion_mask,
    temperature=sampler.temperature,
    banned_ids=sampler.banned_ids,
  )
  return np.asarray(logp)


def test_token_frequencies_are_the_models_distribution():
  rows = 8192
  params = random_policy()
  tokens, mask = random_prompts(np.random.default_rng(0), [4], L)
  prompts = Prompts(
    jnp.tile(jnp.asarray(tokens), (rows, 1)),
    jnp.tile(jnp.asarray(mask), (rows, 1)),
  )
  config = dataclasses.replace(FREE, max_new_tokens=2)
  keys = sampling.row_keys(jax.random.key(6), jnp.arange(rows))
  sampled = np.asarray(generate(params, TINY, config, prompts, keys).tokens)
  text = tokens[0][mask[0]].tolist()
  for t in range(2):
    scores = next_token_logits(params, TINY, text)
    expected = np.exp(np.asarray(scores, np.float64))
    expected[PAD] = 0
    expected /= expected.sum()
    error = 4 * np.sqrt(expected * (1 - expected) / len(sampled))
    counts = np.bincount(sampled[:, t], minlength=TINY.vocab_size)
    assert (np.abs(counts / len(sampled) - expected) <= error + 1e-9).all()
    likeliest = int(counts.argmax())
    text.append(likeliest)
    sampled = sampled[sampled[:, t] == likeliest]
    assert len(sampled) > 500


def test_the_trainer_computes_the_samplers_log_probs(free):
  logp = trainer_logp(random_policy(), TINY, free, FREE)
  assert logp.min() < -1
  np.testing.assert_allclose(free.sampled_logp, logp, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(free.full_logp, free.sampled_logp)


def test_the_trainer_computes_the_log_probs_before_filters(prompts, keys):
  """Those after filters are larger: the cut probability is redistributed."""
  params = random_policy()
  sampler = dataclasses.replace(
    FREE, stop_ids=(5,), temperature=0.7, top_k=12, top_p=0.9, min_p=0.03
  )
  rollout = generate(params, TINY, sampler, prompts, keys)
  logp = trainer_logp(params, TINY, rollout, sampler)
  np.testing.assert_allclose(rollout.full_logp, logp, rtol=1e-5, atol=1e-5)
  gain = np.asarray(rollout.sampled_logp - rollout.full_logp)
  assert gain.min() > -1e-5 and gain.max() > 0.05


def test_padding_is_never_sampled_and_the_trainer_knows(prompts, keys):
  """Nor are other banned ids."""
  config = dataclasses.replace(TINY, tied_embeddings=False)
  params = random_policy(config)
  # The padding's logit is huge if it is positive: without the ban it would be
  # sampled with certainty.
  params = dict(params, head=params["head"].at[:, PAD].multiply(1000.0))
  banned = tuple(range(3, 20))
  sampler = dataclasses.replace(FREE, max_new_tokens=10, banned_ids=banned)
  assert sampler.banned_ids == (PAD, *banned)
  rollout = generate(params, config, sampler, prompts, keys)
  assert rollout.completion_mask.all()
  assert set(np.unique(rollout.tokens)) <= {1, 2, 20, 21, 22}
  huge = 0
  for row, length in enumerate(LENGTHS):
    text = prompts.tokens[row, L - length :].tolist()
    for token in rollout.tokens[row].tolist():
      huge += next_token_logits(params, config, text)[PAD] > 100
      text.append(token)
  assert huge > 10
  logp = trainer_logp(params, config, rollout, sampler)
  np.testing.assert_allclose(rollout.sampled_logp, logp, rtol=1e-5, atol=1e-5)


def test_a_stop_id_cuts_the_free_run_after_its_first_occurrence(
  prompts, keys, free
):
  """As the first token, in the middle and as the very last token."""

  def lengths_with(stop_ids):
    stops = np.isin(free.tokens, stop_ids)
    return np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, C + 1)

  stop_ids = next(
    pair
    for pair in itertools.combinations(range(1, TINY.vocab_size), 2)
    if {1, C} < {*lengths_with(pair).tolist()} - {C + 1}
  )
  sampler = dataclasses.replace(FREE, stop_ids=stop_ids)
  rollout = generate(random_policy(), TINY, sampler, prompts, keys)
  lengths = []
  for row, tokens in enumerate(free.tokens):
    stops = np.flatnonzero(np.isin(tokens, stop_ids))
    lengths.append(stops[0] + 1 if stops.size else C)
    assert bool(rollout.truncated[row]) == (not stops.size)
    mask = np.arange(C) < lengths[row]
    np.testing.assert_array_equal(rollout.completion_mask[row], mask)
    np.testing.assert_array_equal(
      rollout.tokens[row], np.where(mask, tokens, PAD)
    )
    np.testing.assert_allclose(
      rollout.sampled_logp[row],
      np.where(mask, free.sampled_logp[row], 0),
      rtol=1e-5,
      atol=1e-5,
    )
  assert free.truncated.all() and not rollout.truncated.all()


def test_a_rows_tokens_do_not_depend_on_other_rows(prompts, keys, free):
  order = np.array([4, 1, 5])
  selected = jax.tree.map(lambda x: x[order], prompts)
  apart = generate(random_policy(), TINY, FREE, selected, keys[order])
  np.testing.assert_array_equal(apart.tokens, free.tokens[order])
  np.testing.assert_allclose(
    apart.sampled_logp, free.sampled_logp[order], rtol=1e-5, atol=1e-5
  )
  assert len({tuple(row) for row in free.tokens}) == 6


def test_left_padding_changes_nothing(prompts, keys, free):
  wider = Prompts(
    jnp.pad(prompts.tokens, ((0, 0), (3, 0)), constant_values=9),
    jnp.pad(prompts.mask, ((0, 0), (3, 0))),
  )
  padded = generate(random_policy(), TINY, FREE, wider, keys)
  np.testing.assert_array_equal(padded.tokens, free.tokens)
  np.testing.assert_allclose(
    padded.sampled_logp, free.sampled_logp, rtol=1e-5, atol=1e-5
  )


def test_a_longer_limit_continues_the_same_text(prompts, keys, free):
  sampler = dataclasses.replace(FREE, max_new_tokens=1)
  short = generate(random_policy(), TINY, sampler, prompts, keys)
  np.testing.assert_array_equal(short.tokens, free.tokens[:, :1])


def test_temperature_zero_takes_the_likeliest_token(prompts, keys):
  params = random_policy()
  sampler = dataclasses.replace(FREE, temperature=0.0, max_new_tokens=4)
  rollout = generate(params, TINY, sampler, prompts, keys)
  for row in range(len(LENGTHS)):
    text = np.asarray(prompts.tokens[row])[np.asarray(prompts.mask[row])]
    for t in range(4):
      scores = next_token_logits(params, TINY, text).copy()
      scores[PAD] = -np.inf
      assert rollout.tokens[row, t] == scores.argmax()
      text = np.append(text, scores.argmax())
  assert (rollout.sampled_logp == 0).all()


def test_an_empty_prompt_is_finite_and_changes_no_other_row(
  prompts, keys, free
):
  empty = prompts.replace(mask=prompts.mask.at[2].set(False))
  rollout = generate(random_policy(), TINY, FREE, empty, keys)
  assert np.isfinite(rollout.sampled_logp).all()
  others = np.array([0, 1, 3, 4, 5])
  np.testing.assert_array_equal(rollout.tokens[others], free.tokens[others])


def test_other_weights_and_keys_compile_nothing(prompts, keys, free):
  programs = compiled_generate._cache_size()
  generate(random_policy(seed=1), TINY, FREE, prompts, keys[::-1])
  assert compiled_generate._cache_size() == programs > 0


@pytest.mark.usefixtures("compiled_well")
def test_the_loop_never_copies_the_cache(prompts, keys):
  config = ModelConfig(
    vocab_size=23,
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=20,
  )
  spec = generation.GenerationSpec(config, FREE)
  program = compiled_generate.lower(random_policy(config), spec, prompts, keys)
  shape = rf"f32\[{len(LENGTHS)},2,{L + C - 1},16\]\S*"
  text = program.compile().as_text()
  updates = re.findall(rf"= {shape} dynamic-update-slice\(", text)
  assert len(updates) >= 2 * config.num_layers
  assert not re.findall(rf"= {shape} copy\(", text)
