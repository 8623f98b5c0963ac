"""The kernels of `linear_logp`, over pairs of tiles of tokens and of ids.

Letters: T tokens, D width, V vocabulary, t tokens and v ids of a tile.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# Start of the running maximum: finite, since -inf less itself is NaN.
LOWEST = -1e30

# Most tokens and ids of a tile, and most bytes: of a tile of hidden states in
# float32, and of a tile of the table in its own dtype. Each tile of tokens
# reads the whole table, so tiles of tokens are large. With buffers and sums a
# kernel holds about six arrays of these sizes.
TILE_TOKENS, TILE_IDS = 512, 512
TOKEN_BYTES, ID_BYTES = 2**23, 2**22
VMEM_BYTES = 60 * 2**20
SUBLANES, LANES = 16, 128


@dataclasses.dataclass(frozen=True)
class Head:
  """The static arguments of a head.

  Attributes:
    tied: True for a table [V, D], False for [D, V].
    temperature: > 0, divides the logits.
    banned_ids: ids without probability.
    interpret: whether kernels are interpreted.
  """

  tied: bool
  temperature: float
  banned_ids: tuple[int, ...]
  interpret: bool

  def vocabulary(self, table: Array) -> int:
    """Returns V."""
    return table.shape[0 if self.tied else 1]


@dataclasses.dataclass(frozen=True)
class Tiles:
  """The tiles of tokens and of ids.

  Attributes:
    tokens: t, tokens of a tile.
    ids: v, ids of a tile.
    token_tiles: number of tiles of tokens, the last one padded.
    id_tiles: number of tiles of ids; the last one may reach beyond V.
  """

  tokens: int
  ids: int
  token_tiles: int
  id_tiles: int

  def specs(self, head: Head, width: int, by_tokens: bool):
    """Returns the block specs (of arrays of tokens by their columns, of the
    table, of arrays of ids). Tokens are the outer loop if `by_tokens`."""

    def order(at: Callable) -> Callable:
      return at if by_tokens else lambda v, t, *rest: at(t, v, *rest)

    def rows(columns):
      # A masked tile names the last unmasked one, which is not read again.
      at = order(lambda t, v, used, source: (source[t], 0))
      return pl.BlockSpec((self.tokens, columns), at)

    def id_tile(t, v, used):
      # A masked tile of tokens multiplies nothing.
      return jnp.where(used[t] != 0, v, 0) if by_tokens else v

    if head.tied:
      table = pl.BlockSpec(
        (self.ids, width),
        order(lambda t, v, used, source: (id_tile(t, v, used), 0)),
      )
    else:
      table = pl.BlockSpec(
        (width, self.ids),
        order(lambda t, v, used, source: (0, id_tile(t, v, used))),
      )
    ids = pl.BlockSpec(
      (1, self.ids),
      order(lambda t, v, used, source: (0, id_tile(t, v, used))),
    )
    return rows, table, ids


def _largest(most: int, fits: int, step: int) -> int:
  """Returns the largest multiple of a step within both limits."""
  return max(min(most, fits) // step, 1) * step


def cut(head: Head, table: Array, hidden: Array) -> Tiles:
  """Chooses the tiles of arrays.

  Args:
    head: says which axis of the table is V.
    table: [V, D] or [D, V].
    hidden: [T, D].

  Returns:
    The tiles.
  """
  (T, D), V = hidden.shape, head.vocabulary(table)
  fits = TOKEN_BYTES // (4 * D)
  tokens = min(
    _largest(TILE_TOKENS, fits, SUBLANES), -(-T // SUBLANES) * SUBLANES
  )
  fits = ID_BYTES // (table.dtype.itemsize * D)
  ids = min(_largest(TILE_IDS, fits, LANES), V)
  return Tiles(tokens, ids, -(-T // tokens), -(-V // ids))


def call(
  head: Head,
  tiles: Tiles,
  kernel: functools.partial,
  by_tokens: bool,
  mask: Array,
  outputs: tuple[Any, Any],
  in_specs: Sequence[pl.BlockSpec],
  scratch: Sequence[Any],
) -> Callable[..., Any]:
  """Makes a call of a kernel over all pairs of tiles.

  Args:
    head: static arguments of the kernel.
    tiles: tiles of tokens and ids.
    kernel: a kernel of this file, with its keyword arguments.
    by_tokens: whether tokens are the outer loop and ids the inner one.
    mask: [T] bool, padded to whole tiles, True keeps.
    outputs: (shapes, specs).
    in_specs: specs of the input arrays.
    scratch: shapes of the running sums.

  Returns:
    A function of the input arrays.
  """
  used = mask.reshape(tiles.token_tiles, tiles.tokens).any(axis=1)
  index = jnp.arange(tiles.token_tiles, dtype=jnp.int32)
  source = jax.lax.cummax(jnp.where(used, index, 0))
  grid = (tiles.token_tiles, tiles.id_tiles)
  out_shape, out_specs = outputs
  return functools.partial(
    pl.pallas_call(
      kernel,
      out_shape=out_shape,
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=grid if by_tokens else grid[::-1],
        in_specs=in_specs,
        out_specs=out_specs,
        scratch_shapes=scratch,
      ),
      compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
      interpret=head.interpret,
      name=kernel.func.__name__,
    ),
    used.astype(jnp.int32),
    source,
  )


def _product(x, y, axes):
  """Contracts one axis of each of two matrices, with float32 sums."""
  return jax.lax.dot_general(
    x, y, (axes, ((), ())), preferred_element_type=jnp.float32
  )


def _scores(head, size, hidden, table, allowed, v):
  """Returns (logits [t, v], -inf for banned ids and after the last; ids)."""
  scores = _product(hidden, table, ((1,), (1 if head.tied else 0,)))
  ids = v * scores.shape[1] + jax.lax.broadcasted_iota(
    jnp.int32, scores.shape, 1
  )
  possible = (allowed != 0) & (ids < size)
  return jnp.where(possible, scores / head.temperature, -jnp.inf), ids


def logp_forward(*refs: Any, head: Head, size: int) -> None:
  """Computes log-probs and entropies; tokens are the outer loop.

  It keeps a running maximum, the sum of the weights exp(score - maximum), and
  the sum of score times weight.

  Args:
    *refs: used and source tiles [T / t] int32; hidden [t, D], table, allowed
      [1, v] int32, tokens [t, 1]; outputs logp, entropy and normalizer [t, 1];
      four running sums [t, 1].
    head: static arguments.
    size: V.
  """
  used, _, hidden, table, allowed, tokens, logp, entropy, normalizer = refs[:9]
  maximum, total, weighted, chosen = refs[9:]
  t, v = pl.program_id(0), pl.program_id(1)

  @pl.when(v == 0)
  def _():
    maximum[...] = jnp.full_like(maximum, LOWEST)
    for sums in (total, weighted, chosen):
      sums[...] = jnp.zeros_like(sums)

  @pl.when(used[t] != 0)
  def _():
    scores, ids = _scores(head, size, hidden[...], table[...], allowed[...], v)
    old = maximum[...]
    new = jnp.maximum(old, scores.max(axis=1, keepdims=True))
    above = jnp.where(scores > -jnp.inf, scores - new, 0.0)
    weight = jnp.exp(scores - new)
    # Scores are summed relative to the maximum, so that large ones do not
    # cancel in the entropy. A new maximum shifts the sum so far.
    shrink = jnp.exp(old - new)
    weighted[...] = shrink * (weighted[...] + (old - new) * total[...]) + (
      jnp.sum(weight * above, axis=1, keepdims=True)
    )
    total[...] = shrink * total[...] + weight.sum(axis=1, keepdims=True)
    is_token = ids == tokens[...]
    chosen[...] += jnp.sum(
      jnp.where(is_token, scores, 0.0), axis=1, keepdims=True
    )
    maximum[...] = new

  @pl.when(v == pl.num_programs(1) - 1)
  def _():
    unmasked = used[t] != 0
    sums = jnp.where(unmasked, total[...], 1.0)
    log_sum = jnp.log(sums)
    log_normalizer = jnp.where(unmasked, maximum[...] + log_sum, 0.0)
    normalizer[...] = log_normalizer
    logp[...] = chosen[...] - log_normalizer
    entropy[...] = log_sum - weighted[...] / sums


def _score_gradient(head, size, v, hidden, table, allowed, tokens, numbers):
  """Returns the gradient by the logits of a tile, in the dtype of `hidden`."""
  scores, ids = _scores(head, size, hidden, table, allowed, v)
  normalizer, entropy, by_logp, by_entropy = (
    numbers[:, n : n + 1] for n in range(4)
  )
  possible = scores > -jnp.inf
  logp = jnp.where(possible, scores, 0.0) - normalizer
  gradient = jnp.where(ids == tokens, by_logp, 0.0) - jnp.exp(logp) * (
    by_logp + by_entropy * (logp + entropy)
  )
  gradient = jnp.where(possible, gradient / head.temperature, 0.0)
  return gradient.astype(hidden.dtype)


def logp_by_hidden(*refs: Any, head: Head, size: int) -> None:
  """Sums the gradient by hidden states over ids; tokens are the outer loop.

  Args:
    *refs: those of `logp_forward` up to the tokens; [t, 4] normalizer, entropy
      and the gradients by logp and entropy; output [t, D]; its running sum.
    head: static arguments.
    size: V.
  """
  used, _, hidden, table, allowed, tokens, numbers, out, summed = refs
  t, v = pl.program_id(0), pl.program_id(1)

  @pl.when(v == 0)
  def _():
    summed[...] = jnp.zeros_like(summed)

  @pl.when(used[t] != 0)
  def _():
    weights = table[...]
    gradient = _score_gradient(
      *(head, size, v, hidden[...], weights, allowed[...], tokens[...]),
      numbers[...],
    )
    axis = 0 if head.tied else 1
    if size % weights.shape[axis]:
      # After the last id a tile holds anything, even NaN.
      at = jax.lax.broadcasted_iota(jnp.int32, weights.shape, axis)
      exists = v * weights.shape[axis] + at < size
      weights = jnp.where(exists, weights, jnp.zeros_like(weights))
    summed[...] += _product(gradient, weights, ((1,), (axis,)))

  @pl.when(v == pl.num_programs(1) - 1)
  def _():
    out[...] = summed[...].astype(out.dtype)


def logp_by_table(*refs: Any, head: Head, size: int) -> None:
  """Sums the gradient by the table over tokens; ids are the outer loop.

  Args:
    *refs: those of `logp_forward` up to the tokens; [t, 4] normalizer, entropy
      and the gradients by logp and entropy; output of the table's shape; its
      running sum.
    head: static arguments.
    size: V.
  """
  used, _, hidden, table, allowed, tokens, numbers, out, summed = refs
  v, t = pl.program_id(0), pl.program_id(1)

  @pl.when(t == 0)
  def _():
    summed[...] = jnp.zeros_like(summed)

  @pl.when(used[t] != 0)
  def _():
    states = hidden[...]
    gradient = _score_gradient(
      *(head, size, v, states, table[...], allowed[...], tokens[...]),
      numbers[...],
    )
    pair = (gradient, states) if head.tied else (states, gradient)
    summed[...] += _product(*pair, ((0,), (0,)))

  @pl.when(t == pl.num_programs(1) - 1)
  def _():
    out[...] = summed[...].astype(out.dtype)
