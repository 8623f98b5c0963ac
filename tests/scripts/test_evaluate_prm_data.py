"""Data sets of an evaluation of a PRM: own responses, held-out problems."""

import dataclasses
import json

import evaluate_prm
import numpy as np
import pytest
from prm_evaluations import finished_evaluation, report, scores, smoke

from pure_jax.host.data.records import problem_key
from pure_jax.host.evaluation import report as report_files
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.tasks import tiny_files
from pure_jax.runs.workdir import WorkdirError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """The folder of the tiny PRM and its data sets; not to be changed."""
  return finished_evaluation(tmp_path_factory.getbasetemp())[0] / "tiny"


@pytest.fixture(autouse=True)
def without_pictures(tiny, monkeypatch):
  """Draws no picture: it takes seconds."""
  monkeypatch.setattr(report_files, "plot_tables", lambda *unused: [])


def test_responses_of_a_policy_are_scored_and_ranked(tiny, tmp_path):
  """As the same steps in another file; labels are those of equations."""
  problems = tiny_files.write_problems(tmp_path)["held_out"]
  lines, same = [], []
  for line in problems.read_text().splitlines()[:6]:
    row = json.loads(line)
    right = row["solution"].split("\n\n")
    wrong = [right[0], "So $9 - 2 = 3$.", "The answer is $\\boxed{3}$."]
    for sample, steps in ((None, right), (0, right), (1, wrong)):
      lines.append(
        {
          "problem": f"math500/{row['unique_id']}",
          "sample": sample,
          "text": "\n\n".join(steps),
          "correct": steps is right,
        }
      )
      if sample is not None:
        labels = [True, steps is right, True]
        same.append(
          {"prompt": row["problem"], "completions": steps, "labels": labels}
        )
  data = []
  for name, rows in (("responses", lines), ("stepwise", same)):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data.append({"name": name, "file": str(path), "format": name})
  data[0] |= {"problems": str(problems), "problems_format": "math500"}
  settings = smoke(random_model=None, prm=str(tiny / "prm"), data=tuple(data))
  evaluate_prm.evaluate(settings, str(tmp_path / "run"))
  own, other = (
    [row for row in scores(tmp_path / "run") if row["data"] == name]
    for name in ("responses", "stepwise")
  )
  assert len(own) == len(other) == 12  # Without the greedy responses.
  for one, two in zip(own, other, strict=True):
    assert one["problem"] == two["problem"]
    np.testing.assert_allclose(
      one["step_rewards"], two["step_rewards"], atol=1e-6
    )
    assert one["labels"] == [1, int(one["final_correct"]), None]
  tables = report(tmp_path / "run")["tables"]
  ranking = tables["Ranking of solutions"]["responses"]
  scored = {True: [], False: []}
  for row in own:
    scored[row["final_correct"]].append(min(row["step_rewards"]))
  wins = [
    (right > wrong) + (right == wrong) / 2
    for right, wrong in zip(scored[True], scored[False], strict=True)
  ]
  assert ranking["auc within problems minimum"]["value"] == np.mean(wins)
  assert ranking["auc within problems minimum"]["count"] == 6
  assert tables["Steps"]["responses"]["good_share"]["value"] == 0.75
  # Outcomes of the other file are unknown.
  assert tables["Ranking of solutions"]["stepwise"] == {}
  # A later run with other problems is not continued.
  problems.write_text(problems.read_text().replace("Find it", "Find this"))
  with pytest.raises(WorkdirError, match="contents"):
    evaluate_prm.evaluate(settings, str(tmp_path / "run"))


def test_only_held_out_problems_are_scored(tiny, tmp_path):
  path = tiny / "processbench.jsonl"
  listed = {"name": "a", "file": str(path), "format": "processbench"}
  settings = smoke(
    random_model=None,
    prm=str(tiny / "prm"),
    data=(listed | {"held_out_one_in": 4},),
  )
  evaluate_prm.evaluate(settings, str(tmp_path / "run"))
  texts = [json.loads(line) for line in path.read_text().splitlines()]
  expected = [
    row["id"] for row in texts if int(problem_key(row["problem"]), 16) % 4 == 0
  ]
  rows = sorted(scores(tmp_path / "run"), key=lambda row: row["row"])
  assert [row["id"] for row in rows] == [f"processbench/{i}" for i in expected]
  assert 0 < len(rows) < 96
  none = dataclasses.replace(settings.data[0], held_out_one_in=10**6)
  settings = dataclasses.replace(settings, data=(none,))
  with pytest.raises(ConfigError, match="holds out no problem of"):
    evaluate_prm.evaluate(settings, str(tmp_path / "none"))
