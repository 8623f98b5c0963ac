"""Reads and checks what a GGUF file says about itself.

Some of the files that are refused here transformers would read wrongly: one of
several files of a model, or one whose rotary frequencies are scaled.
"""

import dataclasses
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from packaging import version

from pure_jax.host.huggingface import architectures
from pure_jax.host.huggingface.architectures import Family, HuggingFaceError
from pure_jax.host.huggingface.config import TokenIds

PACKAGES = ("torch", "gguf", "accelerate")
# Older ones split every text of a Llama as GPT-2 does, whatever its file says.
LLAMA_TRANSFORMERS = "5.24"
# Types of tokens: special ones, those of texts that are never cut, and those
# that only fill the vocabulary up.
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5

_INSTALL = "pip install -e '.[gguf]'"
_MAGIC = b"GGUF"
_ROPE_FACTORS = "rope_freqs.weight"
# Attributes of a tokenizer of transformers, and their names in a file.
_SPECIAL_TOKENS = {
  "bos_token": "bos_token_id",
  "eos_token": "eos_token_id",
  "unk_token": "unknown_token_id",
  "pad_token": "padding_token_id",
}
_FLAGS = ("add_bos_token", "add_eos_token")


@dataclasses.dataclass(frozen=True)
class Header:
  """The fields of a GGUF file that are needed.

  Attributes:
    family: the family of its architecture.
    num_tensors: number of tensors.
    token_ids: ids of special tokens.
    tokens: the tokens by id, as the file spells them.
    kinds: the type of each token, such as `CONTROL`.
    special: attributes of a tokenizer of transformers: the special tokens, and
      whether they begin and end each text.
  """

  family: Family
  num_tensors: int
  token_ids: TokenIds
  tokens: list[str]
  kinds: list[int]
  special: dict[str, Any]


def read_header(file: pathlib.Path) -> Header:
  """Reads and checks all but the values of the tensors.

  Args:
    file: a GGUF file.

  Returns:
    Its header.

  Raises:
    HuggingFaceError: if a package is missing, or if the file is missing,
      damaged, of another architecture, or more than transformers reads.
  """
  for package in PACKAGES:
    if importlib.util.find_spec(package) is None:
      raise HuggingFaceError(f"{package} is missing: {_INSTALL}")
  import gguf

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
      f"{file} is truncated or damaged ({reason(error)}): copy it again."
    ) from error
  _check_supported(file, fields, names)
  return _parse_header(file, fields, len(names))


def _parse_header(
  file: pathlib.Path, fields: Mapping[str, Any], num_tensors: int
) -> Header:
  """Finds architecture and tokenizer among the fields of a file."""
  family = _family(file, fields.get("general.architecture"))
  own = {
    key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()
  }
  tokens = own.get("tokens")
  if not tokens:
    raise HuggingFaceError(
      f"{file} has no tokenizer: use the model's folder of safetensors."
    )
  kinds = own.get("token_type") or [0] * len(tokens)
  if len(kinds) != len(tokens):
    raise HuggingFaceError(
      f"{file} has {len(tokens)} tokens and {len(kinds)} types of tokens: it "
      "is damaged, copy it again."
    )
  ids = {name: own.get(key) for name, key in _SPECIAL_TOKENS.items()}
  for name, i in ids.items():
    if i is not None and i not in range(len(tokens)):
      raise HuggingFaceError(
        f"{file} has {len(tokens)} tokens, and {_SPECIAL_TOKENS[name]}={i} is "
        "none of them: it is damaged, copy it again."
      )
  special = {name: None if i is None else tokens[i] for name, i in ids.items()}
  ends = () if ids["eos_token"] is None else (ids["eos_token"],)
  return Header(
    family=family,
    num_tensors=num_tensors,
    token_ids=TokenIds(ids["bos_token"], ends, ids["pad_token"]),
    tokens=tokens,
    kinds=kinds,
    special=special | {name: own[name] for name in _FLAGS if name in own},
  )


def _family(file: pathlib.Path, name: Any) -> Family:
  """The family of an architecture, which GGUF names as transformers does."""
  known = {f.config_class.model_type: f for f in architectures.FAMILIES}
  if name not in known:
    raise HuggingFaceError(
      f"{file}: the architecture {str(name)[:60]!r} is not supported; "
      f"supported are {', '.join(known)}."
    )
  installed = importlib.metadata.version("transformers")
  if name == "llama" and (
    version.parse(installed) < version.parse(LLAMA_TRANSFORMERS)
  ):
    raise HuggingFaceError(
      f"{file} holds a Llama, which needs transformers {LLAMA_TRANSFORMERS} or "
      f"newer, and this is {installed}: pip install -U transformers"
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


def reason(error: BaseException) -> str:
  """The beginning of an error message, in one line.

  Args:
    error: of any library.
  """
  return " ".join(str(error).split())[:300] or repr(error)
