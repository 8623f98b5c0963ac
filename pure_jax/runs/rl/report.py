"""What an RL run logs: metrics, samples, summary."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pure_jax import credit
from pure_jax.host.atomic_files import write_json_atomic
from pure_jax.host.data.records import Problem
from pure_jax.host.distributed import global_batch
from pure_jax.host.evaluation import hacking_metrics, rollout_metrics
from pure_jax.host.evaluation.alarms import suspects
from pure_jax.host.evaluation.response_facts import ResponseFacts
from pure_jax.host.logs.console import Progress
from pure_jax.host.logs.metrics import MetricsError, read_metrics
from pure_jax.host.text.tokenization import SEPARATOR
from pure_jax.runs.rl import roll_backs
from pure_jax.runs.rl.alarms import AlarmWatch
from pure_jax.runs.rl.responses import (
  GradedResponses,
  gather_facts,
  response_metrics,
  step_texts,
)
from pure_jax.runs.run import Run
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.settings import CreditConfig
from pure_jax.steps import tokens_per_step
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
  run.folder.alarms.rewind("rl", done + 1)
  run.folder.generations.rewind("rl_eval", done + 1 if done else 0)


def write_iteration(
  run: Run, bar: Progress, iteration: Iteration, watch: AlarmWatch
) -> None:
  """Writes a row of metrics, samples every few iterations, and alarms.

  Args:
    run: the open run.
    bar: the progress bar.
    iteration: the data of the iteration.
    watch: what looks for alarms.
  """
  batch = iteration.batch
  facts = gather_facts(run, iteration.graded, batch.rollout, batch.scores)
  row = _metrics_row(run, iteration, facts)
  run.folder.metrics.write("rl", iteration.step, row)
  shown = {name: row.get(name) for name in BAR_METRICS}
  bar.show({name: x for name, x in shown.items() if x is not None})
  shows = iteration.step % run.spec.settings.rl.samples_every == 0
  chosen: list[tuple[int, str | None]] = []  # Rows, and why they are kept.
  correct = iteration.graded.verdicts.correct
  for alarm in watch.check(iteration.step, row):
    bar.say(alarm.text)
    run.folder.alarms.write("rl", iteration.step, [alarm.record])
    rows = suspects(
      alarm.name, facts, correct, iteration.graded.gradable, SAMPLES_SHOWN
    )
    chosen += [(number, alarm.name) for number in rows]
  if shows:
    marked = np.flatnonzero(hacking_metrics.pseudo_positive(facts, correct))
    chosen += [(number, "pseudo-positive") for number in marked[:SAMPLES_SHOWN]]
    rows = np.linspace(0, len(iteration.problems) - 1, SAMPLES_SHOWN)
    chosen += [(number, None) for number in rows.astype(int)]
  if not chosen:
    return
  samples = _samples(run, iteration, chosen)
  run.folder.samples.write("rl", iteration.step, samples)
  for sample in samples[-SAMPLES_SHOWN:] if shows else ():
    bar.say(_sample_text(iteration.step, sample))


def _metrics_row(
  run: Run, iteration: Iteration, facts: ResponseFacts
) -> rollout_metrics.Metrics:
  """The metrics of an iteration."""
  batch, rl = iteration.batch, run.spec.settings.rl
  row = response_metrics(iteration.graded, facts)
  row |= hacking_metrics.group_diversity(facts, rl.samples_per_prompt)
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
    rl.samples_per_prompt,
  )
  if iteration.drift is not None:
    row["logp_drift_max"] = float(iteration.drift)
  tokens = row["response_tokens"] * len(iteration.problems)
  seconds = dict(iteration.clock.seconds)
  row["reshard_seconds"] = seconds.pop("reshard")
  for stage, taken in seconds.items():
    row[f"{stage}_tokens_per_second"] = tokens / taken
  return row


def _samples(
  run: Run, iteration: Iteration, chosen: Sequence[tuple[int, str | None]]
) -> list[dict[str, Any]]:
  """Responses with the score and the credit of each step.

  Args:
    run: the open run.
    iteration: the data of the iteration.
    chosen: rows, each with the sign that it is chosen for, or None. Every
      process must choose the same.
  """
  batch = global_batch.read_everywhere(iteration.batch)
  rollout, steps = batch.rollout, batch.scores.steps
  rewards = batch.scores.step_rewards.astype(np.float64)
  config, returns = run.spec.step.credit, None
  if run.spec.prm_model is not None and config.form != "min_dense":
    mask = steps.mask
    if config.exclude_empty_steps:
      mask = mask & ~steps.empty
    returns = credit.step_returns(rewards, mask, config)
    returns = np.asarray(credit.following_returns(returns, mask))
  rows = np.asarray([row for row, _ in chosen])
  texts_of_rows = step_texts(run, rollout, rows)
  size = run.spec.settings.rl.samples_per_prompt
  samples = []
  for (row, sign), texts in zip(chosen, texts_of_rows, strict=True):
    count = int(steps.mask[row].sum())
    problem = iteration.problems[row]
    # The texts beyond the last step were merged into it.
    step_list = [*texts[: count - 1], SEPARATOR.join(texts[count - 1 :])]
    sample = {"problem": problem.problem, "steps": step_list}
    if run.spec.prm_model is not None:
      sample["step_rewards"] = rewards[row, :count].round(4)
    if returns is not None:
      sample["step_returns"] = returns[row, :count].astype(float).round(4)
    sample |= {
      "correct": bool(iteration.graded.verdicts.correct[row]),
      "gradable": bool(iteration.graded.gradable[row]),
      "truncated": bool(rollout.truncated[row]),
      "kind": run.task.kind(problem, texts),
    }
    if run.spec.prm_model is not None:
      group = _group(batch, row // size * size, size, config)
      sample["group"] = group | {"member": int(row % size)}
    if sign is not None:
      sample["sign"] = sign
    samples.append(sample)
  return samples


def _group(
  batch: ScoredBatch, first: int, size: int, config: CreditConfig
) -> dict[str, Any]:
  """What the advantages of the samples of a prompt follow from."""
  group = slice(first, first + size)
  mask = batch.rollout.completion_mask[group]
  steps = jax.tree.map(lambda x: x[group], batch.scores.steps)
  counts = steps.mask.sum(1)
  rewards = batch.scores.step_rewards[group].astype(float).round(4)
  tokens = np.asarray(tokens_per_step(steps, mask))
  return {
    "step_rewards": _ragged(rewards, counts),
    "step_tokens": _ragged(tokens, counts),
    "empty": _ragged(steps.empty, counts),
    "correct": (batch.correct[group] > 0.5).tolist(),
    "uses_answer": bool(batch.has_answer[first]),
    "verifiable_coef": config.verifiable_coef,
  }


def _ragged(values: np.ndarray, counts: np.ndarray) -> list[list[Any]]:
  """The first entries of each row."""
  pairs = zip(values, counts, strict=True)
  return [row[:count].tolist() for row, count in pairs]


def _sample_text(step: int, sample: dict[str, Any]) -> str:
  """A sample of an iteration as a text of several lines."""
  verdict = "right" if sample["correct"] else "wrong"
  lines = [f"iteration {step}: {sample['problem']} ({verdict})"]
  return "\n".join([*lines, *(f"  {line}" for line in _step_lines(sample))])


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
  # After a roll-back the checkpoint of a better one may have been removed.
  saved = {path.name for path in (folder / "rl").glob("*")}
  ranked = [row for row in rows if str(row["step"]) in saved]
  # Without a checkpoint only if the later rows were removed.
  ranked = ranked or [row for row in rows if row["step"] > 0] or rows
  summary = {
    "credit": rl.credit.form,
    "reward_mode": rl.reward_mode,
    "seed": settings.seed,
    "iterations": rl.iterations,
    "roll_backs": len(roll_backs.read_record(folder)),
    "first": rows[0],
    "best": max(
      ranked,
      key=lambda row: (row[metric] is not None, row[metric], row["step"]),
    ),
    "last": rows[-1],
  }
  write_json_atomic(folder / "summary.json", summary)
  return summary
