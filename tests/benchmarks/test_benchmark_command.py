"""The command of the benchmark: its flags, its table and its file."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from benchmarks import presets
from benchmarks.cases import BenchmarkError
from checkout import ROOT
from loopback_hub import LoopbackHub
from script_in_process import imported_script


def run(*flags: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, ROOT / "experiments" / "benchmark.py", *flags],
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )


def test_one_command_prints_a_table_and_writes_json(tmp_path):
  path = tmp_path / "results.json"
  process = run("--quick", "--suite=score", f"--json={path}")
  assert process.returncode == 0, process.stderr
  document = json.loads(path.read_text())
  assert {"date", "commit", "processor", "packages", "command"} <= (
    document["machine"].keys()
  )
  assert "--quick --suite=score" in document["machine"]["command"]
  assert document["options"]["repeats"] == 2
  (case,) = document["cases"]
  assert min(case["rates"].values()) > 0
  arm = case["arms"]["score"]
  assert arm["tokens"] == 4 * (8 + 6)
  assert len(arm["seconds"]) == 2
  assert arm["median_seconds"] == pytest.approx(np.median(arm["seconds"]))
  share = arm["bound_seconds"] / arm["median_seconds"]
  assert arm["bound_reached"] == pytest.approx(share)
  assert "never score " in process.stdout
  assert jax.__version__ in process.stdout


@pytest.mark.slow
def test_the_command_of_an_accelerator_runs_whole(tmp_path):
  """All suites in bfloat16, with recomputed layers and logits in chunks."""
  path = tmp_path / "results.json"
  process = run("--quick", "--preset=accelerator", f"--json={path}")
  assert process.returncode == 0, process.stderr
  document = json.loads(path.read_text())
  assert document["options"]["dtype"] == "bfloat16"
  assert document["options"]["remat"] == "dots"
  assert [case["suite"] for case in document["cases"]] == [
    *["rollout"] * 2, "score", "update", "packing", "prm",
    *["iteration"] * 2
  ]  # fmt: skip
  for case in document["cases"]:
    for name, arm in case["arms"].items():
      assert arm["median_seconds"] > 0, name
      assert arm["needed_flops"] > 0, name


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["suite=update", "models=tiny", "samples=1"], "at least 2 must divide"),
    (["suite=prm", "models=tiny", "rows=32"], "prm: no case. The preset must"),
    (["weights=FOLDER"], "--weights are those of one model"),
    (["resume=true"], "--resume needs --json"),
    (["json=none/results.json"], "its folder does not exist"),
    (["make_environments=FOLDER", "baselines=x"], "'x' must be one of"),
  ],
)
def test_impossible_flags_end_in_a_sentence(words, message, capsys):
  with (
    imported_script("benchmark", *words) as script,
    pytest.raises(SystemExit, match="1"),
  ):
    script.main(["benchmark.py"])
  assert message in capsys.readouterr().err


def test_weights_may_be_on_the_hub(tmp_path):
  files = {"config.json": b"{}", "model.safetensors": b""}
  with LoopbackHub() as hub, hub.in_use(tmp_path):
    commit = hub.commit("models/acme/tiny", files)
    with imported_script("benchmark", "weights=acme/tiny") as script:
      path = pathlib.Path(script.read_options().weights)
    with (
      imported_script("benchmark", "weights=acme/none") as script,
      pytest.raises(BenchmarkError, match="--weights=acme/none is no folder"),
    ):
      script.read_options()
  assert path.name == commit and {f.name for f in path.iterdir()} == {*files}


def test_flags_override_the_options_of_the_preset():
  words = ["preset=accelerator", "cache_dtype=int8", "int8_matrices=true"]
  with imported_script("benchmark", *words, "engine_slots=3") as script:
    assert script.read_options() == dataclasses.replace(
      presets.PRESETS["accelerator"].options,
      cache_dtype="int8",
      int8_matrices=True,
      engine_slots=3,
    )
