"""Small random models of transformers, their logits and ours.

No bias is zero, no norm is one, and heads are grouped. If an architecture
allows it, heads times head size differ from the width, so that no two axes of a
weight can be confused.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax.models import decoding, policy, prm, transformer
from pure_jax.types import PRMInputs

torch = pytest.importorskip("torch", reason="torch comes with [test]")
transformers = pytest.importorskip("transformers")

COMMON = {
  "vocab_size": 23,
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "intermediate_size": 20,
  "max_position_embeddings": 64,
  "bos_token_id": None,
  "eos_token_id": None,
}
THETA_1E6 = {"rope_type": "default", "rope_theta": 1e6}
# With head_dim 10 there are high, intermediate and low frequencies.
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 5e2,
  "factor": 8.0,
  "low_freq_factor": 0.1,
  "high_freq_factor": 0.7,
  "original_max_position_embeddings": 8,
}
MODELS = {
  "qwen2 tied": (
    "Qwen2",
    {"rope_parameters": THETA_1E6, "tie_word_embeddings": True},
  ),
  "qwen2 untied": (
    "Qwen2",
    {
      "rope_parameters": THETA_1E6,
      "tie_word_embeddings": False,
      "rms_norm_eps": 1e-5,
    },
  ),
  # As SmolLM2: tied, and 4 query heads for one key head.
  "llama tied": (
    "Llama",
    {
      "num_key_value_heads": 1,
      "tie_word_embeddings": True,
      "rms_norm_eps": 1e-5,
    },
  ),
  "llama 3 untied": (
    "Llama",
    {
      "head_dim": 10,
      "rope_parameters": LLAMA3,
      "tie_word_embeddings": False,
      "rms_norm_eps": 1e-5,
    },
  ),
  "qwen3 tied": (
    "Qwen3",
    {"head_dim": 10, "rope_parameters": THETA_1E6, "tie_word_embeddings": True},
  ),
  "qwen3 untied": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": False}),
}


def make_model(name, head="ForCausalLM", seed=0, **changes):
  """A random model in evaluation mode."""
  family, fields = MODELS[name]
  config = getattr(transformers, f"{family}Config")(
    **COMMON | fields | changes, attn_implementation="eager"
  )
  model = getattr(transformers, family + head)(config).eval()
  generator = torch.Generator().manual_seed(seed)
  embedding = model.get_input_embeddings().weight
  with torch.no_grad():
    for weight in model.parameters():
      noise = torch.randn(weight.shape, generator=generator)
      if (weight == 1).all():  # A norm before training.
        weight.copy_(1 + 0.2 * noise)
      elif weight.ndim == 1 or weight is embedding:
        weight.copy_(0.5 * noise)
      else:
        weight.copy_(noise / 3)
  return model


def save(model, folder, **options):
  """Saves a model with transformers; returns the folder."""
  model.save_pretrained(folder, **options)
  return folder


def edit_config(folder, **fields):
  """Changes fields of config.json; None removes a field."""
  path = folder / "config.json"
  changed = json.loads(path.read_text()) | fields
  path.write_text(
    json.dumps({k: v for k, v in changed.items() if v is not None})
  )


def assert_trees_equal(actual, expected):
  """Asserts that all leaves are equal to the last bit."""
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def their_logits(model, tokens, mask):
  """Logits [B, T, V] without a cache."""
  with torch.no_grad():
    return model(
      torch.tensor(tokens, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
      position_ids=torch.tensor(np.maximum(np.cumsum(mask, 1) - 1, 0)),
    ).logits.numpy()


_forward = jax.jit(transformer.forward, static_argnums=1)
_logits = jax.jit(policy.logits, static_argnums=1)
_prefill = jax.jit(
  decoding.prefill, static_argnums=1, static_argnames="ring_length"
)
_decode_token = jax.jit(decoding.decode_token, static_argnums=1)
_prm_logits = jax.jit(prm.prm_logits, static_argnums=1)


def our_logits(params, config, tokens, mask):
  """Logits [B, T, V] of all tokens at once."""
  mask = jnp.asarray(mask)
  hidden, _ = _forward(
    params,
    config,
    jnp.asarray(tokens),
    transformer.positions_from_mask(mask),
    mask.astype(jnp.int32),
  )
  return np.asarray(_logits(params, config, hidden))


def our_decoded_logits(params, config, tokens, mask, prompt):
  """Logits [B, T - prompt + 1, V] from the last token of the prompt on.

  The first `prompt` columns, with all padding, are prefilled; the other tokens
  are decoded one at a time.
  """
  mask, tokens = jnp.asarray(mask), jnp.asarray(tokens)
  positions = transformer.positions_from_mask(mask)
  hidden, cache = _prefill(
    params,
    config,
    tokens[:, :prompt],
    mask[:, :prompt],
    ring_length=tokens.shape[1] - prompt,
  )
  logits = [_logits(params, config, hidden)]
  for column in range(prompt, tokens.shape[1]):
    hidden, cache = _decode_token(
      params, config, tokens[:, column], positions[:, column], cache
    )
    logits.append(_logits(params, config, hidden))
  return np.concatenate(logits, axis=1)


def our_scores(params, config, tokens, mask):
  """Logits [B, T, 2] of a PRM."""
  inputs = PRMInputs(
    tokens=jnp.asarray(tokens),
    mask=jnp.asarray(mask),
    score_position=jnp.zeros((len(tokens), 1), jnp.int32),
    score_mask=jnp.ones((len(tokens), 1), bool),
  )
  return np.asarray(_prm_logits(params, config, inputs))


def assert_same(ours, theirs, mask):
  """Asserts that logits of tokens agree to 1e-5, and that they differ."""
  assert np.std(theirs[mask]) > 0.3, "flat logits would hide any fault"
  np.testing.assert_allclose(ours[mask], theirs[mask], rtol=1e-5, atol=1e-5)
