"""The names of Hugging Face tensors and how ours lie in them, written once.

A layout says, for each dimension of a Hugging Face tensor, which axes of our
weight (without its axis of layers) it runs over: a torch Linear keeps
[out, in] and merges the heads, so our query [D, N, H] is theirs [N H, D] by
the layout ((1, 2), (0,)). Reading and writing are the two directions of it.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from pure_jax.models.params import is_weight

Layout = tuple[tuple[int, ...], ...]

_VECTOR: Layout = ((0,),)
_HEADS_VECTOR: Layout = ((0, 1),)
_TABLE: Layout = ((0,), (1,))
_MATRIX: Layout = ((1,), (0,))
_TO_HEADS: Layout = ((1, 2), (0,))
_FROM_HEADS: Layout = ((2,), (0, 1))

# Ours -> theirs. `{layer}` is the number of the layer.
_NAMES: Mapping[tuple[str, ...], tuple[str, Layout]] = {
  ("embedding",): ("model.embed_tokens.weight", _TABLE),
  ("final_norm",): ("model.norm.weight", _VECTOR),
  ("head",): ("lm_head.weight", _MATRIX),
  ("score", "kernel"): ("score.weight", _MATRIX),
  ("score", "bias"): ("score.bias", _VECTOR),
} | {
  ("layers", ours): (f"model.layers.{{layer}}.{theirs}", layout)
  for ours, theirs, layout in (
    ("attention_norm", "input_layernorm.weight", _VECTOR),
    ("query", "self_attn.q_proj.weight", _TO_HEADS),
    ("key", "self_attn.k_proj.weight", _TO_HEADS),
    ("value", "self_attn.v_proj.weight", _TO_HEADS),
    ("query_bias", "self_attn.q_proj.bias", _HEADS_VECTOR),
    ("key_bias", "self_attn.k_proj.bias", _HEADS_VECTOR),
    ("value_bias", "self_attn.v_proj.bias", _HEADS_VECTOR),
    ("query_norm", "self_attn.q_norm.weight", _VECTOR),
    ("key_norm", "self_attn.k_norm.weight", _VECTOR),
    ("output", "self_attn.o_proj.weight", _FROM_HEADS),
    ("mlp_norm", "post_attention_layernorm.weight", _VECTOR),
    ("gate", "mlp.gate_proj.weight", _MATRIX),
    ("up", "mlp.up_proj.weight", _MATRIX),
    ("down", "mlp.down_proj.weight", _MATRIX),
  )
}

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

# Old checkpoints keep the rotary frequencies, which follow from config.json.
HARMLESS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One Hugging Face tensor.

  Attributes:
    path: keys of our weight in the parameter tree.
    layer: which of the stacked layers it is, or None for a weight of its own.
    shape: its shape in the file.
    layout: see the module.
  """

  path: tuple[str, ...]
  layer: int | None
  shape: tuple[int, ...]
  layout: Layout


def to_ours(
  theirs: np.ndarray, layout: Layout, own_shape: Sequence[int]
) -> np.ndarray:
  """A Hugging Face tensor as our weight: a view of the same memory.

  Args:
    theirs: the tensor of the file.
    layout: see the module.
    own_shape: shape of our weight, without its axis of layers.

  Returns:
    [own_shape] array.
  """
  order = _flat(layout)
  split = theirs.reshape([own_shape[axis] for axis in order])
  return split.transpose(np.argsort(order))


def to_theirs(ours: Array, layout: Layout) -> Array:
  """The inverse of `to_ours`.

  Args:
    ours: our weight, without an axis of layers.
    layout: see the module.

  Returns:
    The tensor of the file.
  """
  return ours.transpose(_flat(layout)).reshape(their_shape(ours.shape, layout))


def their_shape(own_shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
  """Shape of the tensor that holds a weight, or one layer of it.

  Args:
    own_shape: shape of our weight, without its axis of layers.
    layout: see the module.

  Returns:
    The shape in the file.
  """
  return tuple(math.prod(own_shape[axis] for axis in axes) for axes in layout)


def tensors_of(declared: Any) -> dict[str, Tensor]:
  """Every Hugging Face tensor of a model.

  Args:
    declared: pytree of `Weight`, of a policy or a PRM.

  Returns:
    Tensor by name: one for each weight, one per layer for stacked ones.
  """
  found = {}
  leaves = jax.tree_util.tree_leaves_with_path(declared, is_leaf=is_weight)
  for keys, weight in leaves:
    path = tuple(key.key for key in keys)
    name, layout = _NAMES[path]
    stacked = path[0] == "layers"
    own_shape = weight.shape[1:] if stacked else weight.shape
    shape = their_shape(own_shape, layout)
    for layer in range(weight.shape[0]) if stacked else (None,):
      found[name.format(layer=layer)] = Tensor(path, layer, shape, layout)
  return found


def _flat(layout: Layout) -> list[int]:
  """Our axes in the order in which they lie in the tensor."""
  return [axis for axes in layout for axis in axes]
