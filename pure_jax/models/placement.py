"""Where activations live: what a model asks of the layout it runs in.

Models name the axes of a few arrays and leave the rest to the compiler;
`pure_jax.parallel.sharding.Layout.placement` knows which devices hold them.
"""

import dataclasses
from collections.abc import Callable

from jax import Array

LogicalAxes = tuple[str | None, ...]

# Axes of the arrays that models constrain. Axes of weights have other names
# (`params.declare_decoder`) where they may be split otherwise.
HIDDEN = ("rows", "tokens", "residual")
QUERIES = ("rows", "tokens", "heads", "head_dim")
KEYS = ("rows", "kv_heads", "slots", "head_dim")
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
class Placement:
  """How a model's activations are spread over devices.

  Attributes:
    constrain: (array, logical axes) -> the same array in its place.
    token_shards: parts into which the tokens of a row are split. Rows are
      padded to a multiple of it.
  """

  constrain: Callable[[Array, LogicalAxes], Array] = unconstrained
  token_shards: int = 1


LOCAL = Placement()  # On one device, or wherever the compiler likes.
