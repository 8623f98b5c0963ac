"""Validation of a policy in RL: its benchmarks, and its table of generations.

The problems of all benchmarks are one batch, so that one program serves them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pure_jax import steps
from pure_jax.host.data.batches import each_step_inputs
from pure_jax.host.data.records import Problem
from pure_jax.host.distributed import global_batch
from pure_jax.host.evaluation.rollout_metrics import Metrics
from pure_jax.host.evaluation.tables import AVERAGE
from pure_jax.host.logs.generations import Generation
from pure_jax.parallel import sharding
from pure_jax.runs.batches import take_rows
from pure_jax.runs.rl.functions import RLFunctions
from pure_jax.runs.rl.responses import GradedResponses, grade, step_texts
from pure_jax.runs.rl.weights import FrozenWeights
from pure_jax.runs.run import Run
from pure_jax.runs.settings.files import HELD_OUT
from pure_jax.runs.spec import RandomStream
from pure_jax.training.supervised import Demonstrations
from pure_jax.types import PRMInputs, Rollout


def filled_rows(count: int, shards: int, limit: int | None) -> int:
  """Counts the rows of a batch that is filled up by repeating some of them.

  >>> filled_rows(1517, shards=4, limit=512)
  1524

  Args:
    count: rows needed, at least 1.
    shards: number of shards that rows are split over.
    limit: most rows that are sampled at a time, a multiple of the shards; None
      for no limit.

  Returns:
    The fewest rows, at least count, that can be divided into equal batches of
    at most `limit` rows, each a multiple of `shards`.
  """
  micro_batches = 1 if limit is None else -(-count // limit)
  return -(-count // (micro_batches * shards)) * micro_batches * shards


def chosen_rows(count: int, most: int) -> list[int]:
  """Chooses the rows to show: evenly spaced, the same at every validation.

  >>> chosen_rows(500, 3), chosen_rows(2, 4), chosen_rows(9, 0)
  ([0, 250, 499], [0, 1], [])

  Args:
    count: rows to choose from.
    most: largest number of chosen rows.
  """
  chosen = np.linspace(0, count - 1, min(count, most)).round()
  return chosen.astype(int).tolist()


def evaluate_benchmarks(
  run: Run, functions: RLFunctions, frozen: FrozenWeights, weights: Any
) -> tuple[Metrics, list[Generation]]:
  """Evaluates the benchmarks of a run.

  Each problem gets a greedy response, and `rl.benchmark_samples` samples. Every
  process must call this function.

  Args:
    run: the open run.
    functions: the compiled functions.
    frozen: the weights that RL does not train.
    weights: the policy's weights for sampling.

  Returns:
    (metrics, rows of the table of generations). Metrics are named
    "BENCHMARK/METRIC"; those of "average" are means over the averaged
    benchmarks. "left_out" counts problems of a benchmark that are not
    evaluated. Both are empty without benchmarks.
  """
  benchmarks, rl = run.task.benchmarks, run.spec.settings.rl
  problems = [p for benchmark in benchmarks for p in benchmark.problems]
  if not problems:
    return {}, []
  limit = None
  if rl.engine.slots is None:
    limit = rl.responses // rl.rollout.batches
  shards = run.spec.layouts.all_row_shards
  rows = filled_rows(len(problems), shards, limit)
  filled = [problems[row % len(problems)] for row in range(rows)]
  rollout, graded, values = _generate(run, functions, weights, filled)

  metrics: Metrics = {}
  chosen, names, first = [], [], 0
  for benchmark in benchmarks:
    own = slice(first, first + len(benchmark.problems))
    for name, value in values.items():
      metrics[f"{benchmark.name}/{name}"] = float(np.mean(value[own]))
    metrics[f"{benchmark.name}/left_out"] = float(benchmark.left_out[0])
    own_rows = chosen_rows(len(benchmark.problems), rl.generations)
    chosen += [first + row for row in own_rows]
    names += [benchmark.name] * len(own_rows)
    first = own.stop
  averaged = [b.name for b in benchmarks if b.averaged]
  for name in values if averaged else ():
    of_each = [metrics[f"{benchmark}/{name}"] for benchmark in averaged]
    metrics[f"{AVERAGE}/{name}"] = float(np.mean(of_each))
  if not chosen:
    return metrics, []
  scores = score_rows(run, functions, frozen, filled, rollout, chosen)
  return metrics, make_generations(
    run, names, filled, graded, rollout, scores, chosen, greedy=True
  )


def _generate(
  run: Run, functions: RLFunctions, weights: Any, problems: list[Problem]
) -> tuple[Rollout, GradedResponses, dict[str, np.ndarray]]:
  """Generates and grades responses to B problems.

  Returns the greedy responses, their verdicts, and [B] values by metric.
  """
  prompts = run.batches.encode_prompts(problems)
  key = run.spec.key(RandomStream.BENCHMARK_SAMPLES)
  rollout = functions.generate_benchmarks(weights, prompts, key)
  graded = grade(run, problems, rollout)
  mask, truncated = global_batch.read_everywhere(
    (rollout.completion_mask, rollout.truncated)
  )
  values = {
    "accuracy": graded.verdicts.correct,
    "response_tokens": mask.sum(1),
    "truncated": truncated,
  }
  if functions.sample_benchmarks is not None:
    count = run.spec.settings.rl.benchmark_samples
    samples = functions.sample_benchmarks(weights, prompts, key)
    repeated = [problem for problem in problems for _ in range(count)]
    correct = grade(run, repeated, samples).verdicts.correct
    correct = correct.reshape(-1, count)
    values |= {
      "sampled_accuracy": correct.mean(1),
      "pass_at_n": correct.any(1),
    }
  return rollout, graded, values


def score_rows(
  run: Run,
  functions: RLFunctions,
  frozen: FrozenWeights,
  problems: Sequence[Problem],
  rollout: Rollout,
  rows: Sequence[int],
) -> np.ndarray | None:
  """Scores the steps of a few responses.

  Args:
    run: the open run.
    functions: the compiled functions.
    frozen: the weights that RL does not train.
    problems: B problems.
    rollout: B responses.
    rows: the n rows to score, at least one.

  Returns:
    [n, S] float32, step rewards as an update gets them: an empty step has
    `prm.score.empty_step_reward` if that is set. None without a PRM.
  """
  if functions.score_steps is None:
    return None
  shards = run.spec.layouts.prm.row_shards
  count = filled_rows(len(rows), shards, None)
  filled = [rows[row % len(rows)] for row in range(count)]
  texts = _prm_texts(run, [problems[row] for row in filled], rollout, filled)
  on_devices = global_batch.make_rows(
    sharding.batch_sharding(run.spec.layouts.prm),
    count,
    lambda chosen: take_rows(texts, chosen),
  )
  rewards = functions.score_steps(frozen.prm, on_devices)
  rewards = global_batch.read_everywhere(rewards)[: len(rows)]
  config = run.spec.step.scoring
  if config.empty_step_reward is None:
    return rewards
  responses = take_rows(
    global_batch.read_everywhere((rollout.tokens, rollout.completion_mask)),
    np.asarray(rows),
  )
  boundaries = steps.split_steps(
    *responses, run.spec.table, max_steps=config.max_steps
  )
  return np.asarray(
    steps.replace_empty_steps(rewards, boundaries, config.empty_step_reward)
  )


def _prm_texts(
  run: Run, problems: list[Problem], rollout: Rollout, rows: list[int]
) -> Demonstrations | PRMInputs:
  """What the PRM reads of a few responses, on the host of every process."""
  encoder, config = run.batches.prm_prompt_encoder, run.spec.step.scoring
  rollout = global_batch.read_everywhere(rollout)
  if config.separator == "each":
    limit = run.spec.prm_columns - run.spec.sampler.max_new_tokens
    return each_step_inputs(
      encoder.tokenizer,
      [encoder.ids(problem) for problem in problems],
      step_texts(run, rollout, np.asarray(rows)),
      limit + rollout.tokens.shape[1],
      config.max_steps,
    )
  prompts = encoder.encode(problems)
  responses = (rollout.tokens, rollout.completion_mask)
  return Demonstrations(
    *(prompts.tokens, prompts.mask), *take_rows(responses, np.asarray(rows))
  )


def make_generations(
  run: Run,
  names: Sequence[str],
  problems: Sequence[Problem],
  graded: GradedResponses,
  rollout: Rollout,
  step_rewards: np.ndarray | None,
  rows: Sequence[int],
  *,
  greedy: bool,
) -> list[Generation]:
  """Makes rows of the table of generations. Every process must call it.

  Args:
    run: the open run.
    names: n names of benchmarks, one for each chosen row.
    problems: B problems.
    graded: verdicts on the B responses.
    rollout: B responses.
    step_rewards: [n, S] float, of the chosen rows; None without a PRM.
    rows: the n chosen rows.
    greedy: whether the responses are greedy ones.
  """
  rollout = global_batch.read_everywhere(rollout)
  generations = []
  for number, texts in enumerate(step_texts(run, rollout, np.asarray(rows))):
    row = rows[number]
    problem, rewards = problems[row], None
    if step_rewards is not None:
      rewards = step_rewards[number, : len(texts)].round(4).tolist()
    generations.append(
      Generation(
        benchmark=names[number],
        id=problem.id,
        problem=problem.problem,
        reference=problem.known_answer,
        greedy=greedy,
        steps=texts,
        tokens=int(rollout.completion_mask[row].sum()),
        truncated=bool(rollout.truncated[row]),
        answer=run.task.find_answer(texts),
        correct=bool(graded.verdicts.correct[row]),
        step_rewards=rewards,
      )
    )
  return generations


def held_out_generations(
  run: Run,
  problems: Sequence[Problem],
  graded: GradedResponses,
  rollout: Rollout,
  step_rewards: Any,
) -> list[Generation]:
  """Makes the rows of the table that show held-out problems.

  Args:
    run: the open run.
    problems: B problems.
    graded: verdicts on the B responses.
    rollout: B responses, drawn at temperature 1.
    step_rewards: [B, S] float; not read in a run without a PRM.
  """
  rows = chosen_rows(len(problems), run.spec.settings.rl.generations)
  if not rows:
    return []
  rewards = None
  if run.spec.prm_model is not None:
    rewards = global_batch.read_everywhere(step_rewards)[rows]
  names = [HELD_OUT] * len(rows)
  return make_generations(
    run, names, problems, graded, rollout, rewards, rows, greedy=False
  )
