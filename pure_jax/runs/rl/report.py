"""What an RL run logs: metrics, samples, summary."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from pure_jax import credit
from pure_jax.host.atomic_files import write_json_atomic
from pure_jax.host.data.records import Problem
from pure_jax.host.distributed import global_batch
from pure_jax.host.evaluation import rollout_metrics
from pure_jax.host.logs.console import Progress
from pure_jax.host.logs.metrics import MetricsError, read_metrics
from pure_jax.host.text.tokenization import SEPARATOR
from pure_jax.runs.rl.responses import (
  GradedResponses,
  response_metrics,
  step_texts,
)
from pure_jax.runs.run import Run
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.training.score import ScoredBatch
from pure_jax.training.train import Metrics

SAMPLES_SHOWN = 2
# Metrics of an update that mean nothing without step rewards.
STEP_REWARD_METRICS = (
  *("return_mean", "min_step_score", "step_score_mean", "process_outcome"),
  *("process_outcome_agreement", "nonfinite_step_rewards"),
)
# Metrics shown in the progress bar.
BAR_METRICS = ("accuracy", "process_outcome", "kl_reference", "response_tokens")


class Clock:
  """Measures the seconds of each stage of an iteration."""

  def __init__(self):
    """Starts measuring."""
    self.seconds: dict[str, float] = {}
    self._last = time.perf_counter()

  def wait(self, stage: str, result: Any) -> None:
    """Waits for the arrays of a stage and notes how long they took."""
    jax.block_until_ready(result)
    now = time.perf_counter()
    self.seconds[stage], self._last = now - self._last, now


@dataclasses.dataclass(frozen=True)
class Iteration:
  """The data of an iteration whose update has been dispatched.

  Attributes:
    step: its number, from 1.
    problems: B problems, each repeated for its samples.
    graded: texts and verdicts of the responses.
    batch: the batch of the update.
    drift: [] largest difference between log-probs of sampler and trainer; None
      if the policy was not run.
    metrics: metrics of the update.
    clock: how long its stages took.
  """

  step: int
  problems: list[Problem]
  graded: GradedResponses
  batch: ScoredBatch
  drift: jax.Array | None
  metrics: Metrics
  clock: Clock


def rewind(run: Run, done: int) -> None:
  """Removes the logs of iterations after a checkpoint.

  Args:
    run: the open run.
    done: iterations of the checkpoint that the run resumes from.
  """
  run.folder.metrics.rewind("rl", done + 1)
  run.folder.metrics.rewind("rl_eval", done + 1 if done else 0)
  run.folder.samples.rewind("rl", done + 1)
  run.folder.generations.rewind("rl_eval", done + 1 if done else 0)


def write_iteration(run: Run, bar: Progress, iteration: Iteration) -> None:
  """Writes a row of metrics, and samples every few iterations.

  Args:
    run: the open run.
    bar: the progress bar.
    iteration: the data of the iteration.
  """
  row = _metrics_row(run, iteration)
  run.folder.metrics.write("rl", iteration.step, row)
  shown = {name: row.get(name) for name in BAR_METRICS}
  bar.show({name: x for name, x in shown.items() if x is not None})
  if iteration.step % run.spec.settings.rl.samples_every == 0:
    _write_samples(run, bar, iteration)


def _metrics_row(run: Run, iteration: Iteration) -> rollout_metrics.Metrics:
  """The metrics of an iteration."""
  batch = iteration.batch
  row = response_metrics(run, iteration.graded, batch.rollout, batch.scores)
  of_update: rollout_metrics.Metrics = {
    # A list has an entry for each of several updates.
    name: np.asarray(value, float).tolist()
    for name, value in jax.device_get(iteration.metrics).items()
  }
  if not global_batch.read_everywhere(batch.has_answer).any():
    for name in ("correct_mean", "process_outcome_agreement"):
      of_update[name] = None  # A mean over nothing.
  if run.spec.prm_model is None:
    for name in STEP_REWARD_METRICS:
      del of_update[name]
  row |= {name: x for name, x in of_update.items() if name not in row}
  row["pass_at_n"] = rollout_metrics.pass_at_n(
    iteration.graded.verdicts.correct,
    iteration.graded.gradable,
    run.spec.settings.rl.samples_per_prompt,
  )
  if iteration.drift is not None:
    row["logp_drift_max"] = float(iteration.drift)
  tokens = row["response_tokens"] * len(iteration.problems)
  seconds = dict(iteration.clock.seconds)
  row["reshard_seconds"] = seconds.pop("reshard")
  for stage, taken in seconds.items():
    row[f"{stage}_tokens_per_second"] = tokens / taken
  return row


def _write_samples(run: Run, bar: Progress, iteration: Iteration) -> None:
  """Writes a few responses with the score and the credit of each step."""
  batch = iteration.batch
  rollout, steps, rewards = global_batch.read_everywhere(
    (batch.rollout, batch.scores.steps, batch.scores.step_rewards)
  )
  config, returns = run.spec.step.credit, None
  if run.spec.prm_model is not None and config.form != "min_dense":
    returns = np.asarray(credit.step_returns(rewards, steps.mask, config))
  rows = np.linspace(0, len(iteration.problems) - 1, SAMPLES_SHOWN).astype(int)
  samples = []
  for row, texts in zip(rows, step_texts(run, rollout, rows), strict=True):
    count = int(steps.mask[row].sum())
    problem = iteration.problems[row]
    # The texts beyond the last step were merged into it.
    step_list = [*texts[: count - 1], SEPARATOR.join(texts[count - 1 :])]
    sample = {"problem": problem.problem, "steps": step_list}
    if run.spec.prm_model is not None:
      sample["step_rewards"] = rewards[row, :count].round(4)
    if returns is not None:
      sample["step_returns"] = returns[row, :count].round(4)
    sample["correct"] = bool(iteration.graded.verdicts.correct[row])
    sample["kind"] = run.task.kind(problem, texts)
    samples.append(sample)
  run.folder.samples.write("rl", iteration.step, samples)
  for sample in samples:
    verdict = "right" if sample["correct"] else "wrong"
    lines = [f"iteration {iteration.step}: {sample['problem']} ({verdict})"]
    lines += [f"  {line}" for line in _step_lines(sample)]
    bar.say("\n".join(lines))


def _step_lines(sample: dict[str, Any]) -> list[str]:
  """A line for each step of a sample, with its score and credit, if any."""
  texts = [text.replace("\n", "\\n") for text in sample["steps"]]
  columns = [
    [f"{name} {value:+.2f}" for value in sample[field]]
    for name, field in (("score", "step_rewards"), ("credit", "step_returns"))
    if field in sample
  ]
  if not columns:
    return texts
  return [
    f"{' '.join(values)}  {text}"
    for *values, text in zip(*columns, texts, strict=True)
  ]


def read_evaluations(run: Run) -> list[dict[str, Any]]:
  """Reads the rows of the evaluations of RL.

  Args:
    run: the open run.

  Raises:
    MetricsError: if one lacks a metric that `summarize` needs.
  """
  required = dict.fromkeys(("accuracy", run.spec.settings.best_metric))
  return read_metrics(run.folder.path, "rl_eval", tuple(required))


def check_best_metric(run: Run, metrics: rollout_metrics.Metrics) -> None:
  """Checks that an evaluation has the metric that ranks checkpoints.

  Args:
    run: the open run.
    metrics: metrics of an evaluation.

  Raises:
    ConfigError: if it has no such metric.
  """
  name = run.spec.settings.best_metric
  if name not in metrics:
    raise ConfigError(
      f"rl.best_metric={name!r} is no metric of this run's evaluations, which "
      f"have {', '.join(metrics)}."
    )


def summarize(run: Run) -> dict[str, Any]:
  """Writes and returns summary.json: first, best and last evaluation, config.

  The best evaluation is that of the best checkpoint, which
  `export.py --which=best` exports. Step 0 has no checkpoint, so it cannot be
  the best; of equal checkpoints the later one is taken.

  Args:
    run: the open run.

  Raises:
    MetricsError: if the evaluations of the run are missing, or lack a metric.
  """
  folder, settings = run.folder.path, run.spec.settings
  rows = read_evaluations(run)
  if not rows:
    raise MetricsError(
      f"{folder} has no evaluation of RL in its metrics.jsonl, which "
      "was removed or emptied: put it back, or remove the folder rl there to "
      "train anew."
    )
  rl, metric = settings.rl, settings.best_metric
  # Without a checkpoint only if the later rows were removed.
  ranked = [row for row in rows if row["step"] > 0] or rows
  summary = {
    "credit": rl.credit.form,
    "reward_mode": rl.reward_mode,
    "seed": settings.seed,
    "iterations": rl.iterations,
    "first": rows[0],
    "best": max(
      ranked,
      key=lambda row: (row[metric] is not None, row[metric], row["step"]),
    ),
    "last": rows[-1],
  }
  write_json_atomic(folder / "summary.json", summary)
  return summary
