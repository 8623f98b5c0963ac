"""From graded responses to the tables of a report.

Names of metrics: *greedy* is of the greedy response of each problem, all others
of its n samples. *avg@n* is their mean accuracy, *pass@k* and *maj@k* are
expectations over subsets of k, *best-of-n* chooses and *weighted maj@n* weighs
by a score of the process reward model (`response_scores`). Answers vote
for the same thing where `equivalence.vote_key` agrees, whatever their verdict.
A response without an answer, or whose comparison came to no end (*timed out*,
*crashed*), is not correct. *tokens* are tokens of a response.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pure_jax.host.evaluation import answer_metrics
from pure_jax.host.evaluation.intervals import (
  Estimate,
  PerProblem,
  by_group,
  estimate,
  estimate_average,
)
from pure_jax.host.evaluation.report import Table
from pure_jax.host.evaluation.response_scores import AGGREGATIONS
from pure_jax.host.evaluation.responses import Response
from pure_jax.host.grading import equivalence

MAIN_TABLE = "Benchmarks"
LEFT_OUT_TABLE = "Problems left out"
AVERAGE = "average"


def problem_metrics(
  responses: Iterable[Response], k: Sequence[int]
) -> dict[str, PerProblem]:
  """Every metric that the responses to one benchmark allow, per problem.

  Args:
    responses: of one benchmark, in any order; greedy ones and samples. Where
      there are samples, each problem has as many.
    k: subset sizes of pass@k and maj@k, each at most the number of samples.

  Returns:
    By name, [P] values, problems in the order of their ids. Empty for none.

  Raises:
    ValueError: if one problem has more responses than another.
  """
  responses = list(responses)
  greedy = group([r for r in responses if r.sample is None])
  sampled = group([r for r in responses if r.sample is not None])
  found = {}
  if greedy:
    correct = _array(greedy, lambda r: r.correct)
    there = np.ones(correct.shape, bool)
    found["greedy pass@1"] = answer_metrics.average(correct, there)
    for name, values in _conduct(greedy).items():
      found[f"greedy {name}"] = values
  if sampled:
    found |= _chosen(sampled, k) | _conduct(sampled)
  return found


def group(responses: Iterable[Response]) -> list[list[Response]]:
  """Responses by problem.

  Args:
    responses: of one benchmark, in any order.

  Returns:
    P rows of n: problems in the order of their ids, samples in that of their
    numbers.

  Raises:
    ValueError: if one problem has more responses than another.
  """
  problems: dict[str, list[Response]] = {}
  for response in responses:
    problems.setdefault(response.problem, []).append(response)
  counts = {name: len(row) for name, row in problems.items()}
  if len(set(counts.values())) > 1:
    few, many = min(counts, key=counts.get), max(counts, key=counts.get)
    raise ValueError(
      f"Problem {few} has {counts[few]} responses, {many} has {counts[many]}: "
      "the evaluation is not complete."
    )
  return [
    sorted(row, key=lambda r: -1 if r.sample is None else r.sample)
    for _, row in sorted(problems.items())
  ]


def evaluation_tables(
  benchmarks: Mapping[str, Sequence[Response]],
  *,
  k: Sequence[int],
  averaged: Sequence[str],
  left_out: Mapping[str, tuple[int, int]],
  seed: int,
  resamples: int,
) -> dict[str, Table]:
  """What `report.write_report` writes.

  Args:
    benchmarks: responses by benchmark, in any order within one.
    k: subset sizes of pass@k and maj@k.
    averaged: benchmarks whose means are averaged, as the paper reports it;
      fewer than two have no average.
    left_out: by benchmark, (problems left out, problems of the file).
    seed: of the bootstrap.
    resamples: how often the problems are drawn again, at least 1.

  Returns:
    `MAIN_TABLE` with a column for each benchmark and their average, then a
    table for each benchmark with levels, a column for each of these; there
    pass@k and maj@k are those of the largest k and nothing is ranked. Last
    `LEFT_OUT_TABLE`, the share of problems left out, where there are any.
  """

  def column(metrics: Mapping[str, PerProblem]) -> dict[str, Estimate]:
    """Estimates of those metrics that have a value."""
    made = {
      name: estimate(values, seed=seed, resamples=resamples)
      for name, values in metrics.items()
    }
    return {name: found for name, found in made.items() if found is not None}

  metrics = {
    name: problem_metrics(responses, k)
    for name, responses in benchmarks.items()
  }
  main = {name: column(found) for name, found in metrics.items()}
  if len(averaged) > 1:
    main[AVERAGE] = _averages([metrics[n] for n in averaged], seed, resamples)
  tables: dict[str, Table] = {MAIN_TABLE: main}
  for name, responses in benchmarks.items():
    levels = {r.problem: r.level for r in responses}
    groups = [
      None if levels[problem] is None else f"level {levels[problem]}"
      for problem in sorted(levels)
    ]
    parts: dict[str, dict[str, PerProblem]] = {}
    for metric, values in _unranked(metrics[name], k).items():
      for level, part in by_group(values, groups).items():
        parts.setdefault(level, {})[metric] = part
    if parts:
      tables[f"{name} by level"] = {
        level: column(found) for level, found in parts.items()
      }
  missing = {
    name: {"left out": Estimate(value=count / total, count=total)}
    for name, (count, total) in left_out.items()
    if count
  }
  return tables | ({LEFT_OUT_TABLE: missing} if missing else {})


def _averages(
  metrics: Sequence[Mapping[str, PerProblem]], seed: int, resamples: int
) -> dict[str, Estimate]:
  """Averages of the metrics that every benchmark has."""
  made = {
    name: estimate_average(
      [found[name] for found in metrics], seed=seed, resamples=resamples
    )
    for name in metrics[0]
    if all(name in found for found in metrics)
  }
  return {name: found for name, found in made.items() if found is not None}


def _unranked(
  metrics: Mapping[str, PerProblem], k: Sequence[int]
) -> dict[str, PerProblem]:
  """Metrics of a table by level: the few that are looked at there."""
  rest = {f"{kind}@{size}" for kind in ("pass", "maj") for size in k}
  if k:
    rest -= {f"pass@{max(k)}", f"maj@{max(k)}"}
  for name in ("no answer", "timed out", "crashed"):
    rest |= {name, f"greedy {name}"}
  return {
    name: values
    for name, values in metrics.items()
    if name not in rest and not name.startswith(("best-of", "weighted"))
  }


def _chosen(
  rows: Sequence[Sequence[Response]], k: Sequence[int]
) -> dict[str, PerProblem]:
  """What the samples are worth: alone, together, by vote, by the PRM."""
  correct = _array(rows, lambda r: r.correct)
  mask = np.ones(correct.shape, bool)
  n = mask.shape[1]
  ids, has_answer = answer_metrics.answer_ids(
    [[response.answer for response in row] for row in rows],
    key=equivalence.vote_key,
  )
  found = {f"avg@{n}": answer_metrics.average(correct, mask)}
  for size in k:
    found[f"pass@{size}"] = answer_metrics.pass_at_k(correct, mask, size)
  for size in k:
    found[f"maj@{size}"] = answer_metrics.majority_at_k(
      correct, ids, has_answer, mask, size
    )
  if any(response.step_rewards is None for row in rows for response in row):
    return found
  rewards, step_mask = _step_rewards(rows)
  has_score = step_mask.any(-1)
  best, weighted = {}, {}
  for name, aggregate in AGGREGATIONS.items():
    scores = aggregate(rewards, step_mask)
    best[f"best-of-{n} {name}"] = answer_metrics.best_of_k(
      correct, scores, has_score, mask, n
    )
    weighted[f"weighted maj@{n} {name}"] = answer_metrics.weighted_majority(
      correct, ids, has_answer, scores, has_score, mask
    )
  return found | best | weighted


def _conduct(rows: Sequence[Sequence[Response]]) -> dict[str, PerProblem]:
  """How responses end, how long they are, and what the grader said of them."""
  values = {
    "truncated": _array(rows, lambda r: r.truncated),
    "tokens": _array(rows, lambda r: r.tokens),
    "no answer": _array(rows, lambda r: r.answer is None),
    "timed out": _array(rows, lambda r: r.timed_out),
    "crashed": _array(rows, lambda r: r.failure is not None),
  }
  return {
    name: answer_metrics.average(array, np.ones(array.shape, bool))
    for name, array in values.items()
  }


def _array(
  rows: Sequence[Sequence[Response]], value: Callable[[Response], Any]
) -> np.ndarray:
  """[P, n], something of each response."""
  return np.asarray([[value(response) for response in row] for row in rows])


def _step_rewards(
  rows: Sequence[Sequence[Response]],
) -> tuple[np.ndarray, np.ndarray]:
  """(rewards [P, n, S] float64, step mask [P, n, S] bool)."""
  count = _array(rows, lambda r: len(r.step_rewards or ()))
  mask = np.arange(count.max()) < count[..., None]
  rewards = np.zeros(mask.shape)
  rewards[mask] = [x for row in rows for r in row for x in r.step_rewards or ()]
  return rewards, mask
