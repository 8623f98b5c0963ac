"""The settings of models, data and graders that the user names."""

import dataclasses

from pure_jax.host.data.formats.named import FORMATS, MAPPED, find_format
from pure_jax.host.grading.pool import MAX_SECONDS
from pure_jax.host.grading.verify import EXTRACTORS
from pure_jax.host.text.tokenization import PROMPT_FORMATS, PromptFormat
from pure_jax.models.config import COMPUTE_DTYPES, REMAT, ModelConfig
from pure_jax.runs.settings.checks import at_least_one, one_of
from pure_jax.runs.settings.models import ARCHITECTURES, check_compute_dtype

# Mapping of fields, for the formats in `MAPPED`: field of a record -> field of
# the file.
Fields = dict[str, str] | None


def check_format(
  prefix: str, name: str, fields: Fields, allowed: tuple[str, ...]
) -> None:
  """Raises ValueError unless a file of this format can be read.

  Args:
    prefix: prefix of the names of the two fields, such as "train_".
    name: name of the format.
    fields: its mapping of fields, None for formats without one.
    allowed: names of formats.
  """
  one_of(f"{prefix}format", name, allowed)
  try:
    find_format(name, fields)
  except ValueError as error:
    raise ValueError(f"{prefix}fields: {error}") from error


@dataclasses.dataclass(frozen=True)
class GraderSettings:
  """How answers are found and graded."""

  extractors: tuple[str, ...]
  workers: int
  seconds: float

  def __post_init__(self):
    """Validates the extractors and the pool of processes."""
    if not self.extractors:
      raise ValueError(f"extractors needs at least one of {[*EXTRACTORS]}.")
    for name in self.extractors:
      one_of("extractors", name, tuple(EXTRACTORS))
    at_least_one(self, "workers")
    if not 0 < self.seconds <= MAX_SECONDS:
      raise ValueError(
        f"seconds must be above 0 and at most {MAX_SECONDS:g}, got "
        f"{self.seconds}."
      )


@dataclasses.dataclass(frozen=True)
class ComputationSettings:
  """The fields of `ModelConfig` that no model's folder decides."""

  compute_dtype: str
  param_dtype: str
  remat: str
  logits_chunk: int | None
  attention_chunk: int | None

  def __post_init__(self):
    """Validates names and sizes, before there is a model."""
    check_compute_dtype(self.compute_dtype)
    one_of("param_dtype", self.param_dtype, COMPUTE_DTYPES)
    one_of("remat", self.remat, REMAT)
    for name in ("logits_chunk", "attention_chunk"):
      if getattr(self, name) is not None:  # None takes all.
        at_least_one(self, name)


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
  grader: GraderSettings
  model: ComputationSettings
  architecture: str | None
  prm_architecture: str | None
  train_fields: Fields = None
  held_out_fields: Fields = None
  labelled_fields: Fields = None

  def __post_init__(self):
    """Validates names, lengths and sources."""
    at_least_one(self, "prompt_tokens prm_prompt_tokens response_tokens")
    for name in ("labelled_rows", "labelled_held_out_rows"):
      if getattr(self, name) is not None:  # None takes all.
        at_least_one(self, name)
    if self.labelled_one_in < 2:
      raise ValueError(
        f"labelled_one_in must be at least 2, got {self.labelled_one_in}."
      )
    for name in ("prompt_format", "prm_prompt_format"):
      one_of(name, getattr(self, name), tuple(PROMPT_FORMATS))
    for name, (_, row_format, fields) in self.sources().items():
      check_format(f"{name}_", row_format, fields, (*FORMATS, *MAPPED))
    self._check_models()

  def _check_models(self) -> None:
    """Validates that there is one policy, and names of shapes."""
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

  @property
  def policy_prompt_format(self) -> PromptFormat:
    """The policy's prompt format, with the prefix of its responses."""
    prompt_format = PROMPT_FORMATS[self.prompt_format]
    return dataclasses.replace(prompt_format, prefix=self.response_prefix)

  def computed(self, model: ModelConfig) -> ModelConfig:
    """An architecture with this run's dtypes, remat and chunks.

    Args:
      model: as its folder describes it.
    """
    return dataclasses.replace(model, **dataclasses.asdict(self.model))

  def sources(self) -> dict[str, tuple[str | None, str, Fields]]:
    """Files of rows: (path, format, mapping of fields) by field."""
    return {
      "train": (self.train, self.train_format, self.train_fields),
      "held_out": (self.held_out, self.held_out_format, self.held_out_fields),
      "labelled": (self.labelled, self.labelled_format, self.labelled_fields),
    }
