"""Loads a Hugging Face folder as the parameters of a policy or a PRM.

First all headers are compared with the declared weights, so that a folder that
does not fit fails at once. Then each tensor is read once, checked to be finite,
sharded over the devices, and written into its layer of the stacked weight,
which is donated. The next tensor is read when this is done.
"""

import dataclasses
import functools
import operator
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from pure_jax.host.huggingface import files, tensors
from pure_jax.host.huggingface.architectures import HuggingFaceError
from pure_jax.host.huggingface.config import (
  CONFIG_FILE,
  choose_good_class,
  read_config,
)
from pure_jax.host.huggingface.files import StoredTensor
from pure_jax.host.huggingface.tensors import Tensor
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding


def load_policy(
  folder: str | os.PathLike,
  layout: sharding.Layout,
  *,
  compute_dtype: str = "float32",
  param_dtype: str = "float32",
) -> tuple[dict[str, Any], ModelConfig]:
  """Loads a language model: Qwen2, Qwen3 or Llama.

  Memory: in addition to the parameters, the host needs memory for one tensor at
  a time, and the device for one more. Measured with SmolLM2-135M in float32
  (538 MB, largest tensor 113 MB): tracemalloc, which counts allocations of
  Python, numpy and safetensors but no device memory, peaks at 116 MB. On a
  CPU, where device memory is host memory, the anonymous memory of the process
  (RssAnon, sampled every millisecond) peaks 252 MB above the parameters,
  including the memory that XLA needs to compile.

  Args:
    folder: folder with config.json and one or more safetensors files.
    layout: devices and sharding of the weights.
    compute_dtype: "float32" or "bfloat16", for the returned config.
    param_dtype: "float32" or "bfloat16". The weights are cast to it.

  Returns:
    (params as `policy.declare_policy` declares them, sharded by the layout;
    their config).

  Raises:
    HuggingFaceError: if the folder cannot be read, contains something other
      than a policy, or has a weight that is not finite, also when cast to these
      dtypes. The message names the file, field or tensor.
    ValueError: if a sharding rule does not fit a weight.
  """
  config = read_config(folder)
  path = pathlib.Path(folder)
  if config.is_prm:
    raise HuggingFaceError(
      f"{path} holds a {config.architecture}, a PRM: use load_prm."
    )
  model = dataclasses.replace(
    config.model, compute_dtype=compute_dtype, param_dtype=param_dtype
  )
  return _load(path, policy.declare_policy(model), model, layout), model


def load_prm(
  folder: str | os.PathLike,
  layout: sharding.Layout,
  *,
  compute_dtype: str = "float32",
  param_dtype: str = "float32",
  good_class: int | None = None,
) -> tuple[dict[str, Any], ModelConfig]:
  """Loads a token classifier with two labels, such as PURE-PRM-7B.

  Class 1 of the result means that a step is good: the classes are exchanged if
  the folder has them the other way round.

  Args:
    folder: folder with config.json and one or more safetensors files.
    layout: devices and sharding of the weights.
    compute_dtype: as for `load_policy`.
    param_dtype: as for `load_policy`.
    good_class: index of the folder's class for a good step. None chooses by the
      names of the labels, see `config.choose_good_class`.

  Returns:
    (params as `prm.declare_prm` declares them, sharded by the layout; their
    config).

  Raises:
    HuggingFaceError: as `load_policy`, and if the names of the labels do not
      tell which class is good.
    ValueError: if a sharding rule does not fit a weight, or `good_class` is not
      0, 1 or None.
  """
  config = read_config(folder)
  path = pathlib.Path(folder)
  if not config.is_prm:
    raise HuggingFaceError(
      f"{path} holds a {config.architecture}, a language model: use "
      "load_policy, and prm.init_prm_from_policy to make a PRM of it."
    )
  try:
    swapped = choose_good_class(config.labels, good_class) == 0
  except HuggingFaceError as error:
    raise HuggingFaceError(f"{path / CONFIG_FILE}: {error}") from error
  model = dataclasses.replace(
    config.model, compute_dtype=compute_dtype, param_dtype=param_dtype
  )
  params = _load(path, prm.declare_prm(model), model, layout, swapped)
  return params, model


def _load(
  folder: pathlib.Path,
  declared: Any,
  model: ModelConfig,
  layout: sharding.Layout,
  swapped: bool = False,
) -> Any:
  """Loads the declared weights; `swapped` exchanges a PRM's classes."""
  declared_tensors = tensors.tensors_of(declared)
  shardings = sharding.weight_shardings(declared, layout)
  stored = files.list_tensors(folder)
  # A tied head may be saved although it equals the embedding.
  is_policy = "score" not in declared
  has_tied_head = is_policy and model.tied_embeddings and tensors.HEAD in stored
  _check_fit(
    folder, stored, declared_tensors, tensors.HEAD if has_tied_head else None
  )
  params = jax.jit(
    lambda: jax.tree.map(
      lambda weight: jnp.zeros(weight.shape, weight.dtype),
      declared,
      is_leaf=weights.is_weight,
    ),
    out_shardings=shardings,
  )()
  needed = {name: stored[name] for name in declared_tensors}
  for name, array in files.read_tensors(needed):
    tensor = declared_tensors[name]
    fault = files.not_finite(array, (model.param_dtype, model.compute_dtype))
    if fault is not None:
      raise HuggingFaceError(
        f"{needed[name].file}: of {name}, {fault}. The file is damaged, or the "
        "model diverged in training: use another one."
      )
    if swapped and tensor.path[0] == "score":
      array = array[::-1]
    *outer, key = tensor.path
    holder = functools.reduce(operator.getitem, outer, params)
    holder[key] = _write(holder[key], tensor, array)
    # Otherwise the array lives until the next one has been read.
    del array
  if has_tied_head:
    _check_tied_head(
      folder, params["embedding"], declared_tensors[tensors.EMBEDDING], stored
    )
  return params


def _check_fit(
  folder: pathlib.Path,
  stored: Mapping[str, StoredTensor],
  declared: Mapping[str, Tensor],
  tied_head: str | None,
) -> None:
  """Checks that the stored tensors are the declared ones, in number and
  shape."""
  known = set(declared) | ({tied_head} if tied_head else set())
  extra = [
    name
    for name in stored
    if name not in known and not tensors.IGNORED.fullmatch(name)
  ]
  faults = [f"{name} is missing" for name in declared if name not in stored]
  faults += [f"{name} is not part of this architecture" for name in extra]
  for name in known & stored.keys():
    shape = declared[tensors.EMBEDDING if name == tied_head else name].shape
    tensor = stored[name]
    if tensor.shape != shape:
      theirs = str(tensor.shape)[:60]
      faults.append(f"{name} is {theirs}, config.json says {shape}")
    if tensor.dtype not in files.DTYPES:
      faults.append(
        f"{name} is stored as {tensor.dtype}, not as one of "
        + ", ".join(files.DTYPES)
      )
  if faults:
    listed = sorted(faults)
    more = f"\n  and {len(listed) - 20} more" if len(listed) > 20 else ""
    raise HuggingFaceError(
      f"The weights in {folder} do not fit its {CONFIG_FILE}:\n  "
      + "\n  ".join(listed[:20])
      + more
    )


def _write(weight: Array, tensor: Tensor, array: np.ndarray) -> Array:
  """Writes a tensor into its weight, which is donated."""
  stacked = tensor.layer is not None
  own_shape = weight.shape[1:] if stacked else weight.shape
  ours = tensors.to_ours(array, tensor.layout, own_shape)
  if stacked:
    ours = ours[None]
  update = _to_devices(ours, weight.sharding, stacked)
  first = tensor.layer if stacked else 0
  # Without waiting, tensors that are not yet written would stay in memory.
  return jax.block_until_ready(
    _update_weight(weight, update, first, weight.sharding)
  )


def _to_devices(
  ours: np.ndarray, weight_sharding: NamedSharding, stacked: bool
) -> Array:
  """Copies a tensor to the devices, sharded as the weight it belongs to."""
  spec = weight_sharding.spec
  if stacked:
    # A single layer cannot be sharded over layers.
    spec = PartitionSpec(None, *spec[1:])
  return jax.make_array_from_callback(
    ours.shape,
    NamedSharding(weight_sharding.mesh, spec),
    lambda index: ours[index],
  )


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _update_weight(
  weight: Array, update: Array, first: Array, where: NamedSharding
) -> Array:
  """Overwrites a weight from index `first` of its first axis on."""
  start = (first, *(0 for _ in weight.shape[1:]))
  written = jax.lax.dynamic_update_slice(
    weight, update.astype(weight.dtype), start
  )
  return jax.lax.with_sharding_constraint(written, where)


def _check_tied_head(
  folder: pathlib.Path,
  embedding: Array,
  tensor: Tensor,
  stored: Mapping[str, StoredTensor],
) -> None:
  """Checks that a tied head that was saved equals the embedding."""
  only_head = {tensors.HEAD: stored[tensors.HEAD]}
  for _, array in files.read_tensors(only_head):
    ours = tensors.to_ours(array, tensor.layout, embedding.shape)
    head = _to_devices(ours, embedding.sharding, stacked=False)
    if not jnp.array_equal(head.astype(embedding.dtype), embedding):
      raise HuggingFaceError(
        f"{folder}: {CONFIG_FILE} says tie_word_embeddings, but "
        f"{tensors.HEAD} is not {tensors.EMBEDDING}: say false there."
      )
