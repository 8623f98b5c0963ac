"""Verdicts on answers of every kind, by hand, and on the rows of the data."""

import collections
import json

import pytest
import real_data
from graded_answers import ROWS

from pure_jax.host.grading import verify


@pytest.fixture(scope="module")
def pool():
  with verify.open_pool(workers=2, timeout_seconds=20.0) as pool:
    yield pool


def test_the_table_has_both_verdicts_of_every_kind():
  assert len(ROWS) == len({row[:3] for row in ROWS}) >= 150
  verdicts = collections.defaultdict(set)
  for kind, _, _, right in ROWS:
    verdicts[kind].add(right)
  assert all(found == {True, False} for found in verdicts.values()), verdicts


def test_every_verdict_of_the_table(pool):
  items = [(answer, reference) for _, reference, answer, _ in ROWS]
  outcomes = pool.run(items)
  graded = [
    (*row[:3], outcome.failure or outcome.timed_out or outcome.value)
    for row, outcome in zip(ROWS, outcomes, strict=True)
  ]
  pairs = zip(graded, ROWS, strict=True)
  assert not [row for row, expected in pairs if row != expected]


def test_every_reference_of_the_table_equals_itself_with_other_spaces(pool):
  references = sorted({reference for _, reference, _, _ in ROWS})
  outcomes = pool.run([(f"$ {text} $.", text) for text in references])
  assert [o.value for o in outcomes] == [True] * len(references)


def test_the_verdicts_of_the_data(pool):
  path = real_data.require("graders/verdicts.jsonl")
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  verdicts = verify.grade(
    pool,
    [row["responses"][0] for row in rows],
    [row["answer"] for row in rows],
  )
  wrong = [
    (row["kind"], row["answer"], row["responses"][0])
    for row, verdict in zip(rows, verdicts, strict=True)
    if [verdict.correct] != row["reference_correct"]
  ]
  assert len(rows) == 110 and not wrong
