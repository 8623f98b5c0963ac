"""The critic: the policy's trunk and a head of one number, the value.

The value of a token is that of the state before it. It is read at the token
before, which is the last prompt token for the first token of a completion. So
the baseline of a token's advantage cannot depend on the token.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from pure_jax.models import lora
from pure_jax.models import params as weights
from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.config import ModelConfig
from pure_jax.models.transformer import forward, positions_from_mask, read_head


def declare_critic(config: ModelConfig) -> dict[str, Any]:
  """Declares a critic: the trunk and ``value``, a kernel [D, 1] and a bias [1].

  The head is float32 for a trunk of any dtype, and starts at zero.

  Args:
    config: the policy's architecture. A language-model head is not declared,
      even if the embeddings are not tied. With `config.lora` the adapters are
      included.

  Returns:
    A nested dict of `Weight`.
  """
  head = weights.declare_head(
    config.width, 1, "float32", weights.ZEROS, keep_dtype=True
  )
  return weights.declare_decoder(config) | {"value": head}


def init_critic_from_policy(
  policy_params: Any, config: ModelConfig
) -> dict[str, Any]:
  """Initialises a critic from the policy: its trunk, and a head of zeros.

  At first every value is 0, so the first advantages are the returns.

  Args:
    policy_params: the policy's weights; read, never changed.
    config: the policy's architecture, without adapters.

  Returns:
    Weights as `declare_critic(config)` declares them. Trunk arrays are the
    policy's own: copy them before an update that donates either.
  """
  trunk = {
    name: policy_params[name] for name in weights.declare_decoder(config)
  }
  head = declare_critic(config)["value"]
  zeros = {
    name: jnp.zeros(weight.shape, weight.dtype) for name, weight in head.items()
  }
  return trunk | {"value": zeros}


def trained_and_frozen(
  params: dict[str, Any], config: ModelConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Separates the critic's trained weights from frozen ones.

  Args:
    params: weights of a critic, or a tree with one entry per weight.
    config: the policy's architecture.

  Returns:
    (head and adapters, base), or (all weights, {}) without adapters; two dicts
    that `lora.join_params` joins to `params`. The base is the policy's without
    its language-model head.
  """
  trunk = {name: tree for name, tree in params.items() if name != "value"}
  trained, frozen = lora.trained_and_frozen(trunk, config)
  return trained | {"value": params["value"]}, frozen


def token_values(
  params: Any,
  config: ModelConfig,
  prompt_tokens: Array,
  prompt_mask: Array,
  tokens: Array,
  completion_mask: Array,
  act_sharding: ActivationSharding = LOCAL,
) -> Array:
  """Computes the value of the state before each token of completions.

  Args:
    params: critic weights, as `declare_critic` declares them.
    config: the policy's architecture.
    prompt_tokens: [B, L] int32, left-padded.
    prompt_mask: [B, L] bool.
    tokens: [B, C] int32, right-padded completions.
    completion_mask: [B, C] bool, True on tokens of the completion.
    act_sharding: sharding of the activations.

  Returns:
    [B, C] float32, in units of reward; 0 with zero gradient where masked.
  """
  mask = jnp.concatenate([prompt_mask, completion_mask], axis=1)
  values = _values(
    params,
    config,
    jnp.concatenate([prompt_tokens, tokens], axis=1),
    positions_from_mask(mask),
    mask.astype(jnp.int32),
    act_sharding,
  )
  before = values[:, prompt_tokens.shape[1] - 1 : -1]
  return jnp.where(completion_mask, before, 0.0)


def packed_values(
  params: Any,
  config: ModelConfig,
  tokens: Array,
  positions: Array,
  segment_ids: Array,
  completion_mask: Array,
  act_sharding: ActivationSharding = LOCAL,
) -> Array:
  """Computes values like `token_values`, in rows of several texts.

  The column before a token is of the same text, because every completion
  follows a prompt of at least one token.

  Args:
    params: critic weights.
    config: the policy's architecture.
    tokens: [R, W] int32, texts one after the other.
    positions: [R, W] int32, position of each token within its text.
    segment_ids: [R, W] int32, the text a token belongs to; 0 is padding.
    completion_mask: [R, W] bool, True on tokens of a completion.
    act_sharding: sharding of the activations.

  Returns:
    [R, W] float32, of the state before the token in that column; 0 with zero
    gradient where masked.
  """
  values = _values(params, config, tokens, positions, segment_ids, act_sharding)
  before = jnp.concatenate(
    [jnp.zeros_like(values[:, :1]), values[:, :-1]], axis=1
  )
  return jnp.where(completion_mask, before, 0.0)


def _values(params, config, tokens, positions, segment_ids, act_sharding):
  """The value after each token [B, T], multiplied in float32."""
  hidden, _ = forward(
    params, config, tokens, positions, segment_ids, act_sharding=act_sharding
  )
  return read_head(params["value"], hidden, jnp.float32)[..., 0]
