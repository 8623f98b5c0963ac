"""A Hugging Face folder as the parameters of a policy or a PRM.

All headers are read and compared with the declaration before the first weight
is: a folder that does not fit costs no time and no memory. Then each tensor is
read once, put on the devices in the shards it will live in, and written into
its place of the stacked weight, which is donated. The next tensor is read when
that is done.
"""

import dataclasses
import functools
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
  FolderConfig,
  choose_good_class,
  read_config,
)
from pure_jax.host.huggingface.files import Stored
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

  Memory: beyond the parameters, the host holds one tensor of the files at a
  time and the device one more. Measured with SmolLM2-135M in float32 (538 MB,
  largest tensor 113 MB): tracemalloc, which sees what Python, numpy and
  safetensors allocate and not what belongs to a device, peaks at 116 MB. On a
  CPU, whose device memory is the host's, the anonymous memory of the process
  (RssAnon, sampled every millisecond) peaks 252 MB above the parameters, with
  what XLA needs to compile. Mapped pages of the files are the kernel's, to
  take back when it likes.

  Args:
    folder: config.json and safetensors files, one or many.
    layout: where the weights go.
    compute_dtype: "float32" or "bfloat16", of the returned config.
    param_dtype: "float32" or "bfloat16", what stored weights are cast to.

  Returns:
    (params as `policy.declare_policy` declares them, on the shardings that
    the layout gives, and their config).

  Raises:
    HuggingFaceError: for a folder that cannot be read or is of something
      else, naming the file, field or tensor.
    ValueError: if a rule does not fit a weight.
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

  Class 1 of the result is "the step is good", whichever it is in the folder.
  Memory is that of `load_policy`.

  Args:
    folder: config.json and safetensors files, one or many.
    layout: where the weights go.
    compute_dtype: "float32" or "bfloat16", of the returned config.
    param_dtype: "float32" or "bfloat16", what stored weights are cast to.
    good_class: index of the folder's label for a good step; None goes by
      the names of the labels, and takes 1 where they have none.

  Returns:
    (params as `prm.declare_prm` declares them, on the shardings that the
    rules give, and their config).

  Raises:
    HuggingFaceError: as `load_policy`, and where the labels do not say which
      is good.
    ValueError: if a rule does not fit a weight, or good_class is no class.
  """
  config = read_config(folder)
  path = pathlib.Path(folder)
  if not config.is_prm:
    raise HuggingFaceError(
      f"{path} holds a {config.architecture}, a language model: use "
      "load_policy, and prm.init_prm_from_policy to make a PRM of it."
    )
  swapped = _good_class(path, config, good_class) == 0
  model = dataclasses.replace(
    config.model, compute_dtype=compute_dtype, param_dtype=param_dtype
  )
  params = _load(path, prm.declare_prm(model), model, layout, swapped)
  return params, model


def _good_class(
  folder: pathlib.Path, config: FolderConfig, given: int | None
) -> int:
  """`choose_good_class`, naming the file."""
  try:
    return choose_good_class(config.labels, given)
  except HuggingFaceError as error:
    raise HuggingFaceError(f"{folder / CONFIG_FILE}: {error}") from error


def _load(
  folder: pathlib.Path,
  declared: Any,
  model: ModelConfig,
  layout: sharding.Layout,
  swapped: bool = False,
) -> Any:
  """The declared weights from the files of a folder."""
  wanted = tensors.tensors_of(declared)
  shardings = sharding.weight_shardings(declared, layout)
  stored = files.list_tensors(folder)
  # A tied head may be saved beside the embedding it repeats.
  repeats = tensors.HEAD in stored and "score" not in declared
  repeats = repeats and model.tied_embeddings
  _check_fit(folder, stored, wanted, tensors.HEAD if repeats else None)
  params = jax.jit(
    lambda: jax.tree.map(
      lambda weight: jnp.zeros(weight.shape, weight.dtype),
      declared,
      is_leaf=weights.is_weight,
    ),
    out_shardings=shardings,
  )()
  placed = {name: stored[name] for name in wanted}
  for name, array in files.read_tensors(placed):
    tensor = wanted[name]
    if swapped and tensor.path[0] == "score":
      array = array[::-1]
    holder, key = _holder(params, tensor.path)
    holder[key] = _write(holder[key], tensor, array)
    # The generator reads the next tensor before the name is bound anew.
    del array
  if repeats:
    _check_repeat(
      folder, params["embedding"], wanted[tensors.EMBEDDING], stored
    )
  return params


def _check_fit(
  folder: pathlib.Path,
  stored: Mapping[str, Stored],
  wanted: Mapping[str, Tensor],
  repeated: str | None,
) -> None:
  """Raises for every tensor that is missing, extra, misshapen or quantized."""
  known = set(wanted) | ({repeated} if repeated else set())
  extra = [
    name
    for name in stored
    if name not in known and not tensors.HARMLESS.fullmatch(name)
  ]
  faults = [f"{name} is missing" for name in wanted if name not in stored]
  faults += [f"{name} is not part of this architecture" for name in extra]
  for name in known & stored.keys():
    shape = wanted[tensors.EMBEDDING if name == repeated else name].shape
    found = stored[name]
    if found.shape != shape:
      faults.append(f"{name} is {found.shape}, config.json says {shape}")
    if found.dtype not in files.DTYPES:
      faults.append(
        f"{name} is stored as {found.dtype}, not as one of "
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


def _holder(params: Any, path: tuple[str, ...]) -> tuple[dict[str, Any], str]:
  """The dict that holds a weight, and its key there."""
  for key in path[:-1]:
    params = params[key]
  return params, path[-1]


def _write(weight: Array, tensor: Tensor, array: np.ndarray) -> Array:
  """The weight with a tensor in its place; the weight given is used up."""
  stacked = tensor.layer is not None
  own_shape = weight.shape[1:] if stacked else weight.shape
  ours = tensors.to_ours(array, tensor.layout, own_shape)
  if stacked:
    ours = ours[None]
  part = _place(ours, weight.sharding, stacked)
  first = tensor.layer if stacked else 0
  # Waiting keeps one tensor in memory, not as many as the device lags behind.
  return jax.block_until_ready(
    _write_part(weight, part, first, weight.sharding)
  )


def _place(
  ours: np.ndarray, weight_sharding: NamedSharding, stacked: bool
) -> Array:
  """A tensor on the devices, split as the weight it goes into."""
  spec = weight_sharding.spec
  if stacked:
    # A single layer cannot be split over layers.
    spec = PartitionSpec(None, *spec[1:])
  return jax.make_array_from_callback(
    ours.shape,
    NamedSharding(weight_sharding.mesh, spec),
    lambda index: ours[index],
  )


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _write_part(
  weight: Array, part: Array, first: Array, where: NamedSharding
) -> Array:
  """Writes a part into a weight, from index `first` of its first axis on."""
  start = (first, *(0 for _ in weight.shape[1:]))
  written = jax.lax.dynamic_update_slice(
    weight, part.astype(weight.dtype), start
  )
  return jax.lax.with_sharding_constraint(written, where)


def _check_repeat(
  folder: pathlib.Path,
  embedding: Array,
  tensor: Tensor,
  stored: Mapping[str, Stored],
) -> None:
  """Raises if a tied head that is saved is not the embedding."""
  only_head = {tensors.HEAD: stored[tensors.HEAD]}
  for _, array in files.read_tensors(only_head):
    ours = tensors.to_ours(array, tensor.layout, embedding.shape)
    head = _place(ours, embedding.sharding, stacked=False)
    if not jnp.array_equal(head.astype(embedding.dtype), embedding):
      raise HuggingFaceError(
        f"{folder}: {CONFIG_FILE} says tie_word_embeddings, but "
        f"{tensors.HEAD} is not {tensors.EMBEDDING}: say false there."
      )
