"""Which of transformers' decoders are ours, and their rotary parameters.

A family is a config class of transformers; `ModelConfig`'s switches tell the
families apart. Everything here is used in both directions, to read and to
write.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pure_jax.models.config import ModelConfig, RopeScaling


class HuggingFaceError(ValueError):
  """A folder that cannot be read or written; the message says why."""


@dataclasses.dataclass(frozen=True)
class Family:
  """Decoders that share a config class of transformers.

  Attributes:
    name: how its model classes begin, such as Qwen2.
    attention_bias: as in `ModelConfig`.
    qk_norm: as in `ModelConfig`.
  """

  name: str
  attention_bias: bool
  qk_norm: bool

  @property
  def config_class(self) -> type:
    """The config class of transformers, a PreTrainedConfig."""
    # Here, as where torch is installed transformers brings it along: seconds
    # that a run without such files need not wait.
    import transformers

    return getattr(transformers, f"{self.name}Config")


FAMILIES = (
  Family("Qwen2", attention_bias=True, qk_norm=False),
  Family("Llama", attention_bias=False, qk_norm=False),
  Family("Qwen3", attention_bias=False, qk_norm=True),
)
POLICY_SUFFIX = "ForCausalLM"
PRM_SUFFIX = "ForTokenClassification"

# Our fields of Llama 3's scaling and transformers' names of them.
_LLAMA3 = {
  "factor": "factor",
  "low_frequency_factor": "low_freq_factor",
  "high_frequency_factor": "high_freq_factor",
  "original_length": "original_max_position_embeddings",
}


def family_of_architecture(name: Any) -> Family:
  """The family of a model class.

  Args:
    name: such as Qwen2ForCausalLM; anything config.json may hold.

  Returns:
    Its family.

  Raises:
    HuggingFaceError: if it is not one of ours, listing those that are.
  """
  known = {
    family.name + suffix: family
    for suffix in (POLICY_SUFFIX, PRM_SUFFIX)
    for family in FAMILIES
  }
  if not isinstance(name, str) or name not in known:
    raise HuggingFaceError(
      f"the architecture {name!r} is not supported; supported are "
      f"{', '.join(known)}."
    )
  return known[name]


def family_of_model(config: ModelConfig) -> Family:
  """The family that has the switches of an architecture.

  Args:
    config: the architecture.

  Returns:
    Its family.

  Raises:
    HuggingFaceError: if none has.
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
  """Base and scaling of the rotary frequencies.

  Args:
    parameters: transformers' rope_parameters.

  Returns:
    (rope_theta, rope_scaling) as in `ModelConfig`.

  Raises:
    HuggingFaceError: for a rope type other than default and llama3, and a
      field that is missing, unknown or impossible.
  """
  # Old files say `type`; transformers then adds a `rope_type` beside it.
  fields = {k: v for k, v in parameters.items() if k != "type"}
  kind = fields.pop("rope_type", None)
  if kind not in ("default", "llama3"):
    raise HuggingFaceError(
      f"the rope type {kind!r} is not supported; supported are 'default' and "
      "'llama3'."
    )
  if fields.pop("partial_rotary_factor", 1.0) != 1.0:
    raise HuggingFaceError("a partial_rotary_factor other than 1 of RoPE.")
  wanted = {"rope_theta", *(_LLAMA3.values() if kind == "llama3" else ())}
  if fields.keys() != wanted:
    raise HuggingFaceError(
      f"the rope parameters of type {kind!r} are {sorted(fields)}, expected "
      f"{sorted(wanted)}."
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
  """The inverse of `read_rope`.

  Args:
    config: the architecture.

  Returns:
    transformers' rope_parameters.
  """
  parameters = {"rope_type": "default", "rope_theta": config.rope_theta}
  if config.rope_scaling is not None:
    scaling = dataclasses.asdict(config.rope_scaling)
    parameters["rope_type"] = "llama3"
    parameters |= {_LLAMA3[name]: value for name, value in scaling.items()}
  return parameters
