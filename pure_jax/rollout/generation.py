"""Completions: prompts are read once, then a loop appends token after token.

The loop carries one explicit frozen state and stops as soon as every row has
ended. Token t of row i is drawn with `fold_in(keys[i], t)` from row i's own
logits: whatever else is in the batch, row i gets the same tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pure_jax.models import decoding, policy
from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.config import ModelConfig
from pure_jax.models.kv_cache import KVCache
from pure_jax.rollout.sampling import SamplingConfig, sample_tokens
from pure_jax.rollout.stopping import StopTable
from pure_jax.types import Prompts, Rollout

Prepare = Callable[[Any, ModelConfig], Any]


def unprepared(params: Any, model: ModelConfig) -> Any:
  """Weights as they are.

  Args:
    params: policy weights.
    model: the architecture.

  Returns:
    The same weights.
  """
  del model
  return params


@struct.dataclass
class Rows:
  """B rows that are being written.

  Attributes:
    keys: [B] typed keys, one per row.
    prompt_lengths: [B] int32, tokens of the prompt.
    ages: [B] int32, 0..C, tokens drawn so far.
    last: [B] int32, the token drawn last, which no cache holds yet.
    done: [B] bool, True where the row has ended.
    stopped: [B] bool, True where it ended by itself, not at the limit.
    reading: [B] int32, what a `StopTable` has read so far.
    cache: of the prompts and of all tokens but the last.
  """

  keys: Array
  prompt_lengths: Array
  ages: Array
  last: Array
  done: Array
  stopped: Array
  reading: Array
  cache: KVCache


@struct.dataclass
class Drawn:
  """Tokens that were drawn; leading axes as its user says.

  Attributes:
    tokens: [...] int32, padding where nothing was drawn.
    sampled_logp: [...] float32, nats, 0 where nothing was drawn.
    full_logp: [...] float32, likewise, see `Rollout`.
  """

  tokens: Array
  sampled_logp: Array
  full_logp: Array


def begin(
  params: Any,
  model: ModelConfig,
  config: SamplingConfig,
  prompts: Prompts,
  keys: Array,
  slots: int,
  shared: bool = False,
  stops: StopTable | None = None,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[Rows, Drawn]:
  """Reads prompts, each once, and draws the first token of every row.

  Args:
    params: policy weights, layers stacked.
    model: the architecture.
    config: how to draw.
    prompts: P left-padded prompts, [P, L].
    keys: [B] typed keys, a multiple of P; rows of a prompt are contiguous.
    slots: of the cache's ring, at least 1.
    shared: True keeps one copy of each prompt's keys and values.
    stops: texts that end a row, or None.
    act_sharding: of activations and cache, without split tokens.

  Returns:
    (the rows, their first tokens [1, B]).
  """
  count, rows = prompts.tokens.shape[0], keys.shape[0]
  samples = rows // count
  hidden, cache = decoding.prefill(
    params,
    model,
    prompts.tokens,
    prompts.mask,
    samples,
    slots,
    shared,
    act_sharding,
  )
  scores = policy.logits(params, model, hidden, act_sharding)[:, 0]
  lengths = jnp.sum(prompts.mask, axis=1, dtype=jnp.int32)
  state = Rows(
    keys=keys,
    prompt_lengths=jnp.repeat(lengths, samples),
    ages=jnp.zeros(rows, jnp.int32),
    last=jnp.full(rows, config.pad_id, jnp.int32),
    done=jnp.zeros(rows, bool),
    stopped=jnp.zeros(rows, bool),
    reading=jnp.zeros(rows, jnp.int32),
    cache=cache,
  )
  state, drawn = _draw(
    state, jnp.repeat(scores, samples, axis=0), config, stops
  )
  return state, jax.tree.map(lambda x: x[None], drawn)


def decode(
  params: Any,
  model: ModelConfig,
  config: SamplingConfig,
  state: Rows,
  steps: int,
  stops: StopTable | None = None,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[Rows, Drawn]:
  """Appends up to so many tokens to every row that has not ended.

  Args:
    params: policy weights, see `decoding.decode_token`.
    model: the architecture.
    config: how to draw.
    state: rows, for whose tokens the cache has room.
    steps: n, at least 0; fewer are made where every row ends before.
    stops: texts that end a row, or None.
    act_sharding: of activations and cache, without split tokens.

  Returns:
    (the rows, what was drawn [n, B]).
  """
  rows = state.last.shape[0]
  empty = Drawn(
    tokens=jnp.full((steps, rows), config.pad_id, jnp.int32),
    sampled_logp=jnp.zeros((steps, rows), jnp.float32),
    full_logp=jnp.zeros((steps, rows), jnp.float32),
  )

  if steps == 0:
    return state, empty

  def unfinished(carry):
    step, state, _ = carry
    return (step < steps) & ~jnp.all(state.done)

  def append(carry):
    step, state, drawn = carry
    hidden, cache = decoding.decode_token(
      params,
      model,
      state.last,
      state.prompt_lengths + state.ages - 1,
      state.cache,
      act_sharding,
    )
    scores = policy.logits(params, model, hidden, act_sharding)[:, 0]
    state, new = _draw(state.replace(cache=cache), scores, config, stops)
    return (
      step + 1,
      state,
      jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, step, 0),
        drawn,
        new,
      ),
    )

  start = jnp.int32(0), state, empty
  _, state, drawn = jax.lax.while_loop(unfinished, append, start)
  return state, drawn


def generate(
  params: Any,
  model: ModelConfig,
  config: SamplingConfig,
  prompts: Prompts,
  keys: Array,
  act_sharding: ActivationSharding = LOCAL,
  *,
  stops: StopTable | None = None,
  prepare: Prepare = unprepared,
) -> Rollout:
  """Samples completions of prompts.

  Traceable, not jitted: jit it with `model` and `config` static.

  Args:
    params: policy weights, as `policy.declare_policy` declares them.
    model: the architecture.
    config: how to draw; C = config.max_new_tokens.
    prompts: P left-padded prompts, [P, L].
    keys: [B] typed keys, B / P for the samples of each prompt, contiguous;
      consumed. Token t of row i uses fold_in(keys[i], t).
    act_sharding: of activations and cache; without split tokens.
    stops: texts that end a row, or None.
    prepare: weights to weights that decode faster, see
      `columns.decoding_params`.

  Returns:
    The rollout of B rows. A row ends with its first stop id, which is inside
    the mask, even as its first token, or with the token that completes a
    text of `stops`; a row without one within C tokens is truncated.
  """
  new, samples = config.max_new_tokens, keys.shape[0] // prompts.tokens.shape[0]
  # The last token drawn is never fed back, so it needs no slot.
  state, first = begin(
    params,
    model,
    config,
    prompts,
    keys,
    max(new - 1, 1),
    # Shared prompts are what that function is for.
    act_sharding.decode_attention is not None,
    stops,
    act_sharding,
  )
  state, others = decode(
    prepare(params, model),
    model,
    config,
    state,
    new - 1,
    stops,
    act_sharding,
  )
  drawn = jax.tree.map(lambda *x: jnp.concatenate(x).T, first, others)
  slot = jnp.arange(new)
  return Rollout(
    prompt_tokens=jnp.repeat(prompts.tokens, samples, axis=0),
    prompt_mask=jnp.repeat(prompts.mask, samples, axis=0),
    tokens=drawn.tokens,
    completion_mask=slot[None] < state.ages[:, None],
    sampled_logp=drawn.sampled_logp,
    full_logp=drawn.full_logp,
    truncated=~state.stopped,
  )


def _draw(state, scores, config, stops):
  """Draws a token for each unfinished row: (rows, `Drawn` of [B] arrays)."""
  keys = jax.vmap(jax.random.fold_in)(state.keys, state.ages)
  tokens, logp, full_logp = sample_tokens(scores, config, keys)
  alive = ~state.done
  tokens = jnp.where(alive, tokens, config.pad_id)
  stopped = jnp.zeros_like(alive)
  for stop_id in config.stop_ids:
    stopped |= tokens == stop_id
  reading = state.reading
  if stops is not None:
    reading, complete = stops.read(reading, tokens)
    stopped |= complete & alive
  ages = state.ages + alive
  state = state.replace(
    ages=ages,
    last=tokens,
    done=state.done | stopped | (ages >= config.max_new_tokens),
    stopped=state.stopped | stopped,
    reading=reading,
  )
  return state, Drawn(
    tokens=tokens,
    sampled_logp=jnp.where(alive, logp, 0.0),
    full_logp=jnp.where(alive, full_logp, 0.0),
  )
