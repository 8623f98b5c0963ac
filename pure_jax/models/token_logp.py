"""Log-probs of given tokens, from all logits at once or from chunks of them.

Over a vocabulary of 152,000 ids, 8 rows of 8,192 tokens have 40 GB of float32
logits, and their gradient takes as much again. `chunked_logp` computes the
logits of a few tokens of every row, reduces them to log-probs and entropies,
and discards them; the backward pass computes them again. Values and gradients
are those of `logp_and_entropy` on all logits.

Chunks are cut along the rows, so rows that are split over devices stay where
they are. The vocabulary may be split too: only sums and maxima go over it.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pure_jax import masked, ranges
from pure_jax.models.activation_sharding import (
  LOCAL,
  LOGITS,
  ActivationSharding,
)
from pure_jax.ranges import within


def ban_tokens(scores: Array, banned_ids: Sequence[int]) -> Array:
  """Gives ids no probability.

  Sampler and trainer must ban the same ids. If only the sampler banned the
  padding, every ratio at iteration 0 would be off by its probability.

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
  """Computes log-probs of given ids and the entropy of their distribution.

  log p_i = s_i - log sum_j exp s_j;  entropy = -sum_j p_j log p_j.

  Args:
    scores: [..., V] float32, logits; -inf gives an id no probability.
    tokens: [...] int32, ids in 0..V-1.

  Returns:
    (logp, entropy), each [...] float32 in nats; logp is -inf for an id
    without probability. Differentiable, with no NaN from -inf. Finite logits
    must be less than 3e38 apart, so that float32 holds their differences.
  """
  normalizer = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
  possible = scores > -jnp.inf
  logp = jnp.where(possible, scores, 0.0) - normalizer
  entropy = -jnp.sum(jnp.where(possible, jnp.exp(logp) * logp, 0.0), axis=-1)
  chosen = jnp.take_along_axis(scores - normalizer, tokens[..., None], axis=-1)
  return chosen[..., 0], entropy


@dataclasses.dataclass(frozen=True)
class Readout:
  """Turns hidden states into a distribution over the vocabulary.

  Attributes:
    tied: True for a table [V, D], an embedding; False for a head [D, V].
    temperature: divides the logits, in `ranges.TEMPERATURE`.
    banned_ids: ids without probability, see `ban_tokens`.
    chunk: tokens of a row whose logits exist at one time, at least 1; rounded
      up to a multiple of the layout's token shards. None computes all at once.
    act_sharding: sharding of the logits.
  """

  tied: bool
  temperature: float
  banned_ids: tuple[int, ...]
  chunk: int | None
  act_sharding: ActivationSharding = LOCAL

  def __post_init__(self):
    """Validates the temperature."""
    within(*ranges.TEMPERATURE, self, "temperature")

  def scores(self, table: Array, hidden_BcD: Array) -> Array:
    """Logits [B, c, V] float32; products in the dtype of the hidden states."""
    scores = jnp.einsum(
      "BTD,VD->BTV" if self.tied else "BTD,DV->BTV",
      hidden_BcD,
      table,
      preferred_element_type=jnp.float32,
    )
    scores = self.act_sharding.constrain(scores, LOGITS)
    return ban_tokens(scores / self.temperature, self.banned_ids)


def chunked_logp(
  readout: Readout, table: Array, hidden: Array, tokens: Array, mask: Array
) -> tuple[Array, Array]:
  """Computes log-probs and entropies, a chunk of every row at a time.

  Chunks after the last kept token of all rows are skipped, so completions that
  end early take less time.

  With logits s = table · hidden / temperature, p = softmax(s) and cotangents
  a of log p_y and b of the entropy H, the gradient by s_j in the backward pass
  is a (1[j = y] - p_j) - b p_j (log p_j + H). It is rounded to the dtype of the
  hidden states before it is multiplied; sums over tokens are float32.

  Args:
    readout: turns hidden states into a distribution.
    table: [V, D] or [D, V] in the dtype of the hidden states. If it is split
      over devices along D, gather it before: every chunk would gather it.
    hidden: [B, C, D] float, the hidden state that predicts each token.
    tokens: [B, C] int32, ids in 0..V-1.
    mask: [B, C] bool, True keeps.

  Returns:
    (logp, entropy), both [B, C] float32 in nats; 0 with zero gradient where
    masked, even if hidden states are NaN there. B and C may be 0.
    Differentiable once, in table and hidden, in reverse mode.
  """
  if not tokens.size:
    nothing = jnp.zeros(tokens.shape, jnp.float32)
    return nothing, nothing
  C = tokens.shape[1]
  chunks = -(-C // readout.chunk)
  shards = readout.act_sharding.token_shards
  even = -(-C // (chunks * shards)) * shards
  readout = dataclasses.replace(readout, chunk=even)
  padding = chunks * readout.chunk - C

  def pad(x):
    width = [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, width) if padding else x

  logp, entropy = _chunked(readout, table, pad(hidden), pad(tokens), pad(mask))
  logp, entropy = logp[:, :C], entropy[:, :C]
  return jnp.where(mask, logp, 0.0), jnp.where(mask, entropy, 0.0)


def _read_chunk(x, index, chunk):
  """Columns of one chunk, [B, c, ...]."""
  return jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1)


def _read_states(hidden, mask, index, chunk):
  """Hidden states of one chunk [B, c, D], 0 where masked."""
  kept = _read_chunk(mask, index, chunk)[..., None]
  return masked.zero_masked(_read_chunk(hidden, index, chunk), kept)


def _write_chunk(x, new, index, chunk):
  """The array with one chunk replaced."""
  return jax.lax.dynamic_update_slice_in_dim(x, new, index * chunk, axis=1)


def _used_chunks(mask, chunk):
  """Number of chunks up to the last kept token of any row."""
  slot = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
  return jnp.max(jnp.where(mask, slot // chunk + 1, 0))


def _for_used_chunks(mask, chunk, body, carry):
  """Loops over the used chunks: body is (index, carry) -> carry.

  The condition also bounds the index by the number of chunks, so that the trip
  count can be read from the program (`pure_jax.runs.planning.hlo.costs`).
  """
  used, chunks = _used_chunks(mask, chunk), mask.shape[1] // chunk

  def unfinished(state):
    return (state[0] < used) & (state[0] < chunks)

  def step(state):
    index, carry = state
    return index + 1, body(index, carry)

  return jax.lax.while_loop(unfinished, step, (jnp.int32(0), carry))[1]


def _is_token(scores, tokens):
  """[B, c, V] bool, True at the id of each token."""
  ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
  return ids == tokens[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(readout, table, hidden, tokens, mask):
  """`chunked_logp` for a number of tokens that the chunk divides."""
  return _chunked_forward(readout, table, hidden, tokens, mask)[0]


def _chunked_forward(readout, table, hidden, tokens, mask):
  """Values and residuals, none of which is an array over the vocabulary."""
  chunk = readout.chunk

  def body(index, outputs):
    scores = readout.scores(table, _read_states(hidden, mask, index, chunk))
    is_token = _is_token(scores, _read_chunk(tokens, index, chunk))
    normalizer = jax.nn.logsumexp(scores, axis=-1)
    possible = scores > -jnp.inf
    logp = jnp.where(possible, scores, 0.0) - normalizer[..., None]
    entropy = -jnp.sum(jnp.where(possible, jnp.exp(logp) * logp, 0.0), axis=-1)
    chosen = jnp.sum(jnp.where(is_token, scores, 0.0), axis=-1) - normalizer
    new = chosen, entropy, normalizer
    return tuple(
      _write_chunk(x, y, index, chunk)
      for x, y in zip(outputs, new, strict=True)
    )

  zeros = jnp.zeros(tokens.shape, jnp.float32)
  logp, entropy, normalizer = _for_used_chunks(mask, chunk, body, (zeros,) * 3)
  residuals = table, hidden, tokens, mask, entropy, normalizer
  return (logp, entropy), residuals


def _chunked_backward(readout, residuals, cotangents):
  """Gradients by table and hidden states, with logits computed again."""
  table, hidden, tokens, mask, entropy, normalizer = residuals
  chunk, dtype = readout.chunk, hidden.dtype
  back = "BTV,VD->BTD" if readout.tied else "BTV,DV->BTD"
  across = "BTV,BTD->VD" if readout.tied else "BTV,BTD->DV"

  def body(index, sums):
    by_table, by_hidden = sums
    of_chunk = functools.partial(_read_chunk, index=index, chunk=chunk)
    hidden_BcD = _read_states(hidden, mask, index, chunk)
    by_logp, by_entropy = (
      jnp.where(of_chunk(mask), of_chunk(x), 0.0)[..., None] for x in cotangents
    )
    scores = readout.scores(table, hidden_BcD)
    is_token = _is_token(scores, of_chunk(tokens))
    possible = scores > -jnp.inf
    logp = jnp.where(possible, scores, 0.0) - of_chunk(normalizer)[..., None]
    above = logp + of_chunk(entropy)[..., None]
    by_scores = jnp.where(is_token, by_logp, 0.0) - jnp.exp(logp) * (
      by_logp + by_entropy * above
    )
    by_scores = jnp.where(possible, by_scores / readout.temperature, 0.0)
    by_scores = by_scores.astype(dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    of_hidden = product(back, by_scores, table).astype(dtype)
    by_hidden = _write_chunk(by_hidden, of_hidden, index, chunk)
    return by_table + product(across, by_scores, hidden_BcD), by_hidden

  zeros = jnp.zeros(table.shape, jnp.float32), jnp.zeros_like(hidden)
  by_table, by_hidden = _for_used_chunks(mask, chunk, body, zeros)
  return by_table.astype(table.dtype), by_hidden, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
