"""The tables of an evaluation once more, from lines of JSON, by enumeration.

An oracle: subsets are listed, votes counted, intervals drawn one by one. It
shares with the library how a vote is spelled and which numbers a seed draws.
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
  """How right the heaviest answer is; ties share."""
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
  """A class is as right as all its responses of the problem are."""
  classes = collections.defaultdict(list)
  for row in rows:
    if row["answer"] is not None:
      classes[vote_key(row["answer"])].append(row["correct"])
  share = {name: sum(found) / len(found) for name, found in classes.items()}
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


def conduct(rows):
  return {
    "truncated": mean(rows, lambda r: r["truncated"]),
    "tokens": mean(rows, lambda r: r["tokens"]),
    "no answer": mean(rows, lambda r: r["answer"] is None),
    "timed out": mean(rows, lambda r: r["timed_out"]),
    "crashed": mean(rows, lambda r: r["failure"] is not None),
  }


def problem_numbers(rows, ks):
  """Every metric of one problem."""
  found = {}
  greedy = [row for row in rows if row["sample"] is None]
  samples = [row for row in rows if row["sample"] is not None]
  if greedy:
    found["greedy pass@1"] = float(greedy[0]["correct"])
    for name, value in conduct(greedy).items():
      found[f"greedy {name}"] = value
  if not samples:
    return found
  n = len(samples)
  found[f"avg@{n}"] = mean(samples, lambda r: r["correct"])
  for k in ks:
    subsets = list(itertools.combinations(samples, k))
    solved = [any(row["correct"] for row in subset) for subset in subsets]
    found[f"pass@{k}"] = sum(solved) / len(solved)
    found[f"maj@{k}"] = majority(samples, k)
  if samples[0]["step_rewards"] is not None:
    for name, score in SCORES.items():
      scores = [score(row["step_rewards"]) for row in samples]
      found[f"best-of-{n} {name}"] = best_of(samples, scores)
      found[f"weighted maj@{n} {name}"] = vote(samples, scores)
  return found | conduct(samples)


def interval(values, seed, resamples):
  rng = np.random.default_rng(seed)
  means = []
  for _ in range(resamples):
    drawn = [values[i] for i in rng.integers(0, len(values), len(values))]
    means.append(sum(drawn) / len(drawn))
  return np.quantile(means, [0.025, 0.975]).tolist()


def estimate(values, seed, resamples):
  found = {"value": sum(values) / len(values), "count": len(values)}
  if len(values) > 1:
    found["interval"] = interval(values, seed, resamples)
  return found


def average(parts, seed, resamples):
  """Mean of means; each benchmark's problems are drawn for themselves."""
  rng = np.random.default_rng(seed)
  drawn = [rng.integers(0, len(p), (resamples, len(p))) for p in parts]
  means = [
    sum(
      sum(part[i] for i in rows[trial]) / len(part)
      for part, rows in zip(parts, drawn, strict=True)
    )
    / len(parts)
    for trial in range(resamples)
  ]
  return {
    "value": sum(sum(part) / len(part) for part in parts) / len(parts),
    "count": sum(map(len, parts)),
    "interval": np.quantile(means, [0.025, 0.975]).tolist(),
  }


def tables(rows, ks, averaged, seed, resamples):
  """All tables, from rows in any order."""
  numbers = collections.defaultdict(dict)
  levels = {}
  for row in rows:
    levels[row["benchmark"], row["problem"]] = row["level"]
  for benchmark, problem in sorted(levels):
    own = [
      row
      for row in rows
      if (row["benchmark"], row["problem"]) == (benchmark, problem)
    ]
    own.sort(key=lambda row: row["sample"] or 0)
    numbers[benchmark][problem] = problem_numbers(own, ks)
  main = {
    name: {
      metric: estimate([p[metric] for p in found.values()], seed, resamples)
      for metric in next(iter(found.values()))
    }
    for name, found in numbers.items()
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
  made = {"Benchmarks": main}
  for name, found in numbers.items():
    there = sorted({levels[name, p] for p in found} - {None})
    if there:
      made[f"{name} by level"] = {
        f"level {level}": by_level(
          [v for p, v in found.items() if levels[name, p] == level],
          ks,
          seed,
          resamples,
        )
        for level in there
      }
  return made


def by_level(found, ks, seed, resamples):
  kept = ["greedy pass@1", "greedy truncated", "greedy tokens"]
  kept += [name for name in found[0] if name.startswith("avg@")]
  kept += [f"pass@{max(ks)}", f"maj@{max(ks)}"] if ks else []
  kept += ["truncated", "tokens"]
  return {
    name: estimate([p[name] for p in found], seed, resamples)
    for name in kept
    if name in found[0]
  }


def assert_same(actual, expected):
  """Two sets of tables, numbers to 1e-9 for the order of their sums."""
  if isinstance(expected, dict):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
      assert_same(actual[name], value)
  else:
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
