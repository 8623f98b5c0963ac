"""The settings of models, data and graders that the user names."""

import dataclasses
from typing import Any

from pure_jax.host.data.formats.named import (
  FORMATS,
  MAPPED,
  find_format,
  format_names,
)
from pure_jax.host.data.records import Problem
from pure_jax.host.evaluation.tables import AVERAGE
from pure_jax.host.grading.verify import EXTRACTORS
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS, PromptFormat
from pure_jax.host.workers.pool import MAX_SECONDS, MAX_WORKERS, MIN_SECONDS
from pure_jax.models.config import COMPUTE_DTYPES, REMAT, ModelConfig
from pure_jax.ranges import within
from pure_jax.runs.settings.checks import at_least, one_of
from pure_jax.runs.settings.models import ARCHITECTURES, DTYPE_CHOICES

# Name of the held-out problems among the benchmarks of a validation.
HELD_OUT = "held_out"
# What can be made for a random model.
RANDOM_FILES = ("train", "held_out", "labelled", "prm", "benchmarks")
# Mapping of fields, for the formats in `MAPPED`: field of a record -> field of
# the file.
Fields = dict[str, str] | None


def check_format(settings: Any, prefix: str, allowed: tuple[str, ...]) -> None:
  """Raises ValueError unless a file of a format can be read.

  Args:
    settings: a dataclass with the name of a format and its mapping of fields.
    prefix: of the names of the two, such as "train_".
    allowed: names of formats.
  """
  one_of(settings, f"{prefix}format", allowed)
  name = getattr(settings, f"{prefix}format")
  fields = getattr(settings, f"{prefix}fields")
  try:
    find_format(name, fields)
  except ValueError as error:
    raise ValueError(f"{prefix}fields: {error}") from error


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
  """A file of problems to evaluate on. See `configs/files.py`."""

  file: str | None
  format: str
  problems: int | None
  averaged: bool
  fields: Fields = None

  def __post_init__(self):
    check_format(self, "", format_names(Problem))
    at_least(1, self, "problems")


Benchmarks = dict[str, BenchmarkSettings]


def with_files(benchmarks: Benchmarks) -> Benchmarks:
  """Selects the benchmarks that have a file.

  Args:
    benchmarks: by name.

  Raises:
    ValueError: if one of them has a name that other results have.
  """
  for name in (AVERAGE, HELD_OUT):
    if name in benchmarks:
      raise ValueError(f"no benchmark may be called {name!r}.")
  return {name: b for name, b in benchmarks.items() if b.file is not None}


@dataclasses.dataclass(frozen=True)
class GraderSettings:
  """How answers are found and graded."""

  extractors: tuple[str, ...]
  workers: int
  seconds: float

  def __post_init__(self):
    if not self.extractors:
      raise ValueError(f"extractors needs at least one of {[*EXTRACTORS]}.")
    one_of(self, "extractors", tuple(EXTRACTORS))
    within(1, MAX_WORKERS, self, "workers")
    within(MIN_SECONDS, MAX_SECONDS, self, "seconds")


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
    one_of(self, "compute_dtype", DTYPE_CHOICES)
    one_of(self, "param_dtype", COMPUTE_DTYPES)
    one_of(self, "remat", REMAT)
    at_least(1, self, "logits_chunk attention_chunk")


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
  neutral_labels: str
  skip_malformed: bool
  grader: GraderSettings
  model: ComputationSettings
  architecture: str | None
  prm_architecture: str | None
  benchmarks: dict[str, BenchmarkSettings]
  train_fields: Fields = None
  held_out_fields: Fields = None
  labelled_fields: Fields = None

  def __post_init__(self):
    at_least(1, self, "prompt_tokens prm_prompt_tokens response_tokens")
    at_least(1, self, "labelled_rows labelled_held_out_rows")
    at_least(2, self, "labelled_one_in")
    one_of(self, "prompt_format prm_prompt_format", tuple(PROMPT_FORMATS))
    for prefix in ("train_", "held_out_", "labelled_"):
      check_format(self, prefix, (*FORMATS, *MAPPED))
    find_format(self.labelled_format, self.labelled_fields, self.neutral_labels)
    if (self.policy is None) == (self.random_model is None):
      raise ValueError(
        "policy names a Hugging Face model, by its folder or its id; set it, "
        "or random_model for a trial, not both."
      )
    one_of(self, "random_model", ("tied", "untied", "llama"))
    one_of(self, "architecture prm_architecture", tuple(ARCHITECTURES))
    one_of(self, "random_files", RANDOM_FILES)
    with_files(self.benchmarks)

  def named_benchmarks(self) -> Benchmarks:
    """The benchmarks that have a file."""
    return with_files(self.benchmarks)

  @property
  def policy_prompt_format(self) -> PromptFormat:
    """The policy's prompt format, with the prefix of its responses."""
    prompt_format = PROMPT_FORMATS[self.prompt_format]
    return dataclasses.replace(prompt_format, prefix=self.response_prefix)

  def computed(self, model: ModelConfig) -> ModelConfig:
    """An architecture with this run's dtypes, remat and chunks."""
    return dataclasses.replace(model, **dataclasses.asdict(self.model))

  def sources(self) -> dict[str, tuple[str | None, str, Fields]]:
    """Files of rows: (path, format, mapping of fields) by field."""
    return {
      "train": (self.train, self.train_format, self.train_fields),
      "held_out": (self.held_out, self.held_out_format, self.held_out_fields),
      "labelled": (self.labelled, self.labelled_format, self.labelled_fields),
    }
