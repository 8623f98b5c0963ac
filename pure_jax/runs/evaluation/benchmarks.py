"""Benchmarks: files of problems that policies are evaluated on.

`evaluate.py` and the validations of RL read them by the same rules.
"""

import dataclasses
import pathlib

from pure_jax.host.data import file_dataset as data_files
from pure_jax.host.data.file_dataset import Counts
from pure_jax.host.data.formats.named import find_format
from pure_jax.host.data.records import Problem
from pure_jax.host.logs import console
from pure_jax.runs.batches import PromptEncoder
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.files import BenchmarkSettings


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """The problems of a benchmark that can be used.

  Attributes:
    name: its name in the config.
    problems: problems with an answer, whose prompts fit.
    rows: their rows in the file.
    averaged: whether the average over benchmarks includes it.
    left_out: (problems left out, problems of the file).
    counts: how many rows of the file were read or not.
  """

  name: str
  problems: list[Problem]
  rows: list[int]
  averaged: bool
  left_out: tuple[int, int]
  counts: Counts


def read_benchmark(
  name: str,
  settings: BenchmarkSettings,
  prompt_encoder: PromptEncoder,
  prm_prompt_encoder: PromptEncoder | None,
  folder: pathlib.Path,
  *,
  skip_malformed: bool,
) -> Benchmark:
  """Reads a benchmark; tells on stderr which problems are left out, and why.

  Args:
    name: its name in the config.
    settings: file, format and number of problems.
    prompt_encoder: makes the policy's prompts.
    prm_prompt_encoder: makes the PRM's prompts; None without a PRM.
    folder: gets the prepared data.
    skip_malformed: True counts malformed rows, False raises for one.

  Raises:
    ConfigError: if two problems have one id, or none can be used.
  """
  rows = data_files.read_file(
    find_format(settings.format, settings.fields),
    settings.file,
    folder,
    skip_malformed=skip_malformed,
  )
  problems = list(rows[: settings.problems])
  if len({problem.id for problem in problems}) < len(problems):
    raise ConfigError(f"{settings.file} has two problems of one id.")
  limits = {"prompt_tokens": prompt_encoder}
  if prm_prompt_encoder is not None:
    limits["prm_prompt_tokens"] = prm_prompt_encoder
  reasons = [_why_left_out(problem, limits) for problem in problems]
  used = [row for row, reason in enumerate(reasons) if reason is None]
  why = [reason for reason in reasons if reason is not None]
  if why:
    counted = [f"{why.count(r)} {r}" for r in sorted({*why})]
    message = (
      f"{name}: {len(why)} of {len(problems)} left out: {', '.join(counted)}."
    )
    if not used:
      raise ConfigError(message)
    console.tell(message)
  return Benchmark(
    name,
    [problems[row] for row in used],
    used,
    settings.averaged,
    (len(why), len(problems)),
    rows.counts,
  )


def _why_left_out(
  problem: Problem, limits: dict[str, PromptEncoder]
) -> str | None:
  """Why a problem cannot be used; None if it can."""
  if problem.known_answer is None:
    return "without an answer"
  for name, encoder in limits.items():
    if len(encoder.ids(problem)) > encoder.length:
      return f"longer than {name}={encoder.length}"
  return None
