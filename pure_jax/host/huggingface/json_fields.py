"""JSON files of a folder, and what the fields of config.json may hold.

The folder may be untrusted. `FIELDS` lists every field that `config` reads,
with the type and the range of its values. Other fields are not read. The ranges
are wider than those of all models that we know of.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from pure_jax.host.huggingface.architectures import HuggingFaceError
from pure_jax.host.json_text import parse

# The largest index files of weights have a few megabytes.
MAX_JSON_BYTES = 2**26

_NAMES = {
  bool: "true or false",
  int: "a whole number",
  float: "a number",
  str: "a text",
  list: "a list",
  dict: "an object",
}
_SHOWN = 60  # Characters of a value in a message.


@dataclasses.dataclass(frozen=True)
class Rule:
  """The values that a field may have.

  Attributes:
    kind: bool, int, float, str, list or dict. An int is a float as well, and a
      bool is no number.
    low: the smallest number.
    high: the largest number.
    choices: the only texts; () for any text.
    nullable: True if the field may be null, which is the same as no field.
  """

  kind: type
  low: float = 0
  high: float = 0
  choices: tuple[str, ...] = ()
  nullable: bool = False

  def accepts(self, value: Any) -> bool:
    """Whether the field may have a value of JSON; NaN is in no range."""
    if value is None:
      return self.nullable
    kinds = (int, float) if self.kind is float else (self.kind,)
    if type(value) not in kinds:
      return False
    if self.kind in (int, float):
      return self.low <= value <= self.high
    return not self.choices or value in self.choices

  def __str__(self) -> str:
    """The values in words, for a message."""
    words = _NAMES[self.kind]
    if self.choices:
      words = " or ".join(map(json.dumps, self.choices))
    if self.kind in (int, float):
      words += f" from {self.low} to {self.high}"
    return words + " or null" * self.nullable


_LARGEST_INT = 2**31 - 1
# No published vocabulary has as many ids, and no model is as wide.
_SIZE = Rule(int, 1, 2**20)
_COUNT = Rule(int, 1, 2**12)  # Of layers, of heads.
_DTYPE = Rule(
  str, choices=("float32", "bfloat16", "float16", "float64"), nullable=True
)
_THETA = Rule(float, 1, 1e12)

FIELDS: Mapping[str, Rule] = {
  "vocab_size": _SIZE,
  "hidden_size": _SIZE,
  "intermediate_size": _SIZE,
  "num_hidden_layers": _COUNT,
  "num_attention_heads": _COUNT,
  "num_key_value_heads": dataclasses.replace(_COUNT, nullable=True),
  "head_dim": dataclasses.replace(_SIZE, nullable=True),
  "max_position_embeddings": Rule(int, 1, _LARGEST_INT),
  "rms_norm_eps": Rule(float, 1e-30, 1),
  "rope_theta": _THETA,
  "rope_scaling": Rule(dict, nullable=True),
  "rope_parameters": Rule(dict, nullable=True),
  "tie_word_embeddings": Rule(bool),
  "use_sliding_window": Rule(bool, nullable=True),
  "sliding_window": Rule(int, 0, _LARGEST_INT, nullable=True),
  "max_window_layers": Rule(int, 0, _LARGEST_INT, nullable=True),
  "layer_types": Rule(list, nullable=True),
  "dtype": _DTYPE,
  "torch_dtype": _DTYPE,
}

# Of rope_scaling and rope_parameters.
ROPE_FIELDS: Mapping[str, Rule] = {
  "rope_theta": _THETA,
  "rope_type": Rule(str),
  "type": Rule(str),
  "partial_rotary_factor": Rule(float, 0, 1),
  "factor": Rule(float, 1, 1e6),
  "low_freq_factor": Rule(float, 1e-6, 1e6),
  "high_freq_factor": Rule(float, 1e-6, 1e6),
  "original_max_position_embeddings": Rule(int, 1, _LARGEST_INT),
}

# Of a token classifier.
LABEL_FIELDS: Mapping[str, Rule] = {
  "num_labels": Rule(int, 1, 2**16),
  "id2label": Rule(dict, nullable=True),
}


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON file that contains an object.

  Args:
    path: the file.

  Raises:
    HuggingFaceError: if the file is missing, unreadable or larger than
      `MAX_JSON_BYTES`, or contains another JSON value.
  """
  try:
    # Opening a pipe waits for a writer, and some devices never end.
    if path.exists() and not path.is_file():
      raise HuggingFaceError(f"{path} is not a regular file: copy it again.")
    if path.stat().st_size > MAX_JSON_BYTES:
      raise HuggingFaceError(f"{path} is larger than {MAX_JSON_BYTES} bytes.")
    data = parse(path.read_bytes())
  except FileNotFoundError as error:
    raise HuggingFaceError(
      f"{path} is missing: name a folder that holds a model as transformers "
      "saves it."
    ) from error
  except HuggingFaceError:
    raise
  except (OSError, ValueError) as error:
    raise HuggingFaceError(f"{path} cannot be read: {error}.") from error
  if not isinstance(data, dict):
    raise HuggingFaceError(f"{path} holds no JSON object.")
  return data


def shown(value: Any) -> str:
  """Writes a value for a message: short, and without control characters.

  Args:
    value: a value of JSON.
  """
  if isinstance(value, list | dict):
    return _NAMES[type(value)]
  text = json.dumps(value)
  return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def check(
  fields: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str = ""
) -> None:
  """Checks those fields that have a rule.

  Args:
    fields: the values by name.
    rules: the rules by name. A field may be missing.
    prefix: put before the names in messages, such as "rope_parameters.".

  Raises:
    HuggingFaceError: if a value is not one that its rule accepts; the message
      has the field, its value, and what it must be.
  """
  for name, rule in rules.items():
    if name in fields and not rule.accepts(fields[name]):
      raise HuggingFaceError(
        f"{prefix}{name} is {shown(fields[name])}; it must be {rule}."
      )


def check_decoder(fields: Mapping[str, Any]) -> None:
  """Checks the fields of config.json that describe the decoder.

  Args:
    fields: the content of config.json.

  Raises:
    HuggingFaceError: as `check`.
  """
  check(fields, FIELDS)
  for name in ("rope_parameters", "rope_scaling"):
    check(fields.get(name) or {}, ROPE_FIELDS, f"{name}.")


def read_labels(fields: Mapping[str, Any]) -> tuple[str, ...]:
  """Reads the names of a token classifier's two labels, by index.

  Args:
    fields: the content of config.json. Without id2label the names are those
      that transformers gives.

  Raises:
    HuggingFaceError: if there are not two, or id2label does not name each of
      them once.
  """
  check(fields, LABEL_FIELDS)
  names = fields.get("id2label")
  count = fields.get("num_labels", 2 if names is None else len(names))
  if names is None:
    names = {str(i): f"LABEL_{i}" for i in range(count)}
  if count != 2 or len(names) != count:
    raise HuggingFaceError(
      f"a PRM has 2 labels, this one has {len(names)} in id2label and "
      f"num_labels={count}."
    )
  if names.keys() != {"0", "1"}:
    raise HuggingFaceError(
      f"id2label has the keys {' and '.join(map(shown, names))}; they must be "
      '"0" and "1".'
    )
  check(names, {index: Rule(str) for index in names}, "id2label.")
  return names["0"], names["1"]


def read_token_ids(
  fields: Mapping[str, Any], name: str, vocab_size: int
) -> tuple[int, ...]:
  """Reads the ids of a special token, of which there may be any number.

  Args:
    fields: the content of config.json.
    name: eos_token_id, bos_token_id or pad_token_id. Only the first may be a
      list. Some folders have a pad_token_id of -1, which means none.
    vocab_size: V; ids are smaller.

  Raises:
    HuggingFaceError: if an id is not in the vocabulary.
  """
  value = fields.get(name)
  is_pad, is_eos = name == "pad_token_id", name == "eos_token_id"
  if value is None or (is_pad and value == -1 and type(value) is int):
    return ()
  rule = Rule(int, 0, vocab_size - 1)
  if not (is_eos and isinstance(value, list)):
    check(fields, {name: rule})
    return (value,)
  numbered = {f"[{index}]": item for index, item in enumerate(value)}
  check(numbered, dict.fromkeys(numbered, rule), name)
  return tuple(value)
