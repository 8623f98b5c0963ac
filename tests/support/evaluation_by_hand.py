"""The tables of an evaluation of a policy, from lines of JSON, by enumeration.

An oracle for `host.evaluation.tables`: it lists subsets, counts votes, and
draws resamples one by one. It shares with the library `vote_key` and the random
numbers of a seed.
"""

import collections
import itertools
import math

import numpy as np

from pure_jax.host.grading.equivalence import vote_key


def softmin(rewards):
  weights = [math.exp(-reward / 0.1) for reward in rewards]
  both = zip(weights, rewards, strict=True)
  return (1 + sum(w * r for w, r in both) / sum(weights)) / 2


def good(rewards):
  return [(reward + 1) / 2 for reward in rewards]


SCORES = {
  "minimum": lambda rewards: min(good(rewards)),
  "softmin": softmin,
  "last": lambda rewards: good(rewards)[-1],
  "product": lambda rewards: math.prod(good(rewards)),
  "mean": lambda rewards: sum(good(rewards)) / len(rewards),
}


def vote(rows, weights):
  """The share of correct responses of the heaviest answer; ties average."""
  total, right = collections.defaultdict(float), collections.defaultdict(list)
  for row, weight in zip(rows, weights, strict=True):
    if row["answer"] is not None:
      total[vote_key(row["answer"])] += weight
      right[vote_key(row["answer"])].append(row["correct"])
  if not total:
    return 0.0
  best = [a for a in total if abs(total[a] - max(total.values())) < 1e-12]
  return sum(sum(right[a]) / len(right[a]) for a in best) / len(best)


def majority(rows, k):
  """The value of an answer is the share of its responses that are correct."""
  classes = collections.defaultdict(list)
  for row in rows:
    if row["answer"] is not None:
      classes[vote_key(row["answer"])].append(row["correct"])
  share = {name: sum(right) / len(right) for name, right in classes.items()}
  values = []
  for chosen in itertools.combinations(rows, k):
    names = [vote_key(r["answer"]) for r in chosen if r["answer"] is not None]
    counts = collections.Counter(names)
    best = [a for a in counts if counts[a] == max(counts.values())]
    values.append(sum(share[a] for a in best) / len(best) if best else 0.0)
  return sum(values) / len(values)


def best_of(rows, scores):
  best = [r for r, s in zip(rows, scores, strict=True) if s == max(scores)]
  return sum(row["correct"] for row in best) / len(best)


def mean(rows, value):
  return sum(value(row) for row in rows) / len(rows)


def response_rates(rows):
  return {
    "truncated": mean(rows, lambda r: r["truncated"]),
    "tokens": mean(rows, lambda r: r["tokens"]),
    "repetition": mean(rows, lambda r: r["repetition"]),
    "high repetition": mean(rows, lambda r: r["repetition"] > 0.2),
    "no answer": mean(rows, lambda r: r["answer"] is None),
    "timed out": mean(rows, lambda r: r["timed_out"]),
    "crashed": mean(rows, lambda r: r["failure"] is not None),
  }


def problem_numbers(rows, ks):
  """Every metric of one problem."""
  metrics = {}
  greedy = [row for row in rows if row["sample"] is None]
  samples = [row for row in rows if row["sample"] is not None]
  if greedy:
    metrics["greedy pass@1"] = float(greedy[0]["correct"])
    for name, value in response_rates(greedy).items():
      metrics[f"greedy {name}"] = value
  if not samples:
    return metrics
  n = len(samples)
  metrics[f"avg@{n}"] = mean(samples, lambda r: r["correct"])
  for k in ks:
    subsets = list(itertools.combinations(samples, k))
    solved = [any(row["correct"] for row in subset) for subset in subsets]
    metrics[f"pass@{k}"] = sum(solved) / len(solved)
    metrics[f"maj@{k}"] = majority(samples, k)
  if samples[0]["step_rewards"] is not None:
    for name, score in SCORES.items():
      scores = [score(row["step_rewards"]) for row in samples]
      metrics[f"best-of-{n} {name}"] = best_of(samples, scores)
      metrics[f"weighted maj@{n} {name}"] = vote(samples, scores)
  return metrics | response_rates(samples)


def interval(values, seed, resamples):
  rng = np.random.default_rng(seed)
  means = []
  for _ in range(resamples):
    drawn = [values[i] for i in rng.integers(0, len(values), len(values))]
    means.append(sum(drawn) / len(drawn))
  return np.quantile(means, [0.025, 0.975]).tolist()


def estimate(values, seed, resamples):
  result = {"value": sum(values) / len(values), "count": len(values)}
  if len(values) > 1:
    result["interval"] = interval(values, seed, resamples)
  return result


def average(benchmarks, seed, resamples):
  """Mean of means; the problems of each benchmark are drawn separately."""
  rng = np.random.default_rng(seed)
  drawn = [rng.integers(0, len(p), (resamples, len(p))) for p in benchmarks]
  means = [
    sum(
      sum(values[i] for i in rows[trial]) / len(values)
      for values, rows in zip(benchmarks, drawn, strict=True)
    )
    / len(benchmarks)
    for trial in range(resamples)
  ]
  averages = [sum(values) / len(values) for values in benchmarks]
  return {
    "value": sum(averages) / len(averages),
    "count": sum(map(len, benchmarks)),
    "interval": np.quantile(means, [0.025, 0.975]).tolist(),
  }


def tables(rows, ks, averaged, seed, resamples):
  """All tables, from rows in any order."""
  numbers = collections.defaultdict(dict)
  levels = {}
  for row in rows:
    levels[row["benchmark"], row["problem"]] = row["level"]
  for benchmark, problem in sorted(levels):
    problem_rows = [
      row
      for row in rows
      if (row["benchmark"], row["problem"]) == (benchmark, problem)
    ]
    problem_rows.sort(key=lambda row: row["sample"] or 0)
    numbers[benchmark][problem] = problem_numbers(problem_rows, ks)
  main = {
    name: {
      metric: estimate([p[metric] for p in problems.values()], seed, resamples)
      for metric in next(iter(problems.values()))
    }
    for name, problems in numbers.items()
  }
  if len(averaged) > 1:
    main["average"] = {
      metric: average(
        [[p[metric] for p in numbers[name].values()] for name in averaged],
        seed,
        resamples,
      )
      for metric in main[averaged[0]]
      if all(metric in main[name] for name in averaged)
    }
  result = {"Benchmarks": main}
  for name, problems in numbers.items():
    known_levels = sorted({levels[name, p] for p in problems} - {None})
    if known_levels:
      result[f"{name} by level"] = {
        f"level {level}": by_level(
          [v for p, v in problems.items() if levels[name, p] == level],
          ks,
          seed,
          resamples,
        )
        for level in known_levels
      }
  return result


def by_level(problems, ks, seed, resamples):
  names = ["greedy pass@1", "greedy truncated", "greedy tokens"]
  names += [name for name in problems[0] if name.startswith("avg@")]
  names += [f"pass@{max(ks)}", f"maj@{max(ks)}"] if ks else []
  names += ["truncated", "tokens"]
  return {
    name: estimate([p[name] for p in problems], seed, resamples)
    for name in names
    if name in problems[0]
  }


def assert_same(actual, expected):
  """Two sets of tables, numbers to 1e-9 for the order of their sums."""
  if isinstance(expected, dict):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
      assert_same(actual[name], value)
  else:
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
