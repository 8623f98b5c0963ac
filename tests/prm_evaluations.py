"""A whole evaluation of the tiny random PRM, for the tests of its script."""

import json

import evaluate_prm
from configs import evaluate_prm as config_file
from overrides import with_changes

from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.prm_evaluation import EvaluatePRMSettings


def mesh(**sizes):
  """A mesh group of a config, with the sizes given."""
  return {
    "data": 1,
    "fsdp": 1,
    "tensor": 1,
    "sequence": 1,
    "rules": "fsdp",
  } | sizes


def smoke(**changes):
  """Settings of the smoke variant with some fields replaced."""
  changes = {"progress": False, "resamples": 20} | changes
  fields = with_changes(config_file.get_config("smoke"), **changes)
  return conversion.settings_from_config(fields, EvaluatePRMSettings)


def scores(folder):
  lines = (folder / "scores.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def report(folder):
  return json.loads((folder / "report.json").read_text())


def whole(tmp_path_factory):
  """(folder, text) of an evaluation."""
  folder = tmp_path_factory.mktemp("evaluations") / "whole"
  return folder, evaluate_prm.evaluate(smoke(), str(folder))
