"""Tiles of tokens and of the vocabulary, and what kernels do with a pair.

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

# What the running maximum starts from: finite, for -inf less itself is NaN.
LOWEST = -1e30

# The table is read once for each tile of tokens: as many tokens as fit, so
# that there is work for what is read. Of both tiles in float32 and in the
# table's dtype; with buffers and sums a kernel holds about six such.
TILE_TOKENS, TILE_IDS = 512, 512
TOKEN_BYTES, ID_BYTES = 2**23, 2**22
VMEM_BYTES = 60 * 2**20
SUBLANES, LANES = 16, 128


@dataclasses.dataclass(frozen=True)
class Head:
  """What is known of a head when it is compiled.

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
    """V, ids that the table has."""
    return table.shape[0 if self.tied else 1]


@dataclasses.dataclass(frozen=True)
class Tiles:
  """How tokens and ids are cut, and where a kernel finds what it reads.

  Attributes:
    tokens: t, of a tile.
    ids: v, of a tile.
    token_tiles: how many there are, the last one filled up.
    id_tiles: how many there are, the last one reaching beyond V.
  """

  tokens: int
  ids: int
  token_tiles: int
  id_tiles: int

  def specs(self, head: Head, width: int, by_tokens: bool):
    """(of tokens, of table, of ids); tokens or ids are the outer loop."""

    def order(at: Callable) -> Callable:
      return at if by_tokens else lambda v, t, *rest: at(t, v, *rest)

    def rows(columns):
      # An unused tile names the last used one, which is not read again.
      at = order(lambda t, v, used, source: (source[t], 0))
      return pl.BlockSpec((self.tokens, columns), at)

    def id_tile(t, v, used):
      # Of an unused tile of tokens nothing is multiplied.
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
  """The largest multiple of a step that is neither too many nor too large."""
  return max(min(most, fits) // step, 1) * step


def cut(head: Head, table: Array, hidden: Array) -> Tiles:
  """Tiles for arrays of these shapes.

  Args:
    head: which of the two the table is.
    table: [V, D] or [D, V].
    hidden: [T, D].

  Returns:
    How to cut them.
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
  """A kernel over all pairs of tiles, told which tokens' tiles are used.

  Args:
    head: of the kernel.
    tiles: how arrays are cut.
    kernel: one of those below, its settings given.
    by_tokens: whether tokens are the outer loop, ids the inner one.
    mask: [T] bool in whole tiles, True keeps.
    outputs: (shapes, specs).
    in_specs: of the arrays it will be called with.
    scratch: shapes of its sums.

  Returns:
    A function of those arrays.
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
  """Logits [t, v] of a tile, -inf for banned ids and after the last id."""
  scores = _product(hidden, table, ((1,), (1 if head.tied else 0,)))
  ids = v * scores.shape[1] + jax.lax.broadcasted_iota(
    jnp.int32, scores.shape, 1
  )
  possible = (allowed != 0) & (ids < size)
  return jnp.where(possible, scores / head.temperature, -jnp.inf), ids


def logp_forward(*refs: Any, head: Head, size: int) -> None:
  """Tokens by ids: running maximum, sum, sum of score times weight.

  Args:
    *refs: used and source tiles [T / t] int32; hidden [t, D], table, allowed
      [1, v] int32, tokens [t, 1]; out: logp, entropy and normalizer [t, 1];
      and four sums of that shape.
    head: settings.
    size: V.
  """
  used, _, hidden, table, allowed, tokens, logp, entropy, normalizer = refs[:9]
  highest, total, weighted, chosen = refs[9:]
  t, v = pl.program_id(0), pl.program_id(1)

  @pl.when(v == 0)
  def _():
    highest[...] = jnp.full_like(highest, LOWEST)
    for sums in (total, weighted, chosen):
      sums[...] = jnp.zeros_like(sums)

  @pl.when(used[t] != 0)
  def _():
    scores, ids = _scores(head, size, hidden[...], table[...], allowed[...], v)
    old = highest[...]
    new = jnp.maximum(old, scores.max(axis=1, keepdims=True))
    above = jnp.where(scores > -jnp.inf, scores - new, 0.0)
    weight = jnp.exp(scores - new)
    # Scores are summed as seen from the maximum, so that large ones do not
    # cancel in the entropy; a new maximum shifts what was summed.
    shrink = jnp.exp(old - new)
    weighted[...] = shrink * (weighted[...] + (old - new) * total[...]) + (
      jnp.sum(weight * above, axis=1, keepdims=True)
    )
    total[...] = shrink * total[...] + weight.sum(axis=1, keepdims=True)
    is_token = ids == tokens[...]
    chosen[...] += jnp.sum(
      jnp.where(is_token, scores, 0.0), axis=1, keepdims=True
    )
    highest[...] = new

  @pl.when(v == pl.num_programs(1) - 1)
  def _():
    there = used[t] != 0
    sums = jnp.where(there, total[...], 1.0)
    log_sum = jnp.log(sums)
    of_all = jnp.where(there, highest[...] + log_sum, 0.0)
    normalizer[...] = of_all
    logp[...] = chosen[...] - of_all
    entropy[...] = log_sum - weighted[...] / sums


def _by_scores(head, size, v, hidden, table, allowed, tokens, numbers):
  """The gradient by the logits of a tile, in the dtype of its factors."""
  scores, ids = _scores(head, size, hidden, table, allowed, v)
  normalizer, entropy, by_logp, by_entropy = (
    numbers[:, n : n + 1] for n in range(4)
  )
  possible = scores > -jnp.inf
  logp = jnp.where(possible, scores, 0.0) - normalizer
  found = jnp.where(ids == tokens, by_logp, 0.0) - jnp.exp(logp) * (
    by_logp + by_entropy * (logp + entropy)
  )
  found = jnp.where(possible, found / head.temperature, 0.0)
  return found.astype(hidden.dtype)


def logp_by_hidden(*refs: Any, head: Head, size: int) -> None:
  """Tokens by ids: the gradient by hidden states is a sum over ids.

  Args:
    *refs: as of `logp_forward` up to the tokens; [t, 4] normalizer, entropy,
      and the gradients by logp and entropy; out: [t, D]; and its sum.
    head: settings.
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
    by_scores = _by_scores(
      *(head, size, v, hidden[...], weights, allowed[...], tokens[...]),
      numbers[...],
    )
    axis = 0 if head.tied else 1
    if size % weights.shape[axis]:
      # After the last id a tile holds anything, even NaN.
      at = jax.lax.broadcasted_iota(jnp.int32, weights.shape, axis)
      there = v * weights.shape[axis] + at < size
      weights = jnp.where(there, weights, jnp.zeros_like(weights))
    summed[...] += _product(by_scores, weights, ((1,), (axis,)))

  @pl.when(v == pl.num_programs(1) - 1)
  def _():
    out[...] = summed[...].astype(out.dtype)


def logp_by_table(*refs: Any, head: Head, size: int) -> None:
  """Ids by tokens: the gradient by the table is a sum over tokens.

  Args:
    *refs: as of `logp_forward` up to the tokens; [t, 4] normalizer, entropy,
      and the gradients by logp and entropy; out: as the table; and its sum.
    head: settings.
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
    by_scores = _by_scores(
      *(head, size, v, states, table[...], allowed[...], tokens[...]),
      numbers[...],
    )
    pair = (by_scores, states) if head.tied else (states, by_scores)
    summed[...] += _product(*pair, ((0,), (0,)))

  @pl.when(t == pl.num_programs(1) - 1)
  def _():
    out[...] = summed[...].astype(out.dtype)
