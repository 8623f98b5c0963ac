"""Evaluates a policy: generates responses, scores and grades them, reports.

  python experiments/evaluate.py --config=experiments/configs/evaluate.py \\
    --workdir=DIR --config.policy=FOLDER [--config.prm=FOLDER] \\
    --config.benchmarks.math500.file=FILE ...

In place of a folder or a file, an id of the Hugging Face hub does, see
pure_jax/runs/locations.py.

DIR gets responses.jsonl, every response with its grade and step rewards, and
report.json, report.md, report.png, computed only from that file. The tables go
to stdout, progress to stderr. `host.evaluation.tables` defines the metrics.

If an evaluation was killed, the same command continues it after the last
written response, and the report has the same numbers: a response depends on
the seed, its benchmark, its row and its sample number, and batches are formed
before finished responses are skipped. Only a comparison that is stopped by its
time limit may end differently; such comparisons are counted. `export.py` makes
a folder of the policy of a training run.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import collections
import concurrent.futures
import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import cli
import jax
import numpy as np

from pure_jax.host import huggingface
from pure_jax.host.data import file_dataset
from pure_jax.host.distributed import preemption
from pure_jax.host.evaluation.intervals import Bootstrap
from pure_jax.host.evaluation.record_file import RecordFile, RecordFileError
from pure_jax.host.evaluation.report import render_table, write_report
from pure_jax.host.evaluation.response_file import Response, open_responses
from pure_jax.host.evaluation.tables import evaluation_tables
from pure_jax.host.grading import verify
from pure_jax.host.logs import console
from pure_jax.host.logs.console import Progress
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.parallel import sharding
from pure_jax.runs import locations
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.evaluation.generation import ResponseGenerator, grade_batch
from pure_jax.runs.evaluation.requests import (
  Request,
  Requests,
  fingerprints,
  make_requests,
  with_columns_for,
  with_tiny_models,
)
from pure_jax.runs.memory.of_evaluation import check_evaluation
from pure_jax.runs.settings.evaluation import EvaluationSettings

RESPONSES_FILE = "responses.jsonl"
# Fields that a resumed run may change. The contents of the paths are compared.
MAY_DIFFER = (
  *("progress", "grader.workers", "policy", "prm", "k", locations.COMMITS),
  *("bootstrap_seed", "bootstrap_resamples"),
)


def make_batches(
  settings: EvaluationSettings, requests: Sequence[Request]
) -> list[tuple[list[Request], int]]:
  """Divides requests into batches: (requests, rows) of each.

  A batch has only greedy requests or only samples.
  """
  greedy = [request for request in requests if request.sample is None]
  samples = [request for request in requests if request.sample is not None]
  return [
    (kind[first : first + rows], rows)
    for kind in (greedy, samples)
    if kind
    for rows in [settings.rows_of_batches(len(kind))]
    for first in range(0, len(kind), rows)
  ]


class EvaluationProgress:
  """Shows responses, tokens and grades while they come in."""

  def __init__(self, bar: Progress, file: RecordFile[Response]):
    """Starts the clock."""
    self._bar, self._file = bar, file
    self._begin, self._tokens, self._batch_tokens = time.monotonic(), 0, 0
    self._batch_ended = 0

  def on_progress(self, lengths: np.ndarray, ended: np.ndarray) -> None:
    """Shows the state of the batch that is being generated."""
    self._batch_tokens, before = int(lengths.sum()), self._batch_ended
    self._batch_ended = int(ended.sum())
    self._show()
    self._bar.advance(self._batch_ended - before)

  def end_batch(self) -> None:
    """Counts the tokens of a batch that is complete."""
    self._tokens += self._batch_tokens
    self._batch_tokens = self._batch_ended = 0

  def _show(self) -> None:
    """Shows numbers next to the bar."""
    tokens = self._tokens + self._batch_tokens
    shown = {"tokens": tokens}
    shown["tokens/s"] = tokens / (time.monotonic() - self._begin)
    records = self._file.records.values()
    if records:
      shown["correct"] = np.mean([response.correct for response in records])
      shown["truncated"] = np.mean([r.truncated for r in records])
    self._bar.show(shown)


def write_responses(
  settings: EvaluationSettings,
  tokenizer: HuggingFaceTokenizer,
  layout: sharding.Layout,
  requests: Sequence[Request],
  file: RecordFile[Response],
) -> None:
  """Generates and grades the responses that the file lacks.

  A batch is scored and graded while the next one is generated.
  """
  batches = make_batches(settings, requests)
  # A batch is generated again as a whole, so that its numbers stay the same.
  missing = [
    (batch, rows)
    for batch, rows in batches
    if any(request.key not in file.records for request in batch)
  ]
  if not missing:
    return
  generator = ResponseGenerator(
    with_columns_for(settings, requests), tokenizer, layout
  )
  graded: collections.deque[concurrent.futures.Future] = collections.deque()

  def write(most_left: int) -> None:
    """Writes the graded batches, in order; waits until so many are left."""
    preemption.raise_received()
    while graded and (len(graded) > most_left or graded[0].done()):
      responses = graded.popleft().result()
      file.append([r for r in responses if r.key not in file.records])

  done = len(requests) - sum(len(batch) for batch, _ in missing)
  with (
    verify.open_pool(settings.grader.workers, settings.grader.seconds) as pool,
    Progress("evaluate", len(requests), done, enabled=settings.progress) as bar,
    concurrent.futures.ThreadPoolExecutor(1) as grader,
  ):
    progress = EvaluationProgress(bar, file)

    def on_progress(lengths: np.ndarray, ended: np.ndarray) -> None:
      """Shows the batch, and writes the one before as soon as it can."""
      progress.on_progress(lengths, ended)
      write(most_left=1)

    for requests_of_batch, rows in missing:
      batch = generator.start(requests_of_batch, rows, on_progress)
      progress.end_batch()
      graded.append(
        grader.submit(grade_batch, settings, tokenizer, pool, batch)
      )
      del batch  # Its arrays are in memory until it is graded.
      write(most_left=1)
    write(most_left=0)


def report(
  settings: EvaluationSettings,
  requests: Requests,
  file: RecordFile[Response],
  workdir: pathlib.Path,
  policy: str,
) -> None:
  """Writes the report of a complete file and prints its tables.

  `policy` is its name in the title.
  """
  unknown = file.records.keys() - {r.key for r in requests.requests}
  if unknown:
    raise RecordFileError(
      f"{workdir / RESPONSES_FILE} holds {min(unknown, key=str)}, which this "
      "evaluation does not request. Remove that line."
    )
  benchmarks = settings.named_benchmarks()
  responses: dict[str, list[Response]] = {name: [] for name in benchmarks}
  for response in file.records.values():
    responses[response.benchmark].append(response)
  tables = evaluation_tables(
    responses,
    k=settings.subset_sizes,
    averaged=[name for name, b in benchmarks.items() if b.averaged],
    left_out=requests.left_out,
    bootstrap=Bootstrap(settings.bootstrap_seed, settings.bootstrap_resamples),
  )
  tables |= file_dataset.not_read_tables(requests.counts)
  write_report(workdir, f"Evaluation of {policy}", tables)
  for name, table in tables.items():
    console.show(f"{name}\n\n{render_table(table)}\n")


def evaluate(settings: EvaluationSettings, folder: str) -> None:
  """Evaluates a policy in a folder, or continues there."""
  settings = settings.for_platform(jax.default_backend())
  layout = settings.mesh.layout()
  config: dict[str, Any] = dataclasses.asdict(settings)
  name = settings.policy or "policy"
  if pathlib.Path(name).is_dir():
    name = pathlib.Path(name).name
  if not settings.random_model:
    settings, commits = locations.locate(
      locations.locate_evaluation, settings, folder
    )
    config["contents"] = fingerprints(settings)
    if commits:
      config[locations.COMMITS] = commits
  check_evaluation(settings, layout)
  paths = [f"benchmarks.{name}.file" for name in settings.benchmarks]
  # After the checks above, so that a mistake leaves no folder.
  with workdirs.open_workdir(
    folder, config, may_differ=(*MAY_DIFFER, *paths)
  ) as workdir:
    if settings.random_model:
      settings = with_tiny_models(settings, workdir / "tiny")
    policy = huggingface.read_config(settings.policy)
    tokens = settings.prompt_tokens + settings.sampler.max_new_tokens
    huggingface.warn_beyond_positions(settings.policy, policy, tokens)
    tokenizer = HuggingFaceTokenizer(
      settings.policy,
      vocab_size=policy.model.vocab_size,
      eos_token=settings.eos_token,
    )
    requests = make_requests(settings, tokenizer, workdir)
    with open_responses(workdir / RESPONSES_FILE) as file:
      write_responses(settings, tokenizer, layout, requests.requests, file)
      report(settings, requests, file, workdir, name)


def main(argv: list[str]) -> None:
  """Evaluates the policy that the flags name."""
  del argv
  evaluate(*cli.config_and_workdir(EvaluationSettings))


if __name__ == "__main__":
  cli.run(main)
