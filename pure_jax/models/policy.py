"""The policy: decoder, language-model head, log-probs of given completions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pure_jax.models.config import ModelConfig
from pure_jax.models.params import Weight, declare_decoder, fan_in
from pure_jax.models.placement import LOCAL, LOGITS, Placement
from pure_jax.models.transformer import forward, positions_from_mask


def declare_policy(config: ModelConfig) -> dict[str, Any]:
  """Declares the policy: the trunk, and a head unless embeddings are tied.

  Args:
    config: the architecture.

  Returns:
    A nested dict of `Weight`; ``head`` [D, V] exists only when untied.
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
  placement: Placement = LOCAL,
) -> Array:
  """Unnormalised log-probabilities of the next token.

  Args:
    params: policy weights, as `declare_policy` declares them.
    config: the architecture.
    hidden: [B, T, D] float, from `transformer.forward`.
    placement: of the logits.

  Returns:
    [B, T, V] float32; products in the compute dtype, sums in float32.
  """
  if config.tied_embeddings:
    table, equation = params["embedding"], "BTD,VD->BTV"
  else:
    table, equation = params["head"], "BTD,DV->BTV"
  T = hidden.shape[1]
  if T % placement.token_shards:
    missing = -T % placement.token_shards
    hidden = jnp.pad(hidden, ((0, 0), (0, missing), (0, 0)))
  scores = jnp.einsum(
    equation,
    hidden,
    table.astype(hidden.dtype),
    preferred_element_type=jnp.float32,
  )
  return placement.constrain(scores, LOGITS)[:, :T]


def ban_tokens(scores: Array, banned_ids: Sequence[int]) -> Array:
  """Gives ids no probability, in the sampler and in the trainer alike.

  Padding must be banned in both or in neither: banned in the sampler only,
  every ratio at iteration 0 is off by the probability of the padding.

  Args:
    scores: [..., V] float32, logits.
    banned_ids: ids in 0..V-1; may be empty.

  Returns:
    [..., V] with -inf at the banned ids, and no gradient there.

  Raises:
    ValueError: if an id is outside the vocabulary, or none is left.
  """
  if not banned_ids:
    return scores
  size = scores.shape[-1]
  outside = [token for token in banned_ids if not 0 <= token < size]
  if outside:
    raise ValueError(f"Banned ids {outside} are not in 0..{size - 1}.")
  banned = np.zeros(size, bool)
  banned[list(banned_ids)] = True
  if banned.all():
    raise ValueError(f"All {size} ids are banned: nothing can be sampled.")
  banned = jnp.broadcast_to(banned, scores.shape)
  return jnp.where(banned, -jnp.inf, scores)


def logp_and_entropy(scores: Array, tokens: Array) -> tuple[Array, Array]:
  """Log-prob of given ids, and the entropy of their distribution.

  log p_i = s_i - log sum_j exp s_j;  entropy = -sum_j p_j log p_j.

  Args:
    scores: [..., V] float32, logits; -inf gives an id no probability.
    tokens: [...] int32, ids in 0..V-1.

  Returns:
    (logp, entropy), each [...] float32 in nats; logp is -inf for an id
    without probability. Differentiable, with no NaN from -inf.
  """
  normalizer = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
  possible = scores > -jnp.inf
  logp = jnp.where(possible, scores, 0.0) - normalizer
  entropy = -jnp.sum(jnp.where(possible, jnp.exp(logp) * logp, 0.0), axis=-1)
  chosen = jnp.take_along_axis(scores - normalizer, tokens[..., None], axis=-1)
  return chosen[..., 0], entropy


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
  placement: Placement = LOCAL,
) -> tuple[Array, Array]:
  """Log-probs of completions: what the trainer differentiates.

  log pi(y_t | x, y_<t): the token in slot t is read from the hidden state of
  the slot before, the last prompt token for t = 0. With the sampler's
  temperature and banned ids, and no top-k or top-p, it is the distribution
  that was sampled.

  Args:
    params: policy weights.
    config: the architecture.
    prompt_tokens: [B, L] int32, left-padded.
    prompt_mask: [B, L] bool.
    tokens: [B, C] int32, right-padded completions.
    completion_mask: [B, C] bool, True on tokens of the completion.
    temperature: > 0, divides the logits.
    banned_ids: ids without probability, as in the sampler.
    placement: of the activations.

  Returns:
    (logp, entropy), both [B, C] float32 in nats, 0 with zero gradient where
    masked. -inf where a kept token is banned.

  Raises:
    ValueError: if the temperature is not positive.
  """
  if temperature <= 0:
    raise ValueError(f"temperature must be positive, got {temperature}.")
  start = prompt_tokens.shape[1] - 1
  mask = jnp.concatenate([prompt_mask, completion_mask], axis=1)
  hidden, _ = forward(
    params,
    config,
    jnp.concatenate([prompt_tokens, tokens], axis=1),
    positions_from_mask(mask),
    mask.astype(jnp.int32),
    placement=placement,
  )
  scores = logits(params, config, hidden[:, start:-1], placement)
  scores = ban_tokens(scores / temperature, banned_ids)
  logp, entropy = logp_and_entropy(scores, tokens)
  return (
    jnp.where(completion_mask, logp, 0.0),
    jnp.where(completion_mask, entropy, 0.0),
  )
