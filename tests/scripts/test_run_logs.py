"""What a run of all stages logs: samples, generations, metrics."""

import itertools
import json
import re
import shutil

import field_reads
import metric_table
import numpy as np
from checkout import ROOT
from smoke_run import call, rows


def test_samples_carry_scores_and_credit(finished):
  for sample in rows(finished[0], "samples.jsonl"):
    scores = sample["step_rewards"]
    assert len(sample["steps"]) == len(scores) == len(sample["step_returns"])
    # The suffix minimum by hand; scores and credit are rounded to 1e-4.
    expected = [min(scores[first:]) for first in range(len(scores))]
    np.testing.assert_allclose(sample["step_returns"], expected, atol=1e-3)


def test_every_validation_shows_the_same_held_out_problems(finished):
  """Rows at different steps can be compared, with scores and verdicts."""
  by_step = {}
  for row in rows(finished[0], "generations.jsonl"):
    by_step.setdefault(row["step"], []).append(row)
  assert sorted(by_step) == [0, 2, 4]
  problems = [[row["problem"] for row in shown] for shown in by_step.values()]
  assert problems[0] == problems[1] == problems[2]
  assert len({*problems[0]}) == 4
  for row in itertools.chain(*by_step.values()):
    assert row["benchmark"] == "held_out" and not row["greedy"]
    assert row["correct"] == (row["answer"] == row["reference"])
    assert len(row["step_rewards"]) == min(len(row["steps"]), 12)
  evaluations = [row for row in rows(finished[0]) if row["stage"] == "rl_eval"]
  assert [row["step"] for row in evaluations] == [0, 2, 4]


def test_a_trained_prm_is_described_in_one_line(finished, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  done = call("train_prm.py", workdir)
  assert done.returncode == 0, done.stderr
  (line,) = done.stdout.splitlines()
  (evaluation,) = (
    row
    for row in rows(workdir)
    if (row["stage"], row["step"]) == ("prm_eval", 8)
  )
  number = f"{evaluation['balanced_accuracy']:.3f}"
  assert line.startswith("held-out step accuracy") and number in line
  assert f"the PRM is in {workdir / 'prm'}," in line


def test_every_logged_field_is_documented_and_every_documented_one_logged(
  finished,
):
  """In all stages of a run of the embedded world."""
  lines = (finished[0] / "metrics.jsonl").read_text().splitlines()
  metric_table.check(map(json.loads, lines), "PRM", "world")


def test_conditional_metrics_are_in_the_sources():
  """Those that no smoke run writes are at least names in the library."""
  folders = (ROOT / "pure_jax", ROOT / "experiments")
  sources = "\n".join(field_reads.sources(*folders))
  for field in metric_table.documented():
    name = field.name.replace("BENCHMARK/", "")
    # Such as "rollout" of rollout_tokens_per_second: the rest is put together.
    name = re.split("_given_|_of_N|_tokens_per_second|_seconds", name)[0]
    if name == "NAME_per_update":  # Of any name.
      assert '{name}_per_update"' in sources
      continue
    assert re.search(rf"\"{name}\"|\b{name}(_of_|_given_)", sources), name
