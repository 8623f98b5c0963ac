"""Sampling completions: one prefill of the prompts, then one loop over tokens.

The loop carries one frozen state and stops as soon as every sequence has
ended. Row i draws token t with `fold_in(keys[i], t)` from its own logits, so a
row's tokens do not depend on the rest of the batch.

The legend of axes is in `pure_jax.types`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pure_jax.models import cpu_layout, decoding, policy
from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.config import ModelConfig
from pure_jax.models.kv_cache import KVCache
from pure_jax.rollout.sampling import SamplingConfig, StopTable, sample_tokens
from pure_jax.types import Prompts, Rollout


@dataclasses.dataclass(frozen=True)
class GenerationSpec:
  """The model and the distribution that completions are sampled from.

  Hashable as long as `stops` is None, so it can be a static argument.

  Attributes:
    model: the policy's architecture.
    sampler: temperature, filters, stop ids and the length limit C.
    stops: texts that end a sequence in addition to the stop ids, or None.
    act_sharding: sharding of activations and cache. It must not split tokens.
    cpu_weights: True decodes with weights in the layout of
      `cpu_layout.decoding_params`.
  """

  model: ModelConfig
  sampler: SamplingConfig
  stops: StopTable | None = None
  act_sharding: ActivationSharding = LOCAL
  cpu_weights: bool = False

  def to_decoding_params(self, params: Any) -> Any:
    """Converts policy weights into the form that the decode loop reads."""
    if not self.cpu_weights:
      return params
    return cpu_layout.decoding_params(params, self.model)


@struct.dataclass
class DecodeState:
  """B sequences that are being generated.

  Attributes:
    keys: [B] typed keys, one per sequence.
    prompt_lengths: [B] int32, tokens of the prompt.
    num_generated: [B] int32, 0..C, tokens sampled so far.
    last_tokens: [B] int32, the token sampled last. The cache does not hold it
      yet.
    done: [B] bool, True if the sequence has ended.
    stopped: [B] bool, True if it ended with a stop id or text, not at the
      length limit.
    stop_state: [B] int32, state of the `StopTable` automaton.
    cache: keys and values of the prompt and of all tokens but the last.
  """

  keys: Array
  prompt_lengths: Array
  num_generated: Array
  last_tokens: Array
  done: Array
  stopped: Array
  stop_state: Array
  cache: KVCache


@struct.dataclass
class SampledTokens:
  """Tokens and their log-probs, all arrays of one shape.

  Attributes:
    tokens: [...] int32, padding after the end of a sequence.
    sampled_logp: [...] float32 nats, see `Rollout`; 0 after the end.
    full_logp: [...] float32 nats, see `Rollout`; 0 after the end.
  """

  tokens: Array
  sampled_logp: Array
  full_logp: Array


@struct.dataclass
class Completions:
  """The completions of a batch so far.

  Attributes:
    sampled: [B, C] arrays, padding and zeros beyond the sampled tokens.
    lengths: [B] int32, 0..C.
    stopped: [B] bool, True if the row ended with a stop id or text.
  """

  sampled: SampledTokens
  lengths: Array
  stopped: Array


def empty_completions(rows: int, config: SamplingConfig) -> Completions:
  """Makes the buffers that completions are written to.

  Args:
    rows: B.
    config: the length limit and the padding id.

  Returns:
    B completions without tokens.
  """
  return Completions(
    sampled=_no_tokens((rows, config.max_new_tokens), config),
    lengths=jnp.zeros(rows, jnp.int32),
    stopped=jnp.zeros(rows, bool),
  )


def _no_tokens(shape, config):
  """Buffers of a shape, all padding and zeros."""
  return SampledTokens(
    tokens=jnp.full(shape, config.pad_id, jnp.int32),
    sampled_logp=jnp.zeros(shape, jnp.float32),
    full_logp=jnp.zeros(shape, jnp.float32),
  )


def to_rollout(prompts: Prompts, completions: Completions) -> Rollout:
  """Joins prompts and their finished completions.

  Args:
    prompts: [P, L].
    completions: completions of B rows, a multiple of P.

  Returns:
    The rollout.
  """
  sampled = completions.sampled
  rows, limit = sampled.tokens.shape
  group_size = rows // prompts.tokens.shape[0]
  return Rollout(
    prompt_tokens=jnp.repeat(prompts.tokens, group_size, axis=0),
    prompt_mask=jnp.repeat(prompts.mask, group_size, axis=0),
    tokens=sampled.tokens,
    completion_mask=jnp.arange(limit)[None] < completions.lengths[:, None],
    sampled_logp=sampled.sampled_logp,
    full_logp=sampled.full_logp,
    truncated=~completions.stopped,
  )


def prefill(
  params: Any,
  spec: GenerationSpec,
  prompts: Prompts,
  keys: Array,
  ring_length: int,
  share_prompts: bool = False,
) -> tuple[DecodeState, SampledTokens]:
  """Reads every prompt once and samples the first token of its completions.

  Args:
    params: policy weights, layers stacked.
    spec: the model and how to sample.
    prompts: P left-padded prompts, [P, L].
    keys: [B] typed keys, B = P G; samples of a prompt are contiguous.
    ring_length: cache entries for generated tokens, at least 1.
    share_prompts: True keeps one copy of a prompt's keys and values for its G
      samples.

  Returns:
    (the state, the first tokens as [1, B] arrays).
  """
  num_prompts, rows = prompts.tokens.shape[0], keys.shape[0]
  group_size = rows // num_prompts
  hidden, cache = decoding.prefill(
    params,
    spec.model,
    prompts.tokens,
    prompts.mask,
    group_size,
    ring_length,
    share_prompts,
    spec.act_sharding,
  )
  logits = policy.logits(params, spec.model, hidden, spec.act_sharding)[:, 0]
  lengths = jnp.sum(prompts.mask, axis=1, dtype=jnp.int32)
  state = DecodeState(
    keys=keys,
    prompt_lengths=jnp.repeat(lengths, group_size),
    num_generated=jnp.zeros(rows, jnp.int32),
    last_tokens=jnp.full(rows, spec.sampler.pad_id, jnp.int32),
    done=jnp.zeros(rows, bool),
    stopped=jnp.zeros(rows, bool),
    stop_state=jnp.zeros(rows, jnp.int32),
    cache=cache,
  )
  state, first = _sample(state, jnp.repeat(logits, group_size, axis=0), spec)
  return state, jax.tree.map(lambda x: x[None], first)


def decode(
  params: Any, spec: GenerationSpec, state: DecodeState, max_tokens: int
) -> tuple[DecodeState, SampledTokens]:
  """Appends up to `max_tokens` tokens to every sequence that has not ended.

  Args:
    params: weights from `GenerationSpec.to_decoding_params`.
    spec: the model and how to sample.
    state: sequences whose cache has room for the tokens.
    max_tokens: n, at least 0. The loop ends earlier if all sequences end.

  Returns:
    (the state, the sampled tokens as [n, B] arrays).
  """
  empty = _no_tokens((max_tokens, len(state.last_tokens)), spec.sampler)
  if max_tokens == 0:
    return state, empty

  def is_unfinished(carry):
    step, state, _ = carry
    return (step < max_tokens) & ~jnp.all(state.done)

  def append_token(carry):
    step, state, sampled = carry
    hidden, cache = decoding.decode_token(
      params,
      spec.model,
      state.last_tokens,
      state.prompt_lengths + state.num_generated - 1,
      state.cache,
      spec.act_sharding,
    )
    logits = policy.logits(params, spec.model, hidden, spec.act_sharding)[:, 0]
    state, new = _sample(state.replace(cache=cache), logits, spec)
    sampled = jax.tree.map(
      lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, step, 0),
      sampled,
      new,
    )
    return step + 1, state, sampled

  carry = jnp.int32(0), state, empty
  _, state, sampled = jax.lax.while_loop(is_unfinished, append_token, carry)
  return state, sampled


def generate(
  params: Any, spec: GenerationSpec, prompts: Prompts, keys: Array
) -> Rollout:
  """Samples completions of prompts in one compiled loop.

  The function is traceable and not jitted; `spec` is static.

  Args:
    params: policy weights, as `policy.declare_policy` declares them.
    spec: the model and how to sample.
    prompts: P left-padded prompts, [P, L].
    keys: [B] typed keys, consumed. B is a multiple of P, and samples of one
      prompt are contiguous. Row i draws token t with fold_in(keys[i], t).

  Returns:
    The rollout of B rows. A row ends with its first stop id or with the token
    that completes a text of `spec.stops`. This last token is inside the mask,
    even if it is the first of the row. A row that reaches the limit of C
    tokens without one is truncated.
  """
  limit = spec.sampler.max_new_tokens
  state, first = prefill(
    params,
    spec,
    prompts,
    keys,
    # The last token is never fed back, so the cache needs no entry for it.
    ring_length=max(limit - 1, 1),
    # The decode-attention kernel is the one that reads shared prompts fast.
    share_prompts=spec.act_sharding.decode_attention is not None,
  )
  state, others = decode(
    spec.to_decoding_params(params), spec, state, limit - 1
  )
  sampled = jax.tree.map(lambda *x: jnp.concatenate(x).T, first, others)
  return to_rollout(
    prompts, Completions(sampled, state.num_generated, state.stopped)
  )


def _sample(state, logits, spec):
  """Samples one token per unfinished row: (state, `SampledTokens` [B])."""
  config = spec.sampler
  keys = jax.vmap(jax.random.fold_in)(state.keys, state.num_generated)
  tokens, logp, full_logp = sample_tokens(logits, config, keys)
  alive = ~state.done
  tokens = jnp.where(alive, tokens, config.pad_id)
  stopped = jnp.zeros_like(alive)
  for stop_id in config.stop_ids:
    stopped |= (tokens == stop_id) & alive  # Padding may be a stop id.
  stop_state = state.stop_state
  if spec.stops is not None:
    stop_state, complete = spec.stops.read(stop_state, tokens)
    stopped |= complete & alive
  num_generated = state.num_generated + alive
  state = state.replace(
    num_generated=num_generated,
    last_tokens=tokens,
    done=state.done | stopped | (num_generated >= config.max_new_tokens),
    stopped=state.stopped | stopped,
    stop_state=stop_state,
  )
  return state, SampledTokens(
    tokens=tokens,
    sampled_logp=jnp.where(alive, logp, 0.0),
    full_logp=jnp.where(alive, full_logp, 0.0),
  )
