"""The evaluation of a PRM: numbers, limits, restarts, sources of the PRM."""

import json
import math
import pathlib
import shutil
import signal
import time

import evaluate_prm
import numpy as np
import pytest
from configs import gsm8k_prm
from policy_evaluations import start_process
from prm_evaluations import finished_evaluation, mesh, report, scores, smoke
from small_models import initial_params

from pure_jax.host import huggingface
from pure_jax.host.checkpoints.weights import save_tree
from pure_jax.host.evaluation import report as report_files
from pure_jax.models import prm
from pure_jax.runs.run import open_run
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.tasks import tiny_files
from pure_jax.runs.workdir import WorkdirError

RESAMPLES = "--config.resamples=20"  # As `smoke` has it.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Folder and text of a finished evaluation; not to be changed."""
  return finished_evaluation(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def without_pictures(finished, monkeypatch):
  """Draws no picture but that of `finished`: it takes seconds."""
  monkeypatch.setattr(report_files, "plot_tables", lambda *unused: [])


@pytest.fixture
def copy(finished, tmp_path):
  """A copy of the finished evaluation, to be changed."""
  return pathlib.Path(shutil.copytree(finished[0], tmp_path / "copy"))


# ===== Numbers =====


def test_every_solution_is_scored_once_with_a_reward_for_each_step(finished):
  rows = scores(finished[0])
  keys = [(row["data"], row["row"]) for row in rows]
  assert sorted(keys) == [
    *(("prm800k", i) for i in range(48)),
    *(("processbench", i) for i in range(96)),
  ]
  for row in rows:
    assert row["left_out"] is None
    assert len(row["step_rewards"]) == len(row["labels"])
  good = [reward > 0 for row in rows for reward in row["step_rewards"]]
  assert 0.1 < np.mean(good) < 0.9  # Rewards lie on both sides of 0.


def test_scores_equal_those_of_transformers_on_ids_made_by_hand(finished):
  """Reading the score at another token would change every one of them."""
  torch = pytest.importorskip("torch", reason="torch comes with [test]")
  import transformers

  folder = finished[0] / "tiny" / "prm"
  model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  data = [
    json.loads(line)
    for line in (finished[0] / "tiny" / "processbench.jsonl")
    .read_text()
    .splitlines()
  ]
  single = {tokenizer.decode([i]): i for i in range(len(tokenizer))}
  (newline,) = tokenizer.encode("\n")
  split = 0
  for row in [r for r in scores(finished[0]) if r["data"] == "processbench"]:
    # In right solutions every separator is merged with the text before it.
    if row["row"] > 10 or not row["final_correct"]:
      continue
    given = data[row["row"]]
    ids, read_at = tokenizer.encode(given["problem"]), []
    for i in [*tokenizer.encode("\n\n".join(given["steps"])), None]:
      text = "\n\n" if i is None else tokenizer.decode([i])  # None is EOS.
      if not text.endswith("\n\n"):
        ids.append(i)
        continue
      stem = text.removesuffix("\n\n")
      if stem:
        # The id of the full stop alone; without such an id, the merged one.
        ids.append(single.get(stem, i))
        split += stem in single
      read_at.append(len(ids))
      ids.append(newline)
    with torch.no_grad():
      logits = model(torch.tensor([ids])).logits[0, read_at]
    bad, good = logits.softmax(-1).T.tolist()
    expected = [g - b for g, b in zip(good, bad, strict=True)]
    np.testing.assert_allclose(row["step_rewards"], expected, atol=1e-5)
  assert split


def by_loops(rows):
  """Every metric of the smoke report, by loops."""
  hits = {"error": [], "correct": []}
  steps = []
  for row in rows:
    first = row["labels"].index(0) if 0 in row["labels"] else None
    predicted = None
    for index, reward in enumerate(row["step_rewards"]):
      if reward <= 0 and predicted is None:
        predicted = index
    hits["correct" if first is None else "error"].append(predicted == first)
    steps += [
      (reward, label)
      for reward, label in zip(row["step_rewards"], row["labels"], strict=True)
      if label is not None
    ]
  error, correct = (sum(h) / len(h) for h in hits.values())
  good = [reward for reward, label in steps if label == 1]
  bad = [reward for reward, label in steps if label == 0]
  wins = sum((g > b) + (g == b) / 2 for g in good for b in bad)
  good_right = sum(reward > 0 for reward in good) / len(good)
  bad_right = sum(reward <= 0 for reward in bad) / len(bad)
  gap = 0.0
  for low in range(10):
    inside = [
      ((reward + 1) / 2, label)
      for reward, label in steps
      if low / 10 < (reward + 1) / 2 <= (low + 1) / 10
    ]
    gap += abs(sum(label - p for p, label in inside))
  return {
    "error_accuracy": error,
    "correct_accuracy": correct,
    "f1": 2 * error * correct / (error + correct),
    "step_accuracy": (good_right * len(good) + bad_right * len(bad))
    / len(steps),
    "balanced_accuracy": (good_right + bad_right) / 2,
    "auc": wins / len(good) / len(bad),
    "calibration_error": gap / len(steps),
    "good_share": len(good) / len(steps),
  }


@pytest.mark.parametrize("data", ["processbench", "prm800k"])
def test_metrics_equal_those_of_loops_over_the_scores(finished, data):
  rows = [row for row in scores(finished[0]) if row["data"] == data]
  tables = report(finished[0])["tables"]
  metrics = tables["ProcessBench"][data] | tables["Steps"][data]
  expected = by_loops(rows)
  assert metrics.keys() == expected.keys()
  for name, value in expected.items():
    assert math.isclose(metrics[name]["value"], value, abs_tol=1e-9), name
    low, high = metrics[name]["interval"]
    assert low <= value <= high, name
  items, problems = len(rows), len({row["problem"] for row in rows})
  assert tables["ProcessBench"][data]["f1"]["count"] == items
  assert tables["Steps"][data]["auc"]["count"] == problems < items + 1


def test_best_of_two_equals_that_of_loops_over_the_scores(finished):
  pairs = {}
  for row in scores(finished[0]):
    if row["data"] == "processbench":
      pairs.setdefault(row["problem"], []).append(row)
  assert {len(pair) for pair in pairs.values()} == {2}
  right = []
  for one, other in pairs.values():
    a, b = min(one["step_rewards"]), min(other["step_rewards"])
    best = one if a > b else other
    right.append(
      best["final_correct"]
      if a != b
      else (one["final_correct"] + other["final_correct"]) / 2
    )
  columns = report(finished[0])["tables"]["Choice among solutions"]
  metrics = columns["processbench"]
  assert metrics["best_of_2_minimum"]["value"] == pytest.approx(np.mean(right))
  assert metrics["mean_of_2"]["value"] == 0.5
  assert columns["prm800k"] == {}  # Its outcomes are unknown.


def test_the_text_shows_the_tables_of_the_report(finished):
  folder, text = finished
  f1 = report(folder)["tables"]["ProcessBench"]["prm800k"]["f1"]
  assert f"{f1['value']:.3f} [{f1['interval'][0]:.3f}, " in text
  title = "PRM of random weights: a step is good above 0"
  assert report(folder)["title"] == title
  assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_another_threshold_needs_no_new_scores(copy):
  before = (copy / "scores.jsonl").read_bytes()
  old = report(copy)["tables"]["ProcessBench"]
  changed = smoke(threshold="best_on", threshold_data="processbench")
  evaluate_prm.evaluate(changed, str(copy))
  assert (copy / "scores.jsonl").read_bytes() == before
  new = report(copy)["tables"]["ProcessBench"]
  rows = [row for row in scores(copy) if row["data"] == "processbench"]
  # The best of many thresholds between two scores, by loops.
  levels = sorted({r for row in rows for r in row["step_rewards"]})
  best = 0.0
  for low, high in zip(levels[:-1:4], levels[1::4], strict=False):
    middle = (low + high) / 2
    moved = [
      row | {"step_rewards": [r - middle for r in row["step_rewards"]]}
      for row in rows
    ]
    hits = {True: [], False: []}
    for row in moved:
      first = row["labels"].index(0) if 0 in row["labels"] else None
      wrong = [i for i, r in enumerate(row["step_rewards"]) if r <= 0]
      hits[first is None].append((wrong[0] if wrong else None) == first)
    error, correct = np.mean(hits[False]), np.mean(hits[True])
    if error + correct:
      best = max(best, 2 * error * correct / (error + correct))
  f1 = new["processbench"]["f1"]["value"]
  assert f1 >= best - 1e-12
  assert f1 > old["processbench"]["f1"]["value"]
  # The other data set is evaluated at the same threshold.
  assert new["prm800k"] != old["prm800k"]
  assert "the best F1 on processbench" in report(copy)["title"]


# ===== Limits =====


def test_solutions_beyond_a_limit_are_counted_and_others_score_the_same(
  finished, tmp_path
):
  all_rows = {(r["data"], r["row"]): r for r in scores(finished[0])}
  changed = smoke(score__max_steps=2)
  evaluate_prm.evaluate(changed, str(tmp_path / "run"))
  rows = scores(tmp_path / "run")
  assert len(rows) == 96 + 48
  for row in rows:
    unlimited = all_rows[row["data"], row["row"]]
    if len(unlimited["labels"]) > 2:
      assert row["left_out"] == "too many steps"
      assert row["step_rewards"] is None
    else:
      np.testing.assert_allclose(
        row["step_rewards"], unlimited["step_rewards"], atol=1e-5
      )
  shares = report(tmp_path / "run")["tables"]["Share of rows left out"]
  # All of ProcessBench have three steps, of PRM800K the right half.
  assert shares["processbench"]["too many steps"]["value"] == 1.0
  assert shares["prm800k"]["too many steps"] == {"value": 0.5, "count": 48}
  tables = report(tmp_path / "run")["tables"]
  assert tables["Steps"]["processbench"] == {}
  # Only erroneous solutions are left, so F1 has no value.
  assert tables["ProcessBench"]["prm800k"].keys() == {"error_accuracy"}


# ===== Restarts =====


def test_a_cut_file_of_scores_is_completed_to_the_same_bytes(finished, copy):
  """It is cut inside a batch and inside a line."""
  content = (finished[0] / "scores.jsonl").read_bytes()
  (copy / "scores.jsonl").write_bytes(content[: int(len(content) * 0.37)])
  (copy / "report.json").unlink()
  evaluate_prm.evaluate(smoke(), str(copy))
  assert (copy / "scores.jsonl").read_bytes() == content
  assert report(copy)["tables"] == report(finished[0])["tables"]


@pytest.mark.slow
def test_a_killed_evaluation_continues(finished, tmp_path):
  workdir = tmp_path / "killed"
  process = start_process("evaluate_prm.py", workdir, RESAMPLES)
  deadline = time.monotonic() + 300
  path = workdir / "scores.jsonl"
  while not (path.exists() and path.stat().st_size):
    assert process.poll() is None, "ended before it could be killed"
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  process = start_process("evaluate_prm.py", workdir, RESAMPLES)
  stdout, stderr = process.communicate(timeout=400)
  assert process.returncode == 0, stderr
  assert "ProcessBench" in stdout and "everything is in" in stdout
  assert report(workdir)["tables"] == report(finished[0])["tables"]


# ===== Sources of the PRM =====


def test_a_run_and_a_folder_with_the_same_weights_agree(finished, tmp_path):
  """A run's PRM uses the policy's tokenizer, a folder its own."""
  config = gsm8k_prm.get_config("smoke")
  config.prm.extra_layers = 1
  trained = conversion.settings_from_config(config, Settings)
  with open_run(trained, str(tmp_path / "run")) as run:
    params = initial_params(prm.declare_prm(run.spec.prm_model), 1)
    run.folder.finish_stage("prm", params, {})
    files = tiny_files.make_files(trained.files, tmp_path / "run" / "tiny")
  folder = tmp_path / "folder"
  huggingface.export_prm(folder, params, run.spec.prm_model, max_positions=1024)
  data = finished[0] / "tiny" / "prm800k.jsonl"
  listed = {"name": "a", "file": str(data), "format": "prm800k"}
  common = {
    "random_model": None,
    "data": (listed,),
    "prompt_format": trained.files.prm_prompt_format,
  }
  by_run = smoke(run=str(tmp_path / "run"), **common)
  by_folder = smoke(prm=str(folder), tokenizer=files.policy, **common)
  evaluate_prm.evaluate(by_run, str(tmp_path / "a"))
  evaluate_prm.evaluate(by_folder, str(tmp_path / "b"))
  assert scores(tmp_path / "a") == scores(tmp_path / "b")
  # The weights are not those of the tiny PRM.
  tiny_rows = [r for r in scores(finished[0]) if r["data"] == "prm800k"]
  assert scores(tmp_path / "a")[0]["step_rewards"] not in [
    row["step_rewards"] for row in tiny_rows
  ]

  chat = smoke(run=str(tmp_path / "run"), **common | {"prompt_format": "chat"})
  with pytest.raises(ConfigError, match="trained with prompt_format='plain'"):
    evaluate_prm.evaluate(chat, str(tmp_path / "c"))
  replaced = smoke(
    run=str(tmp_path / "run"), score__separator="replace", **common
  )
  with pytest.raises(ConfigError, match="trained with separator='insert'"):
    evaluate_prm.evaluate(replaced, str(tmp_path / "d"))
  evaluate_prm.evaluate(by_run, str(tmp_path / "a"))  # Continues.
  save_tree(tmp_path / "run" / "prm" / "weights", params)
  with pytest.raises(WorkdirError, match=r"contents\.run: was"):
    evaluate_prm.evaluate(by_run, str(tmp_path / "a"))
  shutil.rmtree(tmp_path / "run" / "prm" / "weights")
  with pytest.raises(ConfigError, match=r"lacks .*weights"):
    evaluate_prm.evaluate(by_run, str(tmp_path / "a"))
  (tmp_path / "run" / "prm" / "done.json").unlink()
  with pytest.raises(ConfigError, match=r"no finished PRM: run train_prm\.py"):
    evaluate_prm.evaluate(by_run, str(tmp_path / "a"))


def test_the_other_good_class_negates_every_score(finished, tmp_path):
  data = str(finished[0] / "tiny" / "prm800k.jsonl")
  listed = {"name": "prm800k", "file": data, "format": "prm800k"}
  settings = smoke(good_class=0, data=(listed,))
  evaluate_prm.evaluate(settings, str(tmp_path / "run"))
  expected = [r for r in scores(finished[0]) if r["data"] == "prm800k"]
  for row, other in zip(scores(tmp_path / "run"), expected, strict=True):
    np.testing.assert_allclose(
      row["step_rewards"], np.negative(other["step_rewards"]), atol=1e-6
    )


def test_rows_over_eight_devices_are_those_of_one(finished, tmp_path):
  settings = smoke(mesh=mesh(data=4, fsdp=2))
  evaluate_prm.evaluate(settings, str(tmp_path / "run"))
  for row, expected in zip(
    scores(tmp_path / "run"), scores(finished[0]), strict=True
  ):
    # Matrix products are cut up in another way.
    np.testing.assert_allclose(
      row["step_rewards"], expected["step_rewards"], atol=1e-5
    )
    assert row | {"step_rewards": 0} == expected | {"step_rewards": 0}
