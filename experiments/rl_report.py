"""What an RL run says about itself: texts, verdicts, metrics, samples."""

import time

import jax
import numpy as np
import workspace

from pure_jax import credit
from pure_jax.host.data import arithmetic
from pure_jax.host.metrics import read_metrics
from pure_jax.host.progress import Progress
from pure_jax.host.rollout_metrics import rollout_metrics
from pure_jax.training.score import Scores
from pure_jax.types import Rollout

SAMPLES_SHOWN = 2
BAR = ("accuracy", "process_outcome", "kl_reference", "response_tokens")


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
  space: workspace.Workspace, problems: list[str], rollout: Rollout
) -> tuple[list[list[str]], np.ndarray]:
  """Step texts of each response, and whether its answer is right."""
  tokens, mask = jax.device_get((rollout.tokens, rollout.completion_mask))
  texts = space.tokenizer.split_texts(tokens, mask)
  right = [
    arithmetic.grade(
      arithmetic.parse_problem(problem), arithmetic.SEPARATOR.join(step_texts)
    )
    for problem, step_texts in zip(problems, texts, strict=True)
  ]
  return texts, np.asarray(right)


def check_finite(scores: Scores, iteration: int) -> None:
  """Stops a run whose PRM gives no numbers, before they reach the policy."""
  rewards = np.asarray(scores.step_rewards)
  bad = ~np.isfinite(rewards).all(axis=1)
  if bad.any():
    raise FloatingPointError(
      f"Iteration {iteration + 1}: the PRM's step rewards of {bad.sum()} of "
      f"{bad.size} responses are not finite, first in row {bad.argmax()}. "
      "The policy was not updated; the last checkpoint is intact. Check the "
      "PRM's weights."
    )


def describe(
  space: workspace.Workspace,
  problems: list[str],
  rollout: Rollout,
  scores: Scores,
) -> tuple[dict[str, float], list[list[str]]]:
  """Metrics and step texts of a scored rollout."""
  texts, right = read_responses(space, problems, rollout)
  rollout, scores = jax.device_get((rollout, scores))
  numbers = rollout_metrics(
    rollout,
    scores.steps,
    scores.step_rewards,
    right,
    texts,
    arithmetic.is_vacuous,
  )
  return numbers, texts


def write_iteration(
  space,
  bar: Progress,
  step,
  problems,
  texts,
  right,
  rollout,
  scores,
  found,
  clock,
) -> None:
  """One row of metrics, and samples every few iterations."""
  rl = space.settings.rl
  numbers, _ = describe(space, problems, rollout, scores)
  found = {name: float(value) for name, value in jax.device_get(found).items()}
  numbers |= {k: v for k, v in found.items() if k not in numbers}
  numbers["logp_drift_max"] = float(scores.drift_max)
  tokens = numbers["response_tokens"] * len(problems)
  for part, seconds in clock.seconds.items():
    numbers[f"{part}_tokens_per_second"] = tokens / seconds
  space.metrics.write("rl", step, numbers)
  bar.advance()
  bar.show({name: numbers[name] for name in BAR})
  if found["skipped_in_a_row"] >= rl.max_skipped_updates:
    raise FloatingPointError(
      f"Iteration {step}: {rl.max_skipped_updates} updates in a row had a "
      "loss or gradient that was not finite; all were skipped. Lower "
      "rl.optim.learning_rate, or start again from the last checkpoint."
    )
  if step % rl.samples_every == 0:
    write_samples(space, bar, step, problems, texts, right, scores)


def write_samples(space, bar, step, problems, texts, right, scores) -> None:
  """A few responses with what each step scored and was credited."""
  cut, rewards = jax.device_get((scores.steps, scores.step_rewards))
  config = space.settings.rl.credit_config()
  returns = np.asarray(credit.step_returns(rewards, cut.mask, config))
  rows = np.linspace(0, len(problems) - 1, SAMPLES_SHOWN).astype(int)
  samples = []
  for row in rows:
    count = int(cut.mask[row].sum())
    problem = arithmetic.parse_problem(problems[row])
    shown = texts[row][: count - 1]
    shown.append(arithmetic.SEPARATOR.join(texts[row][count - 1 :]))
    samples.append(
      {
        "problem": problems[row],
        "steps": shown,
        "step_rewards": rewards[row, :count].round(4),
        "step_returns": returns[row, :count].round(4),
        "correct": bool(right[row]),
        "kind": arithmetic.classify(problem, texts[row]),
      }
    )
  space.samples.write("rl", step, samples)
  for sample in samples:
    verdict = "right" if sample["correct"] else "wrong"
    lines = [f"iteration {step}: {sample['problem']} ({verdict})"]
    for text, reward, value in zip(
      sample["steps"],
      sample["step_rewards"],
      sample["step_returns"],
      strict=True,
    ):
      text = text.replace("\n", "\\n")
      lines.append(f"  score {reward:+.2f} credit {value:+.2f}  {text}")
    bar.say("\n".join(lines))


def summarize(space: workspace.Workspace, stage_seconds: float) -> dict:
  """First, best and last evaluation, and what the run was."""
  rows = [
    row for row in read_metrics(space.workdir) if row["stage"] == "rl_eval"
  ]
  rl = space.settings.rl
  return {
    "credit": rl.credit,
    "reward_mode": rl.reward_mode,
    "seed": space.settings.seed,
    "iterations": rl.iterations,
    "first": rows[0],
    "best": max(rows, key=lambda row: row["accuracy"]),
    "last": rows[-1],
    "earlier_stages_seconds": round(stage_seconds, 1),
  }
