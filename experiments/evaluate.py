"""Evaluates a policy: responses, verdicts, PRM scores, and a report of them.

  python experiments/evaluate.py --config=experiments/configs/evaluate.py \\
    --workdir=DIR --config.policy=FOLDER [--config.prm=FOLDER] \\
    --config.benchmarks.math500.file=FILE ...

DIR gets responses.jsonl, every response with its verdict and its steps' scores,
and report.json, report.md, report.png, computed from that file alone. The table
goes to stdout, progress to stderr. Metrics are those of
`host.evaluation.tables`.

Killed and started again, it continues after the last response written and
reports the same numbers: what a response is follows from the seed, its
benchmark, its row and its number, and the same batches are made. Only a grader
stopped by its time limit may decide otherwise another time; it is counted. The
policy of a training run becomes a folder by `export.py`.
"""

import dataclasses
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import cli
import numpy as np

from pure_jax.host import huggingface
from pure_jax.host.data import files
from pure_jax.host.evaluation.report import render_table, write_report
from pure_jax.host.evaluation.responses import (
  Response,
  ResponsesError,
  ResponsesFile,
)
from pure_jax.host.evaluation.tables import evaluation_tables
from pure_jax.host.grading import verify
from pure_jax.host.logs.progress import Progress
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.parallel import sharding
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.evaluation import data
from pure_jax.runs.evaluation.data import Questions, Unit
from pure_jax.runs.evaluation.response_writer import (
  ResponseWriter,
  Written,
  read,
)
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.evaluation import EvaluationSettings

RESPONSES_FILE = "responses.jsonl"
# What a resumed run may change. Paths may: their contents are compared.
MAY_DIFFER = (
  *("progress", "grader.workers", "policy", "prm", "k"),
  *("bootstrap_seed", "bootstrap_resamples"),
)


def missing_batches(
  settings: EvaluationSettings, questions: Questions, file: ResponsesFile
) -> tuple[list[tuple[list[Unit], int]], int]:
  """(batches not whole in the file, each with its rows; number of batches).

  Batches are cut before anything is left out, so that a resumed run computes
  the very batches of one that was not stopped.
  """
  kinds = [[], []]
  for unit in questions.units:
    kinds[unit.sample is not None].append(unit)
  cut = [
    (units[first : first + rows], rows)
    for units in filter(None, kinds)
    for rows in [settings.rows_of_batches(len(units))]
    for first in range(0, len(units), rows)
  ]
  missing = [
    (batch, rows)
    for batch, rows in cut
    if any(unit.key not in file.responses for unit in batch)
  ]
  return missing, len(cut)


def write_responses(
  settings: EvaluationSettings,
  tokenizer: HuggingFaceTokenizer,
  layout: sharding.Layout,
  questions: Questions,
  file: ResponsesFile,
) -> None:
  """Fills the file with what is missing.

  In one loop a batch is graded while the next is generated; where responses
  take turns the host takes part, so it is graded in between.
  """
  missing, total = missing_batches(settings, questions, file)
  if not missing:
    return
  writer = ResponseWriter(settings, tokenizer, layout)

  def one_behind() -> Iterator[Written]:
    """Each batch; in one loop, when the next is on its way."""
    last = None
    for units, rows in missing:
      started = writer.start(units, rows)
      if settings.engine.rows is not None:
        yield started  # The host took part, so it is complete.
        continue
      if last is not None:
        yield last
      last = started
    if last is not None:
      yield last

  with (
    verify.open_pool(settings.grader.workers, settings.grader.seconds) as pool,
    Progress(
      "evaluate", total, total - len(missing), enabled=settings.progress
    ) as bar,
  ):
    begun, tokens = time.monotonic(), 0
    for written in one_behind():
      found = read(settings, tokenizer, pool, written)
      file.append([r for r in found if r.key not in file.responses])
      tokens += sum(response.tokens for response in found)
      bar.advance()
      bar.show(
        {
          "correct": np.mean([r.correct for r in file.responses.values()]),
          "truncated": np.mean([r.truncated for r in file.responses.values()]),
          "tokens/s": tokens / (time.monotonic() - begun),
        }
      )


def report(
  settings: EvaluationSettings,
  questions: Questions,
  file: ResponsesFile,
  workdir: pathlib.Path,
) -> None:
  """Writes the report of a file that is complete, and shows its tables."""
  unknown = file.responses.keys() - {unit.key for unit in questions.units}
  if unknown:
    raise ResponsesError(
      f"{workdir / RESPONSES_FILE} holds {min(unknown, key=str)}, which this "
      "evaluation does not ask. Remove that line."
    )
  named = settings.named_benchmarks()
  by_benchmark: dict[str, list[Response]] = {name: [] for name in named}
  for response in file.responses.values():
    by_benchmark[response.benchmark].append(response)
  tables = evaluation_tables(
    by_benchmark,
    k=settings.k,
    averaged=[name for name, found in named.items() if found.averaged],
    left_out=questions.left_out,
    seed=settings.bootstrap_seed,
    resamples=settings.bootstrap_resamples,
  )
  tables |= files.not_read_tables(questions.counts)
  title = f"Evaluation of {pathlib.Path(settings.policy).name}"
  write_report(workdir, title, tables)
  for name, table in tables.items():
    print(f"{name}\n\n{render_table(table)}\n")


def evaluate(settings: EvaluationSettings, folder: str) -> None:
  """Opens a folder, asks, writes what is missing, reports.

  Args:
    settings: the resolved config.
    folder: the workdir.

  Raises:
    ConfigError: for a policy, PRM or file that is none, too few devices, or a
      benchmark without a problem to ask.
    FloatingPointError: if the policy or the PRM gives what is no number.
    WorkdirError: if the folder cannot be used, holds another evaluation, or
      another process is running in it.
    HuggingFaceError, TokenizerError: for a model that cannot be used.
    DataError: for a file of problems that cannot be read.
    ResponsesError: for a damaged file of responses.
  """
  try:
    layout = settings.mesh.layout()
  except ValueError as error:
    raise ConfigError(str(error)) from error
  config: dict[str, Any] = dataclasses.asdict(settings)
  if not settings.random_model:
    config["contents"] = data.contents(settings)
  paths = [f"benchmarks.{name}.file" for name in settings.benchmarks]
  # What was refused so far leaves no folder behind.
  workdir = workdirs.prepare_workdir(
    folder, config, may_differ=(*MAY_DIFFER, *paths)
  )
  with workdirs.locked(workdir):
    _evaluate_in(workdir, settings, layout)


def _evaluate_in(
  workdir: pathlib.Path, settings: EvaluationSettings, layout: sharding.Layout
) -> None:
  """As `evaluate`, in a folder that is this process's alone."""
  if settings.random_model:
    settings = data.tiny(settings, workdir / "tiny")
  found = huggingface.read_config(settings.policy)
  huggingface.warn_beyond_positions(
    settings.policy,
    found,
    settings.prompt_tokens + settings.sampler.max_new_tokens,
  )
  tokenizer = HuggingFaceTokenizer(
    settings.policy,
    vocab_size=found.model.vocab_size,
    eos_token=settings.eos_token,
  )
  data.check_prm_vocabulary(settings, tokenizer)
  questions = data.ask(settings, tokenizer, workdir)
  with ResponsesFile(workdir / RESPONSES_FILE) as file:
    write_responses(settings, tokenizer, layout, questions, file)
    report(settings, questions, file, workdir)


def main(argv: list[str]) -> None:
  """Evaluates what the flags name."""
  del argv
  evaluate(*cli.config_and_workdir(EvaluationSettings))


if __name__ == "__main__":
  cli.run(main)
