"""Settings of models: shapes, adapters, and the dtype of matrix products."""

import dataclasses
from typing import Protocol, TypeVar

from pure_jax.models.config import COMPUTE_DTYPES, LoraConfig, ModelConfig
from pure_jax.ranges import ROPE_THETA, within
from pure_jax.runs.settings.checks import one_of

AUTO = "auto"
# What a config may name as compute_dtype.
DTYPE_CHOICES = (AUTO, *COMPUTE_DTYPES)

_7B = ModelConfig(
  vocab_size=152_064,
  width=3584,
  num_layers=28,
  num_heads=28,
  num_kv_heads=4,
  head_dim=128,
  mlp_width=18_944,
  rope_theta=1e6,
  tied_embeddings=False,
)
_MATH_7B = dataclasses.replace(_7B, rope_theta=1e4)
_MATH_1P5B = ModelConfig(
  vocab_size=151_936,
  width=1536,
  num_layers=28,
  num_heads=12,
  num_kv_heads=2,
  head_dim=128,
  mlp_width=8960,
  rope_theta=1e4,
)
_0P5B = ModelConfig(
  vocab_size=151_936,
  width=896,
  num_layers=24,
  num_heads=14,
  num_kv_heads=2,
  head_dim=64,
  mlp_width=4864,
  rope_theta=1e6,
)
_SMOLLM2_135M = ModelConfig(
  vocab_size=49_152,
  width=576,
  num_layers=30,
  num_heads=9,
  num_kv_heads=3,
  head_dim=64,
  mlp_width=1536,
  rope_theta=1e5,
  norm_eps=1e-5,
  attention_bias=False,
)

# Shapes of published models, from their config.json files
# (huggingface.co/Qwen; of SmolLM2, huggingface.co/HuggingFaceTB). The PRM has
# the shape of the policy it was trained from. `plan.py` takes these names in
# place of a model's folder; `benchmark.py` gives the shapes random weights.
ARCHITECTURES = {
  "qwen2p5_7b": _7B,
  "qwen2p5_math_7b": _MATH_7B,
  "qwen2p5_math_1p5b": _MATH_1P5B,
  "qwen2p5_0p5b": _0P5B,
  "pure_prm_7b": _MATH_7B,
  "smollm2_135m": _SMOLLM2_135M,
}


def compute_dtype_of(platform: str) -> str:
  """The dtype that "auto" stands for.

  Accelerators multiply bfloat16 several times faster than float32. A CPU does
  so only if it has instructions for bfloat16 (AMX or AVX512-BF16), which jax
  does not tell. Weights, optimizer, norms, softmax and losses are float32
  either way.

  Args:
    platform: platform of the devices, such as "cpu" or "tpu".
  """
  return "float32" if platform == "cpu" else "bfloat16"


class _HasDtypes(Protocol):
  compute_dtype: str
  param_dtype: str


_Settings = TypeVar("_Settings", bound=_HasDtypes)


def with_dtypes_of(settings: _Settings, platform: str) -> _Settings:
  """Replaces "auto" in the settings of an evaluation.

  Args:
    settings: a dataclass with compute_dtype and param_dtype. Weights that
      nobody trains need no more digits than the products have: "auto" as
      param_dtype is the compute dtype.
    platform: platform of the devices, such as "cpu" or "tpu".
  """
  compute_dtype, param_dtype = settings.compute_dtype, settings.param_dtype
  if compute_dtype == AUTO:
    compute_dtype = compute_dtype_of(platform)
  if param_dtype == AUTO:
    param_dtype = compute_dtype
  return dataclasses.replace(
    settings, compute_dtype=compute_dtype, param_dtype=param_dtype
  )


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """The policy's shape; the tokenizer gives the vocabulary."""

  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  rope_theta: float
  attention_bias: bool
  tied_embeddings: bool
  compute_dtype: str

  def __post_init__(self):
    """Validates the shape as the library does."""
    one_of(self, "compute_dtype", DTYPE_CHOICES)
    within(*ROPE_THETA, self, "rope_theta")
    fields = dataclasses.asdict(self) | {"compute_dtype": "float32"}
    ModelConfig(vocab_size=1, **fields)

  def architecture(self, vocab_size: int) -> ModelConfig:
    """The library's model config for the vocabulary of a tokenizer."""
    return ModelConfig(vocab_size=vocab_size, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class LoraSettings:
  """Adapters that a stage trains; rank 0 has none and trains all weights."""

  rank: int
  alpha: float
  targets: tuple[str, ...]

  def __post_init__(self):
    """Validates the adapters, also while they are off."""
    if self.rank < 0:
      raise ValueError(
        f"rank must be at least 1, or 0 to train all weights, got {self.rank}."
      )
    self._config(max(self.rank, 1))

  def _config(self, rank: int) -> LoraConfig:
    """The library's adapters, of that rank."""
    return LoraConfig(**(dataclasses.asdict(self) | {"rank": rank}))

  def of(self, model: ModelConfig) -> ModelConfig:
    """The architecture with these adapters, which the stage trains."""
    if not self.rank:
      return model
    return dataclasses.replace(model, lora=self._config(self.rank))
