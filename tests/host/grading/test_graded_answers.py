"""Verdicts on answers of every kind, by hand, and on the rows of the data.

The table graded_answers.tsv has a kind, a reference, an answer and whether it
is right, which is a matter of mathematics and not of the code. Each kind has
right answers that a strict grader loses and wrong ones that a lenient grader
accepts.
"""

import collections
import json
import pathlib

import pytest
import real_data

from pure_jax.host.grading import equivalence, verify

TABLE = pathlib.Path(__file__).with_name("graded_answers.tsv")
ROWS = [
  (*fields, right == "yes")
  for *fields, right in (
    line.split("\t") for line in TABLE.read_text().splitlines()[1:]
  )
]


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


def test_every_verdict_of_the_table():
  wrong = [
    row for row in ROWS if equivalence.equivalent(row[2], row[1]) is not row[3]
  ]
  assert not wrong


def test_every_verdict_of_the_table_in_a_worker(pool):
  """A worker forbids what comparisons must not need."""
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
