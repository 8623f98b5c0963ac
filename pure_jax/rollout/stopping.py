"""Ending a row with a text: an automaton that reads tokens.

Token ids hold any number of characters, and a text such as ``\\boxed{4}`` is
cut into tokens in many ways. What has been read of it is one of a few states,
and what a token makes of a state is looked up in a table, so the loop that
samples needs no text. `pure_jax.host.text.stop_texts` builds the table from a
tokenizer.
"""

import jax.numpy as jnp
from flax import struct
from jax import Array


@struct.dataclass
class StopTable:
  """A deterministic automaton over token ids.

  Attributes:
    following: [V, Z] int32, 0..Z-1, the state after an id in a state; a row
      begins in state 0, and state Z - 1 is that of a complete text.
  """

  following: Array

  def read(self, states: Array, tokens: Array) -> tuple[Array, Array]:
    """Reads one token in every row.

    Args:
      states: [B] int32, before it.
      tokens: [B] int32, ids.

    Returns:
      (states [B] int32 after it, complete [B] bool, True where a text ends
      in this token or ended before).
    """
    found = jnp.asarray(self.following)[tokens, states]
    return found, found == self.following.shape[1] - 1
