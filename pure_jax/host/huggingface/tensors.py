"""Names and layouts of Hugging Face tensors, for loading and exporting.

A layout lists, for each dimension of a Hugging Face tensor, the axes of our
weight (without its axis of layers) that it combines. Example: a torch Linear
stores [out, in] and merges the heads, so our query [D, N, H] is stored as
[N H, D], and its layout is ((1, 2), (0,)).
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

# Path of our weight to (name, layout) of the tensor. The names are those of the
# model classes of transformers; `{layer}` is the number of the layer.
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

# Old checkpoints contain the rotary frequencies, which config.json determines.
IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One Hugging Face tensor.

  Attributes:
    path: keys of our weight in the parameter tree.
    layer: number of the layer within a stacked weight, None if the weight is
      not stacked.
    shape: shape in the file.
    layout: see the module.
  """

  path: tuple[str, ...]
  layer: int | None
  shape: tuple[int, ...]
  layout: Layout


def to_ours(
  theirs: np.ndarray, layout: Layout, own_shape: Sequence[int]
) -> np.ndarray:
  """Converts a Hugging Face tensor to our weight, as a view.

  Args:
    theirs: the tensor in the file.
    layout: see the module.
    own_shape: shape of our weight, without its axis of layers.
  """
  order = _flat(layout)
  split = theirs.reshape([own_shape[axis] for axis in order])
  return split.transpose(np.argsort(order))


def to_theirs(ours: Array, layout: Layout) -> Array:
  """The inverse of `to_ours`.

  Args:
    ours: our weight, without an axis of layers.
    layout: see the module.
  """
  return ours.transpose(_flat(layout)).reshape(_shape(ours.shape, layout))


def _shape(own_shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
  """The shape in the file of a weight, without its axis of layers."""
  return tuple(math.prod(own_shape[axis] for axis in axes) for axes in layout)


def tensors_of(declared: Any) -> dict[str, Tensor]:
  """Lists the Hugging Face tensors of a model.

  Args:
    declared: pytree of `Weight`, of a policy or a PRM.

  Returns:
    Tensors by name: one per weight, or one per layer of a stacked weight.
  """
  by_name = {}
  leaves = jax.tree_util.tree_leaves_with_path(declared, is_leaf=is_weight)
  for keys, weight in leaves:
    path = tuple(key.key for key in keys)
    name, layout = _NAMES[path]
    stacked = path[0] == "layers"
    own_shape = weight.shape[1:] if stacked else weight.shape
    shape = _shape(own_shape, layout)
    for layer in range(weight.shape[0]) if stacked else (None,):
      by_name[name.format(layer=layer)] = Tensor(path, layer, shape, layout)
  return by_name


def _flat(layout: Layout) -> list[int]:
  """Our axes in the order of the tensor's memory."""
  return [axis for axes in layout for axis in axes]
