"""The requests of an evaluation of a policy: one request per response."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from pure_jax.host import huggingface
from pure_jax.host.checkpoints import integrity
from pure_jax.host.data.file_dataset import Counts
from pure_jax.host.data.records import Problem
from pure_jax.host.evaluation.response_file import ResponseKey
from pure_jax.host.machine_memory import machine_bytes
from pure_jax.host.text.huggingface_tokenizer import (
  HuggingFaceTokenizer,
  tokenizer_of_prm,
)
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS
from pure_jax.runs.batches import PromptEncoder
from pure_jax.runs.evaluation.benchmarks import read_benchmark
from pure_jax.runs.memory.needs import Need, check_bytes
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.evaluation import EvaluationSettings
from pure_jax.runs.tasks import tiny_files

_REQUEST_BYTES = 100  # Of a request on the host, without its prompt.
_PROMPT_COLUMNS = 32  # Prompts have a multiple of this, as TPUs like it.


@dataclasses.dataclass(frozen=True)
class Request:
  """A response to generate.

  Attributes:
    benchmark: name of the benchmark.
    index: row of the problem in the benchmark.
    problem: the problem.
    sample: number of the sample; None for the greedy response.
    prompt: ids of the policy's prompt.
    prm_prompt: ids of the PRM's prompt; empty without a PRM.
  """

  benchmark: str
  index: int
  problem: Problem
  sample: int | None
  prompt: list[int]
  prm_prompt: list[int]

  @property
  def key(self) -> ResponseKey:
    """The key of the response, see `Response.key`."""
    return self.benchmark, self.problem.id, self.sample

  def key_data(self) -> tuple[int, int, int]:
    """Returns the numbers that are folded into the response's random key."""
    name = hashlib.blake2b(self.benchmark.encode(), digest_size=4).digest()
    return int.from_bytes(name, "little"), self.index, self.sample or 0


@dataclasses.dataclass(frozen=True)
class Requests:
  """All requests of an evaluation, and the problems it leaves out.

  Attributes:
    requests: greedy ones first, in the order of the benchmarks and their files.
    left_out: by benchmark, (problems left out, problems of the file).
    counts: by benchmark, how many rows of its file were read or not.
  """

  requests: list[Request]
  left_out: dict[str, tuple[int, int]]
  counts: dict[str, Counts]


def fingerprints(settings: EvaluationSettings) -> dict[str, Any]:
  """Fingerprints the models and files, to compare when a run is resumed.

  Args:
    settings: settings of the evaluation.

  Returns:
    Fingerprints of "policy", "prm" and, by name, "benchmarks".

  Raises:
    ConfigError: if `policy` or `prm` is another kind of model, or a file is
      missing.
  """
  models: dict[str, Any] = {}
  for name, folder, other_kind in (
    ("policy", settings.policy, "a PRM"),
    ("prm", settings.prm, "a language model"),
  ):
    if folder is None:
      continue
    if huggingface.read_config(folder).is_prm != (name == "prm"):
      raise ConfigError(f"config.{name}={folder} holds {other_kind}.")
    models[name] = integrity.fingerprint(folder, huggingface.MODEL_FILES)
  files = {}
  for name, benchmark in settings.named_benchmarks().items():
    if not pathlib.Path(benchmark.file).is_file():
      raise ConfigError(
        f"config.benchmarks.{name}.file={benchmark.file} is no file."
      )
    files[name] = integrity.fingerprint(benchmark.file)
  return models | {"benchmarks": files}


def with_tiny_models(
  settings: EvaluationSettings, folder: pathlib.Path
) -> EvaluationSettings:
  """Writes tiny random models and problems, and returns settings that use them.

  Args:
    settings: settings with `random_model`.
    folder: where the files go.
  """
  paths = tiny_files.write_problems(folder / "problems")
  return dataclasses.replace(
    settings,
    random_model=False,
    policy=str(tiny_files.write_policy(folder / "policy", tied=True)),
    prm=str(tiny_files.write_prm(folder / "prm", tied=False)),
    benchmarks=tiny_files.benchmarks(paths),
  )


def make_requests(
  settings: EvaluationSettings,
  tokenizer: HuggingFaceTokenizer,
  workdir: pathlib.Path,
) -> Requests:
  """Reads the benchmarks and encodes their problems.

  Args:
    settings: settings of the evaluation.
    tokenizer: the policy's.
    workdir: folder of the evaluation, which gets the prepared data.

  Raises:
    ConfigError: if no problem of a benchmark can be used, or memory has no
      room for the requests.
    TokenizerError: if an id is another text to the PRM.
  """
  encoder = PromptEncoder(
    tokenizer, settings.policy_prompt_format, settings.prompt_tokens
  )
  prm_encoder = None
  of_prm = prm_tokenizer(settings, tokenizer)
  if of_prm is not None:
    prm_format = PROMPT_FORMATS[settings.prm_prompt_format]
    prm_encoder = PromptEncoder(of_prm, prm_format, settings.prm_prompt_tokens)
  greedy: list[Request] = []
  left_out, counts = {}, {}
  for name, benchmark_settings in settings.named_benchmarks().items():
    benchmark = read_benchmark(
      name,
      benchmark_settings,
      encoder,
      prm_encoder,
      workdir / "data",
      skip_malformed=settings.skip_malformed,
    )
    left_out[name], counts[name] = benchmark.left_out, benchmark.counts
    greedy += [
      Request(
        name,
        row,
        problem,
        None,
        encoder.ids(problem),
        [] if prm_encoder is None else prm_encoder.ids(problem),
      )
      for row, problem in zip(benchmark.rows, benchmark.problems, strict=True)
    ]
  num_bytes = len(greedy) * settings.samples * _REQUEST_BYTES
  what = f"{settings.samples} samples of {len(greedy)} problems"
  needs = [Need(what, num_bytes, ("samples",), on_host=True)]
  check_bytes(settings, what, needs, machine_bytes(), "this machine")
  samples = [
    dataclasses.replace(request, sample=sample)
    for request in greedy
    for sample in range(settings.samples)
  ]
  return Requests(
    (greedy if settings.greedy else []) + samples, left_out, counts
  )


def with_columns_for(
  settings: EvaluationSettings, requests: Sequence[Request]
) -> EvaluationSettings:
  """Returns settings whose prompts have the columns that the requests need.

  The limits of a config leave long problems out and are often generous. Every
  column of padding costs as much as a token.

  Args:
    settings: settings of the evaluation.
    requests: all requests of the evaluation, so that batches have one shape.
  """

  def columns(limit: int, prompts: Iterable[list[int]]) -> int:
    """The longest prompt, rounded up, and no more than the limit."""
    longest = max((1, *map(len, prompts)))
    return min(limit, -(-longest // _PROMPT_COLUMNS) * _PROMPT_COLUMNS)

  return dataclasses.replace(
    settings,
    prompt_tokens=columns(
      settings.prompt_tokens, (request.prompt for request in requests)
    ),
    prm_prompt_tokens=columns(
      settings.prm_prompt_tokens, (request.prm_prompt for request in requests)
    ),
  )


def prm_tokenizer(
  settings: EvaluationSettings, tokenizer: HuggingFaceTokenizer
) -> HuggingFaceTokenizer | None:
  """The tokenizer of the PRM; None without one.

  Args:
    settings: settings of the evaluation.
    tokenizer: the policy's.

  Raises:
    TokenizerError: if an id is another text to the PRM.
  """
  if settings.prm is None:
    return None
  size = huggingface.read_config(settings.prm).model.vocab_size
  return tokenizer_of_prm(
    settings.prm, size, tokenizer, eos_token=settings.eos_token
  )
