"""How good a process reward model is, on files of labelled solutions.

  python experiments/evaluate_prm.py --workdir=DIR --config.prm=FOLDER \\
    --config=experiments/configs/evaluate_prm.py --config.data="({...},)"

`configs/evaluate_prm.py` shows a whole command. By data set:

* ProcessBench's protocol (Zheng et al. 2024, https://arxiv.org/abs/2412.06559)
  on every solution whose first error is known: the accuracy of its index on
  erroneous solutions, that of finding none on correct ones, and F1, their
  harmonic mean; the mean F1 over all sets in ProcessBench's format.
* Single steps: accuracy, balanced accuracy, AUC, calibration error of p(good).
* Best-of-n where problems have several solutions of known outcome, against the
  mean accuracy and the majority.

Intervals are 95 % bootstrap intervals over items (ProcessBench) or problems.
DIR/scores.jsonl keeps every score as it is made: started again, the evaluation
goes on behind the last one. DIR/report.{json,md,png} is made of that file
alone, so another threshold or seed costs no new scores.
"""

import dataclasses
import pathlib
from typing import Any

import cli
import jax
import numpy as np

from pure_jax.host.checkpoints import integrity
from pure_jax.host.data import files as data_files
from pure_jax.host.data.formats.named import find_format
from pure_jax.host.data.records import LabelledSolution
from pure_jax.host.evaluation.report import render_table, write_report
from pure_jax.host.logs.progress import Progress
from pure_jax.host.text.tokenization import PROMPT_FORMATS, separator_table
from pure_jax.parallel import sharding
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.evaluation import labelled_rows, prm_report
from pure_jax.runs.evaluation.score_file import ScoreFile, describe
from pure_jax.runs.load import Judge, contents, load_folder, load_run
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.prm_evaluation import (
  DataSettings,
  EvaluatePRMSettings,
)
from pure_jax.runs.tasks import tiny_files
from pure_jax.training import stages

# Fields that change the report and no score.
MAY_DIFFER = (
  *("progress", "threshold", "threshold_data"),
  *("bins", "bootstrap_seed", "resamples"),
)


# ===== Scores =====


def score_data(
  settings: EvaluatePRMSettings,
  data: DataSettings,
  rows: list[LabelledSolution],
  judge: Judge,
  layout: sharding.Layout,
  scores: ScoreFile,
) -> None:
  """Scores the rows of a data set that the file does not hold.

  A batch has the same rows whatever is done already, so that a run that was
  killed gives the numbers of one that was not.

  Raises:
    FloatingPointError: if a score is not finite; it is not kept.
  """
  limits = labelled_rows.Limits(
    settings.prompt_tokens, settings.response_tokens, settings.score.max_steps
  )
  encoded = labelled_rows.encode_rows(
    judge.tokenizer, PROMPT_FORMATS[settings.prompt_format], rows, limits
  )
  todo = {
    number
    for number, row in enumerate(rows)
    if not scores.holds(data.name, number, row)
  }
  scores.append(
    [
      describe(data.name, number, rows[number]) | {"left_out": reason}
      for number, reason in encoded.left_out.items()
      if number in todo
    ]
  )
  table = separator_table(judge.tokenizer)
  score = stages.make_prm_evaluation(
    judge.model,
    settings.score,
    jax.device_put(table, sharding.replicated(layout)),
    layout,
  )
  count = -(-len(encoded.index) // settings.batch_size)
  with Progress(data.name, count, enabled=settings.progress) as bar:
    for places, batch in labelled_rows.in_batches(
      encoded,
      limits,
      settings.batch_size,
      settings.length_multiple,
      judge.tokenizer.pad_id,
    ):
      numbers = encoded.index[places].tolist()
      if todo.intersection(numbers):
        batch = jax.device_put(batch, sharding.batch_sharding(layout))
        found = np.asarray(score(judge.params, batch))
        scores.append(
          [
            scored_row(data.name, number, rows[number], rewards)
            for number, rewards in zip(numbers, found, strict=False)
            if number in todo
          ]
        )
      bar.advance()


def scored_row(
  data: str, number: int, row: LabelledSolution, rewards: np.ndarray
) -> dict[str, Any]:
  """A row of the file of scores."""
  rewards = rewards[: len(row.steps)]
  if not np.isfinite(rewards).all():
    raise FloatingPointError(
      f"The PRM's scores of row {number} of {data} ({row.id}) are not finite. "
      "Check its weights, or set compute_dtype to 'float32'."
    )
  described = describe(data, number, row)
  return described | {"left_out": None, "step_rewards": rewards.tolist()}


# ===== Everything =====


def evaluate(settings: EvaluatePRMSettings, workdir: str) -> str:
  """Scores what is missing, and reports.

  Args:
    settings: the evaluation's.
    workdir: where scores and report go.

  Returns:
    The report as text.

  Raises:
    ConfigError: for a PRM or file that is none, or too few devices.
    WorkdirError: if the folder cannot be used, holds another evaluation or
      damaged scores, or another process is running in it.
    HuggingFaceError, TokenizerError: for a model that cannot be used.
    CheckpointError: for weights of a run that cannot be read.
    DataError: for a file of solutions that cannot be read.
    FloatingPointError: if a score is not finite; it is not kept.
  """
  try:
    layout = settings.mesh.layout()
  except ValueError as error:
    raise ConfigError(str(error)) from error
  for data in settings.data:
    if not pathlib.Path(data.file).is_file():
      raise ConfigError(f"data: there is no file {data.file} ({data.name}).")
  config: dict[str, Any] = dataclasses.asdict(settings)
  if settings.random_model is None:
    files = {d.name: integrity.fingerprint(d.file) for d in settings.data}
    config["contents"] = contents(settings) | {"data": files}
  folder = workdirs.prepare_workdir(workdir, config, may_differ=MAY_DIFFER)
  with workdirs.locked(folder):
    return _evaluate_in(folder, settings, layout)


def _evaluate_in(
  folder: pathlib.Path, settings: EvaluatePRMSettings, layout: sharding.Layout
) -> str:
  """As `evaluate`, in a folder that is this process's alone."""
  listed = settings.data
  if settings.random_model is not None:
    tied = settings.random_model == "tied"
    judge = load_folder(
      settings, tiny_files.write_prm(folder / "tiny" / "prm", tied=tied), layout
    )
    listed = listed or tuple(
      DataSettings(name, str(path), name)
      for name, path in tiny_files.write_solutions(folder / "tiny").items()
    )
  elif settings.run is not None:
    judge = load_run(settings, settings.run, layout)
  else:
    judge = load_folder(settings, settings.prm, layout)

  rows = {
    data.name: data_files.read_file(
      find_format(data.format, data.fields),
      data.file,
      folder / "data",
      skip_malformed=settings.skip_malformed,
    )
    for data in listed
  }
  sizes = {name: len(found) for name, found in rows.items()}
  with ScoreFile(folder, sizes) as scores:
    for data in listed:
      score_data(settings, data, list(rows[data.name]), judge, layout, scores)
    scored = {
      data.name: prm_report.collect(
        [row for row in scores.rows.values() if row["data"] == data.name]
      )
      for data in listed
    }
  formats = {data.name: data.format for data in listed}
  threshold, tables = prm_report.make_tables(settings, formats, scored)
  tables |= data_files.not_read_tables(
    {name: found.counts for name, found in rows.items()}
  )
  chosen = (
    ""
    if settings.threshold == "zero"
    else (f", which gives the best F1 on {settings.threshold_data}")
  )
  title = f"PRM {judge.name}: a step is good above {threshold:.6g}{chosen}"
  write_report(folder, title, tables)
  return "\n\n".join(
    [title, *(f"{n}\n{t}" for n, x in tables.items() if (t := render_table(x)))]
  )


def main(argv: list[str]) -> None:
  """Evaluates what the config names."""
  del argv
  settings, workdir = cli.config_and_workdir(EvaluatePRMSettings)
  print(evaluate(settings, workdir))
  print(f"\neverything is in {workdir}")


if __name__ == "__main__":
  cli.run(main)
