"""What an evaluation asks: folders, benchmarks, and one unit per response."""

import dataclasses
import hashlib
import pathlib
from typing import Any

from pure_jax.host import huggingface
from pure_jax.host.checkpoints import integrity
from pure_jax.host.data import file_dataset as data_files
from pure_jax.host.data.file_dataset import Counts
from pure_jax.host.data.formats.named import find_format
from pure_jax.host.data.records import Problem
from pure_jax.host.evaluation.responses import ResponseKey
from pure_jax.host.grading import verify
from pure_jax.host.logs import console
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import (
  PROMPT_FORMATS,
  PromptFormat,
  TokenizerError,
)
from pure_jax.runs.settings.evaluation import (
  BenchmarkSettings,
  EvaluationSettings,
)
from pure_jax.runs.settings.run import ConfigError
from pure_jax.runs.tasks import tiny_files


@dataclasses.dataclass(frozen=True)
class Unit:
  """A response that is asked for.

  Attributes:
    benchmark: name of the set.
    index: row of the problem in it.
    problem: the problem.
    sample: number of the sample; None is the greedy response.
    prompt: ids of the policy's prompt.
    prm_prompt: ids of the PRM's.
  """

  benchmark: str
  index: int
  problem: Problem
  sample: int | None
  prompt: list[int]
  prm_prompt: list[int]

  @property
  def key(self) -> ResponseKey:
    """As `responses.Response.key`."""
    return self.benchmark, self.problem.id, self.sample

  def numbers(self) -> tuple[int, int, int]:
    """What the random key follows from, besides the seed."""
    name = hashlib.blake2b(self.benchmark.encode(), digest_size=4).digest()
    return int.from_bytes(name, "little"), self.index, self.sample or 0


@dataclasses.dataclass(frozen=True)
class Questions:
  """All of the evaluation's responses, and what is not asked.

  Attributes:
    units: greedy ones first, in the order of the benchmarks and their files.
    left_out: by benchmark, (problems left out, problems of the file).
    counts: by benchmark, what became of the rows of its file.
  """

  units: list[Unit]
  left_out: dict[str, tuple[int, int]]
  counts: dict[str, Counts]


def contents(settings: EvaluationSettings) -> dict[str, Any]:
  """What the folders and files hold, so that a resumed run meets the same.

  Raises:
    ConfigError: for a policy that is none, or files that are missing.
    HuggingFaceError: for a folder that holds no model.
  """
  folders = {"policy": settings.policy, "prm": settings.prm}
  found: dict[str, Any] = {}
  for name, folder in folders.items():
    if folder is None:
      continue
    if huggingface.read_config(folder).is_prm != (name == "prm"):
      raise ConfigError(
        f"config.{name}={folder} holds "
        f"{'a language model' if name == 'prm' else 'a PRM'}."
      )
    found[name] = integrity.fingerprint(folder, huggingface.MODEL_FILES)
  files = {}
  for name, benchmark in settings.named_benchmarks().items():
    if not pathlib.Path(benchmark.file).is_file():
      raise ConfigError(
        f"config.benchmarks.{name}.file={benchmark.file} is no file."
      )
    files[name] = integrity.fingerprint(benchmark.file)
  return found | {"benchmarks": files}


def tiny(
  settings: EvaluationSettings, folder: pathlib.Path
) -> EvaluationSettings:
  """The settings with a random model and its problems in every place."""
  paths = tiny_files.write_problems(folder / "problems")
  return dataclasses.replace(
    settings,
    random_model=False,
    policy=str(tiny_files.write_policy(folder / "policy", tied=True)),
    prm=str(tiny_files.write_prm(folder / "prm", tied=False)),
    benchmarks={
      name: BenchmarkSettings(str(paths[file]), row_format, 6, averaged=True)
      for name, file, row_format in (
        ("tiny_math500", "held_out", "math500"),
        ("tiny_math8k", "train", "math8k"),
      )
    },
  )


def ask(
  settings: EvaluationSettings,
  tokenizer: HuggingFaceTokenizer,
  workdir: pathlib.Path,
) -> Questions:
  """Reads the benchmarks and encodes their problems.

  Raises:
    ConfigError: if a benchmark has no problem that can be asked.
    DataError: for a file that cannot be read.
    TokenizerError: if a prompt format needs a chat template that is missing.
  """
  asked: list[Unit] = []
  left_out, counts = {}, {}
  for name, benchmark in settings.named_benchmarks().items():
    rows = data_files.read_file(
      find_format(benchmark.format, benchmark.fields),
      benchmark.file,
      workdir / "data",
      skip_malformed=settings.skip_malformed,
    )
    counts[name] = rows.counts
    problems = rows[: benchmark.problems]
    if len({problem.id for problem in problems}) < len(problems):
      raise ConfigError(f"{benchmark.file} has two problems of one id.")
    units, reasons = _fitting(settings, tokenizer, name, problems)
    if reasons:
      told = ", ".join(
        f"{reasons.count(reason)} {reason}" for reason in sorted({*reasons})
      )
      told = f"{name}: {len(reasons)} of {len(problems)} left out: {told}."
      if not units:
        raise ConfigError(told)
      console.tell(told)
    asked += units
    left_out[name] = len(reasons), len(problems)
  greedy = asked if settings.greedy else []
  samples = [
    dataclasses.replace(unit, sample=sample)
    for unit in asked
    for sample in range(settings.samples)
  ]
  return Questions(greedy + samples, left_out, counts)


def _fitting(
  settings: EvaluationSettings,
  tokenizer: HuggingFaceTokenizer,
  name: str,
  problems: list[Problem],
) -> tuple[list[Unit], list[str]]:
  """(greedy units of the problems that can be asked, why others cannot)."""

  def encode(prompt_format: PromptFormat, problem: Problem) -> list[int]:
    return tokenizer.encode(prompt_format.text(tokenizer, problem.problem))

  policy_format = settings.policy_prompt_format
  prm_format = PROMPT_FORMATS[settings.prm_prompt_format]
  units, reasons = [], []
  for index, problem in enumerate(problems):
    prompt, prm_prompt = encode(policy_format, problem), []
    if settings.prm is not None:
      prm_prompt = encode(prm_format, problem)
    if verify.reference_of(problem) is None:
      reasons.append("without an answer")
    elif len(prompt) > settings.prompt_tokens:
      reasons.append(f"longer than prompt_tokens={settings.prompt_tokens}")
    elif len(prm_prompt) > settings.prm_prompt_tokens:
      reasons.append(
        f"longer than prm_prompt_tokens={settings.prm_prompt_tokens}"
      )
    else:
      units.append(Unit(name, index, problem, None, prompt, prm_prompt))
  return units, reasons


def check_prm_vocabulary(
  settings: EvaluationSettings, tokenizer: HuggingFaceTokenizer
) -> None:
  """Refuses a PRM that reads other texts in the policy's ids."""
  if settings.prm is None:
    return
  size = huggingface.read_config(settings.prm).model.vocab_size
  fits = size == tokenizer.vocab_size
  files = ("tokenizer.json", "tokenizer_config.json")
  if any((pathlib.Path(settings.prm) / name).exists() for name in files):
    # Embeddings may be padded to other sizes around the same vocabulary.
    other = HuggingFaceTokenizer(
      settings.prm, vocab_size=size, eos_token=settings.eos_token
    )
    fits = _texts(other) == _texts(tokenizer)
  if not fits:
    raise TokenizerError(
      f"config.prm={settings.prm} has another vocabulary than the policy: it "
      "cannot read the policy's responses."
    )


def _texts(tokenizer: HuggingFaceTokenizer) -> list[str]:
  """Texts of the ids, without those of no text at the end."""
  pieces = list(tokenizer.pieces)
  while pieces and not pieces[-1]:
    pieces.pop()
  return pieces
