"""Models and data files that the user names, as the task of a run."""

import collections
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pure_jax.host import huggingface
from pure_jax.host.checkpoints import integrity
from pure_jax.host.data import file_dataset as data_files
from pure_jax.host.data.file_dataset import Records
from pure_jax.host.data.formats import equations
from pure_jax.host.data.formats.named import find_format
from pure_jax.host.data.records import (
  LabelledSolution,
  Problem,
  label_arrays,
  split_by_problem,
)
from pure_jax.host.grading import verify
from pure_jax.host.text.huggingface_tokenizer import (
  HuggingFaceTokenizer,
  tokenizer_of_prm,
)
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS
from pure_jax.host.text.tokenization import SEPARATOR
from pure_jax.models import prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.runs.batches import Batches, PromptEncoder
from pure_jax.runs.evaluation import held_out_prm, labelled_solutions
from pure_jax.runs.evaluation.benchmarks import read_benchmark
from pure_jax.runs.memory.of_run import check_labelled
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.files import FilesSettings
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.spec import RunSpec
from pure_jax.runs.tasks import tiny_files
from pure_jax.runs.tasks.task import LabelledResponses, Task, Verdicts
from pure_jax.training.supervised import Demonstrations


def contents(files: FilesSettings) -> dict[str, str]:
  """Fingerprints of the user's files. A run resumes only if they are the same.

  Args:
    files: settings of the files.

  Returns:
    The fingerprint of each model and file that is named.

  Raises:
    ConfigError: if a file is missing or cannot be read; the message names it.
  """
  fingerprints = {}
  names = ("policy", "prm", "train", "held_out", "labelled")
  paths = {name: getattr(files, name) for name in names}
  for name, benchmark in files.named_benchmarks().items():
    paths[f"benchmarks.{name}.file"] = benchmark.file
  for name, path in paths.items():
    if path is None:
      continue
    try:
      fingerprints[name] = integrity.fingerprint(path, huggingface.MODEL_FILES)
    except OSError as error:
      reason = f"files.{name}={path} cannot be read: {error}."
      raise ConfigError(reason) from error
  return fingerprints


class FilesTask(Task):
  """A Hugging Face folder and data files."""

  def __init__(self, settings: Settings, folder: pathlib.Path):
    """Reads the tokenizer and opens the data; weights are read when needed.

    `folder` gets the prepared data sets. Raises a ConfigError if a format makes
    another record than its field needs, or if no problem fits into a prompt.
    """
    files = settings.files
    if files.random_model is not None:
      files = tiny_files.make_files(files, folder / "tiny")
    self._settings, self._files, self._folder = settings, files, folder
    config = huggingface.read_config(files.policy)
    if config.is_prm:
      raise ConfigError(f"files.policy={files.policy} holds a PRM.")
    tokens = files.prompt_tokens + settings.rl.sampler.max_new_tokens
    if files.named_benchmarks():
      limit = settings.rl.benchmark_sampler.max_new_tokens
      tokens = max(tokens, files.prompt_tokens + limit)
    huggingface.warn_beyond_positions(files.policy, config, tokens)
    self.model = files.computed(config.model)
    self._dtypes = {
      "compute_dtype": self.model.compute_dtype,
      "param_dtype": self.model.param_dtype,
    }
    self.tokenizer = HuggingFaceTokenizer(
      files.policy, vocab_size=self.model.vocab_size, eos_token=files.eos_token
    )
    self.prm_model = self._prm_model()
    self.prompt_encoder = PromptEncoder(
      self.tokenizer, files.policy_prompt_format, files.prompt_tokens
    )
    self.prm_prompt_encoder = PromptEncoder(
      self._prm_tokenizer(),
      PROMPT_FORMATS[files.prm_prompt_format],
      files.prm_prompt_tokens,
    )
    self.train = self._problems("train")
    self.held_out = self._problems("held_out")
    self.benchmarks = [
      read_benchmark(
        name,
        benchmark,
        self.prompt_encoder,
        None if self.prm_model is None else self.prm_prompt_encoder,
        folder / "data",
        skip_malformed=files.skip_malformed,
      )
      for name, benchmark in files.named_benchmarks().items()
    ]
    self._pool: verify.WorkerPool | None = None

  def _prm_model(self) -> ModelConfig | None:
    """The architecture of the PRM.

    A run with outcome rewards only has no PRM, unless the user names one or
    data to train one.
    """
    files = self._files
    has_prm = files.prm is not None or files.labelled is not None
    if self._settings.rl.reward_mode == "vr" and not has_prm:
      return None
    if files.prm is None:
      return prm.extend_config(self.model, self._settings.prm.extra_layers)
    return files.computed(huggingface.read_config(files.prm).model)

  def _prm_tokenizer(self) -> HuggingFaceTokenizer:
    """The tokenizer of the PRM's prompts: the policy's, or that of files.prm.

    Raises a TokenizerError if such a PRM cannot read the policy's ids.
    """
    files = self._files
    if self.prm_model is None or files.prm is None:
      return self.tokenizer
    return tokenizer_of_prm(
      files.prm,
      self.prm_model.vocab_size,
      self.tokenizer,
      eos_token=files.eos_token,
    )

  def _rows(self, field: str, record: type) -> Records:
    """Opens the file that a field of the config names."""
    path, name, mapping = self._files.sources()[field]
    is_labelled = field == "labelled"
    neutral = self._files.neutral_labels if is_labelled else "good"
    row_format = find_format(name, mapping, neutral)
    if row_format.record is not record:
      raise ConfigError(
        f"files.{field}_format={name!r} holds {row_format.record.__name__}, "
        f"but {field} needs {record.__name__}."
      )
    return data_files.read_file(
      row_format,
      path,
      self._folder / "data",
      skip_malformed=self._files.skip_malformed,
    )

  def _problems(self, field: str) -> list[Problem]:
    """The problems of a file whose prompts fit; none if no file is named."""
    path, _, _ = self._files.sources()[field]
    if path is None:
      return []
    rows = list(self._rows(field, Problem))
    problems = [row for row in rows if self._fits(row)]
    if not problems:
      raise ConfigError(
        f"files.prompt_tokens={self.prompt_encoder.length} and "
        f"prm_prompt_tokens={self.prm_prompt_encoder.length} have room for "
        f"none of the {len(rows)} problems of {path}."
      )
    return problems

  def _fits(self, problem: Problem) -> bool:
    """Whether the prompts that models read are within their limits."""
    encoders = [self.prompt_encoder]
    if self.prm_model is not None:
      encoders.append(self.prm_prompt_encoder)
    return all(len(e.ids(problem)) <= e.length for e in encoders)

  def grade(
    self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]
  ) -> Verdicts:
    """Compares answers in worker processes, with a time limit for each."""
    if self._pool is None:
      self._pool = verify.open_pool(
        self._files.grader.workers, self._files.grader.seconds
      )
    references = [verify.reference_of(problem) for problem in problems]
    gradable = [i for i, answer in enumerate(references) if answer is not None]
    verdicts = verify.grade(
      self._pool,
      [SEPARATOR.join(texts[i]) for i in gradable],
      [references[i] for i in gradable],
      [verify.EXTRACTORS[name] for name in self._files.grader.extractors],
    )

    def for_all(values: Iterable[bool]) -> np.ndarray:
      """[B], False for the problems without an answer."""
      rows = np.zeros(len(problems), bool)
      rows[gradable] = [*values]
      return rows

    return Verdicts(
      for_all(verdict.correct for verdict in verdicts),
      {
        "grader_no_answer": for_all(not v.has_answer for v in verdicts),
        "grader_timed_out": for_all(v.timed_out for v in verdicts),
        "grader_crashed": for_all(v.failure is not None for v in verdicts),
      },
    )

  def find_answer(self, texts: Sequence[str]) -> str | None:
    """The answer that `grade` compares."""
    extractors = [
      verify.EXTRACTORS[name] for name in self._files.grader.extractors
    ]
    text = SEPARATOR.join(texts)[-verify.MAX_RESPONSE_CHARS :]
    return verify.first_of(text, extractors)

  def is_vacuous(self, step: str) -> bool:
    """Whether a step is empty; other vacuous steps cannot be detected."""
    return not step.strip()

  def step_labels(
    self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]
  ) -> list[list[int | None]]:
    """Labels steps by the equations in them, as far as they can be read."""
    del problems
    return [[equations.label_step(step) for step in steps] for steps in texts]

  def start_policy(self, layout: sharding.Layout) -> Any:
    """Loads the weights of the policy."""
    path = self._files.policy
    params, _ = huggingface.load_policy(path, layout, **self._dtypes)
    return params

  def start_prm(self, layout: sharding.Layout) -> Any | None:
    """Loads the weights of the PRM; None if no PRM is named."""
    if self._files.prm is None:
      return None
    path = self._files.prm
    params, _ = huggingface.load_prm(path, layout, **self._dtypes)
    return params

  def demonstrations(self) -> Demonstrations:
    """Raises an error: the policy is trained already."""
    raise ConfigError("files.policy is trained already: there is no SFT stage.")

  @functools.cached_property
  def _labelled_file(self) -> Records:
    """All labelled solutions."""
    if self._files.labelled is None:
      raise ConfigError(
        "A PRM must be trained, but files.labelled names no data; or name a "
        "trained one with files.prm."
      )
    return self._rows("labelled", LabelledSolution)

  def _labelled_rows(
    self,
  ) -> tuple[list[LabelledSolution], list[LabelledSolution]]:
    """(training, held-out) solutions, which share no problem."""
    files, rows = self._files, self._labelled_file
    training, held_out = split_by_problem(rows, files.labelled_one_in)
    if not (training.size and held_out.size):
      raise ConfigError(
        f"files.labelled_one_in={files.labelled_one_in} leaves {len(training)} "
        f"rows to train on and {len(held_out)} held out."
      )
    return (
      rows.take(training)[: files.labelled_rows],
      rows.take(held_out)[: files.labelled_held_out_rows],
    )

  def labelled(
    self, spec: RunSpec, batches: Batches, policy_params: Any
  ) -> LabelledResponses:
    """The solutions of the file that fit, as `prm.score.separator` says."""
    del spec, batches, policy_params
    rows, encoded = self._encode(self._labelled_rows()[0])
    check_labelled(self._settings, len(rows))
    responses = labelled_solutions.pad_solutions(
      encoded.texts,
      self._limits,
      self.tokenizer.pad_id,
      self._settings.prm.length_multiple,
    )
    labels, label_mask = label_arrays(
      [row.labels for row in rows], self._limits.max_steps
    )
    counts = self._labelled_file.counts
    metrics = {
      "file_rows": counts.read,
      "file_malformed": counts.skipped,
      "file_left_out": counts.left_out,
      "responses": len(rows),
      "left_out": len(encoded.left_out),
      "labelled_steps": label_mask.sum(),
      "good_share": labels[label_mask].mean(),
    }
    return LabelledResponses(responses, labels, label_mask, metrics)

  @property
  def _limits(self) -> labelled_solutions.SolutionLimits:
    """The limits of a labelled solution."""
    return labelled_solutions.SolutionLimits(
      self.prm_prompt_encoder.length,
      self._files.response_tokens,
      self._settings.prm.score.max_steps,
    )

  def _encode(
    self, rows: list[LabelledSolution]
  ) -> tuple[list[LabelledSolution], labelled_solutions.EncodedSolutions]:
    """(the solutions within the limits, their ids)."""
    limits = self._limits
    encoded = labelled_solutions.encode_solutions(
      self.tokenizer,
      self.prm_prompt_encoder.prompt_format,
      rows,
      limits,
      self._settings.prm.score.separator,
    )
    if not encoded.texts:
      reasons = collections.Counter(encoded.left_out.values())
      counted = ", ".join(f"{count} {why}" for why, count in reasons.items())
      raise ConfigError(
        f"files.prm_prompt_tokens={limits.prompt_tokens}, "
        f"files.response_tokens={limits.response_tokens} and "
        f"prm.score.max_steps={limits.max_steps} have room for none of "
        f"{len(rows)} rows: {counted}."
      )
    return [rows[i] for i in encoded.index], encoded

  def evaluate_prm(
    self, spec: RunSpec, batches: Batches, policy_params: Any, params: Any
  ) -> dict[str, float | None]:
    """Evaluates the PRM on held-out steps, and in choosing among solutions."""
    del policy_params
    rows, encoded = self._encode(self._labelled_rows()[1])
    rewards = held_out_prm.step_rewards(
      spec, batches, self._folder, params, encoded, self._limits
    )
    left_out = {"left_out": float(len(encoded.left_out))}
    return held_out_prm.metrics(rows, rewards) | left_out

  def close(self) -> None:
    """Ends the worker processes of the grader."""
    if self._pool is not None:
      self._pool.close()
