"""The settings of models and data that the user names."""

import dataclasses

from pure_jax.host.data.formats.named import FORMATS, MAPPED
from pure_jax.host.grading.pool import MAX_SECONDS
from pure_jax.host.grading.verify import EXTRACTORS
from pure_jax.host.text.tokenization import PROMPT_FORMATS, PromptFormat
from pure_jax.models.config import REMAT, ModelConfig
from pure_jax.runs.settings.checks import (
  Fields,
  at_least_one,
  check_format,
  one_of,
)
from pure_jax.runs.settings.models import ARCHITECTURES, check_compute_dtype


@dataclasses.dataclass(frozen=True)
class FilesSettings:
  """Models and data that the user names. See `configs/files.py`."""

  policy: str | None
  random_model: str | None
  random_files: tuple[str, ...]
  prm: str | None
  eos_token: str | None
  prompt_format: str
  prm_prompt_format: str
  response_prefix: str
  prompt_tokens: int
  prm_prompt_tokens: int
  response_tokens: int
  train: str | None
  train_format: str
  held_out: str | None
  held_out_format: str
  labelled: str | None
  labelled_format: str
  labelled_one_in: int
  labelled_rows: int | None
  labelled_held_out_rows: int | None
  skip_malformed: bool
  extractors: tuple[str, ...]
  grader_workers: int
  grader_seconds: float
  compute_dtype: str
  param_dtype: str
  remat: str
  logits_chunk: int | None
  attention_chunk: int | None
  architecture: str | None
  prm_architecture: str | None
  train_fields: Fields = None
  held_out_fields: Fields = None
  labelled_fields: Fields = None

  def __post_init__(self):
    """Refuses names that nothing has, and lengths without room."""
    at_least_one(
      self,
      "prompt_tokens prm_prompt_tokens response_tokens grader_workers",
    )
    check_compute_dtype(self.compute_dtype)
    chunks = "logits_chunk", "attention_chunk"
    for name in ("labelled_rows", "labelled_held_out_rows", *chunks):
      if getattr(self, name) is not None:  # None takes all.
        at_least_one(self, name)
    if (self.policy is None) == (self.random_model is None):
      raise ValueError(
        "policy names the folder of a Hugging Face model; set it, or "
        "random_model for a trial, not both."
      )
    if self.random_model is not None:
      one_of("random_model", self.random_model, ("tied", "untied", "llama"))
    for name in ("architecture", "prm_architecture"):
      if getattr(self, name) is not None:
        one_of(name, getattr(self, name), tuple(ARCHITECTURES))
    for name in self.random_files:
      one_of("random_files", name, ("train", "held_out", "labelled", "prm"))
    for name in ("prompt_format", "prm_prompt_format"):
      one_of(name, getattr(self, name), tuple(PROMPT_FORMATS))
    for name, (_, row_format, fields) in self.sources().items():
      check_format(f"{name}_", row_format, fields, (*FORMATS, *MAPPED))
    one_of("remat", self.remat, REMAT)
    for name in self.extractors:
      one_of("extractors", name, tuple(EXTRACTORS))
    if not self.extractors:
      raise ValueError(f"extractors needs at least one of {[*EXTRACTORS]}.")
    if self.labelled_one_in < 2:
      raise ValueError(
        f"labelled_one_in must be at least 2, got {self.labelled_one_in}."
      )
    if not 0 < self.grader_seconds <= MAX_SECONDS:
      raise ValueError(
        f"grader_seconds must be above 0 and at most {MAX_SECONDS:g}, got "
        f"{self.grader_seconds}."
      )

  @property
  def policy_prompt_format(self) -> PromptFormat:
    """How the policy is asked, and how it is made to begin."""
    asked = PROMPT_FORMATS[self.prompt_format]
    return dataclasses.replace(asked, prefix=self.response_prefix)

  def computed(self, model: ModelConfig) -> ModelConfig:
    """An architecture as this run computes it.

    Args:
      model: as its folder describes it.
    """
    return dataclasses.replace(
      model,
      compute_dtype=self.compute_dtype,
      param_dtype=self.param_dtype,
      remat=self.remat,
      logits_chunk=self.logits_chunk,
      attention_chunk=self.attention_chunk,
    )

  def sources(self) -> dict[str, tuple[str | None, str, Fields]]:
    """Files of rows: (path, format, mapping of fields) by field."""
    return {
      "train": (self.train, self.train_format, self.train_fields),
      "held_out": (self.held_out, self.held_out_format, self.held_out_fields),
      "labelled": (self.labelled, self.labelled_format, self.labelled_fields),
    }
