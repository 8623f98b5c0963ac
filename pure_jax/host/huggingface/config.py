"""config.json of a Hugging Face folder, to and from `ModelConfig`.

`json_fields` says which values the fields may have. Then the config classes of
transformers read and write them: they know the defaults of missing fields and
both layouts of the rotary parameters. A field that they accept but our decoder
does not implement raises an error here.
"""

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pure_jax.host.huggingface import architectures, json_fields
from pure_jax.host.huggingface.architectures import Family, HuggingFaceError
from pure_jax.models.config import ModelConfig

CONFIG_FILE = "config.json"
_LOG = logging.getLogger(__name__)

# Fields that change the computation, with the only value that we implement.
_SUPPORTED = {
  "hidden_act": "silu",
  "is_causal": True,
  "mlp_bias": False,
  "partial_rotary_factor": 1.0,
  "per_layer_config": None,
  "quantization_config": None,
  "rope_interleaved": False,
  "token_classification_bias": True,
}

# Names of labels that mean a good and a bad step.
_GOOD = {"good", "positive", "correct", "right", "true", "yes", "+"}
_BAD = {"bad", "negative", "incorrect", "wrong", "false", "no", "-"}
_UNNAMED = ("LABEL_0", "LABEL_1")


@dataclasses.dataclass(frozen=True)
class TokenIds:
  """Ids of special tokens in config.json, for `generate` of transformers.

  Attributes:
    bos: id that begins a text, or None.
    eos: ids that end a text, any number.
    pad: id of padding, or None.
  """

  bos: int | None = None
  eos: tuple[int, ...] = ()
  pad: int | None = None

  def fields(self) -> dict[str, Any]:
    """The fields of config.json or generation_config.json; JSON values."""
    eos = self.eos[0] if len(self.eos) == 1 else list(self.eos) or None
    return {
      "bos_token_id": self.bos,
      "eos_token_id": eos,
      "pad_token_id": self.pad,
    }


NO_TOKEN_IDS = TokenIds()


@dataclasses.dataclass(frozen=True)
class FolderConfig:
  """The content of config.json.

  Attributes:
    model: the architecture. Its dtypes are the defaults of `ModelConfig`, not
      those of the file.
    architecture: class of transformers, such as Qwen2ForCausalLM.
    is_prm: True for a token classifier, False for a language model.
    labels: names of the two classes of a PRM, by index; () for a policy.
    max_positions: length in tokens of the longest text the model was made for.
    token_ids: ids of special tokens. Those that end a response may be more, see
      `host.text.huggingface_tokenizer`.
  """

  model: ModelConfig
  architecture: str
  is_prm: bool
  labels: tuple[str, ...]
  max_positions: int
  token_ids: TokenIds = NO_TOKEN_IDS


def read_config(folder: str | os.PathLike) -> FolderConfig:
  """Reads and checks config.json.

  Args:
    folder: a Hugging Face folder.

  Raises:
    HuggingFaceError: if the file is missing or damaged, names an architecture
      other than Qwen2, Qwen3 or Llama, needs remote code, or uses a setting
      that our decoder does not implement, such as a sliding window.
  """
  path = pathlib.Path(folder) / CONFIG_FILE
  raw = json_fields.read_json_object(path)
  try:
    return _read(raw)
  except HuggingFaceError as error:
    raise HuggingFaceError(f"{path}: {error}") from error


def choose_good_class(labels: tuple[str, ...], good_class: int | None) -> int:
  """Chooses which of a PRM's two classes, 0 or 1, means that a step is good.

  >>> choose_good_class(("correct", "incorrect"), None)
  0

  Args:
    labels: names of the classes, by index.
    good_class: the class, 0 or 1, if the caller knows it. None chooses by the
      names. If they are transformers' defaults LABEL_0 and LABEL_1 it is 1, the
      convention of the released PRMs.

  Raises:
    HuggingFaceError: if the names do not tell which class is good.
    ValueError: if `good_class` is not 0, 1 or None.
  """
  if good_class is not None:
    if good_class not in (0, 1):
      raise ValueError(f"good_class must be 0, 1 or None, got {good_class}.")
    return good_class
  first, second = (label.lower() for label in labels)
  if labels == _UNNAMED or (first in _BAD and second in _GOOD):
    return 1
  if first in _GOOD and second in _BAD:
    return 0
  raise HuggingFaceError(
    f"the labels {labels} do not say which of them is a good step: pass "
    "good_class, 0 or 1."
  )


def check_vocabulary(largest_id: int, config: ModelConfig) -> None:
  """Checks that the embedding has a row for every id of a tokenizer.

  It is common that an embedding has more rows than that.

  Args:
    largest_id: largest id of the tokenizer, including added tokens.
    config: the architecture.

  Raises:
    HuggingFaceError: if the id is not below vocab_size.
  """
  if largest_id >= config.vocab_size:
    raise HuggingFaceError(
      f"The tokenizer has ids up to {largest_id}, the embedding only rows for "
      f"0..{config.vocab_size - 1}: tokenizer and weights are of different "
      "models."
    )


def warn_beyond_positions(
  folder: str | os.PathLike, config: FolderConfig, tokens: int
) -> None:
  """Logs a warning if texts may be longer than the model was made for.

  It is not an error: rotary positions have no limit, and in the paper's runs
  Qwen2.5-Math, made for 4096 tokens, writes up to 8192.

  Args:
    folder: folder of the model, for the message.
    config: its config.
    tokens: length of the longest text of the run, prompt included.
  """
  if tokens > config.max_positions:
    _LOG.warning(
      "%s was made for texts of %d tokens (max_position_embeddings); this run "
      "allows %d, prompt included.",
      folder,
      config.max_positions,
      tokens,
    )


def config_fields(
  config: ModelConfig,
  *,
  is_prm: bool,
  max_positions: int,
  token_ids: TokenIds,
) -> dict[str, Any]:
  """The fields of config.json for an architecture, as JSON values.

  Rotary parameters and dtype are written under their names in transformers 4 as
  well: that version would silently use a theta of 10000 otherwise.

  Args:
    config: the architecture.
    is_prm: True for a token classifier, False for a language model.
    max_positions: length in tokens of the longest text the model is made for.
    token_ids: ids of special tokens.

  Raises:
    HuggingFaceError: if transformers has no such architecture.
  """
  family = architectures.family_of_model(config)
  rope = architectures.write_rope(config)
  suffix = architectures.PRM_SUFFIX if is_prm else architectures.POLICY_SUFFIX
  fields = {
    "architectures": [family.name + suffix],
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "intermediate_size": config.mlp_width,
    "hidden_act": "silu",
    "rms_norm_eps": config.norm_eps,
    "rope_parameters": rope,
    "tie_word_embeddings": config.tied_embeddings,
    "max_position_embeddings": max_positions,
    "dtype": config.param_dtype,
    **token_ids.fields(),
  }
  if is_prm:
    fields["classifier_dropout"] = 0.0
    fields["id2label"] = {0: "bad", 1: "good"}
    fields["label2id"] = {"bad": 0, "good": 1}
  written = _validated(family, fields).to_json_string(use_diff=False)
  return json.loads(written) | {
    "rope_theta": config.rope_theta,
    "rope_scaling": None if config.rope_scaling is None else rope,
    "torch_dtype": config.param_dtype,
  }


def _read(raw: Mapping[str, Any]) -> FolderConfig:
  """Checks the fields of config.json, and converts them."""
  if "auto_map" in raw:
    raise HuggingFaceError("auto_map asks for remote code, which is not run.")
  architecture, family = _family(raw)
  supported = dict(_SUPPORTED)
  if not family.attention_bias:
    # In transformers it adds a bias to the output projection as well, which our
    # decoder does not have. Qwen2 has no such field.
    supported["attention_bias"] = False
  for name, value in supported.items():
    # 0 is equal to false, and 1.0 to true.
    is_bool = isinstance(raw.get(name), bool)
    if name in raw and (raw[name], is_bool) != (value, isinstance(value, bool)):
      raise HuggingFaceError(
        f"{name} is {json_fields.shown(raw[name])}; only {json.dumps(value)} "
        "is supported."
      )
  json_fields.check_decoder(raw)
  _check_rope_layouts(raw)
  # No other field: they would become attributes, and could replace methods.
  full = _validated(
    family, {k: v for k, v in raw.items() if k in json_fields.FIELDS}
  )
  fields = full.to_dict()
  unsupported = {*(fields.get("layer_types") or ())} - {"full_attention"}
  if unsupported:
    raise HuggingFaceError(
      f"layers with {', '.join(sorted(unsupported))} (see "
      "use_sliding_window, max_window_layers, layer_types): only full "
      "attention is supported."
    )
  is_prm = architecture == family.name + architectures.PRM_SUFFIX
  model = _model_config(family, fields)
  return FolderConfig(
    model=model,
    architecture=architecture,
    is_prm=is_prm,
    labels=json_fields.read_labels(raw) if is_prm else (),
    max_positions=full.max_position_embeddings,
    token_ids=_token_ids(raw, model.vocab_size),
  )


def _family(raw: Mapping[str, Any]) -> tuple[str, Family]:
  """(name of the model class, its family), from architectures."""
  names = raw.get("architectures")
  if isinstance(names, str):
    raise HuggingFaceError(
      f"architectures is {json_fields.shown(names)}; it must be a list of one "
      "text."
    )
  is_single = isinstance(names, list) and len(names) == 1
  architecture = names[0] if is_single else names
  family = architectures.family_of_architecture(architecture)
  known = json_fields.Rule(
    str, choices=(family.config_class.model_type,), nullable=True
  )
  json_fields.check(raw, {"model_type": known})
  return architecture, family


def _token_ids(raw: Mapping[str, Any], vocab_size: int) -> TokenIds:
  """The ids of special tokens that the file has, not transformers' defaults."""
  bos, eos, pad = (
    json_fields.read_token_ids(raw, f"{name}_token_id", vocab_size)
    for name in ("bos", "eos", "pad")
  )
  return TokenIds(next(iter(bos), None), eos, next(iter(pad), None))


def _validated(family: Family, fields: Mapping[str, Any]) -> Any:
  """Makes the config of transformers, with its defaults filled in."""
  try:
    return family.config_class.from_dict(dict(fields))
  # The validation raises errors of several packages without a common class.
  except Exception as error:
    reason = " ".join(str(error).split())[:400]
    raise HuggingFaceError(
      f"transformers does not accept this as {family.name}: {reason}"
    ) from error


def _check_rope_layouts(raw: Mapping[str, Any]) -> None:
  """Checks that the old and the new rotary parameters agree."""
  if not isinstance(raw.get("rope_parameters"), dict):
    return
  new = raw["rope_parameters"]
  old = raw.get("rope_scaling")
  old = dict(old) if isinstance(old, dict) else {}
  if "rope_theta" in raw:
    old["rope_theta"] = raw["rope_theta"]
  for name in old.keys() & new.keys():
    if old[name] != new[name]:
      raise HuggingFaceError(
        f"{name} is {old[name]!r} outside rope_parameters and {new[name]!r} "
        "in it."
      )


def _model_config(family: Family, fields: Mapping[str, Any]) -> ModelConfig:
  """Converts the fields of transformers to our architecture."""
  width, num_heads = fields["hidden_size"], fields["num_attention_heads"]
  # Qwen2's config has this field only if the file has it.
  head_dim = fields.get("head_dim")
  if head_dim is None:
    if num_heads < 1 or width % num_heads:
      raise HuggingFaceError(
        f"num_attention_heads={num_heads} does not divide hidden_size={width}."
      )
    head_dim = width // num_heads
  theta, scaling = architectures.read_rope(fields["rope_parameters"])
  try:
    return ModelConfig(
      vocab_size=fields["vocab_size"],
      width=width,
      num_layers=fields["num_hidden_layers"],
      num_heads=num_heads,
      num_kv_heads=fields["num_key_value_heads"],
      head_dim=head_dim,
      mlp_width=fields["intermediate_size"],
      rope_theta=theta,
      norm_eps=fields["rms_norm_eps"],
      attention_bias=family.attention_bias,
      qk_norm=family.qk_norm,
      rope_scaling=scaling,
      tied_embeddings=fields["tie_word_embeddings"],
    )
  except ValueError as error:
    raise HuggingFaceError(f"an impossible decoder: {error}") from error
