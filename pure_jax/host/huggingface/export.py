"""Writes a policy or a PRM as a folder that transformers loads.

The folder is written under a hidden name and renamed when everything is on
disk, so that an interrupted export leaves nothing behind.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pure_jax.host.atomic_files import write_json_atomic
from pure_jax.host.huggingface import files, tensors
from pure_jax.host.huggingface.architectures import HuggingFaceError
from pure_jax.host.huggingface.config import CONFIG_FILE, config_fields
from pure_jax.host.huggingface.tensors import Tensor
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig

# The usual size of a file of a sharded checkpoint.
SHARD_BYTES = 5 * 10**9


def export_policy(
  folder: str | os.PathLike,
  params: Any,
  config: ModelConfig,
  *,
  max_positions: int,
  eos_id: int | None = None,
  pad_id: int | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes a policy as Qwen2-, Qwen3- or LlamaForCausalLM.

  Weights are written in their dtype, one tensor at a time, so that host memory
  never contains two tensors of a file. The tokenizer is not written.

  Args:
    folder: the new folder. It must be empty if it exists.
    params: weights as `policy.declare_policy` declares them.
    config: the architecture.
    max_positions: length in tokens of the longest text the model is made for,
      which config.json has as max_position_embeddings.
    eos_id: id that ends a text, or None if it is unknown.
    pad_id: id of padding, or None if it is unknown.
    shard_bytes: largest size of a file. A larger tensor gets a file of its own.

  Raises:
    HuggingFaceError: if transformers has no such architecture, or if the folder
      is not empty or cannot be written.
    ValueError: if the weights do not fit the config, or are sharded over
      several processes.
  """
  declared = policy.declare_policy(config)
  fields = config_fields(
    config,
    is_prm=False,
    max_positions=max_positions,
    eos_id=eos_id,
    pad_id=pad_id,
  )
  _export(pathlib.Path(folder), params, declared, fields, shard_bytes)


def export_prm(
  folder: str | os.PathLike,
  params: Any,
  config: ModelConfig,
  *,
  max_positions: int,
  pad_id: int | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes a PRM as Qwen2-, Qwen3- or LlamaForTokenClassification.

  Label 1 is "good", label 0 is "bad". The extra layers of a PRM are written as
  further layers of the decoder. The rest is as in `export_policy`.

  Args:
    folder: the new folder. It must be empty if it exists.
    params: weights as `prm.declare_prm` declares them.
    config: the architecture, of the policy or of the PRM: the number of layers
      is taken from the weights.
    max_positions: length in tokens of the longest text the model is made for.
    pad_id: id of padding, or None if it is unknown.
    shard_bytes: largest size of a file.

  Raises:
    HuggingFaceError: as `export_policy`.
    ValueError: as `export_policy`.
  """
  depth = params["layers"]["attention_norm"].shape[0]
  config = dataclasses.replace(config, num_layers=depth)
  fields = config_fields(
    config, is_prm=True, max_positions=max_positions, pad_id=pad_id
  )
  declared = prm.declare_prm(config)
  _export(pathlib.Path(folder), params, declared, fields, shard_bytes)


def _export(
  folder: pathlib.Path,
  params: Any,
  declared: Any,
  fields: Mapping[str, Any],
  shard_bytes: int,
) -> None:
  """Checks the arguments, then writes the folder."""
  weights.check_params(params, declared)
  if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(params)):
    raise ValueError(
      "The weights are spread over processes: gather them into one to export."
    )
  if shard_bytes < 1:
    raise ValueError(f"shard_bytes must be positive, got {shard_bytes}.")
  shards = _split(tensors.tensors_of(declared), params, shard_bytes)
  try:
    with _renamed_when_done(folder) as hidden:
      names = _file_names(len(shards))
      for name, shard in zip(names, shards, strict=True):
        _write_shard(hidden / name, shard, params)
      if len(shards) > 1:
        _write_index(hidden, dict(zip(names, shards, strict=True)), params)
      write_json_atomic(hidden / CONFIG_FILE, fields)
  except OSError as error:
    raise HuggingFaceError(f"Cannot write {folder}: {error}.") from error


@contextlib.contextmanager
def _renamed_when_done(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A hidden folder that gets its name when the block ends without an error."""
  folder = folder.absolute()
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise HuggingFaceError(
      f"{folder} is there already: remove it, or choose another name."
    )
  folder.parent.mkdir(parents=True, exist_ok=True)
  hidden = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
  hidden.mkdir()
  try:
    yield hidden
    hidden.rename(folder)
  finally:
    shutil.rmtree(hidden, ignore_errors=True)


def _split(
  by_name: Mapping[str, Tensor], params: Any, shard_bytes: int
) -> list[dict[str, Tensor]]:
  """Distributes tensors over files, in order, up to the size limit."""
  shards: list[dict[str, Tensor]] = [{}]
  filled = 0
  for name, tensor in by_name.items():
    size = _num_bytes(tensor, params)
    if shards[-1] and filled + size > shard_bytes:
      shards.append({})
      filled = 0
    shards[-1][name] = tensor
    filled += size
  return shards


def _file_names(count: int) -> list[str]:
  """The names that transformers gives so many files."""
  if count == 1:
    return [files.SINGLE_FILE]
  return [
    f"model-{number:05}-of-{count:05}.safetensors"
    for number in range(1, count + 1)
  ]


def _write_shard(
  path: pathlib.Path, shard: Mapping[str, Tensor], params: Any
) -> None:
  """Writes one file, with one tensor in memory at a time."""
  files.write_file(
    path,
    {
      name: (str(_weight(params, tensor).dtype), tensor.shape)
      for name, tensor in shard.items()
    },
    (_fetch(params, tensor) for tensor in shard.values()),
  )


def _write_index(
  folder: pathlib.Path, shards: Mapping[str, Mapping[str, Tensor]], params: Any
) -> None:
  """Writes the index that says which file each tensor is in."""
  every = list(itertools.chain(*(shard.values() for shard in shards.values())))
  total = sum(_num_bytes(tensor, params) for tensor in every)
  write_json_atomic(
    folder / files.INDEX_FILE,
    {
      "metadata": {"total_size": total},
      "weight_map": {
        name: file for file, shard in shards.items() for name in shard
      },
    },
  )


def _weight(params: Any, tensor: Tensor) -> jax.Array:
  """The weight that a tensor is, or is one layer of."""
  for key in tensor.path:
    params = params[key]
  return params


def _num_bytes(tensor: Tensor, params: Any) -> int:
  """Size of a tensor in its file."""
  itemsize = jnp.dtype(_weight(params, tensor).dtype).itemsize
  return math.prod(tensor.shape) * itemsize


def _fetch(params: Any, tensor: Tensor) -> np.ndarray:
  """Copies a tensor to the host, in the layout of the file."""
  weight = _weight(params, tensor)
  if tensor.layer is None:
    return np.asarray(_whole(weight, tensor.layout))
  return np.asarray(_layer(weight, tensor.layer, tensor.layout))


# Transposed on the device: on the host it would take a second copy.
_whole = jax.jit(tensors.to_theirs, static_argnums=1)


@functools.partial(jax.jit, static_argnums=2)
def _layer(stacked: jax.Array, layer: int, layout: tensors.Layout) -> jax.Array:
  """One layer of a stacked weight, in the layout of the file."""
  ours = jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)
  return tensors.to_theirs(ours, layout)
