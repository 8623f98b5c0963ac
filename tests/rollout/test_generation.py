"""Rows are continued by what the model says of their own text alone."""

import dataclasses
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

compiled = jax.jit(generation.generate, static_argnums=1)


def generate(params, model, sampler, prompts, keys):
  spec = generation.GenerationSpec(model, sampler)
  return compiled(params, spec, prompts, keys)


@pytest.fixture
def prompts():
  tokens, mask = random_prompts(np.random.default_rng(4), LENGTHS, L)
  return Prompts(jnp.asarray(tokens), jnp.asarray(mask))


@pytest.fixture
def keys():
  return sampling.row_keys(jax.random.key(8), jnp.arange(len(LENGTHS)))


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


def test_generated_tokens_follow_the_models_distribution():
  rows = 8192
  params = random_policy()
  tokens, mask = random_prompts(np.random.default_rng(0), [4], L)
  prompts = Prompts(
    jnp.tile(jnp.asarray(tokens), (rows, 1)),
    jnp.tile(jnp.asarray(mask), (rows, 1)),
  )
  config = dataclasses.replace(FREE, max_new_tokens=2)
  keys = sampling.row_keys(jax.random.key(6), jnp.arange(rows))
  drawn = np.asarray(generate(params, TINY, config, prompts, keys).tokens)
  text = tokens[0][mask[0]].tolist()
  for t in range(2):
    scores = next_token_logits(params, TINY, text)
    expected = np.exp(np.asarray(scores, np.float64))
    expected[PAD] = 0
    expected /= expected.sum()
    error = 4 * np.sqrt(expected * (1 - expected) / len(drawn))
    counts = np.bincount(drawn[:, t], minlength=TINY.vocab_size)
    assert (np.abs(counts / len(drawn) - expected) <= error + 1e-9).all()
    likeliest = int(counts.argmax())
    text.append(likeliest)
    drawn = drawn[drawn[:, t] == likeliest]
    assert len(drawn) > 500


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_trainer_agrees_with_the_sampler(prompts, keys, temperature):
  params = random_policy()
  sampler = dataclasses.replace(FREE, stop_ids=(5,), temperature=temperature)
  rollout = generate(params, TINY, sampler, prompts, keys)
  logp = trainer_logp(params, TINY, rollout, sampler)
  assert logp.min() < -1
  np.testing.assert_allclose(rollout.sampled_logp, logp, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(rollout.full_logp, rollout.sampled_logp)


def test_the_trainer_agrees_with_the_log_probs_before_filters(prompts, keys):
  """Those of what was sampled are larger: what is cut off was shared out."""
  params = random_policy()
  sampler = dataclasses.replace(
    FREE, stop_ids=(5,), temperature=0.7, top_k=12, top_p=0.9, min_p=0.03
  )
  rollout = generate(params, TINY, sampler, prompts, keys)
  logp = trainer_logp(params, TINY, rollout, sampler)
  np.testing.assert_allclose(rollout.full_logp, logp, rtol=1e-5, atol=1e-5)
  more = np.asarray(rollout.sampled_logp - rollout.full_logp)
  assert more.min() > -1e-5 and more.max() > 0.05


def test_padding_is_never_sampled_and_the_trainer_knows(prompts, keys):
  config = dataclasses.replace(TINY, tied_embeddings=False)
  params = random_policy(config)
  # The padding's logit is huge wherever it is positive: unbanned it would be
  # drawn there with certainty.
  params = dict(params, head=params["head"].at[:, PAD].multiply(1000.0))
  sampler = dataclasses.replace(FREE, max_new_tokens=10)
  rollout = generate(params, config, sampler, prompts, keys)
  assert rollout.completion_mask.all()
  assert (rollout.tokens != PAD).all()
  loud = 0
  for row, length in enumerate(LENGTHS):
    text = prompts.tokens[row, L - length :].tolist()
    for token in rollout.tokens[row].tolist():
      loud += next_token_logits(params, config, text)[PAD] > 100
      text.append(token)
  assert loud > 20
  logp = trainer_logp(params, config, rollout, sampler)
  np.testing.assert_allclose(rollout.sampled_logp, logp, rtol=1e-5, atol=1e-5)


def test_other_banned_ids_are_never_sampled(prompts, keys):
  banned = tuple(range(3, 20))
  sampler = dataclasses.replace(FREE, banned_ids=banned)
  assert sampler.banned_ids == (PAD, *banned)
  rollout = generate(random_policy(), TINY, sampler, prompts, keys)
  assert set(np.unique(rollout.tokens)) <= {1, 2, 20, 21, 22}


@pytest.mark.parametrize("where", [(0, 0), (1, 3), (4, C - 1)])
def test_a_stop_id_cuts_the_free_run_after_its_first_occurrence(
  prompts, keys, where
):
  params = random_policy()
  free = generate(params, TINY, FREE, prompts, keys)
  assert free.truncated.all()
  free_tokens = np.asarray(free.tokens)
  # A stop id that the free run draws there: first token, middle, very last.
  stop = int(free_tokens[where])
  sampler = dataclasses.replace(FREE, stop_ids=(stop, 22))
  found = generate(params, TINY, sampler, prompts, keys)
  lengths = []
  for row in range(len(LENGTHS)):
    stops = [t for t in range(C) if free_tokens[row, t] in (stop, 22)]
    length = stops[0] + 1 if stops else C
    lengths.append(length)
    assert bool(found.truncated[row]) == (not stops)
    mask = np.arange(C) < length
    np.testing.assert_array_equal(found.completion_mask[row], mask)
    np.testing.assert_array_equal(
      found.tokens[row], np.where(mask, free_tokens[row], PAD)
    )
    np.testing.assert_allclose(
      found.sampled_logp[row],
      np.where(mask, free.sampled_logp[row], 0),
      rtol=1e-5,
      atol=1e-5,
    )
  assert lengths[where[0]] <= where[1] + 1
  if where[1] == 0:
    assert lengths[where[0]] == 1


def test_a_row_has_the_same_tokens_whatever_is_around_it(prompts, keys):
  params = random_policy()
  sampler = dataclasses.replace(FREE, stop_ids=(5,))
  together = generate(params, TINY, sampler, prompts, keys)
  order = np.array([4, 1, 5])
  some = jax.tree.map(lambda x: x[order], prompts)
  apart = generate(params, TINY, sampler, some, keys[order])
  np.testing.assert_array_equal(apart.tokens, together.tokens[order])
  np.testing.assert_allclose(
    apart.sampled_logp, together.sampled_logp[order], rtol=1e-5, atol=1e-5
  )
  assert len({tuple(row) for row in np.asarray(together.tokens)}) == 6


def test_left_padding_changes_nothing(prompts, keys):
  params = random_policy()
  plain = generate(params, TINY, FREE, prompts, keys)
  wider = Prompts(
    jnp.pad(prompts.tokens, ((0, 0), (3, 0)), constant_values=9),
    jnp.pad(prompts.mask, ((0, 0), (3, 0))),
  )
  padded = generate(params, TINY, FREE, wider, keys)
  np.testing.assert_array_equal(padded.tokens, plain.tokens)
  np.testing.assert_allclose(
    padded.sampled_logp, plain.sampled_logp, rtol=1e-5, atol=1e-5
  )


def test_a_longer_limit_continues_the_same_text(prompts, keys):
  params = random_policy()
  long = generate(params, TINY, FREE, prompts, keys)
  for limit in (1, 3):
    sampler = dataclasses.replace(FREE, max_new_tokens=limit)
    short = generate(params, TINY, sampler, prompts, keys)
    np.testing.assert_array_equal(short.tokens, long.tokens[:, :limit])


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


def test_an_empty_prompt_is_finite_and_disturbs_nobody(prompts, keys):
  params = random_policy()
  plain = generate(params, TINY, FREE, prompts, keys)
  empty = prompts.replace(mask=prompts.mask.at[2].set(False))
  found = generate(params, TINY, FREE, empty, keys)
  assert np.isfinite(found.sampled_logp).all()
  others = np.array([0, 1, 3, 4, 5])
  np.testing.assert_array_equal(found.tokens[others], plain.tokens[others])


def test_repeated_calls_compile_once(prompts, keys):
  traces = []

  def counted(params, prompts, keys):
    traces.append(1)
    spec = generation.GenerationSpec(TINY, FREE)
    return generation.generate(params, spec, prompts, keys)

  counted = jax.jit(counted)
  counted(random_policy(), prompts, keys)
  counted(random_policy(seed=1), prompts, keys[::-1])
  assert len(traces) == 1


@pytest.mark.usefixtures("compiled_well")
def test_the_loop_never_copies_the_cache(prompts, keys):
  config = ModelConfig(
    vocab_size=23,
    width=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=20,
  )
  spec = generation.GenerationSpec(config, FREE)
  program = compiled.lower(random_policy(config), spec, prompts, keys).compile()
  shape = rf"f32\[{len(LENGTHS)},2,{L + C - 1},16\]\S*"
  text = program.as_text()
  updates = re.findall(rf"= {shape} dynamic-update-slice\(", text)
  assert len(updates) >= 2 * config.num_layers
  assert not re.findall(rf"= {shape} copy\(", text)
