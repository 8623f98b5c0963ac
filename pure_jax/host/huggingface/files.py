"""Reads and writes safetensors files.

The safetensors package reads them. Its writer needs all tensors of a file in
memory at once, so `write_file` writes the format itself: the length of the
header in eight bytes, the header as JSON, then one tensor after another
(https://github.com/huggingface/safetensors#format).
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from pure_jax.host.distributed import preemption
from pure_jax.host.huggingface.architectures import HuggingFaceError
from pure_jax.host.huggingface.json_fields import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Suffixes of the files of a tokenizer, and of a whole model folder.
TOKENIZER_FILES = (".json", ".jinja", ".txt", ".model")
# A tokenizer has one of these.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
MODEL_FILES = (*TOKENIZER_FILES, ".safetensors")

# Names of dtypes in safetensors to names in numpy. Quantized and integer
# weights are not supported: their scales are unknown here.
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

# Without the sign, the bits of all finite values are below these, and those of
# infinities and NaN are not: an exponent of ones.
_NOT_FINITE = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}
# float32 from here on rounds to infinity in bfloat16.
_BEYOND_BFLOAT16 = 0x7F7F8000
# Values whose bits are looked at together: they stay in the processor's cache.
_BLOCK = 2**17


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """The description of a tensor in the header of its file.

  Attributes:
    file: the file.
    dtype: name of the dtype in safetensors, such as BF16.
    shape: the shape.
  """

  file: pathlib.Path
  dtype: str
  shape: tuple[int, ...]


def list_tensors(folder: str | os.PathLike) -> dict[str, StoredTensor]:
  """Lists the tensors of a folder by name; reads the headers of its files only.

  Args:
    folder: a folder with model.safetensors, or with shards and their index.

  Raises:
    HuggingFaceError: if the folder has no weights or only pickles, if a file is
      missing, truncated or damaged, or if index and shards disagree.
  """
  folder = pathlib.Path(folder)
  single, index = folder / SINGLE_FILE, folder / INDEX_FILE
  if single.exists() and index.exists():
    raise HuggingFaceError(
      f"{folder} holds both {SINGLE_FILE} and {INDEX_FILE}: remove the one "
      "that is not of this model."
    )
  if single.exists():
    return _list_file(single)
  if not index.exists():
    raise HuggingFaceError(_no_weights(folder))
  shard_of = read_index(index)
  tensors: dict[str, StoredTensor] = {}
  for shard in sorted(set(shard_of.values())):
    for name, stored in _list_file(folder / shard).items():
      if name not in shard_of or shard_of[name] != shard:
        raise HuggingFaceError(
          f"{folder / shard} holds {name}, which {INDEX_FILE} does not list "
          "there."
        )
      tensors[name] = stored
  missing = sorted(shard_of.keys() - tensors.keys())
  if missing:
    more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
    raise HuggingFaceError(
      f"{index} lists tensors that their shards do not hold: "
      + ", ".join(f"{name} in {shard_of[name]}" for name in missing[:20])
      + more
    )
  return tensors


def read_tensors(
  stored: Mapping[str, StoredTensor],
) -> Iterator[tuple[str, np.ndarray]]:
  """Reads tensors one by one, in the order of the files.

  Args:
    stored: the tensors to read, from `list_tensors`.

  Yields:
    (name, array). The generator keeps no reference to the array.

  Raises:
    HuggingFaceError: if a file has become unreadable.
  """
  for file in sorted({tensor.file for tensor in stored.values()}):
    with _opened(file) as opened:
      for name in opened.offset_keys():
        if name in stored:
          preemption.raise_received()
          yield name, opened.get_tensor(name)


def not_finite(array: np.ndarray, dtypes: Collection[str] = ()) -> str | None:
  """Describes the values of a tensor that are not finite, or not when cast.

  It compares bits. As signed numbers the largest ones are those of +NaN and
  +inf, as unsigned numbers those of -NaN and -inf, so that two maxima find them
  and nothing is copied.

  Args:
    array: the tensor, contiguous, in a dtype of `DTYPES`. It may be empty.
    dtypes: names of the dtypes that it is cast to, float32 or bfloat16.

  Returns:
    How many values are not finite, and the first of them; None if all are.
  """
  stored = str(array.dtype)
  limit, where = _NOT_FINITE[stored], ""
  if stored == "float32" and "bfloat16" in dtypes:
    limit, where = _BEYOND_BFLOAT16, " in bfloat16"
  sign = 1 << (8 * array.itemsize - 1)
  values = array.reshape(-1)
  signed = values.view(f"i{array.itemsize}")
  unsigned = values.view(f"u{array.itemsize}")
  count, first = 0, 0
  for start in range(0, array.size, _BLOCK):
    block = slice(start, start + _BLOCK)
    if signed[block].max() < limit and unsigned[block].max() < limit + sign:
      continue
    bad = np.flatnonzero((unsigned[block] & (sign - 1)) >= limit)
    first = first if count else start + int(bad[0])
    count += len(bad)
  if not count:
    return None
  index = [int(i) for i in np.unravel_index(first, array.shape)]
  return (
    f"{count} of {array.size} values are not finite{where}, the first is "
    f"{float(values[first])} at {index}"
  )


def write_file(
  path: pathlib.Path,
  described: Mapping[str, tuple[str, Sequence[int]]],
  arrays: Iterable[np.ndarray],
) -> None:
  """Writes one safetensors file, holding one array at a time.

  Args:
    path: the file, which must not exist.
    described: (name of the numpy dtype, shape) by name of the tensor.
    arrays: the tensors, in the same order. Each is written before the next one
      is taken.

  Raises:
    OSError: if the file cannot be written.
  """
  codes = {numpy_name: code for code, numpy_name in DTYPES.items()}
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, (dtype, shape) in described.items():
    start, end = end, end + math.prod(shape) * jnp.dtype(dtype).itemsize
    header[name] = {
      "dtype": codes[dtype],
      "shape": list(shape),
      "data_offsets": [start, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with path.open("xb") as file:
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for array in arrays:
      preemption.raise_received()
      # As bytes: a bfloat16 array has no buffer interface.
      file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
      # Otherwise the array lives until the next one has been made.
      del array
    file.flush()
    os.fsync(file.fileno())


def read_index(index: pathlib.Path) -> dict[str, str]:
  """Reads which file each tensor is in.

  Args:
    index: the index of a folder's shards.

  Returns:
    Names of safetensors files, without a path, by tensor.

  Raises:
    HuggingFaceError: if the index is missing or damaged.
  """
  data = read_json_object(index)
  shard_of = data.get("weight_map")
  if not isinstance(shard_of, dict) or not shard_of:
    raise HuggingFaceError(f"{index} has no weight_map of tensors to files.")
  for name, shard in shard_of.items():
    if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard:
      raise HuggingFaceError(
        f"{index}: {name} is in {shard!r}, which is no file of the folder."
      )
    if not shard.endswith(".safetensors"):
      raise HuggingFaceError(
        f"{index}: {name} is in {shard!r}, which is no safetensors file."
      )
  return shard_of


def _list_file(file: pathlib.Path) -> dict[str, StoredTensor]:
  """The tensors of one file."""
  tensors = {}
  with _opened(file) as opened:
    for name in opened.offset_keys():
      view = opened.get_slice(name)
      tensors[name] = StoredTensor(
        file, view.get_dtype(), tuple(view.get_shape())
      )
  return tensors


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[Any]:
  """Opens a safetensors file. Errors within the block name the file."""
  try:
    # Opening a pipe waits for a writer.
    if file.exists() and not file.is_file():
      raise HuggingFaceError(f"{file} is not a regular file: copy it again.")
    with safetensors.safe_open(file, framework="numpy") as opened:
      yield opened
  except FileNotFoundError as error:
    raise HuggingFaceError(
      f"{file} is missing: copy the folder again."
    ) from error
  except (OSError, safetensors.SafetensorError) as error:
    raise HuggingFaceError(
      f"{file} is truncated or damaged ({error}): copy it again."
    ) from error


def _no_weights(folder: pathlib.Path) -> str:
  """Explains why a folder has no weights that can be read."""
  if not folder.is_dir():
    return f"{folder} is no folder."
  pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
  if pickles:
    return (
      f"{folder} holds its weights as {', '.join(pickles)}: pickled "
      "checkpoints can run code and are not read. Convert them to safetensors "
      "with save_pretrained of transformers."
    )
  return f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}."
