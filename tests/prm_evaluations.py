"""A whole evaluation of the tiny random PRM, for the tests of its script."""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

import config_conversion  # noqa: E402
import evaluate_prm  # noqa: E402
from configs import evaluate_prm as config_file  # noqa: E402
from evaluate_prm_settings import EvaluatePRMSettings  # noqa: E402


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
  fields = config_file.get_config("smoke").to_dict()
  fields |= {"progress": False, "resamples": 20} | changes
  return config_conversion.settings_from_config(fields, EvaluatePRMSettings)


def scores(folder):
  lines = (folder / "scores.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def report(folder):
  return json.loads((folder / "report.json").read_text())


def whole(tmp_path_factory):
  """(folder, text) of an evaluation."""
  folder = tmp_path_factory.mktemp("evaluations") / "whole"
  return folder, evaluate_prm.evaluate(smoke(), str(folder))
