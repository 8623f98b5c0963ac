"""The decoder against torch, and the invariances a decoder must have."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, random_policy, random_prompts

from pure_jax.models import policy, rotary, transformer
from pure_jax.models.config import RopeScaling

ARCHITECTURES = {
  "qwen2 untied, one kv head": {
    "rope_theta": 1e6,
    "tied_embeddings": False,
    "num_kv_heads": 1,
    "width": 24,
  },
  "llama untied": {
    "tied_embeddings": False,
    "attention_bias": False,
    "rope_theta": 5e5,
    "norm_eps": 1e-5,
  },
  "llama 3, no groups, beyond its original length": {
    "attention_bias": False,
    "num_kv_heads": 4,
    # One high frequency, one between, one low.
    "rope_scaling": RopeScaling(8.0, 0.1, 0.7, 5),
  },
  "qwen3": {"attention_bias": False, "qk_norm": True},
}


positions_from_mask = jax.jit(transformer.positions_from_mask)


@functools.partial(jax.jit, static_argnums=1)
def compute_logits(params, config, tokens, positions, segment_ids):
  hidden, _ = transformer.forward(
    params, config, tokens, positions, segment_ids
  )
  return policy.logits(params, config, hidden)


def run(params, config, tokens, mask=None, segment_ids=None, positions=None):
  """Logits [B, T, V] without a cache."""
  mask = np.ones(tokens.shape, bool) if mask is None else mask
  if segment_ids is None:
    segment_ids = mask.astype(np.int32)
  if positions is None:
    positions = positions_from_mask(mask)
  logits = compute_logits(params, config, tokens, positions, segment_ids)
  return np.asarray(logits)


@pytest.fixture
def params():
  return random_policy()


@pytest.fixture
def tokens():
  rng = np.random.default_rng(7)
  return rng.integers(1, TINY.vocab_size, size=(3, 9)).astype(np.int32)


def rope_parameters(config):
  """RoPE settings in the form of transformers."""
  scaling = config.rope_scaling
  if scaling is None:
    return {"rope_type": "default", "rope_theta": config.rope_theta}
  return {
    "rope_type": "llama3",
    "rope_theta": config.rope_theta,
    "factor": scaling.factor,
    "low_freq_factor": scaling.low_frequency_factor,
    "high_freq_factor": scaling.high_frequency_factor,
    "original_max_position_embeddings": scaling.original_length,
  }


def torch_model(config, params):
  """The model of transformers with the same weights."""
  torch = pytest.importorskip("torch", reason="torch comes with [test]")
  import transformers

  common = {
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "intermediate_size": config.mlp_width,
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tied_embeddings,
    "rope_parameters": rope_parameters(config),
    "attn_implementation": "eager",
  }
  if config.attention_bias:
    assert config.width == config.num_heads * config.head_dim
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common))
  elif config.qk_norm:
    model = transformers.Qwen3ForCausalLM(
      transformers.Qwen3Config(**common, head_dim=config.head_dim)
    )
  else:
    model = transformers.LlamaForCausalLM(
      transformers.LlamaConfig(**common, head_dim=config.head_dim)
    )

  state = {
    "model.embed_tokens.weight": params["embedding"],
    "model.norm.weight": params["final_norm"],
  }
  if config.tied_embeddings:
    state["lm_head.weight"] = params["embedding"]
  else:
    state["lm_head.weight"] = params["head"].T
  for index in range(config.num_layers):
    layer = {k: np.asarray(v[index]) for k, v in params["layers"].items()}
    at = f"model.layers.{index}."
    state[at + "input_layernorm.weight"] = layer["attention_norm"]
    state[at + "post_attention_layernorm.weight"] = layer["mlp_norm"]
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
      flat = layer[ours].reshape(config.width, -1)
      state[f"{at}self_attn.{theirs}_proj.weight"] = flat.T
      if config.attention_bias:
        state[f"{at}self_attn.{theirs}_proj.bias"] = layer[
          f"{ours}_bias"
        ].reshape(-1)
      if config.qk_norm and ours != "value":
        state[f"{at}self_attn.{theirs}_norm.weight"] = layer[f"{ours}_norm"]
    flat = layer["output"].reshape(-1, config.width)
    state[at + "self_attn.o_proj.weight"] = flat.T
    for name in ("gate", "up", "down"):
      state[f"{at}mlp.{name}_proj.weight"] = layer[name].T
  model.load_state_dict(
    {k: torch.tensor(np.asarray(v)) for k, v in state.items()}, strict=True
  )
  return torch, model.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_the_torch_implementation(name):
  config = dataclasses.replace(TINY, **ARCHITECTURES[name])
  params = random_policy(config)
  torch, model = torch_model(config, params)
  rng = np.random.default_rng(1)
  tokens, mask = random_prompts(rng, [12, 7, 1], 12)
  with torch.no_grad():
    theirs = model(
      torch.tensor(tokens, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
      position_ids=torch.tensor(np.maximum(np.cumsum(mask, 1) - 1, 0)),
    ).logits.numpy()
  ours = run(params, config, tokens, mask)
  assert np.std(theirs) > 0.5, "flat logits would hide any fault"
  np.testing.assert_allclose(ours[mask], theirs[mask], rtol=1e-5, atol=1e-5)


def test_positions_count_the_kept_tokens():
  mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
  positions = positions_from_mask(mask)
  # Column numbers would give 2, 3, 4 in the first row.
  assert positions[0, 2:].tolist() == [0, 1, 2]
  assert positions[1, :3].tolist() == [0, 1, 2]
  assert positions[2].tolist() == [0] * 5


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(params, tokens, side):
  width = ((0, 0), (4, 0)) if side == "left" else ((0, 0), (0, 4))
  mask = np.pad(np.ones(tokens.shape, bool), width)
  alone = run(params, TINY, tokens)
  for filler in (0, 5):
    padded = np.pad(tokens, width, constant_values=filler)
    logits = run(params, TINY, padded, mask)[mask].reshape(alone.shape)
    np.testing.assert_allclose(logits, alone, rtol=1e-5, atol=1e-5)


def test_a_row_of_padding_only_is_finite(params, tokens):
  mask = np.ones(tokens.shape, bool)
  mask[1] = False
  logits = run(params, TINY, tokens, mask)
  assert np.isfinite(logits).all()
  np.testing.assert_allclose(
    logits[0], run(params, TINY, tokens)[0], rtol=1e-5, atol=1e-5
  )


def test_no_gradient_from_later_tokens_or_other_rows(params, tokens):
  # Every token has its own row of the embedding, so the gradient tells them
  # apart.
  ids = np.arange(tokens.size).reshape(tokens.shape)
  position, row = 4, 1

  def score(embedding):
    hidden, _ = transformer.forward(
      params | {"embedding": embedding},
      TINY,
      ids,
      transformer.positions_from_mask(jnp.ones(ids.shape, bool)),
      jnp.ones(ids.shape, jnp.int32),
    )
    return jnp.sum(jnp.square(hidden[row, position]))

  embedding = np.asarray(params["embedding"])[tokens.reshape(-1)]
  gradient = np.asarray(jax.jit(jax.grad(score))(embedding))
  size = np.abs(gradient.reshape(*tokens.shape, -1)).max(-1)
  assert (size[row, : position + 1] > 1e-6).all()
  assert (size[row, position + 1 :] == 0).all()
  assert (np.delete(size, row, axis=0) == 0).all()


def test_packed_segments_are_separate_rows(params, tokens):
  lengths = [4, 3, 2]
  mask = np.arange(9)[None] < np.asarray(lengths)[:, None]
  separate = run(params, TINY, tokens, mask)[mask]
  packed = run(
    params,
    TINY,
    tokens[mask][None],
    segment_ids=np.repeat([1, 2, 3], lengths)[None],
    positions=np.concatenate([np.arange(n) for n in lengths])[None],
  )
  np.testing.assert_allclose(packed[0], separate, rtol=1e-5, atol=1e-5)


def test_only_relative_positions_matter_and_they_do(params, tokens):
  plain = run(params, TINY, tokens)
  positions = np.broadcast_to(np.arange(9), tokens.shape)
  shifted = run(params, TINY, tokens, positions=positions + 3)
  np.testing.assert_allclose(shifted, plain, rtol=1e-5, atol=1e-5)
  stretched = run(params, TINY, tokens, positions=2 * positions)
  assert np.abs(stretched - plain).max() > 0.1


def test_scanned_layers_are_the_unrolled_ones(tokens, monkeypatch):
  params = random_policy()

  def loss(params, config):
    positions = transformer.positions_from_mask(jnp.ones(tokens.shape, bool))
    segments = jnp.ones(tokens.shape, jnp.int32)
    hidden, _ = transformer.forward(params, config, tokens, positions, segments)
    return jnp.sum(hidden[..., 0])

  results = {}
  for name, limit in (("unrolled", 8), ("scanned", 1)):
    monkeypatch.setattr(transformer, "UNROLLED_LAYERS", limit)
    results[name] = jax.jit(jax.value_and_grad(loss), static_argnums=1)(
      params, TINY
    )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
    results["scanned"],
    results["unrolled"],
  )


def test_bfloat16_is_close_to_float32(params, tokens):
  exact = run(params, TINY, tokens)
  config = dataclasses.replace(TINY, compute_dtype="bfloat16")
  rounded = run(params, config, tokens)
  assert rounded.dtype == np.float32
  # A bfloat16 keeps 8 bits: relative error 2^-9 for each of about ten
  # roundings on the way to a logit, added up as a random walk; 4 of those.
  tolerance = 4 * np.sqrt(10) * 2**-9 * np.abs(exact).max()
  error = np.abs(rounded - exact).max()
  assert 0 < error < tolerance


def test_scaled_frequencies_by_their_wavelengths():
  """Llama 3's rule in wavelengths, pair by pair, in double precision."""
  factor, low, high, length = 8.0, 1.0, 4.0, 8192
  expected, kinds = [], set()
  for pair in range(64):
    frequency = 5e5 ** (-pair / 64)
    wavelength = 2 * math.pi / frequency
    if wavelength < length / high:
      kinds.add("high")
    elif wavelength > length / low:
      kinds.add("low")
      frequency /= factor
    else:
      kinds.add("between")
      smooth = (length / wavelength - low) / (high - low)
      frequency *= (1 - smooth) / factor + smooth
    expected.append(frequency)
  assert kinds == {"high", "between", "low"}
  frequencies = rotary.rotary_frequencies(
    128, 5e5, RopeScaling(factor, low, high, length)
  )
  np.testing.assert_allclose(frequencies, expected, rtol=1e-6)
