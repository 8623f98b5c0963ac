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
from jax import Array

from pure_jax.kernels import linear_logp_tiles as tiled
from pure_jax.kernels.dispatch import choose
from pure_jax.kernels.linear_logp_tiles import Head
from pure_jax.masked import zero_masked


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
    (logp, entropy), both [B, C] float32 in nats; logp is -inf for a banned id.
    Both are 0 with zero gradient where masked, even if hidden states are NaN
    there. B and C may be 0. Differentiable in table and hidden; the kernel only
    once and in reverse mode.

  Raises:
    ValueError: if shapes, ids or temperature are invalid, or the named
      implementation cannot run.
  """
  head = Head(tied, temperature, tuple(banned_ids), interpret)
  _check(head, table, hidden)
  obstacle = None
  if hidden.dtype != table.dtype:
    obstacle = f"hidden is {hidden.dtype} and table {table.dtype}"
  chosen = choose(implementation, {"pallas": obstacle}, interpret)
  hidden = zero_masked(hidden, mask[..., None])
  if chosen == "xla" or not tokens.size:
    return _reference(head, table, hidden, tokens, mask)
  B, C, D = hidden.shape
  outputs = _by_kernel(
    head,
    table,
    hidden.reshape(B * C, D),
    tokens.reshape(B * C),
    mask.reshape(B * C),
  )
  return tuple(jnp.where(mask, x.reshape(B, C), 0.0) for x in outputs)


def _check(head: Head, table: Array, hidden: Array) -> None:
  """Raises if shapes, ids or temperature are invalid."""
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
  if not head.allowed(table).any():
    raise ValueError(f"All {V} ids are banned: nothing has a probability.")


def _reference(head, table, hidden, tokens, mask):
  """Computes `linear_logp` from all logits, [B, C, V] float32."""
  scores = jnp.einsum(
    "BCD,VD->BCV" if head.tied else "BCD,DV->BCV",
    hidden,
    table,
    preferred_element_type=jnp.float32,
  )
  allowed = jnp.broadcast_to(head.allowed(table), scores.shape)
  scores = jnp.where(allowed, scores / head.temperature, -jnp.inf)
  normalizer = jax.nn.logsumexp(scores, axis=-1)
  logp = jnp.where(allowed, scores, 0.0) - normalizer[..., None]
  entropy = -jnp.sum(jnp.where(allowed, jnp.exp(logp) * logp, 0.0), axis=-1)
  chosen = jnp.take_along_axis(scores, tokens[..., None], axis=-1)[..., 0]
  return (
    jnp.where(mask, chosen - normalizer, 0.0),
    jnp.where(mask, entropy, 0.0),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_kernel(head, table, hidden, tokens, mask):
  """Computes (logp, entropy), both [T] float32, 0 in fully masked tiles."""
  return _forward(head, table, hidden, tokens, mask)[0]


def _forward(head, table, hidden, tokens, mask):
  """Computes the outputs, and residuals of which none has the size T V."""
  T, tiles = hidden.shape[0], tiled.cut(head, table, hidden)
  column = jax.ShapeDtypeStruct(
    (tiles.token_tiles * tiles.tokens, 1), jnp.float32
  )
  outputs = tiled.call(
    tiled.logp_forward,
    (head, tiles),
    (table, hidden, tokens, mask),
    by_tokens=True,
    outputs=((column,) * 3, (tiles.outputs(1),) * 3),
    sums=[(tiles.tokens, 1)] * 4,
  )
  logp, entropy, normalizer = (x[:T, 0] for x in outputs)
  residuals = table, hidden, tokens, mask, entropy, normalizer
  return (logp, entropy), residuals


def _backward(head, residuals, cotangents):
  """Computes the gradients by table and hidden states, in a kernel each."""
  table, hidden, tokens, mask, entropy, normalizer = residuals
  (T, D), tiles = hidden.shape, tiled.cut(head, table, hidden)
  by_logp, by_entropy = (jnp.where(mask, x, 0.0) for x in cotangents)
  numbers = jnp.stack([normalizer, entropy, by_logp, by_entropy], axis=1)
  call = functools.partial(
    tiled.call,
    statics=(head, tiles),
    arrays=(table, hidden, tokens, mask, numbers),
  )
  rows = tiles.token_tiles * tiles.tokens
  by_hidden = call(
    tiled.logp_by_hidden,
    by_tokens=True,
    outputs=(
      jax.ShapeDtypeStruct((rows, D), hidden.dtype),
      tiles.outputs(D),
    ),
    sums=[(tiles.tokens, D)],
  )
  _, of_table, _ = tiles.specs(head, D, by_tokens=False)
  by_table = call(
    tiled.logp_by_table,
    by_tokens=False,
    outputs=(jax.ShapeDtypeStruct(table.shape, hidden.dtype), of_table),
    sums=[of_table.block_shape],
  )
  return by_table, by_hidden[:T], None, None


_by_kernel.defvjp(_forward, _backward)
