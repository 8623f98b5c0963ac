"""Rematerialisation: which activations the backward pass computes again.

`config.REMAT` lists the policies by name. A policy changes memory and time, and
gradients by no more than rounding.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

LAYER_INPUT = "layer_input"
# The output of attention, as large as the output of one product. Attention in
# chunks computes its scores again in its own backward pass. If its output were
# not saved, the layer's backward pass would compute them once more.
ATTENDED = "attended"


def remat_layer(
  layer: Callable[[jax.Array, Any], Any], name: str
) -> Callable[[jax.Array, Any], Any]:
  """Applies a rematerialisation policy to a decoder layer.

  Args:
    layer: (hidden states, weights) -> anything.
    name: one of `config.REMAT`.

  Returns:
    A function with the same values.
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
  return layer  # "none" and "attention" save everything of a layer.


def remat_attention(
  attend: Callable[..., jax.Array], name: str
) -> Callable[..., jax.Array]:
  """Applies a rematerialisation policy to attention.

  Args:
    attend: (queries, keys, values, mask) -> output.
    name: one of `config.REMAT`. Only "attention" changes anything: "dots",
      "layer" and "offload" compute the scores again with the layer.

  Returns:
    A function with the same values.
  """
  return jax.checkpoint(attend) if name == "attention" else attend
