"""What an RL run says about itself: texts, verdicts, metrics, samples."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pure_jax import credit
from pure_jax.host.atomic_files import write_json_atomic
from pure_jax.host.data.records import Problem
from pure_jax.host.distributed import shared_rows
from pure_jax.host.evaluation.rollout_metrics import (
  ResponseFacts,
  response_facts,
  rollout_metrics,
)
from pure_jax.host.logs.metrics import MetricsError, read_metrics
from pure_jax.host.logs.progress import Progress
from pure_jax.host.text.tokenization import SEPARATOR, split_texts
from pure_jax.runs import stage_checkpoints
from pure_jax.runs.run import Run
from pure_jax.runs.settings.run import ConfigError
from pure_jax.runs.tasks.task import Verdicts
from pure_jax.training.score import Scores
from pure_jax.types import Rollout

SAMPLES_SHOWN = 2
# What an update says of step rewards, without which it says nothing.
OF_STEP_REWARDS = (
  *("return_mean", "min_step_score", "step_score_mean", "process_outcome"),
  *("process_outcome_agreement", "nonfinite_step_rewards"),
)
BAR = ("accuracy", "process_outcome", "kl_reference", "response_tokens")


def rewind(run: Run, done: int) -> None:
  """Forgets what was written after so many iterations."""
  run.folder.metrics.rewind("rl", done + 1)
  run.folder.metrics.rewind("rl_eval", done + 1 if done else 0)
  run.folder.samples.rewind("rl", done + 1)


class Clock:
  """Seconds of the parts of an iteration, measured when results are there."""

  def __init__(self):
    """Starts measuring."""
    self.seconds: dict[str, float] = {}
    self._last = time.perf_counter()

  def wait(self, part: str, result) -> None:
    """Waits for a result and notes how long it took."""
    jax.block_until_ready(result)
    now = time.perf_counter()
    self.seconds[part], self._last = now - self._last, now


def read_responses(
  run: Run, problems: Sequence[Problem], rollout: Rollout
) -> tuple[list[list[str]], Verdicts]:
  """Reads and grades a rollout, each process its share of the rows.

  Args:
    run: the open run.
    problems: B problems.
    rollout: B responses.

  Returns:
    (step texts of the responses of this process's share, verdicts of all B).
  """
  rows = run.batches.share(len(problems))
  texts = _texts(run, rollout, rows)
  mine = run.task.grade([problems[row] for row in rows], texts)
  verdicts = run.batches.gather(len(problems), dataclasses.asdict(mine))
  return texts, Verdicts(**verdicts)


def _texts(run: Run, rollout: Rollout, rows: np.ndarray) -> list[list[str]]:
  """Step texts of some responses that this process holds."""
  arrays = (rollout.tokens, rollout.completion_mask)
  tokens, mask = shared_rows.read_rows(arrays, rows)
  return split_texts(run.task.tokenizer, tokens, mask)


def check_finite(
  run: Run,
  step: int,
  problems: Sequence[Problem],
  batch: dict[str, Any],
) -> None:
  """Stops a run whose PRM gives no numbers, before they reach the policy."""
  rewards = shared_rows.read_everywhere(batch["scores"].step_rewards)
  bad = ~np.isfinite(rewards).all(axis=1)
  if bad.any():
    path = stage_checkpoints.dump_nonfinite(
      run, "rl", step, batch, facts_of(problems)
    )
    raise FloatingPointError(
      f"Iteration {step}: the PRM's step rewards of {bad.sum()} of "
      f"{bad.size} responses are not finite, first in row {bad.argmax()}. "
      f"The batch is in {path}. The policy was not updated; the last "
      "checkpoint is intact. Check the PRM's weights."
    )


def check_drift(run: Run, step: int, scores: Scores) -> None:
  """Stops a run that takes the sampler's log-probs, where they are off."""
  rl = run.spec.settings.rl
  if rl.old_logp == "score" or scores.drift_max is None:
    return
  drift = float(scores.drift_max)
  if not drift <= rl.old_logp_tolerance:
    raise ConfigError(
      f"Iteration {step}: the sampler's log-probs are up to {drift:.3g} nats "
      "off the policy's, and rl.old_logp='sampled' takes one for the other "
      f"within rl.old_logp_tolerance={rl.old_logp_tolerance}. The policy was "
      "not updated; the last checkpoint is intact. The same command goes on "
      "from there with --config.rl.old_logp=score."
    )


def facts_of(problems: Sequence[Problem]) -> dict[str, Any]:
  """What is kept beside the arrays of a batch: its problems' texts."""
  return {"problems": [problem.problem for problem in problems]}


def describe(
  run: Run,
  texts: list[list[str]],
  verdicts: Verdicts,
  rollout: Rollout,
  scores: Scores,
) -> dict[str, float]:
  """Metrics of a rollout that was read and scored, texts those of a share."""
  count = len(verdicts.correct)
  mine = shared_rows.read_rows(
    (rollout, scores.steps), run.batches.share(count)
  )
  rewards = None
  if run.spec.prm_model is not None:
    rewards = shared_rows.read_rows(
      scores.step_rewards, run.batches.share(count)
    )
  facts = response_facts(*mine, rewards, texts, run.task.is_vacuous)
  facts = ResponseFacts(**run.batches.gather(count, dataclasses.asdict(facts)))
  return rollout_metrics(facts, verdicts.correct) | verdicts.metrics


@dataclasses.dataclass(frozen=True)
class Iteration:
  """What is known of an iteration once its update is on its way.

  Attributes:
    step: its number, from 1.
    problems: B problems.
    texts: step texts of the responses of this process's share.
    verdicts: the grader's, of all B.
    batch: what the update was given: ``rollout``, the responses; ``scores``,
      steps and their rewards; ``correct`` [B] float32 and ``has_answer`` [B]
      bool, the verdicts and which of them it might use.
    found: metrics of the update.
    clock: how long its parts took.
  """

  step: int
  problems: list[Problem]
  texts: list[list[str]]
  verdicts: Verdicts
  batch: dict[str, Any]
  found: dict[str, jax.Array]
  clock: Clock

  @property
  def facts(self) -> dict[str, Any]:
    """What is kept beside the batch, should it be."""
    return facts_of(self.problems)

  @property
  def scores(self) -> Scores:
    """Steps and their rewards."""
    return self.batch["scores"]


def write_iteration(run: Run, bar: Progress, it: Iteration) -> None:
  """One row of metrics, and samples every few iterations."""
  rollout, has_answer = it.batch["rollout"], it.batch["has_answer"]
  numbers = describe(run, it.texts, it.verdicts, rollout, it.scores)
  found = {
    name: float(value) for name, value in jax.device_get(it.found).items()
  }
  # A mean over nothing is left out, not made up.
  absent = set() if run.spec.prm_model else {*OF_STEP_REWARDS}
  if not shared_rows.read_everywhere(has_answer).any():
    absent |= {"correct_mean", "process_outcome_agreement"}
  for name in absent:
    del found[name]
  numbers |= {k: v for k, v in found.items() if k not in numbers}
  if it.scores.drift_max is not None:
    numbers["logp_drift_max"] = float(it.scores.drift_max)
  tokens = numbers["response_tokens"] * len(it.problems)
  seconds = dict(it.clock.seconds)
  numbers["reshard_seconds"] = seconds.pop("reshard")
  for part, taken in seconds.items():
    numbers[f"{part}_tokens_per_second"] = tokens / taken
  run.folder.metrics.write("rl", it.step, numbers)
  bar.advance()
  bar.show({name: numbers[name] for name in BAR if name in numbers})
  if it.step % run.spec.settings.rl.samples_every == 0:
    write_samples(run, bar, it)


def write_samples(run: Run, bar: Progress, it: Iteration) -> None:
  """A few responses with what each step scored and was credited, if it was."""
  rollout, cut, rewards = shared_rows.read_everywhere(
    (it.batch["rollout"], it.scores.steps, it.scores.step_rewards)
  )
  config = run.spec.settings.rl.credit_config()
  returns = np.asarray(credit.step_returns(rewards, cut.mask, config))
  rows = np.linspace(0, len(it.problems) - 1, SAMPLES_SHOWN).astype(int)
  samples = []
  for row, texts in zip(rows, _texts(run, rollout, rows), strict=True):
    count = int(cut.mask[row].sum())
    problem = it.problems[row]
    shown = texts[: count - 1]
    shown.append(SEPARATOR.join(texts[count - 1 :]))
    labelled = {
      "step_rewards": rewards[row, :count].round(4),
      "step_returns": returns[row, :count].round(4),
    }
    samples.append(
      {
        "problem": problem.problem,
        "steps": shown,
        **(labelled if run.spec.prm_model else {}),
        "correct": bool(it.verdicts.correct[row]),
        "kind": run.task.kind(problem, texts),
      }
    )
  run.folder.samples.write("rl", it.step, samples)
  for sample in samples:
    verdict = "right" if sample["correct"] else "wrong"
    lines = [f"iteration {it.step}: {sample['problem']} ({verdict})"]
    lines += [f"  {text}" for text in _shown_steps(sample)]
    bar.say("\n".join(lines))


def _shown_steps(sample: dict[str, Any]) -> list[str]:
  """A line for each step of a sample, with its score where it has one."""
  texts = [text.replace("\n", "\\n") for text in sample["steps"]]
  if "step_rewards" not in sample:
    return texts
  labelled = zip(sample["step_rewards"], sample["step_returns"], strict=True)
  return [
    f"score {reward:+.2f} credit {value:+.2f}  {text}"
    for text, (reward, value) in zip(texts, labelled, strict=True)
  ]


def summarize(run: Run) -> dict:
  """Writes summary.json: first, best and last evaluation, what the run was.

  Raises:
    MetricsError: if the evaluations that the run made are no longer there.
  """
  rows = [
    row for row in read_metrics(run.folder.path) if row["stage"] == "rl_eval"
  ]
  if not rows:
    raise MetricsError(
      f"{run.folder.path} has no evaluation of RL in its metrics.jsonl, which "
      "was removed or emptied: put it back, or remove the folder rl there to "
      "train anew."
    )
  rl = run.spec.settings.rl
  summary = {
    "credit": rl.credit,
    "reward_mode": rl.reward_mode,
    "seed": run.spec.settings.seed,
    "iterations": rl.iterations,
    "first": rows[0],
    "best": max(rows, key=lambda row: row["accuracy"]),
    "last": rows[-1],
  }
  write_json_atomic(run.folder.path / "summary.json", summary)
  return summary
