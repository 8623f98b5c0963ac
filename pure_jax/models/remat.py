"""What the forward pass keeps for the backward pass; the rest is remade.

Names and what each keeps are those of `config.REMAT`. A name changes memory
and time, and gradients by no more than rounding.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

LAYER_INPUT = "layer_input"
# What attention read, as large as one product's output. Attention in chunks
# makes scores again for its own backward pass: were this not kept, the layer's
# would make them once more before.
ATTENDED = "attended"


def remat_layer(
  layer: Callable[[jax.Array, Any], Any], name: str
) -> Callable[[jax.Array, Any], Any]:
  """A decoder layer that keeps what a name says.

  Args:
    layer: (hidden states, weights) -> anything.
    name: one of `config.REMAT`.

  Returns:
    The same function of the same values.
  """
  policies = jax.checkpoint_policies
  if name == "layer":
    return jax.checkpoint(layer)
  if name == "dots":
    policy = policies.save_from_both_policies(
      policies.dots_with_no_batch_dims_saveable,
      policies.save_only_these_names(ATTENDED),
    )
    return jax.checkpoint(layer, policy=policy)
  if name == "offload":
    policy = policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[LAYER_INPUT],
      offload_src="device",
      offload_dst="pinned_host",
    )
    return jax.checkpoint(
      lambda x, weights: layer(checkpoint_name(x, LAYER_INPUT), weights),
      policy=policy,
    )
  return layer  # "none" and "attention" keep all of it.


def remat_attention(
  attend: Callable[..., jax.Array], name: str
) -> Callable[..., jax.Array]:
  """Attention that keeps its scores for the backward pass, or does not.

  Args:
    attend: (queries, keys, values, mask) -> output.
    name: one of `config.REMAT`; only "attention" changes anything, for
      "dots", "layer" and "offload" remake the scores with the layer.

  Returns:
    The same function of the same values.
  """
  return jax.checkpoint(attend) if name == "attention" else attend
