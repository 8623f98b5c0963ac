"""Where activations live: what a model asks of the layout it runs in.

Models name the axes of a few arrays and leave the rest to the compiler;
`pure_jax.parallel.sharding.Layout.act_sharding` knows which devices hold them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jax import Array

LogicalAxes = tuple[str | None, ...]
# (queries [B, T, N, H], keys [B, K, T, H], values [B, K, T, H], segment ids
# [B, T]) -> [B, T, N, H]: causal within each segment.
SegmentAttention = Callable[[Array, Array, Array, Array], Array]
# As `decoding.attend_to_cache`: (queries [B, 1, N, H], KV segments) ->
# [B, 1, N, H].
CacheAttention = Callable[[Array, Sequence[Any]], Array]


class HeadLogp(Protocol):
  """Log-probs and entropies of given ids, of hidden states and a table."""

  def __call__(
    self,
    table: Array,
    hidden: Array,
    tokens: Array,
    mask: Array,
    *,
    tied: bool,
    temperature: float,
    banned_ids: tuple[int, ...],
  ) -> tuple[Array, Array]:
    """As `pure_jax.kernels.linear_logp.linear_logp`.

    Args:
      table: [V, D] if tied, else [D, V], in the dtype of the hidden states.
      hidden: [B, C, D] float.
      tokens: [B, C] int32.
      mask: [B, C] bool, True keeps.
      tied: which of the two the table is.
      temperature: > 0, divides the logits.
      banned_ids: ids without probability.

    Returns:
      (logp, entropy), both [B, C] float32 in nats, 0 where masked.
    """
    ...


# Axes of the arrays that models constrain. Axes of weights have other names
# (`params.declare_decoder`) where they may be split otherwise.
HIDDEN = ("rows", "tokens", "residual")
QUERIES = ("rows", "tokens", "heads", "head_dim")
KEYS = ("rows", "kv_heads", "cache", "head_dim")
MLP = ("rows", "tokens", "mlp")
LOGITS = ("rows", "tokens", "vocab")


def unconstrained(x: Array, logical_axes: LogicalAxes) -> Array:
  """Leaves an array where it is.

  Args:
    x: any array.
    logical_axes: one name, or None, per dimension.

  Returns:
    The array.
  """
  del logical_axes
  return x


@dataclasses.dataclass(frozen=True)
class ActivationSharding:
  """How a model's activations are spread over devices, and read there.

  Attributes:
    constrain: (array, logical axes) -> the same array in its place.
    token_shards: parts into which the tokens of a row are split. Rows are
      padded to a multiple of it.
    attention: of whole texts, in place of the model's own, chunked or not;
      None takes that.
    decode_attention: of one new token to a cache, in place of the model's own;
      None takes that.
    head_logp: of the policy's head, in place of logits, in chunks or not;
      None takes those.
  """

  constrain: Callable[[Array, LogicalAxes], Array] = unconstrained
  token_shards: int = 1
  attention: SegmentAttention | None = None
  decode_attention: CacheAttention | None = None
  head_logp: HeadLogp | None = None


LOCAL = ActivationSharding()  # On one device, or wherever the compiler likes.
