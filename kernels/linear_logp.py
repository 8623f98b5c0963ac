"""Log-prob and entropy of a linear head over a large vocabulary.

With hidden states h, a table W and a temperature, s = W h / temperature are
the logits of V ids. The kernel never stores them. It goes through the
vocabulary in tiles and keeps a running maximum and two running sums for a tile
of tokens. The backward pass recomputes the tiles, once for the gradient by h
and once for the gradient by W.

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
  """Computes log-probs of given ids, and entropies of their distributions.

  log p_i = s_i - log sum_j exp s_j;  entropy = -sum_j p_j log p_j.

  The result is that of `models.token_logp.chunked_logp`, XLA's way without all
  logits at once. Products are in the dtype of the hidden states with float32
  sums; the gradient by the logits is rounded to that dtype before it is
  multiplied.

  Args:
    table: [V, D] if tied, else [D, V], in the dtype of the hidden states.
    hidden: [B, C, D] float; the state in slot t predicts token t.
    tokens: [B, C] int32, ids in 0..V-1.
    mask: [B, C] bool, True keeps.
    tied: True if the table is the embedding, False if it is a separate head.
    temperature: > 0, divides the logits.
    banned_ids: ids in 0..V-1 without probability.
    implementation: None or "xla": all logits at once, as the definition says.
      "pallas": the kernel, which skips fully masked tiles.
    interpret: runs the kernel step by step on any device, for tests.

  Returns:
    (logp, entropy), both [B, C] float32 in nats, 0 with zero gradient where
    masked; logp is -inf for a banned id. Differentiable in table and hidden;
    the kernel only once and in reverse mode.

  Raises:
    ValueError: if shapes, ids or temperature are invalid, or the named
      implementation cannot run.
  """
  head = Head(tied, temperature, tuple(banned_ids), interpret)
  allowed = _allowed(head, table, hidden)
  obstacle = None
  if hidden.dtype != table.dtype:
    obstacle = f"hidden is {hidden.dtype} and table {table.dtype}"
  if choose(implementation, {"pallas": obstacle}, interpret) == "xla":
    return reference(table, hidden, tokens, mask, allowed, tied, temperature)
  B, C, D = hidden.shape
  outputs = _by_kernel(
    head,
    table,
    hidden.reshape(B * C, D),
    tokens.reshape(B * C),
    mask.reshape(B * C),
  )
  return tuple(jnp.where(mask, x.reshape(B, C), 0.0) for x in outputs)


def _allowed(head: Head, table, hidden) -> np.ndarray:
  """Checks the arguments; returns [V] bool, False for banned ids."""
  D, V = hidden.shape[-1], head.vocabulary(table)
  shape = (V, D) if head.tied else (D, V)
  if table.shape != shape:
    raise ValueError(
      f"table has shape {table.shape}, not {shape}: tied={head.tied} and "
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
  """Computes `linear_logp` from all logits, [B, C, V] float32.

  Args:
    table: [V, D] if tied, else [D, V].
    hidden: [B, C, D] float.
    tokens: [B, C] int32.
    mask: [B, C] bool.
    allowed: [V] bool, False for ids without probability.
    tied: whether the table is [V, D].
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
  """Pads [T, ...] with zeros to whole tiles of tokens."""
  missing = tiles.token_tiles * tiles.tokens - x.shape[0]
  return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_kernel(head, table, hidden, tokens, mask):
  """Computes (logp, entropy), both [T] float32, 0 in fully masked tiles."""
  return _forward(head, table, hidden, tokens, mask)[0]


def _forward(head, table, hidden, tokens, mask):
  """Computes the outputs, and residuals of which none has the size T V."""
  T, D = hidden.shape
  tiles = tiled.cut(head, table, hidden)
  rows, of_table, of_ids = tiles.specs(head, D, by_tokens=True)
  column = jax.ShapeDtypeStruct(
    (tiles.token_tiles * tiles.tokens, 1), jnp.float32
  )
  out = pl.BlockSpec((tiles.tokens, 1), lambda t, v, *_: (t, 0))
  outputs = tiled.call(
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
  logp, entropy, normalizer = (x[:T, 0] for x in outputs)
  residuals = table, hidden, tokens, mask, entropy, normalizer
  return (logp, entropy), residuals


def _backward(head, residuals, cotangents):
  """Computes the gradients by table and hidden states, in a kernel each."""
  table, hidden, tokens, mask, entropy, normalizer = residuals
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
