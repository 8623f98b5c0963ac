"""Sharding of activations, as models see it.

Models name the axes of a few arrays and leave the rest to the compiler.
`pure_jax.parallel.sharding.Layout.act_sharding` maps them to devices.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jax import Array

LogicalAxes = tuple[str | None, ...]
# (queries [B, T, N, H], keys [B, K, T, H], values [B, K, T, H], segment ids
# [B, T]) -> [B, T, N, H]: causal within each segment.
SegmentAttention = Callable[[Array, Array, Array, Array], Array]
# As `decoding.attend_to_cache`: (queries [B, 1, N, H], KV segments) ->
# [B, 1, N, H].
CacheAttention = Callable[[Array, Sequence[Any]], Array]
# As `pure_jax.kernels.linear_logp.linear_logp`: (table [V, D] or [D, V], hidden
# [B, C, D], tokens [B, C], mask [B, C], tied=, temperature=, banned_ids=) ->
# (logp, entropy), both [B, C] float32 in nats, 0 where masked. The table has
# the dtype of the hidden states; the temperature is above 0.
HeadLogp = Callable[..., tuple[Array, Array]]

# Logical axes of the activations that models constrain. Weights have other axes
# (`params.declare_decoder`) if they may be split differently.
HIDDEN = ("rows", "tokens", "residual")
QUERIES = ("rows", "tokens", "heads", "head_dim")
KEYS = ("rows", "kv_heads", "cache", "head_dim")
MLP = ("rows", "tokens", "mlp")
LOGITS = ("rows", "tokens", "vocab")


def _unconstrained(x: Array, logical_axes: LogicalAxes) -> Array:
  """Returns an array without a sharding constraint."""
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

  constrain: Callable[[Array, LogicalAxes], Array] = _unconstrained
  token_shards: int = 1
  attention: SegmentAttention | None = None
  decode_attention: CacheAttention | None = None
  head_logp: HeadLogp | None = None


LOCAL = ActivationSharding()  # One device, or the compiler's choice.
