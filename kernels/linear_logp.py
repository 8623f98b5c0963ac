"""Log-prob and entropy of a linear head over a large vocabulary.

With hidden states h, a table W and a temperature, s = W h / temperature are
the logits of V ids. The kernel never writes them down: it goes through the
vocabulary in tiles, keeps a running maximum and two running sums for a tile of
tokens, and its backward pass makes the tiles again, once for the gradient by h
and once for the one by W.

Letters: B rows, C slots, T = B C tokens, D width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pure_jax.kernels import linear_logp_tiles as tiled
from pure_jax.kernels.dispatch import choose
from pure_jax.kernels.linear_logp_tiles import Head, Tiles


def linear_logp(
  table: Array,
  hidden: Array,
  tokens: Array,
  mask: Array,
  *,
  tied: bool,
  temperature: float = 1.0,
  banned_ids: tuple[int, ...] = (),
  implementation: str | None = None,
  interpret: bool = False,
) -> tuple[Array, Array]:
  """Log-probs of given ids, and the entropies of their distributions.

  log p_i = s_i - log sum_j exp s_j;  entropy = -sum_j p_j log p_j.

  The same as `models.token_logp.chunked_logp`, which is how XLA does it
  without all logits: products of the hidden states' dtype with float32 sums,
  the gradient by the logits rounded to that dtype before it is multiplied.

  Args:
    table: [V, D] if tied, else [D, V], in the dtype of the hidden states.
    hidden: [B, C, D] float, slot t holding what token t is read from.
    tokens: [B, C] int32, ids in 0..V-1.
    mask: [B, C] bool, True keeps.
    tied: True for an embedding's table, False for a head's.
    temperature: > 0, divides the logits.
    banned_ids: ids in 0..V-1 without probability.
    implementation: None or "xla", all logits at once, the plain definition;
      "pallas", the kernel. Tiles without a kept token cost it nothing.
    interpret: runs the kernel step by step on any device, to test it.

  Returns:
    (logp, entropy), both [B, C] float32 in nats, 0 with zero gradient where
    masked; logp is -inf for a banned id. Differentiable in table and hidden,
    by the kernel once and in reverse mode.

  Raises:
    ValueError: shapes, ids or temperature make no sense, or the
      implementation named cannot run.
  """
  head = Head(tied, temperature, tuple(banned_ids), interpret)
  allowed = _allowed(head, table, hidden)
  obstacle = None
  if hidden.dtype != table.dtype:
    obstacle = f"hidden is {hidden.dtype} and table {table.dtype}"
  if choose(implementation, {"pallas": obstacle}, interpret) == "xla":
    return reference(table, hidden, tokens, mask, allowed, tied, temperature)
  B, C, D = hidden.shape
  found = _by_kernel(
    head,
    table,
    hidden.reshape(B * C, D),
    tokens.reshape(B * C),
    mask.reshape(B * C),
  )
  return tuple(jnp.where(mask, x.reshape(B, C), 0.0) for x in found)


def _allowed(head: Head, table, hidden) -> np.ndarray:
  """[V] bool, False for banned ids; raises where nothing makes sense."""
  D, V = hidden.shape[-1], head.vocabulary(table)
  wanted = (V, D) if head.tied else (D, V)
  if table.shape != wanted:
    raise ValueError(
      f"table has shape {table.shape}, not {wanted}: tied={head.tied} and "
      f"hidden is {hidden.shape}."
    )
  if not head.temperature > 0:
    raise ValueError(f"temperature must be > 0, not {head.temperature}.")
  outside = [token for token in head.banned_ids if not 0 <= token < V]
  if outside:
    raise ValueError(f"Banned ids {outside} are not in 0..{V - 1}.")
  allowed = np.ones(V, bool)
  allowed[list(head.banned_ids)] = False
  if not allowed.any():
    raise ValueError(f"All {V} ids are banned: nothing has a probability.")
  return allowed


def reference(
  table: Array,
  hidden: Array,
  tokens: Array,
  mask: Array,
  allowed: np.ndarray,
  tied: bool,
  temperature: float,
) -> tuple[Array, Array]:
  """`linear_logp` of all logits, [B, C, V] float32.

  Args:
    table: [V, D] if tied, else [D, V].
    hidden: [B, C, D] float.
    tokens: [B, C] int32.
    mask: [B, C] bool.
    allowed: [V] bool, False gives an id no probability.
    tied: which of the two the table is.
    temperature: > 0.

  Returns:
    (logp, entropy), both [B, C] float32.
  """
  scores = jnp.einsum(
    "BCD,VD->BCV" if tied else "BCD,DV->BCV",
    hidden,
    table,
    preferred_element_type=jnp.float32,
  )
  allowed = jnp.broadcast_to(allowed, scores.shape)
  scores = jnp.where(allowed, scores / temperature, -jnp.inf)
  normalizer = jax.nn.logsumexp(scores, axis=-1)
  logp = jnp.where(allowed, scores, 0.0) - normalizer[..., None]
  entropy = -jnp.sum(jnp.where(allowed, jnp.exp(logp) * logp, 0.0), axis=-1)
  chosen = jnp.take_along_axis(scores, tokens[..., None], axis=-1)[..., 0]
  return (
    jnp.where(mask, chosen - normalizer, 0.0),
    jnp.where(mask, entropy, 0.0),
  )


def _padded(x: Array, tiles: Tiles) -> Array:
  """[T, ...] with zeros up to whole tiles of tokens."""
  missing = tiles.token_tiles * tiles.tokens - x.shape[0]
  return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_kernel(head, table, hidden, tokens, mask):
  """(logp, entropy), both [T] float32; unused tiles are 0."""
  return _forward(head, table, hidden, tokens, mask)[0]


def _forward(head, table, hidden, tokens, mask):
  """Values, and what the backward pass needs: nothing over the vocabulary."""
  T, D = hidden.shape
  tiles = tiled.cut(head, table, hidden)
  rows, of_table, of_ids = tiles.specs(head, D, by_tokens=True)
  column = jax.ShapeDtypeStruct(
    (tiles.token_tiles * tiles.tokens, 1), jnp.float32
  )
  out = pl.BlockSpec((tiles.tokens, 1), lambda t, v, *_: (t, 0))
  found = tiled.call(
    head,
    tiles,
    functools.partial(
      tiled.logp_forward, head=head, size=head.vocabulary(table)
    ),
    True,
    _padded(mask, tiles),
    ((column,) * 3, (out,) * 3),
    [rows(D), of_table, of_ids, rows(1)],
    [pltpu.VMEM((tiles.tokens, 1), jnp.float32) for _ in range(4)],
  )(
    _padded(hidden, tiles),
    table,
    jnp.asarray(_allowed(head, table, hidden), jnp.int32)[None],
    _padded(tokens, tiles)[:, None],
  )
  logp, entropy, normalizer = (x[:T, 0] for x in found)
  kept = table, hidden, tokens, mask, entropy, normalizer
  return (logp, entropy), kept


def _backward(head, kept, cotangents):
  """Gradients by table and hidden states, each from tiles of its own."""
  table, hidden, tokens, mask, entropy, normalizer = kept
  T, D = hidden.shape
  tiles = tiled.cut(head, table, hidden)
  by_logp, by_entropy = (jnp.where(mask, x, 0.0) for x in cotangents)
  numbers = jnp.stack([normalizer, entropy, by_logp, by_entropy], axis=1)
  arguments = (
    _padded(hidden, tiles),
    table,
    jnp.asarray(_allowed(head, table, hidden), jnp.int32)[None],
    _padded(tokens, tiles)[:, None],
    _padded(numbers, tiles),
  )

  def call(kernel, by_tokens, shape, spec, summed):
    rows, of_table, of_ids = tiles.specs(head, D, by_tokens)
    return tiled.call(
      head,
      tiles,
      functools.partial(kernel, head=head, size=head.vocabulary(table)),
      by_tokens,
      _padded(mask, tiles),
      (jax.ShapeDtypeStruct(shape, hidden.dtype), spec(of_table)),
      [rows(D), of_table, of_ids, rows(1), rows(4)],
      [pltpu.VMEM(summed, jnp.float32)],
    )(*arguments)

  by_hidden = call(
    tiled.logp_by_hidden,
    True,
    arguments[0].shape,
    lambda _: pl.BlockSpec((tiles.tokens, D), lambda t, v, *_: (t, 0)),
    (tiles.tokens, D),
  )
  by_table = call(
    tiled.logp_by_table,
    False,
    table.shape,
    lambda of_table: of_table,
    (tiles.ids, D) if head.tied else (D, tiles.ids),
  )
  return by_table, by_hidden[:T], None, None


_by_kernel.defvjp(_forward, _backward)
