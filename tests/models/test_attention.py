"""Attention in chunks equals attention and takes less memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, random_policy, random_prompts

from pure_jax.models import policy, transformer
from pure_jax.models.attention import attend_in_chunks
from pure_jax.types import Prompts

B, N, K, H = 2, 4, 2, 8


def inputs(tokens):
  """q, k, v and a causal mask over two segments, padding on the left."""
  rng = np.random.default_rng(0)
  q, k, v = (
    rng.normal(size=size).astype(np.float32)
    for size in ((B, tokens, N, H), (B, K, tokens, H), (B, K, tokens, H))
  )
  segments = np.ones((B, tokens), np.int32)
  segments[0, :3], segments[1, tokens // 2 :] = 0, 2
  return q, k, v, np.asarray(transformer.attention_mask(jnp.asarray(segments)))


def by_hand(q, k, v, mask):
  """One softmax per row, query and head, in float64 numpy."""
  q, k, v, mask = (np.asarray(x, np.float64) for x in (q, k, v, mask))
  out = np.zeros(q.shape)
  for b, t, n in np.ndindex(*q.shape[:3]):
    head = n * k.shape[1] // q.shape[2]
    keep = mask[b, t] > 0
    scores = k[b, head, keep] @ q[b, t, n] / np.sqrt(q.shape[3])
    weights = np.exp(scores - scores.max())
    out[b, t, n] = weights @ v[b, head, keep] / weights.sum()
  return out


@functools.partial(jax.jit, static_argnums=(4, 5))
def in_chunks(q, k, v, mask, chunk, shards=1):
  return attend_in_chunks(transformer.attend, q, k, v, mask, chunk, shards)


@pytest.mark.parametrize("chunk", [1, 7, 29])
def test_chunks_are_attention_by_hand(chunk):
  """Also if the chunk does not divide 29 queries.

  A last chunk that is left out, or a group that misses the keys of its own
  last queries, differs in the last rows.
  """
  arrays = inputs(29)
  out = in_chunks(*arrays, chunk)
  np.testing.assert_allclose(out, by_hand(*arrays), atol=2e-6)


@pytest.mark.parametrize(("chunk", "shards"), [(7, 4), (12, 3), (1, 6)])
def test_chunks_of_tokens_that_are_split_over_devices(chunk, shards):
  """Queries t, t + count, ... are one chunk; a wrong order would swap rows.

  A chunk that is smaller than the shards gets one query of each.
  """
  arrays = inputs(24)
  out = in_chunks(*arrays, chunk, shards)
  np.testing.assert_allclose(out, by_hand(*arrays), atol=2e-6)


def test_gradients_equal_those_of_all_queries_at_once():
  q, k, v, mask = inputs(22)
  weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

  def gradients(attend):
    def loss(q, k, v):
      return jnp.sum(weights * attend(q, k, v, mask))

    return jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)

  whole = gradients(transformer.attend)
  parts = gradients(lambda *x: in_chunks(*x, 5))
  for ours, theirs in zip(parts, whole, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_the_gradient_never_stores_the_scores_of_all_queries():
  """Its memory is that of chunks of 64 of 1,024 queries."""
  T = 1024

  def temporaries(chunk):
    def loss(q, k, v, mask):
      out = attend_in_chunks(transformer.attend, q, k, v, mask, chunk)
      return jnp.sum(jnp.square(out))

    shapes = ((B, T, N, H), (B, K, T, H), (B, K, T, H))
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    mask = jax.ShapeDtypeStruct((B, T, T), bool)
    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays, mask)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  scores = B * N * T * T * 4
  assert temporaries(T) > scores
  assert temporaries(64) < scores / 2


def test_queries_skip_most_of_the_later_keys():
  """Sixteen chunks of 4 in four loops compute 5/8 of all scores."""
  seen = {}

  def attend(q, k, v, mask):
    assert q.shape[1] == mask.shape[1] == 4
    assert k.shape[2] == v.shape[2] == mask.shape[2]
    seen[k.shape[2]] = True
    return q

  q, kv = jnp.zeros((1, 64, 1, 8)), jnp.zeros((1, 1, 64, 8))
  mask = jnp.zeros((1, 64, 64), bool)
  jax.eval_shape(
    lambda *arrays: attend_in_chunks(attend, *arrays, 4),
    *(q, kv, kv, mask),
  )
  assert [*seen] == [16, 32, 48, 64]


@pytest.mark.parametrize(
  ("tokens", "chunk", "expected"), [(26, 8, [7, 14, 21, 26]), (13, 12, [7, 13])]
)
def test_chunks_are_even(tokens, chunk, expected):
  """A last chunk of 2 or of 1 would be padded to 8 and to 12."""
  seen = {}

  def attend(q, k, v, mask):
    seen[k.shape[2]] = q.shape[1]
    return q

  q, kv = jnp.zeros((1, tokens, 1, 8)), jnp.zeros((1, 1, tokens, 8))
  mask = jnp.zeros((1, tokens, tokens), bool)
  jax.eval_shape(
    lambda *arrays: attend_in_chunks(attend, *arrays, chunk),
    *(q, kv, kv, mask),
  )
  assert [*seen] == expected
  assert set(seen.values()) == {7}


def test_a_model_computes_the_same_in_chunks():
  """Log-probs of completions and their gradient, with attention_chunk set."""
  rng = np.random.default_rng(0)
  prompts = Prompts(*random_prompts(rng, [5, 3], 6))
  tokens = jnp.asarray(rng.integers(0, TINY.vocab_size, (2, 7)))
  kept = jnp.ones((2, 7), bool)
  params = random_policy()

  def loss(params, config):
    logp, _ = policy.token_logp(
      params, config, prompts.tokens, prompts.mask, tokens, kept
    )
    return jnp.sum(logp), logp

  chunked = dataclasses.replace(TINY, attention_chunk=3)
  grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  (whole, logp), (parts, chunked_logp) = (
    grad(params, TINY),
    grad(params, chunked),
  )
  np.testing.assert_allclose(chunked_logp, logp, atol=1e-5)
  for ours, theirs in zip(
    jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_needs_a_query(chunk):
  with pytest.raises(ValueError, match="attention_chunk must be at least 1"):
    dataclasses.replace(TINY, attention_chunk=chunk)
