"""The label of PRM800K's neutral steps, where a config names it."""

import dataclasses
import json
import re

import evaluate_prm
import pytest
from configs import files as files_config
from configs import gsm8k_prm, pure_prm_7b
from prm_evaluations import scores, smoke

from pure_jax.host.evaluation import report
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.tasks import files as files_task
from pure_jax.runs.tasks import tiny_files
from pure_jax.runs.workdir import WorkdirError

# What the label of a neutral step is, by name.
CHOICES = {"good": 1, "bad": 0, "unlabelled": None}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """Tiny models, and the tiny file of PRM800K with neutral for good."""
  root = tmp_path_factory.mktemp("tiny")
  tiny_files.write_policy(root / "policy", tied=True)
  tiny_files.write_prm(root / "prm", tied=True)
  tiny_files.write_problems(root)
  path = root / "labelled.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  for row in rows:
    for step in row["label"]["steps"]:
      for completion in step["completions"]:
        completion["rating"] = min(completion["rating"], 0)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return root


def training_labels(tiny, folder, choice):
  """All labels that PRM training reads."""
  made = conversion.settings_from_config(gsm8k_prm.get_config("smoke"))
  named = {
    name: str(tiny / f"{name}.jsonl")
    for name in ("train", "held_out", "labelled")
  }
  files = dataclasses.replace(
    made.files,
    policy=str(tiny / "policy"),
    random_model=None,
    neutral_labels=choice,
    **named,
  )
  task = files_task.FilesTask(dataclasses.replace(made, files=files), folder)
  labels = [label for row in task._labelled_file for label in row.labels]
  task.close()
  return labels


def evaluation(tiny, choice):
  """Settings of an evaluation of the tiny PRM on the file."""
  data = {
    "name": "own",
    "file": str(tiny / "labelled.jsonl"),
    "format": "prm800k",
    "neutral_labels": choice,
  }
  return smoke(random_model=None, prm=str(tiny / "prm"), data=(data,))


def test_the_choice_reaches_training(tiny, tmp_path):
  """One folder: prepared data of one choice must not serve another."""
  assert files_config.get_config().files.neutral_labels == "good"
  for choice, label in CHOICES.items():
    labels = training_labels(tiny, tmp_path, choice)
    assert {0, label} == {*labels}


def test_the_choice_reaches_evaluation(tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(report, "plot_tables", lambda *unused: [])
  for choice, label in CHOICES.items():
    evaluate_prm.evaluate(evaluation(tiny, choice), str(tmp_path / choice))
    rows = scores(tmp_path / choice)
    assert {0, label} == {x for row in rows for x in row["labels"]}
  with pytest.raises(WorkdirError, match=r"'bad'.*, is now .*'good'"):
    evaluate_prm.evaluate(evaluation(tiny, "good"), str(tmp_path / "bad"))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"neutral_labels": "goood"}, "neutral_labels must be one of .*'goood'"),
    (
      {"neutral_labels": "bad", "labelled_format": "stepwise"},
      "neutral_labels='bad' needs the format 'prm800k', not 'stepwise'",
    ),
  ],
)
def test_a_choice_that_cannot_be_made_raises(changes, message):
  config = files_config.get_config()
  config.files.update({"random_model": "tied"} | changes)
  with pytest.raises(ConfigError, match=message):
    conversion.settings_from_config(config)
  data = {"name": "a", "file": "a.jsonl", "format": "prm800k"}
  for name, value in changes.items():
    data[name.removeprefix("labelled_")] = value
  with pytest.raises(ConfigError, match=message):
    smoke(random_model=None, prm="folder", data=(data,))


def test_the_documented_command_for_stepwise_data_is_accepted():
  """The config's own choice is for PRM800K's format."""
  pattern = r"--config\.files\.(labelled_format|neutral_labels)=(\w+)"
  flags = dict(re.findall(pattern, pure_prm_7b.__doc__))
  assert flags["labelled_format"] == "stepwise"
  config = pure_prm_7b.get_config("smoke")
  config.files.update(flags)
  files = conversion.settings_from_config(config).files
  assert files.labelled_format == "stepwise"
