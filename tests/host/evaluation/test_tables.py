"""Tables of an evaluation of a policy, against enumeration."""

import dataclasses

import evaluation_by_hand
import numpy as np
import pytest

from pure_jax.host.evaluation import tables as evaluation_tables
from pure_jax.host.evaluation.intervals import Bootstrap
from pure_jax.host.evaluation.response_file import Response

# Spellings of three answers; the first is right.
ANSWERS = (("7", "7.0", "$7$"), ("8", r"\frac{16}{2}"), ("x + 1", "x+1"))


def response(rng, benchmark, problem, sample, with_prm=True):
  """A random response: right or wrong, with or without an answer."""
  kind = int(rng.choice(4, p=[0.35, 0.25, 0.2, 0.2]))
  answer = None if kind == 3 else str(rng.choice(ANSWERS[kind]))
  failed = answer is not None and kind > 0 and rng.random() < 0.2
  steps = int(rng.integers(1, 5))
  # Coarse scores, so that ties happen.
  rewards = rng.integers(-4, 5, steps) / 4
  return Response(
    benchmark=benchmark,
    problem=f"{benchmark}/{problem}",
    sample=sample,
    text="...",
    tokens=int(rng.integers(1, 50)),
    truncated=bool(rng.random() < 0.3),
    repetition=float(rng.integers(0, 5) / 10),  # 0.2 is not above 0.2.
    answer=answer,
    correct=kind == 0,
    timed_out=bool(failed and rng.random() < 0.5),
    failure="out of memory" if failed else None,
    step_rewards=tuple(map(float, rewards)) if with_prm else None,
    level=None if benchmark == "flat" else int(problem % 3) + 1,
    subject=None,
  )


def responses(benchmark, problems, samples, greedy=True, **options):
  rng = np.random.default_rng(len(benchmark) + problems)
  numbers = [None] * greedy + [*range(samples)]
  return [
    response(rng, benchmark, problem, sample, **options)
    for sample in numbers
    for problem in range(problems)
  ]


def tables_of(benchmarks, k=(1, 2, 5), averaged=(), left_out=None):
  return evaluation_tables.evaluation_tables(
    benchmarks,
    k=k,
    averaged=averaged,
    left_out=left_out or {},
    bootstrap=Bootstrap(seed=3, resamples=50),
  )


def by_hand(benchmarks, k=(1, 2, 5), averaged=()):
  rows = [dataclasses.asdict(r) for group in benchmarks.values() for r in group]
  return evaluation_by_hand.tables(rows, k, averaged, 3, 50)


def test_every_number_by_enumeration():
  benchmarks = {
    "first": responses("first", 7, 5),
    "flat": responses("flat", 4, 5),
    "other": responses("other", 1, 5),
  }
  averaged = ("first", "flat")
  tables = tables_of(benchmarks, averaged=averaged)
  assert list(tables) == ["Benchmarks", "first by level", "other by level"]
  assert list(tables["Benchmarks"]) == ["first", "flat", "other", "average"]
  evaluation_by_hand.assert_same(tables, by_hand(benchmarks, averaged=averaged))
  # Values of 0 or 1 would hide errors.
  values = tables["Benchmarks"]["first"]
  for name in ("pass@2", "maj@5", "best-of-5 softmin", "weighted maj@5 last"):
    assert 0 < values[name]["value"] < 1, name


@pytest.mark.parametrize(
  ("options", "absent"),
  [
    ({"greedy": False}, "greedy"),
    ({"samples": 0}, "avg@"),
    ({"with_prm": False}, "best-of"),
  ],
)
def test_metrics_that_were_not_requested_are_absent(options, absent):
  arguments = {"problems": 4, "samples": 3} | options
  benchmarks = {"one": responses("one", **arguments)}
  k = () if arguments["samples"] == 0 else (2, 3)
  tables = tables_of(benchmarks, k=k, averaged=("one",))  # No average of one.
  evaluation_by_hand.assert_same(tables, by_hand(benchmarks, k, ("one",)))
  names = tables["Benchmarks"]["one"]
  assert names and not [name for name in names if absent in name]


def test_the_order_of_the_lines_has_no_effect():
  """A resumed run writes another order, and the bootstrap draws by position."""
  ordered = responses("first", 6, 4)
  shuffled = [
    ordered[i] for i in np.random.default_rng(0).permutation(len(ordered))
  ]
  assert tables_of({"a": ordered}, k=(2,)) == tables_of({"a": shuffled}, k=(2,))


def test_problems_left_out_have_a_table():
  benchmarks = {"one": responses("one", 4, 2), "two": responses("two", 4, 2)}
  counts = {"one": (1, 5), "two": (0, 4)}
  tables = tables_of(benchmarks, k=(2,), left_out=counts)
  shares = {"one": {"left out": {"value": 0.2, "count": 5}}}
  assert tables["Problems left out"] == shares
  # They change no other number, and without them there is no such table.
  assert tables["Benchmarks"] == tables_of(benchmarks, k=(2,))["Benchmarks"]
  assert "Problems left out" not in tables_of(benchmarks, k=(2,))


def test_an_incomplete_evaluation_raises():
  """A problem with fewer samples would count as more certain than it is."""
  incomplete = responses("first", 3, 4)[:-1]
  with pytest.raises(ValueError, match=r"first/2 has 3 responses, first/0 has"):
    evaluation_tables._problem_metrics(incomplete, (2,))


def test_no_responses_have_no_metrics():
  assert evaluation_tables._problem_metrics([], (1,)) == {}
  assert tables_of({}) == {"Benchmarks": {}}
