"""The supported decoders of transformers, and their rotary parameters.

A family is a config class of transformers. The switches of `ModelConfig` tell
the families apart. To add a family whose decoder needs no new switch, add it to
`FAMILIES`. Reading and writing both use this module.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pure_jax.models.config import ModelConfig, RopeScaling


class HuggingFaceError(ValueError):
  """A folder cannot be read or written; the message says why."""


@dataclasses.dataclass(frozen=True)
class Family:
  """Decoders that share a config class of transformers.

  Attributes:
    name: prefix of its classes in transformers, such as Qwen2.
    attention_bias: as in `ModelConfig`.
    qk_norm: as in `ModelConfig`.
  """

  name: str
  attention_bias: bool
  qk_norm: bool

  @property
  def config_class(self) -> type:
    """The config class of transformers, a PreTrainedConfig."""
    # Imported late: transformers imports torch if it is installed, which takes
    # seconds that a run without Hugging Face folders need not wait.
    import transformers

    return getattr(transformers, f"{self.name}Config")


FAMILIES = (
  Family("Qwen2", attention_bias=True, qk_norm=False),
  Family("Llama", attention_bias=False, qk_norm=False),
  Family("Qwen3", attention_bias=False, qk_norm=True),
)
# Endings of the names of model classes in transformers.
POLICY_SUFFIX = "ForCausalLM"
PRM_SUFFIX = "ForTokenClassification"

# Fields of our `RopeScaling` to transformers' names of Llama 3's scaling.
_LLAMA3 = {
  "factor": "factor",
  "low_frequency_factor": "low_freq_factor",
  "high_frequency_factor": "high_freq_factor",
  "original_length": "original_max_position_embeddings",
}


def family_of_architecture(name: Any) -> Family:
  """Looks up the family of a model class.

  Args:
    name: name of the class, such as Qwen2ForCausalLM. It comes from config.json
      and may be any JSON value.

  Raises:
    HuggingFaceError: if it is not supported; the message lists those that are.
  """
  known = {
    family.name + suffix: family
    for suffix in (POLICY_SUFFIX, PRM_SUFFIX)
    for family in FAMILIES
  }
  if not isinstance(name, str) or name not in known:
    raise HuggingFaceError(
      f"the architecture {repr(name)[:60]} is not supported; supported are "
      f"{', '.join(known)}."
    )
  return known[name]


def family_of_model(config: ModelConfig) -> Family:
  """Looks up the family by the switches of an architecture.

  Args:
    config: the architecture.

  Raises:
    HuggingFaceError: if no family has these switches.
  """
  for family in FAMILIES:
    if (family.attention_bias, family.qk_norm) == (
      config.attention_bias,
      config.qk_norm,
    ):
      return family
  raise HuggingFaceError(
    f"No decoder of transformers has attention_bias={config.attention_bias} "
    f"with qk_norm={config.qk_norm}."
  )


def read_rope(
  parameters: Mapping[str, Any],
) -> tuple[float, RopeScaling | None]:
  """Reads base and scaling of the rotary frequencies.

  Args:
    parameters: the rope_parameters of transformers.

  Returns:
    (rope_theta, rope_scaling) as in `ModelConfig`.

  Raises:
    HuggingFaceError: if the rope type is neither default nor llama3, or a field
      is missing, unknown or invalid.
  """
  # Old files have `type`, to which transformers adds `rope_type`.
  fields = {k: v for k, v in parameters.items() if k != "type"}
  kind = fields.pop("rope_type", None)
  if kind not in ("default", "llama3"):
    raise HuggingFaceError(
      f"the rope type {kind!r} is not supported; supported are 'default' and "
      "'llama3'."
    )
  if fields.pop("partial_rotary_factor", 1.0) != 1.0:
    raise HuggingFaceError("a partial_rotary_factor other than 1 of RoPE.")
  expected = {"rope_theta", *(_LLAMA3.values() if kind == "llama3" else ())}
  if fields.keys() != expected:
    raise HuggingFaceError(
      f"the rope parameters of type {kind!r} are {sorted(fields)}, expected "
      f"{sorted(expected)}."
    )
  theta = float(fields["rope_theta"])
  if kind == "default":
    return theta, None
  try:
    return theta, RopeScaling(
      **{ours: fields[theirs] for ours, theirs in _LLAMA3.items()}
    )
  except (TypeError, ValueError) as error:
    raise HuggingFaceError(f"rope parameters: {error}") from error


def write_rope(config: ModelConfig) -> dict[str, Any]:
  """The inverse of `read_rope`: the rope_parameters of transformers.

  Args:
    config: the architecture.
  """
  parameters = {"rope_type": "default", "rope_theta": config.rope_theta}
  if config.rope_scaling is not None:
    scaling = dataclasses.asdict(config.rope_scaling)
    parameters["rope_type"] = "llama3"
    parameters |= {_LLAMA3[name]: value for name, value in scaling.items()}
  return parameters
