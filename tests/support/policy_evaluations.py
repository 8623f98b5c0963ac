"""Settings of small evaluations of a policy, for the tests of its script."""

import json
import os
import subprocess
import sys

from checkout import ROOT
from configs import evaluate as config_file
from overrides import with_changes

from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.evaluation import EvaluationSettings


def smoke(**changes):
  """Settings of the smoke variant; `a__b` replaces field b of group a."""
  changes = {"progress": False} | changes
  fields = with_changes(config_file.get_config("smoke"), **changes)
  return conversion.settings_from_config(fields, EvaluationSettings)


def on_files(tiny, **changes):
  """Settings that name the tiny policy and problems, without a PRM."""
  named = {
    "random_model": False,
    "policy": str(tiny / "policy"),
    "benchmarks__math500__file": str(tiny / "problems" / "held_out.jsonl"),
    "benchmarks__math500__problems": 6,
  }
  return smoke(**named | changes)


def responses(workdir):
  """The lines of an evaluation's file of responses."""
  lines = (workdir / "responses.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def start_process(script, workdir, *options):
  """Starts the smoke variant of an evaluation script as a process."""
  experiments = ROOT / "experiments"
  return subprocess.Popen(
    [
      sys.executable,
      str(experiments / script),
      f"--config={experiments / 'configs' / script}:smoke",
      f"--workdir={workdir}",
      *options,
    ],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
