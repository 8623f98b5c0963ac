"""Tables of an evaluation of a policy, computed from graded responses.

Names of metrics: *greedy* metrics are of the greedy response of each problem,
all others of its n samples. *avg@n* is the mean accuracy of the samples,
*pass@k* and *maj@k* are expectations over subsets of k, *best-of-n* selects and
*weighted maj@n* weighs votes by a score of the PRM (`response_scores`). Answers
vote for the same value if `equivalence.vote_key` is equal, whether or not they
are correct. A response without an answer, or whose comparison did not finish
(*timed out*, *crashed*), is not correct. *tokens* is the response length.
*repetition* is `repetition.repetition_score` of a response, *high repetition*
the share of responses above `HIGH_REPETITION`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pure_jax.host.evaluation import answer_metrics
from pure_jax.host.evaluation.intervals import (
  Bootstrap,
  Estimate,
  estimate_mean,
)
from pure_jax.host.evaluation.repetition import HIGH_REPETITION
from pure_jax.host.evaluation.report import Table
from pure_jax.host.evaluation.response_file import Response
from pure_jax.host.evaluation.response_scores import response_scores
from pure_jax.host.grading import equivalence

MAIN_TABLE = "Benchmarks"
LEFT_OUT_TABLE = "Problems left out"
AVERAGE = "average"


def _problem_metrics(
  responses: Iterable[Response], k: Sequence[int]
) -> dict[str, np.ndarray]:
  """Computes every metric of one benchmark: [P] values, problems by their ids.

  Empty without responses. k is at most the number of samples.
  """
  responses = list(responses)
  greedy = _group([r for r in responses if r.sample is None])
  sampled = _group([r for r in responses if r.sample is not None])
  metrics = {}
  if greedy:
    metrics["greedy pass@1"] = _array(greedy, lambda r: r.correct).mean(1)
    for name, values in _response_rates(greedy).items():
      metrics[f"greedy {name}"] = values
  if sampled:
    metrics |= _sample_metrics(sampled, k) | _response_rates(sampled)
  return metrics


def _group(responses: Iterable[Response]) -> list[list[Response]]:
  """Groups responses by problem, sorted by id, samples by their numbers."""
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
  bootstrap: Bootstrap,
) -> dict[str, Table]:
  """Computes the tables that `report.write_report` writes.

  Args:
    benchmarks: responses by benchmark, in any order within one.
    k: subset sizes of pass@k and maj@k, each at most the number of samples.
    averaged: benchmarks of the average column, as the paper reports it; with
      fewer than two there is no such column.
    left_out: by benchmark, (problems left out, problems of the file).
    bootstrap: how intervals are computed.

  Returns:
    `MAIN_TABLE` with a column for each benchmark and their average; then, for
    each benchmark with levels, a table with a column for each level and fewer
    metrics; then `LEFT_OUT_TABLE`, the share of problems left out, if any are.

  Raises:
    ValueError: if one problem of a benchmark has more responses than another.
  """
  metrics = {
    name: _problem_metrics(responses, k)
    for name, responses in benchmarks.items()
  }
  main = {name: _column([of], bootstrap) for name, of in metrics.items()}
  if len(averaged) > 1:
    main[AVERAGE] = _column([metrics[name] for name in averaged], bootstrap)
  tables: dict[str, Table] = {MAIN_TABLE: main}
  for name, responses in benchmarks.items():
    by_level = _level_columns(
      responses, _level_metrics(metrics[name], k), bootstrap
    )
    if by_level:
      tables[f"{name} by level"] = by_level
  missing = {
    name: {"left out": Estimate(value=count / total, count=total)}
    for name, (count, total) in left_out.items()
    if count
  }
  return tables | ({LEFT_OUT_TABLE: missing} if missing else {})


def _column(
  benchmarks: Sequence[Mapping[str, np.ndarray]], bootstrap: Bootstrap
) -> dict[str, Estimate]:
  """Estimates the metrics that all benchmarks have, averaged over them."""
  return {
    name: estimate_mean([metrics[name] for metrics in benchmarks], bootstrap)
    for name in benchmarks[0]
    if all(name in metrics for metrics in benchmarks)
  }


def _level_columns(
  responses: Sequence[Response],
  metrics: Mapping[str, np.ndarray],
  bootstrap: Bootstrap,
) -> dict[str, dict[str, Estimate]]:
  """Returns the columns of a table by level; empty if no level is known."""
  level_of = {r.problem: r.level for r in responses}
  levels = [f"level {level_of[problem]}" for problem in sorted(level_of)]
  columns = {}
  for level in sorted({*levels} - {"level None"}):
    rows = [row for row, other in enumerate(levels) if other == level]
    of_level = {name: values[rows] for name, values in metrics.items()}
    columns[level] = _column([of_level], bootstrap)
  return columns


def _level_metrics(
  metrics: Mapping[str, np.ndarray], k: Sequence[int]
) -> dict[str, np.ndarray]:
  """Selects the metrics of a table by level.

  Of pass@k and maj@k it has the largest k; it has no best-of-n, weighted vote,
  repetition or grading failures.
  """
  omitted = {f"{kind}@{size}" for kind in ("pass", "maj") for size in k}
  if k:
    omitted -= {f"pass@{max(k)}", f"maj@{max(k)}"}
  for name in (
    *("repetition", "high repetition"),
    *("no answer", "timed out", "crashed"),
  ):
    omitted |= {name, f"greedy {name}"}
  return {
    name: values
    for name, values in metrics.items()
    if name not in omitted and not name.startswith(("best-of", "weighted"))
  }


def _sample_metrics(
  rows: Sequence[Sequence[Response]], k: Sequence[int]
) -> dict[str, np.ndarray]:
  """Computes avg@n, pass@k, maj@k and, with step rewards, those of the PRM."""
  correct = _array(rows, lambda r: r.correct)
  n = correct.shape[1]
  ids, has_answer = answer_metrics.answer_ids(
    [[response.answer for response in row] for row in rows],
    key=equivalence.vote_key,
  )
  metrics = {f"avg@{n}": correct.mean(1)}
  for size in k:
    metrics[f"pass@{size}"] = answer_metrics.pass_at_k(correct, size)
  for size in k:
    metrics[f"maj@{size}"] = answer_metrics.majority_at_k(
      correct, ids, has_answer, size
    )
  if any(response.step_rewards is None for row in rows for response in row):
    return metrics
  rewards, step_mask = _step_rewards(rows)
  has_score = step_mask.any(-1)
  best, weighted = {}, {}
  for name, scores in response_scores(rewards, step_mask).items():
    best[f"best-of-{n} {name}"] = answer_metrics.best_of_k(
      correct, scores, has_score, n
    )
    weighted[f"weighted maj@{n} {name}"] = answer_metrics.weighted_majority(
      correct, ids, has_answer, scores, has_score
    )
  return metrics | best | weighted


def _response_rates(
  rows: Sequence[Sequence[Response]],
) -> dict[str, np.ndarray]:
  """Computes truncation, length, repetition, and the outcomes of grading."""
  repetition = _array(rows, lambda r: r.repetition)
  return {
    "truncated": _array(rows, lambda r: r.truncated).mean(1),
    "tokens": _array(rows, lambda r: r.tokens).mean(1),
    "repetition": repetition.mean(1),
    "high repetition": (repetition > HIGH_REPETITION).mean(1),
    "no answer": _array(rows, lambda r: r.answer is None).mean(1),
    "timed out": _array(rows, lambda r: r.timed_out).mean(1),
    "crashed": _array(rows, lambda r: r.failure is not None).mean(1),
  }


def _array(
  rows: Sequence[Sequence[Response]], value: Callable[[Response], Any]
) -> np.ndarray:
  """Returns [P, n], one value per response."""
  return np.asarray([[value(response) for response in row] for row in rows])


def _step_rewards(
  rows: Sequence[Sequence[Response]],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (rewards [P, n, S] float64, step mask [P, n, S] bool)."""
  count = _array(rows, lambda r: len(r.step_rewards or ()))
  mask = np.arange(count.max()) < count[..., None]
  rewards = np.zeros(mask.shape)
  rewards[mask] = [x for row in rows for r in row for x in r.step_rewards or ()]
  return rewards, mask
