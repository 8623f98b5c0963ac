"""A finished evaluation of the tiny random PRM, for the tests of its script."""

import functools
import json

import evaluate_prm
from configs import evaluate_prm as config_file
from overrides import with_changes

from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.evaluation import EvaluatePRMSettings


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
  """The lines of an evaluation's file of scores."""
  lines = (folder / "scores.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def report(folder):
  """The JSON of an evaluation's report."""
  return json.loads((folder / "report.json").read_text())


@functools.cache  # Two files of tests share it.
def finished_evaluation(basetemp):
  """(folder, text) of a finished evaluation, not to be changed."""
  folder = basetemp / "finished_prm_evaluation"
  return folder, evaluate_prm.evaluate(smoke(), str(folder))
