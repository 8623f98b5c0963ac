"""Lower bounds of the bytes that a model's arrays take on one device."""

from typing import Any

import jax
import jax.numpy as jnp

from pure_jax.models import params as weights
from pure_jax.models.config import ModelConfig
from pure_jax.parallel.sharding import Layout, weight_shardings
from pure_jax.runs.memory.needs import Need
from pure_jax.runs.planning import estimates
from pure_jax.runs.planning.programs import device_bytes, with_shardings


def weight_bytes(
  declared: Any, layout: Layout, dtype: str | None = None
) -> int:
  """Counts the bytes of declared weights on a device.

  Args:
    declared: pytree of `models.params.Weight`.
    layout: devices and rules; they divide the weights.
    dtype: of the weights; None takes the declared ones.

  Returns:
    The bytes.
  """
  arrays = with_shardings(
    weights.abstract_params(declared), weight_shardings(declared, layout)
  )
  if dtype is None:
    return device_bytes(arrays)
  return sum(
    device_bytes(x) // x.dtype.itemsize * jnp.dtype(dtype).itemsize
    for x in jax.tree.leaves(arrays)
  )


def backward_needs(
  model: ModelConfig,
  rows: int,
  length: int,
  new_tokens: int,
  layout: Layout,
  fields: tuple[str, ...],
) -> list[Need]:
  """The activations of a backward pass over rows of one text each.

  At its start all layer inputs exist. Then the gradient of the logits is read,
  and the scores of the last layer's attention: the larger counts.

  Args:
    model: the architecture.
    rows: rows of the pass on one device.
    length: tokens of a row (T).
    new_tokens: tokens of a row whose logits are read.
    layout: devices and rules.
    fields: the settings that determine rows and lengths.

  Returns:
    The needs.
  """
  mesh, kernels = layout.mesh.shape, layout.kernels
  tensor, sequence = mesh["tensor"], mesh["sequence"]
  itemsize = jnp.dtype(model.compute_dtype).itemsize
  needs = [
    Need(
      "the inputs of layers",
      estimates.layer_input_bytes(model, rows, length, layout),
      fields,
    )
  ]
  logits = scores = 0
  if kernels.logp == "xla":
    # Chunks of equal length may be half as long as the limit.
    chunk = min(new_tokens, (model.logits_chunk or 2 * new_tokens) // 2)
    logits = rows * chunk * model.vocab_size * itemsize
  if kernels.attention == "xla":
    queries = min(length, (model.attention_chunk or 2 * length) // 2)
    scores = rows * model.num_heads * queries * length * itemsize
  what, most = max(
    ("logits", logits), ("attention scores", scores), key=lambda x: x[1]
  )
  return [*needs, Need(what, most // (tensor * sequence), fields)]
