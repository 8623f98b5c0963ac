"""The copy of the weights that rollouts read, with matrices in int8."""

from collections.abc import Callable
from typing import Any

import jax

from pure_jax.models import quantized
from pure_jax.models.config import MATRICES, ModelConfig
from pure_jax.parallel import sharding
from pure_jax.training import train


def make_int8_copy(
  declared: dict[str, Any],
  model: ModelConfig,
  source: sharding.Layout,
  target: sharding.Layout,
) -> Callable[[Any], Any]:
  """`train.make_compute_copy` with the layers' matrices in int8.

  They are rounded from the weights as they are stored, not from their copy in
  the compute dtype. All else is what `make_compute_copy` gives.

  Args:
    declared: a decoder's declared weights, stored as they are trained; with
      adapters, those of the base alone.
    model: whose compute_dtype is meant.
    source: where the weights are.
    target: where the copy shall be, on the same devices.

  Returns:
    A jitted function from weights to their copy, which is what a model with
    ``int8_matrices`` declares.

  Raises:
    ValueError: as `train.make_compute_copy`.
  """

  def without_matrices(params):
    layers = params["layers"].items()
    return params | {"layers": {k: v for k, v in layers if k not in MATRICES}}

  cast = train.make_compute_copy(
    without_matrices(declared), model, source, target
  )

  def copy(params):
    rest = cast(without_matrices(params))
    layers = quantized.quantize_layers(params["layers"])
    return rest | {"layers": layers | rest["layers"]}

  layers = quantized.declare_quantized(declared["layers"])
  return jax.jit(
    copy,
    in_shardings=(sharding.weight_shardings(declared, source),),
    out_shardings=sharding.weight_shardings(
      declared | {"layers": layers}, target
    ),
  )
