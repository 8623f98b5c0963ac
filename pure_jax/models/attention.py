"""Attention in chunks of queries: long rows without all scores at once.

Plain attention stores a score for every query and key: 28 heads of 9,216 tokens
take 9.5 GB in float32 for one row of one layer. Attention in chunks stores the
scores of a few hundred queries, and the backward pass computes the scores of a
chunk again.

The legend of axes is in `pure_jax.types`. M is the number of keys that a loop
over chunks reads.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

# No query attends to a later key. Each of these groups of chunks has a loop of
# its own over the keys up to the end of the group, so (1 + 1/4) / 2 of all
# scores are computed. More groups save little and take longer to compile.
CAUSAL_GROUPS = 4

Attend = Callable[[Array, Array, Array, Array], Array]


def attend_in_chunks(
  attend: Attend,
  q_BTNH: Array,
  k_BKTH: Array,
  v_BKTH: Array,
  mask_BTT: Array,
  chunk: int,
  token_shards: int = 1,
) -> Array:
  """Computes causal attention for a chunk of queries at a time.

  The result is ``attend(q, k, v, mask)`` up to the order of sums, because the
  softmax of a query does not depend on other queries. Keys after a query are
  left out, so the mask must be causal.

  Args:
    attend: (q, k, v, mask) -> [B, T, N, H], a function that treats queries
      independently.
    q_BTNH: [B, T, N, H] float, rotated queries.
    k_BKTH: [B, K, T, H] float, rotated keys.
    v_BKTH: [B, K, T, H] float, values.
    mask_BTT: [B, T, T] bool, queries by keys, True keeps; causal.
    chunk: most queries at a time, at least 1; T or more takes all at once.
    token_shards: shards of T over devices; divides T. With more than one, each
      device keeps its share of every chunk, and no key is left out.

  Returns:
    [B, T, N, H] in the dtype of `attend`. The residuals of its gradient are q,
    k, v and the mask, no scores.
  """
  T = q_BTNH.shape[1]
  if chunk >= T:
    return attend(q_BTNH, k_BKTH, v_BKTH, mask_BTT)
  if token_shards > 1:
    return _attend_spread(
      attend, q_BTNH, k_BKTH, v_BKTH, mask_BTT, chunk, token_shards
    )
  chunks = -(-T // chunk)
  chunk = -(-T // chunks)  # Even chunks: a short last one would be padded.
  group = -(-chunks // CAUSAL_GROUPS) * chunk
  outs = []
  for first in range(0, T, group):
    last = min(first + group, T)
    q = q_BTNH[:, first:last]
    k, v = k_BKTH[:, :, :last], v_BKTH[:, :, :last]
    mask = mask_BTT[:, first:last, :last]
    outs.append(_attend_group(attend, q, k, v, mask, chunk))
  return jnp.concatenate(outs, axis=1)


def _attend_group(attend, q_BTNH, k_BKMH, v_BKMH, mask_BTM, chunk):
  """One loop over chunks of neighbouring queries, all with the same keys."""
  T = q_BTNH.shape[1]
  count = -(-T // chunk)

  def split(x):
    """[B, T, ...] -> [count, B, chunk, ...], padded at the end."""
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, count * chunk - T)
    x = jnp.pad(x, padding)
    return jnp.swapaxes(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 0, 1)

  out = _map_chunks(attend, split(q_BTNH), k_BKMH, v_BKMH, split(mask_BTM))
  out = jnp.swapaxes(out, 0, 1)
  return out.reshape(out.shape[0], count * chunk, *out.shape[3:])[:, :T]


def _attend_spread(attend, q_BTNH, k_BKMH, v_BKMH, mask_BTM, chunk, shards):
  """One loop over chunks of strided queries, some of each shard's."""
  T = q_BTNH.shape[1]
  fewest = -(-T // chunk)
  whole = [n for n in range(1, T + 1) if T % n == 0 == T // n % shards]
  count = next((n for n in whole if n >= fewest), whole[-1])

  def split(x):
    """[B, T, ...] -> [count, B, T / count, ...]."""
    x = x.reshape(x.shape[0], T // count, count, *x.shape[2:])
    return jnp.moveaxis(x, 2, 0)

  out = _map_chunks(attend, split(q_BTNH), k_BKMH, v_BKMH, split(mask_BTM))
  return jnp.moveaxis(out, 0, 2).reshape(q_BTNH.shape)


def _map_chunks(attend, q, k_BKMH, v_BKMH, mask):
  """Runs chunk after chunk; the gradient computes the scores again."""

  @jax.checkpoint
  def attend_chunk(part):
    return attend(part[0], k_BKMH, v_BKMH, part[1])

  return jax.lax.map(attend_chunk, (q, mask))
