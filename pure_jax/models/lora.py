"""Low-rank adapters: a few weights that are trained, on a frozen base.

A matrix W of a layer becomes W + (alpha / r) A B, with A [in, r] and B [r, out]
(LoRA, https://arxiv.org/abs/2106.09685). B starts at zero, so the model starts
as its base. With `ModelConfig.lora` the adapters are declared in the layer
stack and named after their matrix. The layers of `models/transformer.py` add
(alpha / r) (x A) B to x W, so the sum of the two matrices is never computed.

`split_adapters` and `join_params` separate and join adapters and base without a
copy. `merge` computes plain weights, for programs without adapters.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax.models.config import MATRICES, ModelConfig

# The names of A and B are the name of their matrix and one of these.
FACTORS = ("_lora_a", "_lora_b")
ADAPTER_NAMES = frozenset(
  f"{matrix}{factor}" for matrix in MATRICES for factor in FACTORS
)


def split_adapters(
  params: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Separates adapters from the base.

  Args:
    params: weights of a decoder, or a tree with one entry per weight.

  Returns:
    (adapters, base): two dicts that `join_params` joins. Without adapters the
    first one has an empty ``layers``.
  """
  layers = params["layers"]
  adapters = {k: v for k, v in layers.items() if k in ADAPTER_NAMES}
  base = {k: v for k, v in layers.items() if k not in adapters}
  return {"layers": adapters}, params | {"layers": base}


def trained_and_frozen(
  params: dict[str, Any], config: ModelConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Separates trained weights from frozen ones.

  Args:
    params: weights of a decoder, or a tree with one entry per weight.
    config: the architecture.

  Returns:
    (adapters, base), or (all weights, {}) without adapters.
  """
  if config.lora is None:
    return params, {}
  return split_adapters(params)


def join_params(*trees: dict[str, Any]) -> dict[str, Any]:
  """Joins weights that were separated; no array is copied.

  >>> join_params({"layers": {"up": 1}}, {"layers": {"up_lora_a": 2}, "x": 3})
  {'layers': {'up': 1, 'up_lora_a': 2}, 'x': 3}

  Args:
    *trees: nested dicts; of two leaves with one name, the later is taken.

  Returns:
    A nested dict.
  """
  joined: dict[str, Any] = {}
  for tree in trees:
    for name, value in tree.items():
      if isinstance(value, dict):
        value = join_params(joined.get(name, {}), value)
      joined[name] = value
  return joined


def merge(params: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
  """Adds adapters to their matrices.

  Args:
    params: weights with the adapters of `config.lora`.
    config: the architecture.

  Returns:
    The base with W + (alpha / r) A B in place of every matrix W that has
    adapters, summed in float32 and stored in the dtype of W.
  """
  if config.lora is None:
    return params
  adapters, base = split_adapters(params)
  merged = dict(base["layers"])
  for name in config.lora.targets:
    a, b = (adapters["layers"][name + suffix] for suffix in FACTORS)
    merged[name] = _with_product(merged[name], a, b, config.lora.scale)
  return base | {"layers": merged}


def _with_product(weight: Array, a: Array, b: Array, scale: float) -> Array:
  """W + scale A B, layer by layer."""
  layers, rank = a.shape[0], a.shape[-1]
  product = jnp.einsum(
    "LIR,LRO->LIO",
    a.reshape(layers, -1, rank).astype(jnp.float32),
    b.reshape(layers, rank, -1).astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  total = weight.astype(jnp.float32) + scale * product.reshape(weight.shape)
  return total.astype(weight.dtype)
