"""Tables of plans, from a file that plan.py could have printed."""

import json
import subprocess
import sys

import plan_tables
import pytest
from checkout import ROOT


def stage(name, flops, sent, total, compiled=True):
  costs = {
    "flops": flops,
    "hbm_bytes": 3e9,
    "collectives": {
      "all-gather": {"sent_bytes": sent},
      "all-reduce": {"sent_bytes": sent},
    },
  }
  return {
    "compiled": {"name": name, "costs": costs if compiled else None},
    "total_bytes": total,
    "bound": {"seconds": 2.0, "name": "network"},
  }


def plan(chips, compiled=True):
  stages = [stage("reshard", 0, 1e9, 2**30)]
  stages += [
    stage(name, 5e12, 2e9, number * 2**30, compiled)
    for number, name in enumerate(plan_tables.STAGES, 1)
  ]
  return {
    "chips": chips,
    "topology": f"v5p:{chips}",
    "rows": 8 * chips,
    "flags": [f"--config.mesh.fsdp={chips}", '--config.rl.mesh={"data": 1}'],
    "fits": compiled,
    "limit_bytes": 16 * 2**30,
    "step_seconds": 6.0 if compiled else None,
    "chip_hours": 1234.5,
    "bottleneck": "update",
    "bound_by": "network",
    "stages": stages,
  }


@pytest.fixture
def files(tmp_path):
  for chips, compiled in ((64, True), (16, False), (32, True)):
    text = json.dumps(plan(chips, compiled))
    (tmp_path / f"plan_{chips}.json").write_text(text)
  return tmp_path


def run(*options):
  script = ROOT / "experiments" / "plan_tables.py"
  done = subprocess.run(
    [sys.executable, str(script), *map(str, options)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


def test_which_slice_fits_in_order_of_size(files):
  lines = run("--fits", *files.glob("*.json"))
  assert [line.split(" | ")[1] for line in lines[2:5]] == [
    "v5p:16",
    "v5p:32",
    "v5p:64",
  ]
  assert "| **no** | 1.0 / 2.0 / 3.0, 16.0 | – | – | – |" in lines[2]
  assert (
    "| yes | 1.0 / 2.0 / 3.0, 16.0 | 6 | 1,234 | update, network |"
    in (lines[3])
  )
  flags = """  --config.mesh.fsdp=16 '--config.rl.mesh={"data": 1}\'"""
  assert lines[5:9] == ["", "```text", "# plan_16", flags]


def test_scaling_per_chip_and_its_plot(files):
  """Kinds of collectives add up; what was not compiled has no row."""
  png = files / "plot.png"
  lines = run("--scaling", *files.glob("*.json"), f"--plot={png}")
  assert len(lines) == 2 + 2 * 3
  assert lines[2].startswith(
    "| 32 | v5p:32 | 256 | rollout | 5 | 3 | 4.0 | 1.0"
  )
  assert png.read_bytes().startswith(b"\x89PNG")
