"""Sampling completions: prefill, then one compiled loop with a KV cache.

The loop carries one explicit frozen state and stops as soon as every row has
met a stop id. Token t of row i is drawn with `fold_in(keys[i], t)` from row
i's own logits: whatever else is in the batch, row i gets the same tokens.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pure_jax.models import policy, token_logp
from pure_jax.models.config import ModelConfig
from pure_jax.models.placement import LOCAL, Placement
from pure_jax.models.transformer import (
  KVCache,
  forward,
  positions_from_mask,
)
from pure_jax.types import Prompts, Rollout


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How completions are drawn. Hashable, for a static argument.

  Attributes:
    max_new_tokens: C, length limit; a row without a stop id by then is
      truncated.
    pad_id: id that fills a row after its end; never sampled.
    stop_ids: ids that end a row; the stop id is part of the completion.
    temperature: divides the logits; 0 takes the likeliest token.
    top_p: in (0, 1], keeps the smallest set of likeliest tokens with at least
      this probability; 1 keeps all.
    top_k: keeps this many likeliest tokens; 0 keeps all.
    banned_ids: ids never sampled. The padding id is always added, so what
      the record holds is what the trainer must ban too.
  """

  max_new_tokens: int
  pad_id: int
  stop_ids: tuple[int, ...]
  temperature: float = 1.0
  top_p: float = 1.0
  top_k: int = 0
  banned_ids: tuple[int, ...] = ()

  def __post_init__(self):
    """Refuses settings that cannot sample; adds padding to the bans."""
    if self.max_new_tokens < 1:
      raise ValueError(
        f"max_new_tokens must be at least 1, got {self.max_new_tokens}."
      )
    if not self.temperature >= 0:
      raise ValueError(
        "temperature must be positive, or 0 for greedy, got "
        f"{self.temperature}."
      )
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p must be in (0, 1], got {self.top_p}.")
    if self.top_k < 0:
      raise ValueError(f"top_k must be at least 0 (off), got {self.top_k}.")
    banned = tuple(sorted({*self.banned_ids, self.pad_id}))
    object.__setattr__(self, "banned_ids", banned)
    object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
    never = sorted(set(self.stop_ids) & set(banned))
    if never:
      raise ValueError(
        f"Ids {never} are both stop ids and banned (padding is always "
        "banned): no row could end on them."
      )


@struct.dataclass
class SamplingState:
  """What the loop carries. Token buffers are time-major: a step is a row.

  Attributes:
    step: [] int32, 1..C, tokens drawn so far.
    tokens: [C, B] int32, drawn ids, padding where nothing was drawn.
    logp: [C, B] float32, nats, under the sampled distribution.
    mask: [C, B] bool, True on drawn tokens.
    done: [B] bool, True where the row has met a stop id.
    cache: keys and values of the prompt and of all tokens but the last.
  """

  step: Array
  tokens: Array
  logp: Array
  mask: Array
  done: Array
  cache: KVCache


def row_keys(key: Array, row_ids: Array) -> Array:
  """One key per row, from the row's number alone.

  Args:
    key: typed PRNG key; consumed.
    row_ids: [B] int32, numbers of the rows in the whole run or batch.

  Returns:
    [B] typed keys.
  """
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row_ids)


def filter_logits(
  scores: Array, temperature: float, top_k: int, top_p: float
) -> Array:
  """Logits of the distribution that is sampled.

  Temperature first, then top-k, then top-p of what top-k kept (nucleus
  sampling, https://arxiv.org/abs/1904.09751). Tokens tied with the least
  likely one kept are kept too.

  >>> import jax.numpy as jnp
  >>> filter_logits(jnp.array([2.0, 1.0, 0.0]), 0.5, 2, 1.0).tolist()
  [4.0, 2.0, -inf]

  Args:
    scores: [..., V] float32, logits; -inf for banned ids.
    temperature: > 0.
    top_k: tokens kept; 0, or V and more, keeps all.
    top_p: in (0, 1], probability kept; 1 keeps all.

  Returns:
    [..., V] float32, scores / temperature where kept and -inf elsewhere. With
    both filters off no sort is compiled.

  Raises:
    ValueError: if the temperature is not positive.
  """
  if temperature <= 0:
    raise ValueError(f"temperature must be positive, got {temperature}.")
  scores = scores / temperature
  size = scores.shape[-1]
  some = 0 < top_k < size
  if not some and top_p == 1.0:
    return scores
  ranked = jax.lax.top_k(scores, top_k if some else size)[0]
  if top_p < 1.0:
    probability = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    ranked = jnp.where(before < top_p, ranked, jnp.inf)
  least = jnp.min(ranked, axis=-1, keepdims=True)
  return jnp.where(scores >= least, scores, -jnp.inf)


def sample_tokens(
  scores: Array, config: SamplingConfig, keys: Array
) -> tuple[Array, Array]:
  """Draws one token per row, by the Gumbel-max trick.

  argmax_i (s_i + g_i) with independent standard Gumbel g_i has probability
  softmax(s)_i; an id at -inf is never drawn.

  Args:
    scores: [B, V] float32, logits as the head gives them.
    config: bans, temperature and filters.
    keys: [B] typed keys, one per row; consumed.

  Returns:
    (tokens [B] int32, logp [B] float32 nats under the distribution sampled,
    after bans, temperature, top-k and top-p). At temperature 0 that
    distribution is certain: the log-prob is 0. It is NaN where the scores
    hold NaN, at every temperature.
  """
  scores = token_logp.ban_tokens(scores, config.banned_ids)
  if config.temperature == 0:
    tokens = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    broken = jnp.isnan(scores).any(axis=-1)
    return tokens, jnp.where(broken, jnp.nan, 0.0).astype(jnp.float32)
  scores = filter_logits(scores, config.temperature, config.top_k, config.top_p)
  noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[-1:]))(keys)
  tokens = jnp.argmax(scores + noise, axis=-1).astype(jnp.int32)
  chosen = jnp.take_along_axis(scores, tokens[:, None], axis=-1)[:, 0]
  return tokens, chosen - jax.nn.logsumexp(scores, axis=-1)


def generate(
  params: Any,
  model: ModelConfig,
  config: SamplingConfig,
  prompts: Prompts,
  keys: Array,
  placement: Placement = LOCAL,
) -> Rollout:
  """Samples one completion per prompt row.

  Traceable, not jitted: jit it with `model` and `config` static.

  Args:
    params: policy weights, as `policy.declare_policy` declares them.
    model: the architecture.
    config: how to draw; C = config.max_new_tokens.
    prompts: B left-padded prompts, [B, L].
    keys: [B] typed keys, one per row; consumed. Token t of row i uses
      fold_in(keys[i], t).
    placement: of activations and cache; without split tokens.

  Returns:
    The rollout. A row ends with its first stop id, which is inside the mask,
    even as its first token; a row without one within C tokens is truncated.
  """
  lengths = jnp.sum(prompts.mask, axis=1, dtype=jnp.int32)

  def decode(state):
    last = state.tokens[state.step - 1]
    hidden, cache = forward(
      params,
      model,
      last[:, None],
      (lengths + state.step - 1)[:, None],
      (~state.done).astype(jnp.int32)[:, None],
      state.cache,
      placement,
    )
    scores = policy.logits(params, model, hidden, placement)[:, 0]
    return _draw(state.replace(cache=cache), scores, config, keys)

  def unfinished(state):
    return (state.step < config.max_new_tokens) & ~jnp.all(state.done)

  state = _prefill(params, model, config, prompts, keys, placement)
  state = jax.lax.while_loop(unfinished, decode, state)
  return Rollout(
    prompt_tokens=prompts.tokens,
    prompt_mask=prompts.mask,
    tokens=state.tokens.T,
    completion_mask=state.mask.T,
    sampled_logp=state.logp.T,
    truncated=~state.done,
  )


def _prefill(params, model, config, prompts, keys, placement):
  """Runs the prompts through the model and draws the first tokens."""
  rows, length = prompts.tokens.shape
  new = config.max_new_tokens
  # The last token drawn is never fed back, so it needs no slot.
  hidden, cache = forward(
    params,
    model,
    prompts.tokens,
    positions_from_mask(prompts.mask),
    prompts.mask.astype(jnp.int32),
    placement=placement,
    cache_slots=length + new - 1,
  )
  state = SamplingState(
    step=jnp.int32(0),
    tokens=jnp.full((new, rows), config.pad_id, jnp.int32),
    logp=jnp.zeros((new, rows), jnp.float32),
    mask=jnp.zeros((new, rows), bool),
    done=jnp.zeros(rows, bool),
    cache=cache,
  )
  scores = policy.logits(params, model, hidden[:, -1:], placement)[:, 0]
  return _draw(state, scores, config, keys)


def _draw(state, scores, config, keys):
  """Draws a token for each unfinished row and writes it down."""
  step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.step)
  tokens, logp = sample_tokens(scores, config, step_keys)
  alive = ~state.done
  tokens = jnp.where(alive, tokens, config.pad_id)
  stopped = jnp.zeros_like(alive)
  for stop_id in config.stop_ids:
    stopped |= tokens == stop_id

  def write(buffer, row):
    return jax.lax.dynamic_update_index_in_dim(buffer, row, state.step, 0)

  return state.replace(
    step=state.step + 1,
    tokens=write(state.tokens, tokens),
    logp=write(state.logp, jnp.where(alive, logp, 0.0)),
    mask=write(state.mask, alive),
    done=state.done | stopped,
  )
