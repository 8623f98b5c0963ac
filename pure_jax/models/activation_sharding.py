"""Sharding of activations, as models see it.

Models name the axes of a few arrays and leave the rest to the compiler.
`pure_jax.parallel.sharding.Layout.act_sharding` maps them to devices.
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
  """Computes log-probs and entropies from hidden states and a table."""

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
    """Computes log-probs like `pure_jax.kernels.linear_logp.linear_logp`.

    Args:
      table: [V, D] if tied, else [D, V], in the dtype of the hidden states.
      hidden: [B, C, D] float.
      tokens: [B, C] int32.
      mask: [B, C] bool, True keeps.
      tied: True for a table [V, D].
      temperature: > 0, divides the logits.
      banned_ids: ids without probability.

    Returns:
      (logp, entropy), both [B, C] float32 in nats, 0 where masked.
    """
    ...


# Logical axes of the activations that models constrain. Weights have other axes
# (`params.declare_decoder`) if they may be split differently.
HIDDEN = ("rows", "tokens", "residual")
QUERIES = ("rows", "tokens", "heads", "head_dim")
KEYS = ("rows", "kv_heads", "cache", "head_dim")
MLP = ("rows", "tokens", "mlp")
LOGITS = ("rows", "tokens", "vocab")


def unconstrained(x: Array, logical_axes: LogicalAxes) -> Array:
  """Returns an array without a sharding constraint.

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
  """Sharding of a model's activations, and kernels that read them.

  Attributes:
    constrain: (array, logical axes) -> the same array with its sharding.
    token_shards: shards of the tokens of a row. Rows are padded to a multiple
      of it.
    attention: attention of whole texts; None uses the model's own attention,
      in chunks or not.
    decode_attention: attention of one new token to a cache; None uses the
      model's own attention.
    head_logp: log-probs from the policy's head; None computes logits, in
      chunks or not.
  """

  constrain: Callable[[Array, LogicalAxes], Array] = unconstrained
  token_shards: int = 1
  attention: SegmentAttention | None = None
  decode_attention: CacheAttention | None = None
  head_logp: HeadLogp | None = None


LOCAL = ActivationSharding()  # One device, or the compiler's choice.
