"""The settings of an evaluation as frozen dataclasses, checked as made."""

import dataclasses

from pure_jax.host.data.formats.named import format_names
from pure_jax.host.data.records import Problem
from pure_jax.host.evaluation.tables import AVERAGE
from pure_jax.host.text.tokenization import PROMPT_FORMATS, PromptFormat
from pure_jax.models.config import COMPUTE_DTYPES
from pure_jax.runs.settings.checks import at_least, one_of
from pure_jax.runs.settings.files import Fields, GraderSettings, check_format
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.runs.settings.rl import EngineSettings, SamplerSettings
from pure_jax.settings import ScoreConfig


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
  """A file of problems. See `configs/evaluate.py`."""

  file: str | None
  format: str
  problems: int | None
  averaged: bool
  fields: Fields = None

  def __post_init__(self):
    """Validates that the format holds problems."""
    check_format(self, "", format_names(Problem))
    at_least(1, self, "problems")


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
  """An evaluation of one policy. See `configs/evaluate.py`."""

  seed: int
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
  k: tuple[int, ...]
  sampler: SamplerSettings
  batch_rows: int
  engine: EngineSettings
  score: ScoreConfig
  grader: GraderSettings
  bootstrap_seed: int
  bootstrap_resamples: int

  def __post_init__(self):
    """Validates models, benchmarks, samples and rows."""
    counts = "prompt_tokens prm_prompt_tokens batch_rows bootstrap_resamples"
    at_least(1, self, counts)
    at_least(0, self, "seed samples bootstrap_seed")
    one_of(self, "prompt_format prm_prompt_format", tuple(PROMPT_FORMATS))
    one_of(self, "compute_dtype param_dtype", COMPUTE_DTYPES)
    self._check_models()
    self._check_samples()
    self._check_rows()

  def _check_models(self) -> None:
    """Validates that models and problems are named, or none of them."""
    if not self.random_model and self.policy is None:
      raise ValueError("policy must name the folder of a Hugging Face model.")
    if self.random_model and (self.policy or self.prm):
      raise ValueError("random_model stands in place of policy and prm.")
    if not self.random_model and not self.named_benchmarks():
      raise ValueError(
        "no benchmark has a file: set one, such as benchmarks.math500.file."
      )
    if AVERAGE in self.benchmarks:
      raise ValueError(f"no benchmark may be called {AVERAGE!r}.")

  def _check_samples(self) -> None:
    """Validates that there are responses, and samples enough for k."""
    if not self.greedy and not self.samples:
      raise ValueError("no response is asked for: set greedy, or samples.")
    for size in self.k:
      if not 1 <= size <= self.samples:
        raise ValueError(
          f"k={self.k} must be sizes of subsets of the {self.samples} samples."
        )

  def _check_rows(self) -> None:
    """Validates that batches divide over the mesh and into slots."""
    self.mesh.check_rows("batch_rows", self.batch_rows)
    rows = self.engine.slots
    if rows is None:
      return
    self.mesh.check_rows("engine.slots", rows)
    if self.batch_rows % rows:
      raise ValueError(
        f"engine.slots={rows} does not divide batch_rows={self.batch_rows}: "
        "lower engine.slots to a divisor, set batch_rows to a multiple of it, "
        "or leave engine.slots unset (configs/evaluate.py:one_loop)."
      )

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

  def named_benchmarks(self) -> dict[str, BenchmarkSettings]:
    """The benchmarks that have a file."""
    return {k: v for k, v in self.benchmarks.items() if v.file is not None}
