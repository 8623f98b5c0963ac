"""Writes the model of a GGUF file as a folder that transformers loads.

transformers reads the file, with torch, gguf and accelerate, which the extra
`gguf` installs. It does not notice everything: a missing tensor becomes random
weights, and scaled rotary frequencies are ignored. So the
header is read first, and what transformers read is compared with it. Special
tokens are those of the header: older versions of transformers lose some.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pure_jax.host.atomic_files import create_folder_atomic, write_json_atomic
from pure_jax.host.huggingface import (
  architectures,
  files,
  gguf_header,
  tensors,
)
from pure_jax.host.huggingface.architectures import Family, HuggingFaceError
from pure_jax.host.huggingface.config import (
  CONFIG_FILE,
  FolderConfig,
  config_fields,
  read_config,
)
from pure_jax.host.huggingface.gguf_header import (
  CONTROL,
  UNUSED,
  USER_DEFINED,
  Header,
  reason,
)
from pure_jax.models import policy

DTYPES = ("float32", "bfloat16")
# Rules of a token that is never cut, none of which a file has.
_RULES = ("single_word", "lstrip", "rstrip", "normalized")
# Name of the link in the temporary folder.
_ALONE = {"gguf_file": "model.gguf"}


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
  header = gguf_header.read_header(file)
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
      f"transformers cannot read the model of {file}: {reason(error)}"
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
  header: Header,
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
  file: pathlib.Path, alone: str, header: Header, partial: pathlib.Path
) -> None:
  """Writes the tokenizer, and compares its ids with the file's."""
  import transformers

  read = transformers.AutoTokenizer.from_pretrained
  pairs = zip(header.tokens, header.kinds, strict=True)
  expected = {
    token: i for i, (token, kind) in enumerate(pairs) if kind != UNUSED
  }
  try:
    _save_completed(read(alone, **_ALONE), header, partial)
    path = partial / "tokenizer.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = fields["model"]["vocab"]
    for token in vocabulary.keys() & {*header.tokens} - expected.keys():
      del vocabulary[token]
    fields["added_tokens"] = _added_tokens(fields, header, expected)
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
      f"transformers cannot read the tokenizer of {file}: {reason(error)}"
    ) from error
  for token in (*expected, *ids):
    if ids.get(token) != expected.get(token):
      raise HuggingFaceError(
        f"{file} gives {token!r} the id {expected.get(token)}, but the "
        f"tokenizer that transformers makes of it {ids.get(token)}: use the "
        "model's folder of safetensors."
      )


def _save_completed(
  tokenizer: Any, header: Header, partial: pathlib.Path
) -> None:
  """Saves a tokenizer of transformers with the special tokens of the file."""
  for name, value in header.special.items():
    setattr(tokenizer, name, value)
  # Older versions of transformers save fields of the file, and wrong ones.
  for name in [*tokenizer.init_kwargs]:
    if name == "model_type" or name.endswith("_token_id"):
      del tokenizer.init_kwargs[name]
  tokenizer.save_pretrained(partial)


def _added_tokens(
  fields: Mapping[str, Any], header: Header, expected: Mapping[str, int]
) -> list[dict[str, Any]]:
  """The tokens that are never cut, as tokenizer.json has them."""
  # transformers adds an <|endoftext|> of its own where there is none.
  added = {
    each["content"]: each
    for each in fields["added_tokens"]
    if each["content"] in expected
  }
  for token, i in expected.items():
    kind = header.kinds[i]
    if kind in (CONTROL, USER_DEFINED) and token not in added:
      added[token] = {
        **{"id": i, "content": token, "special": kind == CONTROL},
        **dict.fromkeys(_RULES, False),
      }
  return sorted(added.values(), key=lambda each: each["id"])
