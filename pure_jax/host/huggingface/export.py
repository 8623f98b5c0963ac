"""Writes a policy or a PRM as a folder that transformers loads.

The folder is written under a hidden name and renamed when everything is on
disk. An interrupted export leaves nothing behind; the next one removes what a
killed export leaves.
"""

import dataclasses
import functools
import math
import operator
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pure_jax.host.atomic_files import create_folder_atomic, write_json_atomic
from pure_jax.host.huggingface import files, tensors
from pure_jax.host.huggingface.architectures import HuggingFaceError
from pure_jax.host.huggingface.config import (
  CONFIG_FILE,
  NO_TOKEN_IDS,
  TokenIds,
  config_fields,
)
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
  token_ids: TokenIds = NO_TOKEN_IDS,
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
    token_ids: ids of special tokens, none if they are unknown.
    shard_bytes: largest size of a file. A larger tensor gets a file of its own.

  Raises:
    HuggingFaceError: if transformers has no such architecture, if the folder is
      not empty or cannot be written, or if a weight is not finite: then nothing
      is written.
    ValueError: if the weights do not fit the config, or are sharded over
      several processes.
  """
  declared = policy.declare_policy(config)
  fields = config_fields(
    config, is_prm=False, max_positions=max_positions, token_ids=token_ids
  )
  _export(pathlib.Path(folder), params, declared, fields, shard_bytes)


def export_prm(
  folder: str | os.PathLike,
  params: Any,
  config: ModelConfig,
  *,
  max_positions: int,
  token_ids: TokenIds = NO_TOKEN_IDS,
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
    token_ids: ids of special tokens, none if they are unknown.
    shard_bytes: largest size of a file.

  Raises:
    HuggingFaceError: as `export_policy`.
    ValueError: as `export_policy`.
  """
  depth = params["layers"]["attention_norm"].shape[0]
  config = dataclasses.replace(config, num_layers=depth)
  fields = config_fields(
    config, is_prm=True, max_positions=max_positions, token_ids=token_ids
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
  by_name = tensors.tensors_of(declared)
  weight_of = {
    name: functools.reduce(operator.getitem, tensor.path, params)
    for name, tensor in by_name.items()
  }
  sizes = {
    name: math.prod(tensor.shape) * weight_of[name].dtype.itemsize
    for name, tensor in by_name.items()
  }

  def arrays(names: Sequence[str]) -> Iterator[np.ndarray]:
    for name in names:
      tensor = by_name[name]
      array = np.asarray(_in_file(weight_of[name], tensor.layer, tensor.layout))
      fault = files.not_finite(array)
      if fault is not None:
        raise HuggingFaceError(
          f"Only finite weights are exported, but of {name}, {fault}. The run "
          "diverged: export an earlier checkpoint."
        )
      yield array
      # Otherwise it lives until the next one has been made.
      del array

  shards = _split(sizes, shard_bytes)
  _check_new(folder)
  try:
    with create_folder_atomic(folder) as hidden:
      for file, names in shards.items():
        files.write_file(
          hidden / file,
          {
            name: (str(weight_of[name].dtype), by_name[name].shape)
            for name in names
          },
          arrays(names),
        )
      if len(shards) > 1:
        index = {name: file for file, names in shards.items() for name in names}
        total = {"total_size": sum(sizes.values())}
        write_json_atomic(
          hidden / files.INDEX_FILE, {"metadata": total, "weight_map": index}
        )
      write_json_atomic(hidden / CONFIG_FILE, fields)
  except OSError as error:
    raise HuggingFaceError(f"Cannot write {folder}: {error}.") from error


def _check_new(folder: pathlib.Path) -> None:
  """Raises for a path that exists, unless it is an empty folder."""
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise HuggingFaceError(
      f"{folder} exists already: remove it, or choose another name."
    )


def _split(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
  """Distributes tensors over files, in order, up to a size in bytes.

  Returns:
    Names of tensors by name of the file, as transformers names so many files.
  """
  shards: list[list[str]] = [[]]
  filled = 0
  for name, size in sizes.items():
    if shards[-1] and filled + size > limit:
      shards.append([])
      filled = 0
    shards[-1].append(name)
    filled += size
  if len(shards) == 1:
    return {files.SINGLE_FILE: shards[0]}
  return {
    f"model-{number:05}-of-{len(shards):05}.safetensors": names
    for number, names in enumerate(shards, 1)
  }


@functools.partial(jax.jit, static_argnums=2)
def _in_file(
  weight: jax.Array, layer: int | None, layout: tensors.Layout
) -> jax.Array:
  """A weight, or one layer of a stacked weight, in the layout of the file.

  It is transposed on the device: on the host it would take a second copy.
  """
  if layer is not None:
    weight = jax.lax.dynamic_index_in_dim(weight, layer, keepdims=False)
  return tensors.to_theirs(weight, layout)
