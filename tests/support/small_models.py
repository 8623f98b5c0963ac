"""Small decoders without zero biases and norms of one: every weight matters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pure_jax.models import params as weights
from pure_jax.models import policy, transformer
from pure_jax.models.config import ModelConfig

PAD = 0

# Longest text of `next_token_logits`; shorter ones share its program.
TEXT_LENGTH = 16

# Heads times head size differ from the width, so that no two axes of a weight
# can be confused.
TINY = ModelConfig(
  vocab_size=23,
  width=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  mlp_width=20,
  rope_theta=50.0,
)


def random_params(declared, seed=0):
  """Draws weights far from their initial values, with numpy."""
  rng = np.random.default_rng(seed)

  def draw(weight):
    noise = rng.normal(size=weight.shape)
    if weight.initializer == weights.ONES:
      value = 1 + 0.2 * noise
    elif (
      weight.initializer == weights.ZEROS
      or weight.initializer == weights.Normal(weights.EMBEDDING_STDDEV)
    ):
      value = 0.5 * noise
    else:
      value = noise / 3
    return jnp.asarray(value, weight.dtype)

  return jax.tree.map(draw, declared, is_leaf=weights.is_weight)


def initial_params(declared, seed=0):
  """Initialises weights in one program."""
  init = jax.jit(lambda key: weights.init_params(key, declared))
  return init(jax.random.key(seed))


def random_policy(config=TINY, seed=0):
  return random_params(policy.declare_policy(config), seed)


def dequantize(matrix, name):
  """Converts a stack of int8 matrices to float32, by the name of the weight."""
  scale = np.asarray(matrix.scale)
  # One scale per output, whose inputs are heads and head size for "output".
  inputs = (1, 2) if name == "output" else 1
  return np.float32(matrix.values) * np.expand_dims(scale, inputs)


def random_prompts(rng, lengths, columns, vocab_size=TINY.vocab_size):
  """Left-padded prompts with random ids in the padding."""
  tokens = rng.integers(1, vocab_size, size=(len(lengths), columns))
  mask = np.arange(columns)[None] >= columns - np.asarray(lengths)[:, None]
  return tokens.astype(np.int32), mask


@functools.partial(jax.jit, static_argnums=1)
def _text_logits(params, config, tokens, length):
  positions = jnp.arange(TEXT_LENGTH)[None]
  hidden, _ = transformer.forward(
    params,
    config,
    tokens[None],
    positions,
    (positions < length).astype(jnp.int32),
  )
  return policy.logits(params, config, hidden)[0, length - 1]


def next_token_logits(params, config, text):
  """Logits [V] after a list of ids, in a batch of one without left padding."""
  tokens = np.zeros(TEXT_LENGTH, np.int32)
  tokens[: len(text)] = text
  return np.asarray(_text_logits(params, config, tokens, len(text)))
