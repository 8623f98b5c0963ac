"""Copies of weights for rollouts and for models that are not trained."""

from collections.abc import Callable
from typing import Any

import jax

from pure_jax.models import int8
from pure_jax.models import params as weights
from pure_jax.models.config import MATRICES, ModelConfig
from pure_jax.parallel import sharding


def needs_compute_copy(
  declared: Any,
  model: ModelConfig,
  source: sharding.Layout,
  target: sharding.Layout,
) -> bool:
  """Says whether `make_compute_copy` copies weights or returns its argument.

  Args:
    declared: pytree of declared weights, stored as they are trained.
    model: the architecture, with the compute dtype.
    source: layout of the weights.
    target: layout of the copy.

  Returns:
    True if a sharding or a dtype differs.
  """
  stored = jax.tree.map(lambda w: w.dtype, declared, is_leaf=weights.is_weight)
  return stored != _copy_dtypes(declared, model) or (
    sharding.weight_shardings(declared, source)
    != sharding.weight_shardings(declared, target)
  )


def make_compute_copy(
  declared: Any,
  model: ModelConfig,
  source: sharding.Layout,
  target: sharding.Layout,
) -> Callable[[Any], Any]:
  """Casts weights to the compute dtype and moves them to another layout.

  The forward pass would cast the weights each time, so results are the same,
  and bfloat16 halves the memory. Weights that are declared with `keep_dtype`,
  the norms, are not cast.

  Args:
    declared: pytree of declared weights, stored as they are trained.
    model: the architecture, with the compute dtype.
    source: layout of the weights.
    target: layout of the copy, on the same devices.

  Returns:
    A jitted function from weights to their copy; if `needs_compute_copy` is
    False, a function that returns the weights themselves.

  Raises:
    ValueError: if the layouts are of different devices, or of devices in
      another order.
  """
  if list(source.mesh.devices.flat) != list(target.mesh.devices.flat):
    raise ValueError(
      f"Weights cannot move from {source} to {target}: both must hold the "
      "same devices in the same order."
    )
  if not needs_compute_copy(declared, model, source, target):
    return lambda params: params
  dtypes = _copy_dtypes(declared, model)
  return jax.jit(
    lambda params: jax.tree.map(lambda x, d: x.astype(d), params, dtypes),
    in_shardings=(sharding.weight_shardings(declared, source),),
    out_shardings=sharding.weight_shardings(declared, target),
  )


def _copy_dtypes(declared, model):
  """Dtypes of a compute copy, one per weight."""
  return jax.tree.map(
    lambda weight: weight.dtype if weight.keep_dtype else model.compute_dtype,
    declared,
    is_leaf=weights.is_weight,
  )


def make_int8_copy(
  declared: dict[str, Any],
  model: ModelConfig,
  source: sharding.Layout,
  target: sharding.Layout,
) -> Callable[[Any], Any]:
  """Copies weights like `make_compute_copy`, with the layers' matrices in int8.

  The matrices are rounded from the weights as they are stored, not from their
  copy in the compute dtype.

  Args:
    declared: a decoder's declared weights, stored as they are trained; with
      adapters, only the weights of the base.
    model: the architecture, with the compute dtype.
    source: layout of the weights.
    target: layout of the copy, on the same devices.

  Returns:
    A jitted function from weights to their copy, as a model with
    ``int8_matrices`` declares it.

  Raises:
    ValueError: as `make_compute_copy`.
  """

  def without_matrices(params):
    layers = params["layers"].items()
    return params | {"layers": {k: v for k, v in layers if k not in MATRICES}}

  cast = make_compute_copy(without_matrices(declared), model, source, target)

  def copy(params):
    rest = cast(without_matrices(params))
    layers = int8.quantize_layers(params["layers"])
    return rest | {"layers": layers | rest["layers"]}

  layers = int8.declare_quantized(declared["layers"])
  return jax.jit(
    copy,
    in_shardings=(sharding.weight_shardings(declared, source),),
    out_shardings=sharding.weight_shardings(
      declared | {"layers": layers}, target
    ),
  )
