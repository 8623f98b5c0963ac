"""The policy: decoder, language-model head, log-probs of given completions."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from pure_jax.models import cpu_layout
from pure_jax.models.activation_sharding import (
  LOCAL,
  LOGITS,
  ActivationSharding,
)
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import Weight, declare_decoder, fan_in
from pure_jax.models.token_logp import (
  Readout,
  ban_tokens,
  chunked_logp,
  logp_and_entropy,
)
from pure_jax.models.transformer import forward, positions_from_mask
from pure_jax.types import SharedPrompts


def declare_policy(config: ModelConfig) -> dict[str, Any]:
  """Declares the policy: the trunk, and a head if embeddings are not tied.

  Args:
    config: the architecture.

  Returns:
    A nested dict of `Weight`; ``head`` [D, V] exists only if untied.
  """
  declared = declare_decoder(config)
  if not config.tied_embeddings:
    declared["head"] = Weight(
      (config.width, config.vocab_size),
      config.param_dtype,
      ("width", "vocab"),
      fan_in(config.width),
    )
  return declared


def logits(
  params: Any,
  config: ModelConfig,
  hidden: Array,
  act_sharding: ActivationSharding = LOCAL,
) -> Array:
  """Computes the logits of the next token.

  Args:
    params: policy weights, as declared or from `cpu_layout.decoding_params`.
    config: the architecture.
    hidden: [B, T, D] float, from `transformer.forward`.
    act_sharding: sharding of the logits.

  Returns:
    [B, T, V] float32; products in the compute dtype, sums in float32.
  """
  if "readout" in params:
    return params["readout"].times_in_float32(hidden)
  tied = config.tied_embeddings
  table = params["embedding" if tied else "head"].astype(hidden.dtype)
  T = hidden.shape[1]
  if T % act_sharding.token_shards:
    padding = -T % act_sharding.token_shards
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
  if table.size >= cpu_layout.LARGE_TABLE and act_sharding.token_shards == 1:
    scores = cpu_layout.vocab_logits(
      hidden.reshape(-1, hidden.shape[-1]), table, tied
    ).reshape(*hidden.shape[:2], -1)
  else:
    scores = jnp.einsum(
      "BTD,VD->BTV" if tied else "BTD,DV->BTV",
      hidden,
      table,
      preferred_element_type=jnp.float32,
    )
  return act_sharding.constrain(scores, LOGITS)[:, :T]


def token_logp(
  params: Any,
  config: ModelConfig,
  prompt_tokens: Array,
  prompt_mask: Array,
  tokens: Array,
  completion_mask: Array,
  *,
  temperature: float = 1.0,
  banned_ids: Sequence[int] = (),
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[Array, Array]:
  """Computes log-probs of completions, which the trainer differentiates.

  log pi(y_t | x, y_<t) comes from the hidden state of the token before, which
  is the last prompt token for t = 0. With the sampler's temperature and banned
  ids, and without top-k, top-p and min-p, this is the sampled distribution.

  Args:
    params: policy weights.
    config: the architecture.
    prompt_tokens: [B, L] int32, left-padded.
    prompt_mask: [B, L] bool.
    tokens: [B, C] int32, right-padded completions.
    completion_mask: [B, C] bool, True on tokens of the completion.
    temperature: > 0, divides the logits.
    banned_ids: ids without probability, as in the sampler.
    act_sharding: sharding of the activations.

  Returns:
    (logp, entropy), both [B, C] float32 in nats; 0 with zero gradient where
    masked, -inf if a kept token is banned.

  Raises:
    ValueError: if the temperature is not positive.
  """
  readout = _readout(config, temperature, banned_ids, act_sharding)
  start = prompt_tokens.shape[1] - 1
  mask = jnp.concatenate([prompt_mask, completion_mask], axis=1)
  hidden, _ = forward(
    params,
    config,
    jnp.concatenate([prompt_tokens, tokens], axis=1),
    positions_from_mask(mask),
    mask.astype(jnp.int32),
    act_sharding=act_sharding,
  )
  hidden = hidden[:, start:-1]
  return _read_logp(params, config, readout, hidden, tokens, completion_mask)


def packed_logp(
  params: Any,
  config: ModelConfig,
  tokens: Array,
  positions: Array,
  segment_ids: Array,
  completion_mask: Array,
  *,
  sharing: SharedPrompts | None = None,
  temperature: float = 1.0,
  banned_ids: Sequence[int] = (),
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[Array, Array]:
  """Computes log-probs like `token_logp`, in rows of several texts.

  The hidden state of the column before a token is of the same text, because
  every completion follows a prompt of at least one token. If completions share
  a prompt, the first token of each follows the last one of the prompt.

  Args:
    params: policy weights.
    config: the architecture.
    tokens: [R, W] int32, texts one after the other.
    positions: [R, W] int32, position of each token within its text.
    segment_ids: [R, W] int32, the text a token belongs to; 0 is padding.
    completion_mask: [R, W] bool, True on tokens of a completion.
    sharing: which completions share a prompt; None if none do.
    temperature: > 0, divides the logits.
    banned_ids: ids without probability, as in the sampler.
    act_sharding: sharding of the activations.

  Returns:
    (logp, entropy), both [R, W] float32 in nats, of the token in that column;
    0 with zero gradient where masked, -inf if a kept token is banned.

  Raises:
    ValueError: if the temperature is not positive.
  """
  readout = _readout(config, temperature, banned_ids, act_sharding)
  hidden, _ = forward(
    params,
    config,
    tokens,
    positions,
    segment_ids,
    act_sharding=act_sharding,
    branches=None if sharing is None else sharing.branches,
  )
  if sharing is not None:
    hidden = jnp.take_along_axis(hidden, sharing.before[..., None], axis=1)
    return _read_logp(params, config, readout, hidden, tokens, completion_mask)

  def next_column(x):
    return jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], axis=1)

  def back(x):
    return jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)

  logp, entropy = _read_logp(
    params,
    config,
    readout,
    hidden,
    next_column(tokens),
    next_column(completion_mask),
  )
  return back(logp), back(entropy)


def _readout(config, temperature, banned_ids, act_sharding):
  """How the policy's hidden states become a distribution."""
  return Readout(
    tied=config.tied_embeddings,
    temperature=temperature,
    banned_ids=tuple(banned_ids),
    chunk=config.logits_chunk,
    act_sharding=act_sharding,
  )


def _read_logp(params, config, readout, hidden, tokens, mask):
  """Log-prob and entropy of the token that each hidden state predicts."""
  act_sharding = readout.act_sharding
  if readout.chunk is None and act_sharding.head_logp is None:
    scores = logits(params, config, hidden, act_sharding)
    scores = ban_tokens(scores / readout.temperature, readout.banned_ids)
    logp, entropy = logp_and_entropy(scores, tokens)
    return jnp.where(mask, logp, 0.0), jnp.where(mask, entropy, 0.0)
  tied = readout.tied
  table = params["embedding"] if tied else params["head"]
  # Unsplit along D: split weights are gathered once, not for every chunk.
  table = act_sharding.constrain(
    table.astype(hidden.dtype), ("vocab", None) if tied else (None, "vocab")
  )
  if act_sharding.head_logp is None:
    return chunked_logp(readout, table, hidden, tokens, mask)
  return act_sharding.head_logp(
    table,
    hidden,
    tokens,
    mask,
    tied=tied,
    temperature=readout.temperature,
    banned_ids=readout.banned_ids,
  )
