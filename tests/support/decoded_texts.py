"""Logits of small texts, computed at once and decoded token by token."""

import jax
import numpy as np
from small_models import TINY, random_prompts

from pure_jax.models import decoding, policy, transformer

L, LENGTHS, G, NEW = 6, [6, 4, 1], 2, 7

prefill = jax.jit(
  decoding.prefill,
  static_argnums=1,
  static_argnames=("group_size", "ring_length", "share_prompts"),
)
decode_token = jax.jit(decoding.decode_token, static_argnums=1)
logits = jax.jit(policy.logits, static_argnums=1)
forward = jax.jit(transformer.forward, static_argnums=1)
positions_from_mask = jax.jit(transformer.positions_from_mask)


def random_texts():
  """Prompts [P, L], their masks, and the next tokens of each row [P G, NEW]."""
  rng = np.random.default_rng(3)
  tokens, mask = random_prompts(rng, LENGTHS, L)
  rows = len(LENGTHS) * G
  new = rng.integers(1, TINY.vocab_size, (rows, NEW)).astype(np.int32)
  return tokens, mask, new


def whole_logits(params, config, texts, group_size=G):
  """Logits [B, NEW + 1, V] from the last token of the prompt on."""
  prompts, mask, new = texts
  tokens = np.concatenate([np.repeat(prompts, group_size, 0), new], axis=1)
  mask = np.concatenate(
    [np.repeat(mask, group_size, 0), np.ones(new.shape, bool)], axis=1
  )
  hidden, _ = forward(
    params,
    config,
    tokens,
    positions_from_mask(mask),
    mask.astype(np.int32),
  )
  return np.asarray(logits(params, config, hidden))[:, L - 1 :]


def decoded_logits(
  params, config, texts, prepare=None, between=None, **options
):
  """The same token by token; `between` may change the cache before each one."""
  prompts, mask, new = texts
  options = {"group_size": G, "ring_length": NEW} | options
  hidden, cache = prefill(params, config, prompts, mask, **options)
  scores = logits(params, config, hidden)
  decoded = [np.repeat(scores, options["group_size"], axis=0)]
  lengths = np.repeat(mask.sum(axis=1), options["group_size"])
  weights = params if prepare is None else prepare(params, config)
  for step in range(new.shape[1]):
    if between is not None:
      cache = between(step, cache)
    hidden, cache = decode_token(
      weights, config, new[:, step], (lengths + step).astype(np.int32), cache
    )
    decoded.append(logits(weights, config, hidden))
  return np.concatenate(decoded, axis=1), cache
