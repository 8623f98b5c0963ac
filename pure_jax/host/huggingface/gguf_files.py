"""Writes the model of a GGUF file as a folder that transformers loads.

transformers reads the file, with torch, gguf and accelerate, which the extra
`gguf` installs. It does not notice everything: a file that lacks a tensor gets
random weights, and one whose rotary frequencies are scaled gets others. So the
header is read first, and what transformers read is compared with it.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import tempfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from packaging import version

from pure_jax.host.atomic_files import create_folder_atomic, write_json_atomic
from pure_jax.host.huggingface import architectures, files, tensors
from pure_jax.host.huggingface.architectures import Family, HuggingFaceError
from pure_jax.host.huggingface.config import (
  CONFIG_FILE,
  FolderConfig,
  TokenIds,
  config_fields,
  read_config,
)
from pure_jax.models import policy

PACKAGES = ("torch", "gguf", "accelerate")
# Older ones lose the special tokens of a file.
TRANSFORMERS = "5.24"
DTYPES = ("float32", "bfloat16")

_INSTALL = "pip install -e '.[gguf]'"
_MAGIC = b"GGUF"
_UNUSED = 5  # The type of a token that only fills the vocabulary up.
_ROPE_FACTORS = "rope_freqs.weight"
# Name of the link in the temporary folder.
_ALONE = {"gguf_file": "model.gguf"}


@dataclasses.dataclass(frozen=True)
class _Header:
  """What a GGUF file says about itself.

  Attributes:
    family: the family of its architecture.
    num_tensors: number of tensors.
    token_ids: ids of special tokens.
    tokens: the tokens by id, as the file spells them.
    is_unused: for each token, whether it only fills the vocabulary up.
  """

  family: Family
  num_tensors: int
  token_ids: TokenIds
  tokens: list[str]
  is_unused: list[bool]


def unpack(
  file: str | os.PathLike, folder: str | os.PathLike, dtype: str = "float32"
) -> FolderConfig:
  """Writes the policy of a GGUF file with its tokenizer and chat template.

  The folder is complete as soon as it exists. Weights that the file holds in
  few bits are written as the rounded values that they stand for. Tokens that
  only fill the vocabulary up are left out, as in the folders of their makers,
  so that no run samples them.

  Args:
    file: a GGUF file of a Qwen2, Qwen3 or Llama.
    folder: the new folder, which must not exist.
    dtype: "float32" or "bfloat16", of the weights in the folder.

  Returns:
    The config of the folder.

  Raises:
    HuggingFaceError: if a package is missing, if the file is missing, damaged,
      of another architecture, or has weights or a tokenizer that transformers
      reads wrongly, or if the folder cannot be written. Then there is no
      folder.
  """
  file, folder = pathlib.Path(file), pathlib.Path(folder).absolute()
  header = _read_header(file)
  if folder.exists():
    raise HuggingFaceError(
      f"{folder} exists already: remove it, or choose another name."
    )
  try:
    # Alone: transformers would also read a tokenizer or adapters next to it.
    with (
      create_folder_atomic(folder) as partial,
      tempfile.TemporaryDirectory() as alone,
    ):
      (pathlib.Path(alone) / _ALONE["gguf_file"]).symlink_to(file.resolve())
      config = _write_model(file, alone, header, partial, dtype)
      _write_tokenizer(file, alone, header, partial)
  except OSError as error:
    raise HuggingFaceError(f"Cannot write {folder}: {error}.") from error
  return config


def _read_header(file: pathlib.Path) -> _Header:
  """Reads and checks all but the values of the tensors."""
  for package in PACKAGES:
    if importlib.util.find_spec(package) is None:
      raise HuggingFaceError(f"{package} is missing: {_INSTALL}")
  import gguf

  installed = importlib.metadata.version("transformers")
  if version.parse(installed) < version.parse(TRANSFORMERS):
    raise HuggingFaceError(
      f"GGUF files need transformers {TRANSFORMERS} or newer, and this is "
      f"{installed}: {_INSTALL}"
    )
  try:
    if not file.is_file():
      raise HuggingFaceError(
        f"{file} is not a file: name the GGUF file of a model."
      )
    with file.open("rb") as opened:
      magic = opened.read(len(_MAGIC))
  except OSError as error:
    raise HuggingFaceError(f"{file} cannot be read: {error}.") from error
  if magic != _MAGIC:
    raise HuggingFaceError(
      f"{file} is not a GGUF file: it does not begin with GGUF."
    )
  try:
    reader = gguf.GGUFReader(file)
    # A vocabulary of numbers would be no list of texts.
    fields = {key: field.contents() for key, field in reader.fields.items()}
    names = {tensor.name for tensor in reader.tensors}
  except MemoryError:
    raise
  except Exception as error:  # numpy's, of any kind, where the file ends.
    raise HuggingFaceError(
      f"{file} is truncated or damaged ({_reason(error)}): copy it again."
    ) from error
  _check_supported(file, fields, names)
  tokens = fields.get("tokenizer.ggml.tokens")
  if not tokens:
    raise HuggingFaceError(
      f"{file} has no tokenizer: use the model's folder of safetensors."
    )
  kinds = fields.get("tokenizer.ggml.token_type") or [0] * len(tokens)
  ids = {
    name: fields.get(f"tokenizer.ggml.{name}_token_id")
    for name in ("bos", "eos", "padding")
  }
  ends = () if ids["eos"] is None else (ids["eos"],)
  return _Header(
    family=_family(file, fields.get("general.architecture")),
    num_tensors=len(names),
    token_ids=TokenIds(ids["bos"], ends, ids["padding"]),
    tokens=tokens,
    is_unused=[kind == _UNUSED for kind in kinds],
  )


def _family(file: pathlib.Path, name: Any) -> Family:
  """The family of an architecture, which GGUF names as transformers does."""
  known = {f.config_class.model_type: f for f in architectures.FAMILIES}
  if name not in known:
    raise HuggingFaceError(
      f"{file}: the architecture {str(name)[:60]!r} is not supported; "
      f"supported are {', '.join(known)}."
    )
  return known[name]


def _check_supported(
  file: pathlib.Path, fields: Mapping[str, Any], names: Collection[str]
) -> None:
  """Raises for what transformers would ignore."""
  shards = fields.get("split.count") or 1
  if shards > 1:
    raise HuggingFaceError(
      f"{file} is one of {shards} files of a model: join them into one first "
      "(llama-gguf-split --merge)."
    )
  scaling = {
    key: value
    for key, value in fields.items()
    if ".rope.scal" in key and value not in ("none", 1.0)
  }
  if scaling or _ROPE_FACTORS in names:
    what = ", ".join(f"{key}={value}" for key, value in scaling.items())
    raise HuggingFaceError(
      f"{file} scales its rotary frequencies ({what or _ROPE_FACTORS}), which "
      "transformers does not read from a GGUF file: use the model's folder of "
      "safetensors."
    )


def _read_model(
  file: pathlib.Path, alone: str, family: Family, dtype: str
) -> Any:
  """The model of transformers, its weights in a dtype."""
  import torch
  import transformers

  kind = getattr(transformers, family.name + architectures.POLICY_SUFFIX)
  try:
    model, loaded = kind.from_pretrained(
      alone,
      **_ALONE,
      dtype=getattr(torch, dtype),
      # Otherwise some machines keep the weights packed.
      quantization_config=transformers.GgufConfig(dequantize=True),
      output_loading_info=True,
    )
  except MemoryError:
    raise
  except Exception as error:
    raise HuggingFaceError(
      f"transformers cannot read the model of {file}: {_reason(error)}"
    ) from error
  if loaded["missing_keys"]:
    missing = sorted(loaded["missing_keys"])
    raise HuggingFaceError(
      f"{file} has no weights for {', '.join(missing[:5])} "
      f"({len(missing)} in all): it does not hold a whole model."
    )
  return model


def _write_model(
  file: pathlib.Path,
  alone: str,
  header: _Header,
  partial: pathlib.Path,
  dtype: str,
) -> FolderConfig:
  """Writes config.json and the weights."""
  model = _read_model(file, alone, header.family, dtype)
  architecture = type(model).__name__
  fields = json.loads(model.config.to_json_string(use_diff=False))
  fields |= {"architectures": [architecture], "quantization_config": None}
  write_json_atomic(partial / CONFIG_FILE, fields)
  config = read_config(partial)
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, param_dtype=dtype),
    token_ids=header.token_ids,
  )
  declared = tensors.tensors_of(policy.declare_policy(config.model))
  if header.num_tensors != len(declared):
    raise HuggingFaceError(
      f"{file} has {header.num_tensors} tensors, and a {architecture} of its "
      f"size has {len(declared)}: transformers does not read all of them."
    )
  described = {name: (dtype, t.shape) for name, t in declared.items()}
  files.write_file(
    partial / files.SINGLE_FILE,
    described,
    _arrays(file, model.state_dict(), described),
  )
  # As the library writes it, for other versions of transformers too.
  fields = config_fields(
    config.model,
    is_prm=False,
    max_positions=config.max_positions,
    token_ids=config.token_ids,
  )
  write_json_atomic(partial / CONFIG_FILE, fields)
  return config


def _arrays(
  file: pathlib.Path,
  state: Mapping[str, Any],
  described: Mapping[str, tuple[str, tuple[int, ...]]],
) -> Iterator[np.ndarray]:
  """The weights one by one, as arrays of numpy that share torch's memory."""
  import jax.numpy as jnp
  import torch

  for name, (dtype, shape) in described.items():
    tensor = state[name].contiguous()
    if dtype == "bfloat16":  # numpy has none of its own.
      array = tensor.view(torch.uint16).numpy().view(jnp.bfloat16)
    else:
      array = tensor.numpy()
    if array.shape != shape:
      raise HuggingFaceError(
        f"{file}: {name} is {array.shape}, its size in the header is {shape}."
      )
    fault = files.not_finite(array)
    if fault is not None:
      raise HuggingFaceError(
        f"{file}: of {name}, {fault}. The file is damaged: copy it again."
      )
    yield array


def _write_tokenizer(
  file: pathlib.Path, alone: str, header: _Header, partial: pathlib.Path
) -> None:
  """Writes the tokenizer, and compares its ids with the file's."""
  import transformers

  read = transformers.AutoTokenizer.from_pretrained
  pairs = zip(header.tokens, header.is_unused, strict=True)
  expected = {token: i for i, (token, unused) in enumerate(pairs) if not unused}
  try:
    read(alone, **_ALONE).save_pretrained(partial)
    path = partial / "tokenizer.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = fields["model"]["vocab"]
    for token in vocabulary.keys() & {*header.tokens} - expected.keys():
      del vocabulary[token]
    # transformers adds an <|endoftext|> of its own where there is none.
    fields["added_tokens"] = [
      added for added in fields["added_tokens"] if added["content"] in expected
    ]
    path.write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")
    # As the folder will be read: some classes have rules that no file has,
    # such as Qwen2's normal form of Unicode.
    tokenizer = read(partial)
    tokenizer.save_pretrained(partial)
    ids = tokenizer.get_vocab()
  except MemoryError:
    raise
  except Exception as error:
    raise HuggingFaceError(
      f"transformers cannot read the tokenizer of {file}: {_reason(error)}"
    ) from error
  for token in (*expected, *ids):
    if ids.get(token) != expected.get(token):
      raise HuggingFaceError(
        f"{file} gives {token!r} the id {expected.get(token)}, but the "
        f"tokenizer that transformers makes of it {ids.get(token)}: use the "
        "model's folder of safetensors."
      )


def _reason(error: BaseException) -> str:
  """The beginning of an error message, in one line."""
  return " ".join(str(error).split())[:300] or repr(error)
