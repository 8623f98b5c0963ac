"""Sampling one token per row: bans, temperature, filters and log-probs.

`StopTable` finds the texts that end a sequence in addition to the stop ids. The
legend of axes is in `pure_jax.types`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pure_jax import ranges
from pure_jax.models import token_logp
from pure_jax.ranges import within

# Ids from which on a token is drawn in two stages: a group of ids, then one of
# its GROUP_SIZE ids. With fewer ids one stage is as fast.
LARGE_VOCABULARY = 2**14
GROUP_SIZE = 128


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How completions are sampled. Hashable, so it can be a static argument.

  Attributes:
    max_new_tokens: C, the length limit; a row that reaches it without a stop
      id is truncated.
    pad_id: id that fills a row after its end. It is never sampled, unless it
      is one of `stop_ids`.
    stop_ids: ids that end a row; the stop id is part of the completion.
    temperature: divides the logits, in `ranges.TEMPERATURE`; 0 takes the
      likeliest token.
    top_p: in `ranges.TOP_P`, keeps the smallest set of likeliest tokens with
      at least this probability; 1 keeps all.
    top_k: keeps this many likeliest tokens; 0 keeps all.
    min_p: in [0, 1), keeps tokens with at least this share of the likeliest
      token's probability; 0 keeps all.
    banned_ids: ids that are never sampled. The padding id is added unless it
      is a stop id. The trainer must ban the same ids.
  """

  max_new_tokens: int
  pad_id: int
  stop_ids: tuple[int, ...]
  temperature: float = 1.0
  top_p: float = 1.0
  top_k: int = 0
  min_p: float = 0.0
  banned_ids: tuple[int, ...] = ()

  def __post_init__(self):
    """Validates the settings, and bans padding that is no stop id."""
    if self.max_new_tokens < 1:
      raise ValueError(
        f"max_new_tokens must be at least 1, got {self.max_new_tokens}."
      )
    if self.temperature != 0:
      within(*ranges.TEMPERATURE, self, "temperature", "0 for greedy")
    within(*ranges.TOP_P, self, "top_p")
    within(*ranges.MIN_P, self, "min_p")
    if self.top_k < 0:
      raise ValueError(f"top_k must be at least 0 (off), got {self.top_k}.")
    padding = {self.pad_id} - {*self.stop_ids}
    banned = tuple(sorted({*self.banned_ids} | padding))
    object.__setattr__(self, "banned_ids", banned)
    object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
    never = sorted(set(self.stop_ids) & set(banned))
    if never:
      raise ValueError(
        f"Ids {never} are both stop ids and banned: no row could end on them."
      )

  @property
  def filters(self) -> bool:
    """Whether top-k, top-p or min-p removes tokens."""
    return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@struct.dataclass
class StopTable:
  """A deterministic automaton over token ids that recognises stop texts.

  A text such as ``\\boxed{4}`` can be cut into tokens in many ways. The state
  of the automaton says how much of the text has been read; one table lookup
  per token gives the next state, so the sampling loop handles no text.
  `pure_jax.host.text.stop_texts` builds the table from a tokenizer.

  Attributes:
    next_state: [V, Z] integers, 0..Z-1, the state after an id is read in a
      state. Sequences start in state 0; state Z - 1 means the text is complete.
  """

  next_state: Array

  def read(self, states: Array, tokens: Array) -> tuple[Array, Array]:
    """Reads one token [B] of every row, in the states [B] int32 before it.

    Returns:
      (states after the token, complete [B] bool, True if a text is complete
      with this token or was before).
    """
    states = jnp.asarray(self.next_state)[tokens, states].astype(jnp.int32)
    return states, states == self.next_state.shape[1] - 1


def row_keys(key: Array, row_ids: Array) -> Array:
  """Derives one key per row from the row's id.

  Args:
    key: typed PRNG key, or one for each row id; consumed.
    row_ids: [B] int32, ids of the rows in the batch or run. An id beyond the
      given keys gets the last one.

  Returns:
    [B] typed keys.
  """
  if key.ndim:
    return key[jnp.minimum(row_ids, key.shape[0] - 1)]
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row_ids)


def filter_logits(scores: Array, config: SamplingConfig) -> Array:
  """Computes the logits of the sampled distribution.

  Temperature is applied first, then top-k, then top-p to the tokens that top-k
  keeps (nucleus sampling, https://arxiv.org/abs/1904.09751), then min-p to the
  whole distribution (https://arxiv.org/abs/2407.01082). Tokens tied with the
  least likely kept one are kept too.

  >>> import jax.numpy as jnp
  >>> config = SamplingConfig(1, 0, (), temperature=0.5, top_k=2)
  >>> filter_logits(jnp.array([2.0, 1.0, 0.0]), config).tolist()
  [4.0, 2.0, -inf]

  Args:
    scores: [..., V] float32, logits; -inf for banned ids.
    config: temperature, above 0, and filters.

  Returns:
    [..., V] float32, scores / temperature for kept tokens, else -inf. Without
    top-k and top-p no sort is compiled.

  Raises:
    ValueError: if the temperature is 0.
  """
  within(*ranges.TEMPERATURE, config, "temperature")
  scores = scores / config.temperature
  size = scores.shape[-1]
  has_top_k = 0 < config.top_k < size
  keep = jnp.ones((), bool)
  if has_top_k or config.top_p < 1.0:
    ranked = jax.lax.top_k(scores, config.top_k if has_top_k else size)[0]
    if config.top_p < 1.0:
      probability = jax.nn.softmax(ranked, axis=-1)
      before = jnp.cumsum(probability, axis=-1) - probability
      ranked = jnp.where(before < config.top_p, ranked, jnp.inf)
    keep = scores >= jnp.min(ranked, axis=-1, keepdims=True)
  if config.min_p > 0:
    top = jnp.max(scores, axis=-1, keepdims=True)
    keep = keep & (scores >= top + math.log(config.min_p))
  if not config.filters:
    return scores
  return jnp.where(keep, scores, -jnp.inf)


def sample_tokens(
  scores: Array, config: SamplingConfig, keys: Array
) -> tuple[Array, Array, Array]:
  """Samples one token per row with the Gumbel-max trick.

  argmax_i (s_i + g_i) with independent standard Gumbel g_i has probability
  softmax(s)_i; an id at -inf is never drawn. A large vocabulary is drawn from
  in two stages, see `_draw`.

  Args:
    scores: [B, V] float32, logits of the head.
    config: bans, temperature and filters.
    keys: [B] typed keys, one per row; consumed.

  Returns:
    (tokens [B] int32; logp [B] float32 nats under the sampled distribution,
    after bans, temperature and filters; full_logp [B] float32 nats under bans
    and temperature only, which the trainer computes; equal to logp without
    filters). At temperature 0 the token is certain: logp is 0, and full_logp
    is that of temperature 1. Both are NaN if the scores hold NaN.
  """
  scores = token_logp.ban_tokens(scores, config.banned_ids)
  if config.temperature == 0:
    tokens = _first_of_largest(scores)
    full = _logp_of(scores, tokens)
    return tokens, jnp.where(jnp.isnan(full), jnp.nan, 0.0), full
  filtered = filter_logits(scores, config)
  tokens, normalizer = _draw(filtered, keys)
  logp = _scores_of(filtered, tokens) - normalizer
  if not config.filters:
    return tokens, logp, logp
  return tokens, logp, _logp_of(scores / config.temperature, tokens)


def _draw(scores, keys):
  """Draws ids [B] from softmax(scores), and computes its log-normalizer [B].

  Of V ids, a multiple of G = GROUP_SIZE, group c has the ids c, c + V / G,
  c + 2 V / G, .... The first stage draws a group with the logits
  log sum_i exp(s_i), the second an id of this group. A row takes V / G + G
  random numbers in place of V, which would be most of the work: on two CPU
  cores, 64 rows of 151,936 ids take 18 ms, and 152 ms in one stage (jaxlib
  0.10.2, docs/speed.md).

  The ids of a group are V / G apart. So the sums of all groups add G contiguous
  slices of V / G numbers, and logits that are split over the vocabulary need
  not move.
  """
  B, V = scores.shape
  if V < LARGE_VOCABULARY or V % GROUP_SIZE:
    tokens = _first_of_largest(scores + _gumbel(keys, V))
    return tokens, jax.nn.logsumexp(scores, axis=-1)
  members = scores.reshape(B, GROUP_SIZE, V // GROUP_SIZE)
  group_scores = jax.nn.logsumexp(members, axis=1)
  stages = jax.vmap(jax.random.split)(keys)
  noise = _gumbel(stages[:, 0], V // GROUP_SIZE)
  group = _first_of_largest(group_scores + noise)
  members = jnp.take_along_axis(members, group[:, None, None], axis=2)[..., 0]
  noise = _gumbel(stages[:, 1], GROUP_SIZE)
  member = _first_of_largest(members + noise)
  tokens = member * (V // GROUP_SIZE) + group
  return tokens, jax.nn.logsumexp(group_scores, axis=-1)


def _gumbel(keys, size):
  """Standard Gumbel noise [B, size], from one key per row."""
  return jax.vmap(lambda key: jax.random.gumbel(key, (size,)))(keys)


def _first_of_largest(scores):
  """`argmax` over the last axis; returns an id even if the scores are NaN.

  A maximum and a minimum over a materialised array take XLA's CPU backend 11
  ms for 32 rows of 49,152 random numbers. `argmax`, a reduction of pairs fused
  with the computation of the scores, takes 35 ms.
  """
  scores = jax.lax.optimization_barrier(scores)
  largest = jnp.max(scores, axis=-1, keepdims=True)
  ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
  last = scores.shape[-1] - 1
  return jnp.min(jnp.where(scores == largest, ids, last), axis=-1)


def _logp_of(scores, tokens):
  """Log-probs of one id per row."""
  return _scores_of(scores, tokens) - jax.nn.logsumexp(scores, axis=-1)


def _scores_of(scores, tokens):
  """The score of one id per row."""
  return jnp.take_along_axis(scores, tokens[:, None], axis=-1)[:, 0]
