"""The settings of evaluations of policies and PRMs, checked as made."""

import dataclasses

from pure_jax.host.data.formats import responses
from pure_jax.host.data.formats.named import find_format, format_names
from pure_jax.host.data.records import LabelledSolution, Problem
from pure_jax.host.evaluation.repetition import UNITS
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS, PromptFormat
from pure_jax.ranges import within
from pure_jax.runs.settings.checks import at_least, one_of
from pure_jax.runs.settings.files import (
  Benchmarks,
  BenchmarkSettings,
  Fields,
  GraderSettings,
  check_format,
  with_files,
)
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.runs.settings.models import DTYPE_CHOICES, with_dtypes_of
from pure_jax.runs.settings.rl import EngineSettings, SamplerSettings
from pure_jax.settings import ScoreConfig, Seed

# Resamples of a bootstrap, and bins of a calibration error: more take hours and
# change no digit of a report.
MOST_RESAMPLES = 1_000_000


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
  """An evaluation of one policy. See `configs/evaluate.py`."""

  seed: Seed
  progress: bool
  mesh: MeshSettings
  policy: str | None
  random_model: bool
  prm: str | None
  eos_token: str | None
  compute_dtype: str
  param_dtype: str
  benchmarks: dict[str, BenchmarkSettings]
  skip_malformed: bool
  prompt_format: str
  prm_prompt_format: str
  response_prefix: str
  prompt_tokens: int
  prm_prompt_tokens: int
  greedy: bool
  samples: int
  k: tuple[int, ...] | None
  repetition_unit: str
  sampler: SamplerSettings
  stop_on_boxed: bool
  batch_rows: int
  engine: EngineSettings
  score: ScoreConfig
  grader: GraderSettings
  bootstrap_seed: Seed
  bootstrap_resamples: int

  def __post_init__(self):
    at_least(1, self, "prompt_tokens prm_prompt_tokens batch_rows")
    at_least(0, self, "samples")
    within(1, MOST_RESAMPLES, self, "bootstrap_resamples")
    one_of(self, "prompt_format prm_prompt_format", tuple(PROMPT_FORMATS))
    one_of(self, "compute_dtype param_dtype", DTYPE_CHOICES)
    one_of(self, "repetition_unit", UNITS)
    if not self.random_model and self.policy is None:
      raise ValueError(
        "policy must name a Hugging Face model: a folder, or ORG/NAME."
      )
    if self.random_model and (self.policy or self.prm):
      raise ValueError("random_model stands in place of policy and prm.")
    named = self.named_benchmarks()
    if not self.random_model and not named:
      raise ValueError(
        "no benchmark has a file: set one, such as benchmarks.math500.file."
      )
    if not self.greedy and not self.samples:
      raise ValueError(
        "no response would be generated: set greedy, or samples."
      )
    for size in self.subset_sizes:
      if not 1 <= size <= self.samples:
        raise ValueError(
          f"k={self.k} must be sizes of subsets of the {self.samples} samples: "
          "leave k out for the powers of two among them."
        )
    self.mesh.check_rows("batch_rows", self.batch_rows)
    rows = self.engine.slots
    if rows is not None:
      self.mesh.check_rows("engine.slots", rows)
    if rows is not None and self.batch_rows % rows:
      raise ValueError(
        f"engine.slots={rows} does not divide batch_rows={self.batch_rows}: "
        "lower engine.slots to a divisor, set batch_rows to a multiple of it, "
        "or leave engine.slots unset (configs/evaluate.py:one_loop)."
      )

  def for_platform(self, platform: str) -> "EvaluationSettings":
    """The same evaluation with the dtypes that "auto" stands for."""
    return with_dtypes_of(self, platform)

  @property
  def subset_sizes(self) -> tuple[int, ...]:
    """Sizes k of pass@k and maj@k: those given, else the powers of two."""
    if self.k is not None:
      return self.k
    return tuple(2**i for i in range(1, self.samples.bit_length()))

  def group_size(self, shards: int, *, greedy: bool) -> int:
    """Responses that share one prefill of their prompt, in the engine.

    These are all samples of a problem, or 1 if they do not fill the slots
    evenly over the row shards.
    """
    rows, samples = self.engine.slots, self.samples
    if rows is None or greedy or not samples or rows % (shards * samples):
      return 1
    return samples

  def rows_of_batches(self, units: int) -> int:
    """Rows of a batch; the last batch is filled up by repeating responses.

    With continuous batching fewer than `batch_rows`, if as many batches hold
    all responses: a repeated row costs as much as any other.
    """
    if self.engine.slots is None:
      return self.batch_rows
    share = -(-units // -(-units // self.batch_rows))
    return -(-share // self.engine.slots) * self.engine.slots

  @property
  def policy_prompt_format(self) -> PromptFormat:
    """The policy's prompt format, with the prefix of its responses."""
    prompt_format = PROMPT_FORMATS[self.prompt_format]
    return dataclasses.replace(prompt_format, prefix=self.response_prefix)

  def named_benchmarks(self) -> Benchmarks:
    """The benchmarks that have a file."""
    return with_files(self.benchmarks)


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """A file of labelled solutions, and its name in the report.

  The format "responses" needs the problems of the benchmark. See
  `configs/evaluate_prm.py`.
  """

  name: str
  file: str
  format: str
  fields: Fields = None
  neutral_labels: str = "good"
  held_out_one_in: int | None = None
  problems: str | None = None
  problems_format: str | None = None
  problems_fields: Fields = None

  def __post_init__(self):
    """Validates that there is a name, and that the format holds steps."""
    if not self.name.strip():
      raise ValueError(f"name is empty: the report needs one for {self.file}.")
    at_least(2, self, "held_out_one_in")
    names = (*format_names(LabelledSolution), responses.NAME)
    one_of(self, "format", names)
    has_problems = None not in (self.problems, self.problems_format)
    if has_problems != (self.format == responses.NAME):
      raise ValueError(
        f"problems and problems_format belong to format={responses.NAME!r}, "
        "whose lines name problems by their ids: set both with it, and neither "
        "with another format."
      )
    if has_problems:
      check_format(self, "problems_", format_names(Problem))
      if self.fields is not None:
        raise ValueError(f"format={self.format!r} knows its fields.")
      return
    check_format(self, "", format_names(LabelledSolution))
    find_format(self.format, self.fields, self.neutral_labels)


@dataclasses.dataclass(frozen=True)
class EvaluatePRMSettings:
  """An evaluation of one PRM. See `configs/evaluate_prm.py`."""

  progress: bool
  mesh: MeshSettings
  prm: str | None
  run: str | None
  random_model: str | None
  tokenizer: str | None
  eos_token: str | None
  good_class: int | None
  data: tuple[DataSettings, ...]
  skip_malformed: bool
  prompt_format: str
  prompt_tokens: int
  response_tokens: int
  score: ScoreConfig
  batch_size: int
  length_multiple: int
  compute_dtype: str
  param_dtype: str
  threshold: str
  threshold_data: str | None
  bins: int
  bootstrap_seed: Seed
  resamples: int

  def for_platform(self, platform: str) -> "EvaluatePRMSettings":
    """The same evaluation with the dtypes that "auto" stands for."""
    return with_dtypes_of(self, platform)

  def __post_init__(self):
    at_least(1, self, "prompt_tokens response_tokens batch_size")
    at_least(1, self, "length_multiple")
    within(1, MOST_RESAMPLES, self, "bins resamples")
    if self.good_class not in (0, 1, None):
      raise ValueError(
        f"good_class must be 0, 1 or None, got {self.good_class}."
      )
    one_of(self, "prompt_format", tuple(PROMPT_FORMATS))
    one_of(self, "compute_dtype param_dtype", DTYPE_CHOICES)
    self.mesh.check_rows("batch_size", self.batch_size)
    sources = (self.prm, self.run, self.random_model)
    if sum(source is not None for source in sources) != 1:
      raise ValueError(
        "prm names a Hugging Face model (folder or id), run the workdir of "
        "train_prm.py: set one of them, or random_model for a trial."
      )
    one_of(self, "random_model", ("tied", "untied"))
    if self.random_model is None and not self.data:
      raise ValueError(
        "data is empty. Name files: --config.data=\"({'name': 'gsm8k', "
        "'file': 'gsm8k.json', 'format': 'processbench'},)\""
      )
    names = [item.name for item in self.data]
    if len({*names}) < len(names):
      raise ValueError(f"data has a name twice: {names}.")
    one_of(self, "threshold", ("zero", "best_on"))
    if (self.threshold == "best_on") != (self.threshold_data is not None):
      raise ValueError(
        "threshold_data names the data set that threshold='best_on' chooses "
        "on: set both or neither."
      )
    if self.data:
      one_of(self, "threshold_data", tuple(names))
