"""Low-rank adapters: a few weights to train beside those that stay.

A matrix W of a layer becomes W + (alpha / r) A B, with A [in, r] and B [r, out]
(LoRA, https://arxiv.org/abs/2106.09685). B starts at zero, so the model starts
as its base. With `ModelConfig.lora` the adapters are declared in the layer
stack, beside their matrix and named after it, and the layers of
`models/transformer.py` add (alpha / r) (x A) B to x W: no sum of the two
matrices is ever made. `split_adapters` and `join_params` take the weights to
train and those that stay apart and together again without a copy; `merge`
makes plain weights of both, for whoever knows no adapters.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax.models.config import ModelConfig

# Ends of the names of A and B.
SUFFIXES = ("_lora_a", "_lora_b")


def split_adapters(
  params: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Adapters, and what stays as it is.

  Args:
    params: weights of a decoder, or anything declared per weight.

  Returns:
    (adapters, base): two dicts that `join_params` makes one of. Without
    adapters the first has an empty ``layers``.
  """
  layers = params["layers"]
  adapters = {k: v for k, v in layers.items() if k.endswith(SUFFIXES)}
  base = {k: v for k, v in layers.items() if k not in adapters}
  return {"layers": adapters}, params | {"layers": base}


def trained_and_frozen(
  params: dict[str, Any], config: ModelConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
  """What an update changes, and what it only reads.

  Args:
    params: weights of a decoder, or anything declared per weight.
    config: the architecture.

  Returns:
    (adapters, base), or (everything, nothing) without adapters.
  """
  if config.lora is None:
    return params, {}
  return split_adapters(params)


def join_params(*parts: dict[str, Any]) -> dict[str, Any]:
  """Weights that were taken apart, as one tree of the same arrays.

  >>> join_params({"layers": {"up": 1}}, {"layers": {"up_lora_a": 2}, "x": 3})
  {'layers': {'up': 1, 'up_lora_a': 2}, 'x': 3}

  Args:
    *parts: nested dicts; where two have a leaf under one name, the later.

  Returns:
    A nested dict.
  """
  joined: dict[str, Any] = {}
  for part in parts:
    for name, value in part.items():
      if isinstance(value, dict):
        value = join_params(joined.get(name, {}), value)
      joined[name] = value
  return joined


def merge(params: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
  """Plain weights that compute what weights with adapters do.

  Args:
    params: weights with the adapters of `config.lora`.
    config: the architecture.

  Returns:
    The base's tree with W + (alpha / r) A B, summed in float32 and stored in
    the dtype of W, for every matrix that has adapters.
  """
  if config.lora is None:
    return params
  adapters, base = split_adapters(params)
  merged = dict(base["layers"])
  for name in config.lora.targets:
    a, b = (adapters["layers"][name + suffix] for suffix in SUFFIXES)
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
