"""The process reward model: the policy's trunk and a two-class head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax import masked
from pure_jax.models import params as weights
from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.config import ModelConfig
from pure_jax.models.transformer import forward, positions_from_mask, read_head
from pure_jax.types import PRMInputs

NUM_CLASSES = 2

# Everything a layer adds to the residual stream goes through these weights. If
# they are zero, the layer is the identity, and at first its other weights get
# no gradient.
RESIDUAL_WEIGHTS = ("output", "down")


def extend_config(config: ModelConfig, extra_layers: int) -> ModelConfig:
  """Extends a policy's architecture to that of its PRM.

  Args:
    config: the policy's architecture.
    extra_layers: layers on top of the policy's trunk, at least 0.

  Returns:
    The same architecture with that many more layers.

  Raises:
    ValueError: if extra_layers is negative.
  """
  if extra_layers < 0:
    raise ValueError(f"extra_layers must be at least 0, got {extra_layers}.")
  return dataclasses.replace(
    config, num_layers=config.num_layers + extra_layers
  )


def declare_prm(config: ModelConfig, extra_layers: int = 0) -> dict[str, Any]:
  """Declares a PRM: the trunk and ``score``, a kernel [D, 2] and a bias [2].

  Args:
    config: the trunk's architecture; no language-model head is declared, also
      if its embeddings are not tied.
    extra_layers: layers beyond config.num_layers.

  Returns:
    A nested dict of `Weight`.
  """
  declared = weights.declare_decoder(extend_config(config, extra_layers))
  declared["score"] = weights.declare_head(
    config.width, NUM_CLASSES, config.param_dtype, weights.fan_in(config.width)
  )
  return declared


def init_prm_from_policy(
  key: Array, policy_params: Any, config: ModelConfig, extra_layers: int = 0
) -> dict[str, Any]:
  """Initialises a PRM from the policy: its trunk, and a new head.

  Extra layers start as the identity (their projections into the residual
  stream are zero), so at first the trunk computes the same hidden states as
  the policy's.

  Args:
    key: typed PRNG key for head and extra layers; consumed.
    policy_params: the policy's weights; read, never changed.
    config: the policy's architecture.
    extra_layers: layers to add, at least 0.

  Returns:
    Weights as `declare_prm(config, extra_layers)` declares them. Without
    extra layers, trunk arrays are the policy's own: copy them before an
    update that donates either.
  """
  declared = declare_prm(config, extra_layers)
  head_key, layer_key = jax.random.split(key)
  layers = policy_params["layers"]
  if extra_layers:
    extra = weights.init_params(
      layer_key, weights.declare_layers(config, extra_layers)
    )
    for name in RESIDUAL_WEIGHTS:
      extra[name] = jnp.zeros_like(extra[name])
    layers = jax.tree.map(
      lambda old, new: jnp.concatenate([old, new]), layers, extra
    )
  return {
    "embedding": policy_params["embedding"],
    "layers": layers,
    "final_norm": policy_params["final_norm"],
    "score": weights.init_params(head_key, declared["score"]),
  }


def prm_logits(
  params: Any,
  config: ModelConfig,
  inputs: PRMInputs,
  act_sharding: ActivationSharding = LOCAL,
) -> Array:
  """Computes two logits at every token; class 1 means "the step is good".

  Args:
    params: PRM weights, as `declare_prm` declares them.
    config: the architecture, the policy's or the extended one. The weights
      decide the number of layers.
    inputs: tokens to score, [B, T].
    act_sharding: sharding of the activations.

  Returns:
    [B, T, 2] float32; meaningful at inputs.score_position.
  """
  return token_scores(
    params,
    config,
    inputs.tokens,
    positions_from_mask(inputs.mask),
    inputs.mask.astype(jnp.int32),
    act_sharding,
  )


def states_at_scores(
  params: Any,
  config: ModelConfig,
  inputs: PRMInputs,
  act_sharding: ActivationSharding = LOCAL,
) -> Array:
  """Computes the states that the head reads, without the head.

  Args:
    params: PRM weights; ``score`` is not read.
    config: the architecture, as for `prm_logits`.
    inputs: tokens to score, [B, T].
    act_sharding: sharding of the activations.

  Returns:
    [B, S, D] float32, 0 where inputs.score_mask is False.
  """
  hidden, _ = forward(
    params,
    config,
    inputs.tokens,
    positions_from_mask(inputs.mask),
    inputs.mask.astype(jnp.int32),
    act_sharding=act_sharding,
  )
  at_scores = jnp.take_along_axis(
    hidden, inputs.score_position[..., None], axis=1
  )
  at_scores = masked.zero_masked(at_scores, inputs.score_mask[..., None])
  return at_scores.astype(jnp.float32)


def token_scores(
  params: Any,
  config: ModelConfig,
  tokens: Array,
  positions: Array,
  segment_ids: Array,
  act_sharding: ActivationSharding = LOCAL,
) -> Array:
  """Computes logits like `prm_logits`, in rows of one or more texts.

  Args:
    params: PRM weights.
    config: the architecture.
    tokens: [R, W] int32.
    positions: [R, W] int32, position of each token within its text.
    segment_ids: [R, W] int32, the text a token belongs to; 0 is padding.
    act_sharding: sharding of the activations.

  Returns:
    [R, W, 2] float32.
  """
  hidden, _ = forward(
    params, config, tokens, positions, segment_ids, act_sharding=act_sharding
  )
  return read_head(params["score"], hidden, hidden.dtype)
