"""The kernels of `linear_logp`, over pairs of tiles of tokens and of ids.

Letters: T tokens, D width, V vocabulary, t tokens and v ids of a tile.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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

  def allowed(self, table: Array) -> np.ndarray:
    """Returns [V] bool, False for banned ids."""
    allowed = np.ones(self.vocabulary(table), bool)
    allowed[list(self.banned_ids)] = False
    return allowed


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

  def outputs(self, columns: int) -> pl.BlockSpec:
    """Returns the block spec of outputs [T, columns]; tokens are outer."""
    return pl.BlockSpec((self.tokens, columns), lambda t, v, *_: (t, 0))

  def specs(self, head: Head, width: int, by_tokens: bool):
    """Returns the block specs (of arrays of tokens by their columns, of the
    table, of arrays of ids). Tokens are the outer loop if `by_tokens`."""

    def spec(shape: tuple[int, int], at: Callable) -> pl.BlockSpec:
      if by_tokens:
        return pl.BlockSpec(shape, at)
      return pl.BlockSpec(shape, lambda v, t, *rest: at(t, v, *rest))

    def rows(columns):
      # A masked tile names the last unmasked one, which is not read again.
      shape = (self.tokens, columns)
      return spec(shape, lambda t, v, used, source: (source[t], 0))

    def ids(t, v, used, source):
      # A masked tile of tokens multiplies nothing.
      return 0, jnp.where(used[t] != 0, v, 0) if by_tokens else v

    if head.tied:
      table = spec((self.ids, width), lambda *indices: ids(*indices)[::-1])
    else:
      table = spec((width, self.ids), ids)
    return rows, table, spec((1, self.ids), ids)


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
  kernel: Callable[..., None],
  statics: tuple[Head, Tiles],
  arrays: tuple[Array, ...],
  by_tokens: bool,
  outputs: tuple[Any, Any],
  sums: Sequence[tuple[int, ...]],
) -> Any:
  """Calls a kernel over all pairs of tiles.

  Args:
    kernel: a kernel of this file.
    statics: the head's static arguments and the tiles.
    arrays: table, hidden [T, D], tokens [T], mask [T], and for a gradient
      [T, 4] numbers of the tokens.
    by_tokens: whether tokens are the outer loop and ids the inner one.
    outputs: (shapes, specs).
    sums: shapes of the running sums, float32.

  Returns:
    The outputs, with tokens padded to whole tiles.
  """
  head, tiles = statics
  table, hidden, tokens, mask, *numbers = arrays

  def pad(x):
    missing = tiles.token_tiles * tiles.tokens - x.shape[0]
    return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))

  used = pad(mask).reshape(tiles.token_tiles, tiles.tokens).any(axis=1)
  index = jnp.arange(tiles.token_tiles, dtype=jnp.int32)
  source = jax.lax.cummax(jnp.where(used, index, 0))
  grid = (tiles.token_tiles, tiles.id_tiles)
  rows, of_table, of_ids = tiles.specs(head, hidden.shape[1], by_tokens)
  out_shape, out_specs = outputs
  return pl.pallas_call(
    functools.partial(kernel, head=head, size=head.vocabulary(table)),
    out_shape=out_shape,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=grid if by_tokens else grid[::-1],
      in_specs=[
        rows(hidden.shape[1]),
        of_table,
        of_ids,
        rows(1),
        *(rows(x.shape[1]) for x in numbers),
      ],
      out_specs=out_specs,
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in sums],
    ),
    compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
    interpret=head.interpret,
    name=kernel.__name__,
  )(
    *(used.astype(jnp.int32), source, pad(hidden), table),
    jnp.asarray(head.allowed(table), jnp.int32)[None],
    *(pad(tokens)[:, None], *map(pad, numbers)),
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
