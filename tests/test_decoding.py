"""Decoding gives what reading the whole text at once gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, random_policy, random_prompts

from pure_jax.models import (
  columns,
  decoding,
  kv_cache,
  policy,
  transformer,
)

L, LENGTHS, G, NEW = 6, [6, 4, 1], 2, 7

prefill = jax.jit(
  decoding.prefill,
  static_argnums=1,
  static_argnames=("samples", "slots", "shared"),
)
decode_token = jax.jit(decoding.decode_token, static_argnums=1)
forward = jax.jit(transformer.forward, static_argnums=1)


@pytest.fixture
def texts():
  """Prompts [P, L], their masks, and what follows in each row [P G, NEW]."""
  rng = np.random.default_rng(3)
  tokens, mask = random_prompts(rng, LENGTHS, L)
  rows = len(LENGTHS) * G
  new = rng.integers(1, TINY.vocab_size, (rows, NEW)).astype(np.int32)
  return jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(new)


def whole_logits(params, config, texts, samples=G):
  """Logits [B, NEW + 1, V] from the last token of the prompt on."""
  prompts, mask, new = texts
  tokens = jnp.concatenate([jnp.repeat(prompts, samples, 0), new], axis=1)
  mask = jnp.concatenate(
    [jnp.repeat(mask, samples, 0), jnp.ones(new.shape, bool)], axis=1
  )
  hidden, _ = forward(
    params,
    config,
    tokens,
    transformer.positions_from_mask(mask),
    mask.astype(jnp.int32),
  )
  return np.asarray(policy.logits(params, config, hidden))[:, L - 1 :]


def decoded_logits(
  params, config, texts, prepare=None, between=None, **options
):
  """The same, token by token; `between` may change the cache before each."""
  prompts, mask, new = texts
  options = {"samples": G, "slots": NEW} | options
  hidden, cache = prefill(params, config, prompts, mask, **options)
  scores = policy.logits(params, config, hidden)
  found = [jnp.repeat(scores, options["samples"], axis=0)]
  lengths = jnp.repeat(mask.sum(axis=1), options["samples"])
  weights = params if prepare is None else prepare(params, config)
  for age in range(new.shape[1]):
    if between is not None:
      cache = between(age, cache)
    hidden, cache = decode_token(
      weights, config, new[:, age], (lengths + age).astype(jnp.int32), cache
    )
    found.append(policy.logits(weights, config, hidden))
  return np.concatenate(found, axis=1), cache


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("prepare", [None, columns.decoding_params])
@pytest.mark.parametrize(
  "change",
  [
    {},
    {"tied_embeddings": False, "attention_bias": False},
    {"qk_norm": True, "num_kv_heads": 1},
  ],
)
def test_decoded_logits_are_those_of_the_whole_text(
  texts, shared, prepare, change
):
  """Left padding read, a token too few, another sample's prompt: all show."""
  config = dataclasses.replace(TINY, **change)
  params = random_policy(config)
  found, _ = decoded_logits(params, config, texts, prepare, shared=shared)
  np.testing.assert_allclose(
    found, whole_logits(params, config, texts), rtol=1e-5, atol=1e-5
  )


def test_layers_that_are_scanned_give_the_same_cache(texts, monkeypatch):
  """Keys of the wrong layer would show in the next token's logits."""
  params = random_policy()
  expected = whole_logits(params, TINY, texts)
  monkeypatch.setattr(transformer, "UNROLLED_LAYERS", 0)
  hidden, cache = decoding.prefill(params, TINY, *texts[:2], G, NEW)
  lengths = jnp.repeat(texts[1].sum(axis=1, dtype=jnp.int32), G)
  hidden, _ = decoding.decode_token(
    params, TINY, texts[2][:, 0], lengths, cache
  )
  found = np.asarray(policy.logits(params, TINY, hidden))[:, 0]
  np.testing.assert_allclose(found, expected[:, 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_a_ring_may_grow_at_any_time(texts, shared):
  """New slots in the wrong place would be read, or old ones written over."""
  params = random_policy()

  def grow(age, cache):
    return kv_cache.grow_ring(cache, cache.ring + 2) if age in (2, 4) else cache

  found, cache = decoded_logits(
    params, TINY, texts, between=grow, shared=shared, slots=2 + NEW - 4
  )
  assert cache.ring == NEW + 2
  np.testing.assert_allclose(
    found, whole_logits(params, TINY, texts), rtol=1e-5, atol=1e-5
  )


def test_prompts_may_be_copied_to_their_rows_at_any_time(texts):
  params = random_policy()

  def between(age, cache):
    return kv_cache.with_own_prompts(cache) if age == 3 else cache

  found, cache = decoded_logits(
    params, TINY, texts, between=between, shared=True
  )
  assert cache.prompt_mask is None
  np.testing.assert_allclose(
    found, whole_logits(params, TINY, texts), rtol=1e-5, atol=1e-5
  )


def test_a_ring_goes_round_where_a_row_begins_anew(texts):
  """Row 1 gets another prompt at age 4, in slots that row 0 has left.

  A mask that is not cleared would let it read what the row before wrote.
  """
  params, (prompts, mask, new) = random_policy(), texts
  _, cache = prefill(params, TINY, prompts[:2], mask[:2], slots=5)
  lengths = mask.sum(axis=1, dtype=jnp.int32)
  for age in range(4):
    _, cache = decode_token(
      params, TINY, new[:2, age], lengths[:2] + age, cache
    )
  hidden, other = prefill(params, TINY, prompts[2:], mask[2:], slots=1)
  cache = kv_cache.put_rows(cache, other, jnp.array([[1]]))
  found = [policy.logits(params, TINY, hidden)[0, 0]]
  for age in range(5):
    _, cache = hidden, cache = decode_token(
      params,
      TINY,
      new[2:4, age],
      jnp.stack([lengths[0] + 4 + age, lengths[2] + age]),
      cache,
    )
    found.append(policy.logits(params, TINY, hidden)[1, 0])
  expected = whole_logits(
    params, TINY, (prompts[2:], mask[2:], new[3:4, :5]), samples=1
  )
  np.testing.assert_allclose(np.stack(found), expected[0], rtol=1e-5, atol=1e-5)


def test_rows_are_taken_within_their_shards():
  x = jnp.arange(12).reshape(6, 2)
  index = jnp.array([[2, 0], [1, 1]])
  taken = kv_cache.take_by_shard(x, index)
  np.testing.assert_array_equal(taken, np.asarray(x)[[2, 0, 4, 4]])
  put = kv_cache.put_by_shard(x, -taken, jnp.array([[0, 9], [2, 9]]))
  expected = np.asarray(x).copy()
  expected[[0, 5]] = -expected[[2, 4]]
  np.testing.assert_array_equal(put, expected)


@pytest.mark.parametrize("shared", [False, True])
def test_an_int8_cache_is_off_by_its_rounding(texts, shared):
  """Half a step of 1/127 of the largest entry in every key and value."""
  params = random_policy()
  exact = whole_logits(params, TINY, texts)
  config = dataclasses.replace(TINY, cache_dtype="int8")
  found, cache = decoded_logits(params, config, texts, shared=shared)
  assert cache.keys[0].data.dtype == jnp.int8
  # The prompt's last token reads no cache.
  np.testing.assert_allclose(found[:, 0], exact[:, 0], rtol=1e-5, atol=1e-5)
  error = np.abs(found - exact).max() / np.abs(exact).max()
  assert 1e-5 < error < 4 / 127


def test_what_is_stored_comes_back_rounded():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))
  x = x.at[0, 0, 0].set(0.0)
  kept = kv_cache.store(x, "int8")
  back = kept.data * kept.scale[..., None]
  step = np.abs(np.asarray(x)).max(-1, keepdims=True) / 127
  assert (np.abs(back - x) <= step / 2 + 1e-6).all()
  assert np.asarray(kept.data).min() >= -127
  half = kv_cache.store(x, "bfloat16")
  np.testing.assert_array_equal(half.data, x.astype(jnp.bfloat16))


def test_columns_are_products_with_the_weight():
  weight = jax.random.normal(jax.random.key(0), (6, 2, 3))
  x = jax.random.normal(jax.random.key(1), (4, 1, 6))
  matrix = columns.ColumnMatrix(weight.reshape(6, -1).T, (2, 3))
  np.testing.assert_allclose(
    matrix.times(x), np.einsum("btd,dnh->btnh", x, weight), rtol=1e-5, atol=1e-6
  )
