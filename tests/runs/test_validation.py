"""Benchmarks of a run: rows, metrics by hand, and what ranks checkpoints."""

import itertools
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest
from configs import base, files
from overrides import with_changes

from pure_jax.host import json_text
from pure_jax.host.checkpoints.checkpointer import Checkpoints
from pure_jax.host.data.records import Problem
from pure_jax.parallel import sharding
from pure_jax.runs import validation
from pure_jax.runs.evaluation.benchmarks import Benchmark
from pure_jax.runs.rl import report
from pure_jax.runs.rl.responses import GradedResponses
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config
from pure_jax.runs.tasks.task import Verdicts
from pure_jax.settings import ScoreConfig
from pure_jax.types import Prompts, Rollout, SeparatorTable

SIZES = {"math500": 3, "aime24": 1, "other": 2}


def test_a_batch_is_filled_up_to_equal_micro_batches():
  """Of 37 prime rows no micro-batch of 8 can be made without repeating some."""
  for count, shards, per in itertools.product(range(1, 40), (1, 2, 4), (1, 3)):
    limit = shards * per
    fitting = [
      rows
      for rows in range(count, 4 * count + 8 * limit)
      for parts in [-(-count // limit)]
      if rows % (parts * shards) == 0 and rows // parts <= limit
    ]
    assert validation.filled_rows(count, shards, limit) == min(fitting)
    expected = -(-count // shards) * shards
    assert validation.filled_rows(count, shards, None) == expected


@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize("most", [0, 1, 2, 3, 40])
def test_a_table_shows_different_rows_from_all_over(count, most):
  rows = validation.chosen_rows(count, most)
  assert len(rows) == len({*rows}) == min(count, most)
  assert rows == sorted(rows) and all(0 <= row < count for row in rows)
  if len(rows) > 1:
    assert rows[0] == 0 and rows[-1] == count - 1


def benchmark(name, size):
  problems = [Problem(f"{name}/{i}", "x", "1+1?", "2") for i in range(size)]
  averaged = name != "other"
  return Benchmark(
    name, problems, [*range(size)], averaged, (4, size + 4), None
  )


def evaluated(monkeypatch, correct, lengths, samples=None):
  """Metrics of stand-ins: verdicts and lengths of 6 problems, 2 more rows."""
  count = 0 if samples is None else samples.shape[1]
  rl = types.SimpleNamespace(
    responses=4,
    rollout=types.SimpleNamespace(batches=1),
    engine=types.SimpleNamespace(slots=None),
    benchmark_samples=count,
    generations=0,
  )
  run = types.SimpleNamespace(
    task=types.SimpleNamespace(
      benchmarks=[benchmark(*item) for item in SIZES.items()]
    ),
    batches=types.SimpleNamespace(encode_prompts=lambda problems: problems),
    spec=types.SimpleNamespace(
      settings=types.SimpleNamespace(rl=rl),
      layouts=types.SimpleNamespace(all_row_shards=2),
      key=lambda stream: stream,
    ),
  )
  asked = []

  def rollout(weights, prompts, key):
    asked.append([problem.id for problem in prompts])
    mask = np.arange(9) < np.resize(lengths, len(prompts))[:, None]
    truncated = np.resize(lengths, len(prompts)) == 9
    return types.SimpleNamespace(
      completion_mask=jnp.asarray(mask), truncated=jnp.asarray(truncated)
    )

  def grade(run, problems, rollout):
    greedy = len(problems) == len(asked[0])
    verdicts = correct if greedy else samples.reshape(-1)
    verdicts = np.resize(np.asarray(verdicts, bool), len(problems))
    return GradedResponses([], Verdicts(verdicts, {}), np.ones(1, bool))

  monkeypatch.setattr(validation, "grade", grade)
  functions = types.SimpleNamespace(
    generate_benchmarks=rollout,
    sample_benchmarks=rollout if count else None,
  )
  metrics, rows = validation.evaluate_benchmarks(run, functions, None, None)
  assert rows == []
  return metrics, asked[0]


def test_each_benchmark_has_its_own_problems_and_the_average_is_of_means(
  monkeypatch,
):
  """A mean over all problems would give math500 three votes."""
  correct, lengths = [1, 0, 1, 0, 1, 1], [1, 2, 9, 9, 5, 6]
  samples = np.array([[0, 0], [0, 1], [1, 1], [0, 0], [1, 0], [1, 0]])
  metrics, asked = evaluated(monkeypatch, correct, lengths, samples)
  # Two micro-batches of 4 rows: the first two problems are repeated.
  ids = [f"{name}/{i}" for name, size in SIZES.items() for i in range(size)]
  assert asked == ids + ids[:2]
  expected = {
    "math500/accuracy": 2 / 3,
    "math500/response_tokens": 4,
    "math500/truncated": 1 / 3,
    "math500/sampled_accuracy": 0.5,
    "math500/pass_at_n": 2 / 3,
    "aime24/accuracy": 0,
    "aime24/response_tokens": 9,
    "aime24/truncated": 1,
    "aime24/sampled_accuracy": 0,
    "aime24/pass_at_n": 0,
    "other/accuracy": 1,
    "other/response_tokens": 5.5,
    "other/truncated": 0,
    "other/sampled_accuracy": 0.5,
    "other/pass_at_n": 1,
    "math500/left_out": 4,
    "aime24/left_out": 4,
    "other/left_out": 4,
    # Of math500 and aime24.
    "average/accuracy": 1 / 3,
    "average/response_tokens": 6.5,
    "average/truncated": 2 / 3,
    "average/sampled_accuracy": 0.25,
    "average/pass_at_n": 1 / 3,
  }
  assert metrics == pytest.approx(expected, abs=1e-12)


def test_greedy_responses_alone_have_no_metrics_of_samples(monkeypatch):
  metrics, _ = evaluated(monkeypatch, [1, 0, 1, 0, 1, 1], [1] * 6)
  names = {name.partition("/")[2] for name in metrics}
  assert names == {"accuracy", "response_tokens", "truncated", "left_out"}


def of_files(**changes):
  changes = {"files__random_model": "tied"} | changes
  return settings_from_config(with_changes(files.get_config(), **changes))


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({}, "accuracy"),
    ({"files__benchmarks__math500__file": "a"}, "average/accuracy"),
    # gsm8k is not in the average.
    ({"files__benchmarks__gsm8k__file": "a"}, "accuracy"),
    (
      {
        "files__benchmarks__math500__file": "a",
        "rl__best_metric": "greedy_accuracy",
      },
      "greedy_accuracy",
    ),
    ({"files__random_files": ("benchmarks",)}, "average/accuracy"),
  ],
)
def test_the_average_ranks_checkpoints_if_there_is_one(changes, expected):
  assert of_files(**changes).best_metric == expected


def test_the_held_out_accuracy_ranks_checkpoints_of_the_world():
  assert settings_from_config(base.get_config()).best_metric == "accuracy"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"files__benchmarks__average": files.benchmark("math500", averaged=True)},
      "no benchmark may be called 'average'",
    ),
    (
      {"files__benchmarks__held_out": files.benchmark("gsm8k", averaged=True)},
      "no benchmark may be called 'held_out'",
    ),
    ({"files__benchmarks__gsm8k__format": "prm800k"}, "format must be one of"),
    ({"rl__benchmark_new_tokens": 0}, "benchmark_new_tokens must be at least"),
    ({"rl__benchmark_samples": -1}, "benchmark_samples must be at least 0"),
    ({"rl__generations": -1}, "generations must be at least 0"),
    ({"rl__repetition_unit": "words"}, "repetition_unit must be one of"),
  ],
)
def test_an_invalid_value_is_reported(changes, message):
  changes = {
    name: value.to_dict() if hasattr(value, "to_dict") else value
    for name, value in changes.items()
  }
  with pytest.raises(ConfigError, match=message):
    of_files(**changes)


def test_benchmarks_have_the_limit_of_rollouts_unless_they_have_their_own():
  rl = of_files().rl
  assert rl.benchmark_sampler == rl.sampler
  limited = of_files(rl__benchmark_new_tokens=3000).rl.benchmark_sampler
  assert limited.max_new_tokens == 3000
  assert limited.temperature == rl.sampler.temperature


def test_an_unknown_metric_ends_in_a_sentence():
  """Otherwise no checkpoint would ever be the best one."""
  settings = of_files(rl__best_metric="math501/accuracy")
  run = types.SimpleNamespace(spec=types.SimpleNamespace(settings=settings))
  report.check_best_metric(run, {"math501/accuracy": None})
  with pytest.raises(ConfigError, match=r"accuracy' is no metric .* a, b\."):
    report.check_best_metric(run, {"a": 1.0, "b": None})


def test_an_empty_step_is_shown_with_the_reward_of_the_update():
  """A response of the steps "5", "" and "6", whose PRM says 0.5 to all."""
  none, ids = np.zeros(9, bool), np.arange(9)
  table = SeparatorTable(ids == 8, none, ids * 0, none, 2, np.array([1]), 0)
  tokens = jnp.asarray([[5, 1, 0, 0, 0], [5, 8, 8, 6, 1]])
  mask, nothing = tokens > 0, jnp.zeros((2, 5))
  prompts = Prompts(np.full((1, 1), 7), np.ones((1, 1), bool))
  rollout = Rollout(tokens, mask, tokens, mask, nothing, nothing, mask[:, 0])
  shown = {}
  for reward in (None, -1.0):
    spec = types.SimpleNamespace(
      layouts=types.SimpleNamespace(prm=sharding.make_layout(1, 1)),
      step=types.SimpleNamespace(
        scoring=ScoreConfig(max_steps=4, empty_step_reward=reward)
      ),
      table=table,
    )
    encoder = types.SimpleNamespace(encode=lambda problems: prompts)
    run = types.SimpleNamespace(
      spec=spec, batches=types.SimpleNamespace(prm_prompt_encoder=encoder)
    )
    functions = types.SimpleNamespace(
      score_steps=lambda params, batch: jnp.full((1, 4), 0.5)
    )
    frozen = types.SimpleNamespace(prm=None)
    rewards = validation.score_rows(
      run, functions, frozen, ["first", "second"], rollout, [1]
    )
    shown[reward] = rewards[0, :3].tolist()
  assert shown == {None: [0.5, 0.5, 0.5], -1.0: [0.5, -1.0, 0.5]}


@pytest.mark.parametrize(
  ("accuracy", "step"),
  [
    ([0.9, 0.5, 0.5, 0.2], 2),  # The first policy has no checkpoint.
    ([0.1, 0.5, None, None], 1),
    ([0.1, math.nan, 0.2, math.nan], 2),
    ([math.nan, None, math.nan, math.nan], None),
    ([0.9, 0.2, 0.5, 0.5], 3),
  ],
)
def test_the_best_evaluation_is_that_of_the_best_checkpoint(
  tmp_path, accuracy, step
):
  with Checkpoints(tmp_path / "rl", best_metric="accuracy") as checkpoints:
    state = {"w": jnp.zeros(1)}
    for at, value in enumerate(accuracy[1:], 1):
      checkpoints.save(at, state, metrics={"accuracy": value})
    best = checkpoints.restore_best(state)
    assert (best and best.step) == step
    # Whatever the metric, the state of the last evaluation is saved.
    assert checkpoints.restore_latest(state).step == len(accuracy) - 1
  rows = [
    {"stage": "rl_eval", "step": at, "accuracy": value}
    for at, value in enumerate(accuracy)
  ]
  text = "".join(json_text.dump(row) + "\n" for row in rows)
  (tmp_path / "metrics.jsonl").write_text(text)
  run = types.SimpleNamespace(
    spec=types.SimpleNamespace(settings=of_files()),
    folder=types.SimpleNamespace(path=tmp_path),
  )
  # Without a best checkpoint, the last evaluation stands for it.
  assert report.summarize(run)["best"]["step"] == (step or len(rows) - 1)
