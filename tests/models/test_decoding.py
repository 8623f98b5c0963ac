"""Decoding computes the logits of the whole text."""

import dataclasses

import jax
import numpy as np
import pytest
from decoded_texts import (
  NEW,
  G,
  decoded_logits,
  random_texts,
  whole_logits,
)
from small_models import TINY, random_policy

from pure_jax.models import cpu_layout, decoding, policy, transformer


@pytest.fixture
def texts():
  return random_texts()


@pytest.mark.parametrize(
  ("change", "prepare", "shared"),
  [
    ({}, cpu_layout.decoding_params, False),
    ({"tied_embeddings": False, "attention_bias": False}, None, False),
    (
      {"tied_embeddings": False, "attention_bias": False},
      cpu_layout.decoding_params,
      True,
    ),
    ({"qk_norm": True, "num_kv_heads": 1}, None, True),
  ],
)
def test_decoded_logits_are_those_of_the_whole_text(
  texts, change, prepare, shared
):
  """Attention to padding or to the prompt of another row would show."""
  config = dataclasses.replace(TINY, **change)
  params = random_policy(config)
  actual, _ = decoded_logits(
    params, config, texts, prepare, share_prompts=shared
  )
  np.testing.assert_allclose(
    actual, whole_logits(params, config, texts), rtol=1e-5, atol=1e-5
  )


def test_scanned_layers_make_the_same_cache(texts, monkeypatch):
  """Keys of the wrong layer would change the next token's logits."""
  params = random_policy()
  expected = whole_logits(params, TINY, texts)
  monkeypatch.setattr(transformer, "UNROLLED_LAYERS", 0)
  lengths = np.repeat(texts[1].sum(axis=1, dtype=np.int32), G)

  @jax.jit
  def next_logits(params):
    _, cache = decoding.prefill(params, TINY, *texts[:2], G, NEW)
    hidden, _ = decoding.decode_token(
      params, TINY, texts[2][:, 0], lengths, cache
    )
    return policy.logits(params, TINY, hidden)[:, 0]

  np.testing.assert_allclose(
    next_logits(params), expected[:, 1], rtol=1e-5, atol=1e-5
  )
