"""An evaluation whose responses take turns writes those of one loop.

python -m pytest -m slow tests/scripts/test_evaluate_turns.py
"""

import json

import evaluate
import pytest
from configs import evaluate as config_file
from overrides import with_changes

from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.evaluation import EvaluationSettings

# Two benchmarks of 6 problems, one greedy response and 4 samples each.
TURNS = {"batch_rows": 40, "engine__rows": 8, "engine__chunk": 7}


def written(workdir, **changes):
  """Evaluates; the responses by what they answer."""
  # Long enough for responses that end at six different lengths.
  changes = {"progress": False, "sampler__max_new_tokens": 48} | changes
  fields = with_changes(config_file.get_config("smoke"), **changes)
  evaluate.evaluate(
    conversion.settings_from_config(fields, EvaluationSettings),
    str(workdir),
  )
  lines = (workdir / "responses.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return {
    (row["benchmark"], row["problem"], row["sample"]): row for row in rows
  }


@pytest.mark.slow
def test_responses_that_take_turns_are_those_of_one_loop(tmp_path, monkeypatch):
  """Of another problem, sample or batch they would be graded as this one's."""
  expected = written(tmp_path / "loop")
  asked = []
  start = evaluate.ResponseWriter.start

  def watched(writer, units, rows):
    asked.append((len(units), rows))
    return start(writer, units, rows)

  monkeypatch.setattr(evaluate.ResponseWriter, "start", watched)
  found = written(tmp_path / "turns", **TURNS)
  # Greedy ones, then samples in two batches that are alike.
  assert asked == [(12, 16), (24, 24), (24, 24)]
  assert len(found) == 60 and found.keys() == expected.keys()
  # Places were free at different times, or turns would say little.
  assert len({row["tokens"] for row in found.values()}) > 3
  for key, row in found.items():
    scores, known = row.pop("step_rewards"), expected[key].pop("step_rewards")
    assert scores == pytest.approx(known, abs=2e-5)
    assert row == expected[key]


@pytest.mark.slow
def test_turns_that_were_cut_end_as_those_that_were_not(tmp_path):
  """The very batch is written again, bit for bit."""
  workdir = tmp_path / "turns"
  written(workdir, **TURNS)
  path = workdir / "responses.jsonl"
  whole = path.read_bytes()
  path.write_bytes(b"".join(whole.splitlines(keepends=True)[:41]))
  written(workdir, **TURNS)
  assert path.read_bytes() == whole
