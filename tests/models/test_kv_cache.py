"""The ring of the cache, its rows and its dtypes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoded_texts import (
  NEW,
  decode_token,
  decoded_logits,
  logits,
  prefill,
  random_texts,
  whole_logits,
)
from small_models import TINY, random_policy

from pure_jax.models import kv_cache

# Eager, every operation is a program.
grow_ring = jax.jit(kv_cache.grow_ring, static_argnums=1)
with_own_prompts = jax.jit(kv_cache.with_own_prompts)
put_rows = jax.jit(kv_cache.put_rows)
store = jax.jit(kv_cache.store, static_argnums=1)
take_by_shard = jax.jit(kv_cache.take_by_shard)
put_by_shard = jax.jit(kv_cache.put_by_shard)


@pytest.fixture
def texts():
  return random_texts()


@pytest.mark.parametrize("shared", [False, True])
def test_a_ring_may_grow_at_any_time(texts, shared):
  """Misplaced new entries would be read, or old ones overwritten."""
  params = random_policy()

  def grow(age, cache):
    return grow_ring(cache, cache.ring_length + 2) if age in (2, 4) else cache

  actual, cache = decoded_logits(
    params,
    TINY,
    texts,
    between=grow,
    share_prompts=shared,
    ring_length=2 + NEW - 4,
  )
  assert cache.ring_length == NEW + 2
  np.testing.assert_allclose(
    actual, whole_logits(params, TINY, texts), rtol=1e-5, atol=1e-5
  )


def test_rows_can_get_their_own_prompt_at_any_time(texts):
  params = random_policy()

  def between(age, cache):
    return with_own_prompts(cache) if age == 3 else cache

  actual, cache = decoded_logits(
    params, TINY, texts, between=between, share_prompts=True
  )
  assert cache.prompt_mask is None
  np.testing.assert_allclose(
    actual, whole_logits(params, TINY, texts), rtol=1e-5, atol=1e-5
  )


def test_a_ring_wraps_around_after_a_row_was_replaced(texts):
  """Row 1 gets another prompt after four tokens.

  If the mask were not cleared, it would attend to the tokens of the old row.
  """
  params, (prompts, mask, new) = random_policy(), texts
  _, cache = prefill(params, TINY, prompts[:2], mask[:2], ring_length=5)
  lengths = mask.sum(axis=1, dtype=np.int32)
  for age in range(4):
    _, cache = decode_token(
      params, TINY, new[:2, age], lengths[:2] + age, cache
    )
  hidden, other = prefill(params, TINY, prompts[2:], mask[2:], ring_length=1)
  cache = put_rows(cache, other, np.array([[1]]))
  actual = [np.asarray(logits(params, TINY, hidden))[0, 0]]
  for age in range(5):
    _, cache = hidden, cache = decode_token(
      params,
      TINY,
      new[2:4, age],
      np.stack([lengths[0] + 4 + age, lengths[2] + age]),
      cache,
    )
    actual.append(np.asarray(logits(params, TINY, hidden))[1, 0])
  expected = whole_logits(
    params, TINY, (prompts[2:], mask[2:], new[3:4, :5]), group_size=1
  )
  np.testing.assert_allclose(
    np.stack(actual), expected[0], rtol=1e-5, atol=1e-5
  )


def test_rows_are_selected_within_their_shards():
  x = np.arange(12).reshape(6, 2)
  taken = np.asarray(take_by_shard(x, np.array([[2, 0], [1, 1]])))
  np.testing.assert_array_equal(taken, x[[2, 0, 4, 4]])
  put = put_by_shard(x, -taken, np.array([[0, 9], [2, 9]]))
  expected = x.copy()
  expected[[0, 5]] = -expected[[2, 4]]
  np.testing.assert_array_equal(put, expected)


def test_an_int8_cache_is_off_by_its_rounding(texts):
  """Every key and value is off by half of 1/127 of the largest entry."""
  params = random_policy()
  exact = whole_logits(params, TINY, texts)
  config = dataclasses.replace(TINY, cache_dtype="int8")
  actual, cache = decoded_logits(params, config, texts, share_prompts=True)
  assert cache.keys[0].data.dtype == jnp.int8
  # The prompt's last token reads no cache.
  np.testing.assert_allclose(actual[:, 0], exact[:, 0], rtol=1e-5, atol=1e-5)
  error = np.abs(actual - exact).max() / np.abs(exact).max()
  assert 1e-5 < error < 4 / 127


def test_stored_keys_and_values_are_rounded():
  x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
  x[0, 0, 0] = 0
  stored = jax.device_get(store(x, "int8"))
  back = stored.data * stored.scale[..., None]
  step = np.abs(x).max(-1, keepdims=True) / 127
  assert (np.abs(back - x) <= step / 2 + 1e-6).all()
  assert stored.data.min() >= -127
  half = store(x, "bfloat16")
  np.testing.assert_array_equal(half.data, x.astype(jnp.bfloat16))
