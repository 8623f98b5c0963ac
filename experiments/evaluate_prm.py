"""Evaluates a process reward model on files of labelled solutions.

  python experiments/evaluate_prm.py --workdir=DIR --config.prm=FOLDER \\
    --config=experiments/configs/evaluate_prm.py --config.data="({...},)"

`configs/evaluate_prm.py` shows a whole command. For each data set the report
has:

* ProcessBench (Zheng et al. 2024, https://arxiv.org/abs/2412.06559) on every
  solution whose first error is known: the accuracy of its index on erroneous
  solutions, the accuracy of predicting no error on correct ones, and F1, their
  harmonic mean; also the mean F1 over all sets in ProcessBench's format.
* Single steps: accuracy, balanced accuracy, AUC, calibration error of p(good),
  and how many steps are good by the p(good) that the PRM gives them.
* Whole solutions of known outcome: the AUC of each score of a solution, overall
  and within each problem (as RL's baseline compares them), and the correlation
  of the score with the length.
* Best-of-n, for problems with several solutions of known outcome, with two
  baselines: the mean accuracy and the majority.

With format="responses" a data set is the responses.jsonl of evaluate.py: does
the PRM rank what a policy writes? Its steps are labelled by their equations.

Intervals are 95 % bootstrap intervals over solutions (ProcessBench) or
problems. Step rewards are appended to DIR/scores.jsonl as they are computed;
the same command continues behind the last one. DIR/report.{json,md,png} is
computed only from that file, so another threshold or seed needs no new scores.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import cli
import jax
import numpy as np

from pure_jax.host.data import file_dataset as data_files
from pure_jax.host.data.records import LabelledSolution
from pure_jax.host.evaluation.record_file import RecordFile
from pure_jax.host.evaluation.report import render_table, write_report
from pure_jax.host.logs import console
from pure_jax.host.logs.console import Progress
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS
from pure_jax.host.text.tokenization import separator_table
from pure_jax.parallel import sharding
from pure_jax.runs import locations
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.evaluation import (
  labelled_solutions,
  prm_data,
  prm_tables,
)
from pure_jax.runs.evaluation.loaded_prm import (
  LoadedPRM,
  fingerprints,
  open_prm,
)
from pure_jax.runs.evaluation.score_file import (
  ScoredSolution,
  is_scored,
  open_scores,
  unscored,
)
from pure_jax.runs.memory.of_evaluation import check_prm_evaluation
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.evaluation import DataSettings, EvaluatePRMSettings
from pure_jax.runs.tasks import tiny_files
from pure_jax.training import supervised

# Fields that change the report and no score.
MAY_DIFFER = (
  *("progress", "threshold", "threshold_data", locations.COMMITS),
  *("bins", "bootstrap_seed", "resamples"),
)


def score_data(
  settings: EvaluatePRMSettings,
  data: DataSettings,
  solutions: Sequence[LabelledSolution],
  prm: LoadedPRM,
  layout: sharding.Layout,
  scores: RecordFile[ScoredSolution],
) -> None:
  """Scores the solutions of a data set that the file lacks.

  A batch has the same rows whether or not some of them are scored already, so a
  resumed run computes the same numbers.
  """
  limits = labelled_solutions.SolutionLimits(
    settings.prompt_tokens, settings.response_tokens, settings.score.max_steps
  )
  encoded = labelled_solutions.encode_solutions(
    prm.tokenizer,
    PROMPT_FORMATS[settings.prompt_format],
    solutions,
    limits,
    settings.score.separator,
  )
  records = [
    unscored(data.name, row, solution) for row, solution in enumerate(solutions)
  ]
  missing = {r.row for r in records if not is_scored(scores, r)}
  scores.append(
    [
      dataclasses.replace(records[row], left_out=reason)
      for row, reason in encoded.left_out.items()
      if row in missing
    ]
  )
  score = supervised.make_prm_evaluation(
    prm.model,
    settings.score,
    jax.device_put(separator_table(prm.tokenizer), sharding.replicated(layout)),
    layout,
  )
  count = -(-len(encoded.index) // settings.batch_size)
  with Progress(data.name, count, enabled=settings.progress) as bar:
    for indices, batch in labelled_solutions.batches_by_length(
      encoded,
      limits,
      settings.batch_size,
      settings.length_multiple,
      prm.tokenizer.pad_id,
    ):
      rows = encoded.index[indices].tolist()
      if missing.intersection(rows):
        batch = jax.device_put(batch, sharding.batch_sharding(layout))
        rewards = np.asarray(score(prm.params, batch))
        scores.append(
          [
            with_rewards(records[row], row_rewards)
            for row, row_rewards in zip(rows, rewards, strict=False)
            if row in missing
          ]
        )
      bar.advance()


def with_rewards(
  record: ScoredSolution, step_rewards: np.ndarray
) -> ScoredSolution:
  """Adds step rewards to the record of a solution."""
  step_rewards = step_rewards[: len(record.labels)]
  if not np.isfinite(step_rewards).all():
    raise FloatingPointError(
      f"The PRM's scores of row {record.row} of {record.data} ({record.id}) "
      "are not finite. Check its weights, or set compute_dtype to 'float32'."
    )
  return dataclasses.replace(record, step_rewards=tuple(step_rewards.tolist()))


def evaluate(settings: EvaluatePRMSettings, workdir: str) -> str:
  """Evaluates a PRM in a folder, or continues there; returns the report."""
  settings = settings.for_platform(jax.default_backend())
  layout = settings.mesh.layout()
  check_prm_evaluation(settings, layout)
  config: dict[str, Any] = dataclasses.asdict(settings)
  name = settings.prm or settings.run or "of random weights"
  if pathlib.Path(name).is_dir():
    name = pathlib.Path(name).name
  settings, commits = locations.locate(
    locations.locate_prm_evaluation, settings, workdir
  )
  if commits:
    config[locations.COMMITS] = commits
  files = {data.name: prm_data.fingerprints(data) for data in settings.data}
  if settings.random_model is None:
    config["contents"] = fingerprints(settings) | {"data": files}
  with workdirs.open_workdir(workdir, config, may_differ=MAY_DIFFER) as folder:
    if settings.random_model is not None:
      settings = with_tiny_prm(settings, folder / "tiny")
    return evaluate_in(folder, settings, layout, name)


def with_tiny_prm(
  settings: EvaluatePRMSettings, folder: pathlib.Path
) -> EvaluatePRMSettings:
  """Writes a tiny random PRM and data, and returns settings that use them."""
  tied = settings.random_model == "tied"
  prm = tiny_files.write_prm(folder / "prm", tied=tied)
  data = settings.data or tuple(
    DataSettings(name, str(path), name)
    for name, path in tiny_files.write_solutions(folder).items()
  )
  try:
    return dataclasses.replace(
      settings, random_model=None, prm=str(prm), data=data
    )
  except ValueError as error:
    raise ConfigError(str(error)) from error


def evaluate_in(
  folder: pathlib.Path,
  settings: EvaluatePRMSettings,
  layout: sharding.Layout,
  name: str,
) -> str:
  """Evaluates in a folder that this process has locked; returns the report.

  `name` is that of the PRM in the title.
  """
  prm = open_prm(settings, layout)
  solutions, counts = {}, {}
  for data in settings.data:
    solutions[data.name], counts[data.name] = prm_data.read_data(
      data, folder / "data", skip_malformed=settings.skip_malformed
    )
  sizes = {name: len(rows) for name, rows in solutions.items()}
  with open_scores(folder, sizes) as scores:
    for data in settings.data:
      score_data(settings, data, solutions[data.name], prm, layout, scores)
    scored = {
      name: prm_tables.stack_solutions(
        [record for record in scores.records.values() if record.data == name],
        [sum(map(len, row.steps)) for row in rows],
      )
      for name, rows in solutions.items()
    }
  formats = {data.name: data.format for data in settings.data}
  threshold, tables = prm_tables.make_tables(settings, formats, scored)
  tables |= data_files.not_read_tables(counts)
  title = f"PRM {name}: a step is good above {threshold:.6g}"
  if settings.threshold == "best_on":
    title += f", which gives the best F1 on {settings.threshold_data}"
  write_report(folder, title, tables)
  sections = [
    f"{name}\n{text}"
    for name, table in tables.items()
    if (text := render_table(table))
  ]
  return "\n\n".join([title, *sections])


def main(argv: list[str]) -> None:
  """Evaluates the PRM that the config names."""
  del argv
  settings, workdir = cli.config_and_workdir(EvaluatePRMSettings)
  console.show(evaluate(settings, workdir))
  console.show(f"\neverything is in {workdir}")


if __name__ == "__main__":
  cli.run(main)
