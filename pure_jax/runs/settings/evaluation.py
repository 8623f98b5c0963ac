"""The settings of an evaluation as frozen dataclasses, checked as made."""

import dataclasses

from pure_jax.host.data.formats.named import format_names
from pure_jax.host.data.records import Problem
from pure_jax.host.evaluation.tables import AVERAGE
from pure_jax.host.grading.pool import MAX_SECONDS
from pure_jax.host.grading.verify import EXTRACTORS
from pure_jax.host.text.tokenization import PROMPT_FORMATS, PromptFormat
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.runs.settings.checks import (
  Fields,
  at_least_one,
  check_format,
  one_of,
)
from pure_jax.runs.settings.mesh import MeshSettings


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
  """A file of problems. See `configs/evaluate.py`."""

  file: str | None
  format: str
  problems: int | None
  averaged: bool
  fields: Fields = None

  def __post_init__(self):
    """Refuses formats of something else."""
    check_format("", self.format, self.fields, format_names(Problem))
    if self.problems is not None:
      at_least_one(self, "problems")


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
  temperature: float
  top_p: float
  top_k: int
  min_p: float
  max_new_tokens: int
  batch_rows: int
  rollout_rows: int | None
  rollout_chunk: int
  max_steps: int
  prm_separator: str
  extractors: tuple[str, ...]
  grader_workers: int
  grader_seconds: float
  bootstrap_seed: int
  bootstrap_resamples: int

  def __post_init__(self):
    """Refuses what cannot be evaluated."""
    at_least_one(
      self,
      "prompt_tokens prm_prompt_tokens batch_rows rollout_chunk max_steps "
      "grader_workers bootstrap_resamples",
    )
    for name in ("seed", "samples", "bootstrap_seed"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name} must not be negative.")
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
    if not self.greedy and not self.samples:
      raise ValueError("nothing is asked for: set greedy, or samples.")
    for size in self.k:
      if not 1 <= size <= self.samples:
        raise ValueError(
          f"k={self.k} must be sizes of subsets of the {self.samples} samples."
        )
    if not self.temperature > 0:
      raise ValueError(
        "temperature must be above 0: greedy responses are asked for by greedy."
      )
    for name in ("prompt_format", "prm_prompt_format"):
      one_of(name, getattr(self, name), tuple(PROMPT_FORMATS))
    one_of("prm_separator", self.prm_separator, ("insert", "replace"))
    for name in ("compute_dtype", "param_dtype"):
      one_of(name, getattr(self, name), ("float32", "bfloat16"))
    if not self.extractors:
      raise ValueError(f"extractors needs at least one of {[*EXTRACTORS]}.")
    for name in self.extractors:
      one_of("extractors", name, tuple(EXTRACTORS))
    if not 0 < self.grader_seconds <= MAX_SECONDS:
      raise ValueError(
        f"grader_seconds must be above 0 and at most {MAX_SECONDS:g}, got "
        f"{self.grader_seconds}."
      )
    self.sampler(0, 1, (), greedy=False)
    self.mesh.check_rows("batch_rows", self.batch_rows)
    if self.rollout_rows is not None:
      self._check_turns(self.rollout_rows)

  def _check_turns(self, rows: int) -> None:
    """Refuses places that do not make up a batch."""
    at_least_one(self, "rollout_rows")
    self.mesh.check_rows("rollout_rows", rows)
    if self.batch_rows % rows:
      raise ValueError(
        f"rollout_rows={rows} does not divide batch_rows={self.batch_rows}: "
        "lower rollout_rows to one that does, set batch_rows to a multiple of "
        "it, or leave rollout_rows unset (configs/evaluate.py:one_loop)."
      )

  def continuous(self) -> EngineConfig | None:
    """How responses of a batch take turns, None where they do not."""
    if self.rollout_rows is None:
      return None
    return EngineConfig(self.rollout_rows, self.rollout_chunk)

  def group_size(self, shards: int, *, greedy: bool) -> int:
    """Responses for which a prompt is read once, where they take turns.

    Args:
      shards: over which rows are split.
      greedy: of greedy responses, or of samples.

    Returns:
      All samples of a problem, or 1 where they do not fill places evenly.
    """
    rows, samples = self.rollout_rows, self.samples
    if rows is None or greedy or not samples or rows % (shards * samples):
      return 1
    return samples

  def rows_of_batches(self, units: int) -> int:
    """Rows of a batch; what is no response fills up the last.

    Args:
      units: responses of all batches.

    Returns:
      batch_rows; where rows take turns, fewer if as many batches are filled
      by them, for a row that only fills up costs as much as others.
    """
    if self.rollout_rows is None:
      return self.batch_rows
    share = -(-units // -(-units // self.batch_rows))
    return -(-share // self.rollout_rows) * self.rollout_rows

  @property
  def policy_prompt_format(self) -> PromptFormat:
    """How the policy is asked, and how it is made to begin."""
    asked = PROMPT_FORMATS[self.prompt_format]
    return dataclasses.replace(asked, prefix=self.response_prefix)

  def named_benchmarks(self) -> dict[str, BenchmarkSettings]:
    """Those that have a file."""
    return {k: v for k, v in self.benchmarks.items() if v.file is not None}

  def sampler(
    self, pad_id: int, eos_id: int, banned_ids: tuple[int, ...], *, greedy: bool
  ) -> SamplingConfig:
    """How responses are drawn, or taken greedily."""
    return SamplingConfig(
      max_new_tokens=self.max_new_tokens,
      pad_id=pad_id,
      stop_ids=(eos_id,),
      temperature=0.0 if greedy else self.temperature,
      top_p=1.0 if greedy else self.top_p,
      top_k=0 if greedy else self.top_k,
      min_p=0.0 if greedy else self.min_p,
      banned_ids=banned_ids,
    )
