"""Tables of plans, from files such as plan.py prints."""

import json

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
    "flags": [
      f"--config.mesh.fsdp={chips}",
      '--config.rl.rollout_mesh={"data": 1}',
    ],
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


def run(capsys, *options):
  """Lines that the script prints."""
  plan_tables.main([str(option) for option in options])
  return capsys.readouterr().out.splitlines()


def test_plans_that_fit_are_listed_by_the_size_of_their_slice(files, capsys):
  lines = run(capsys, "--fits", *files.glob("*.json"))
  slices = [line.split(" | ")[1] for line in lines[2:5]]
  assert slices == ["v5p:16", "v5p:32", "v5p:64"]
  assert "| **no** | 1.0 / 2.0 / 3.0, 16.0 | – | – | – |" in lines[2]
  yes = "| yes | 1.0 / 2.0 / 3.0, 16.0 | 6 | 1,234 | update, network |"
  assert yes in lines[3]
  flags = """  --config.mesh.fsdp=16 '--config.rl.rollout_mesh={"data": 1}\'"""
  assert lines[5:9] == ["", "```text", "# plan_16", flags]


def test_scaling_has_a_row_for_each_compiled_stage_and_a_plot(files, capsys):
  """Kinds of collectives are summed. Stages without costs have no row."""
  png = files / "plot.png"
  lines = run(capsys, "--scaling", *files.glob("*.json"), f"--plot={png}")
  assert len(lines) == 2 + 2 * 3
  assert lines[2].startswith(
    "| 32 | v5p:32 | 256 | rollout | 5 | 3 | 4.0 | 1.0"
  )
  assert png.read_bytes().startswith(b"\x89PNG")


def test_the_tables_in_the_documentation_are_those_of_the_kept_plans(capsys):
  """docs/planning.md quotes what the script prints of docs/plans."""
  text = (ROOT / "docs" / "planning.md").read_text()
  plans = ROOT / "docs" / "plans"
  for option, pattern in (("--fits", "qwen*"), ("--scaling", "weak_*")):
    for line in run(capsys, option, *sorted(plans.glob(f"{pattern}.json"))):
      assert line in text


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (None, "cannot be read: No such file"),
    ("{}", "is no plan that plan.py --json wrote: KeyError"),
    ("[", "is no plan that plan.py --json wrote: JSONDecodeError"),
    (
      "[" * 200_000,
      "is no plan that plan.py --json wrote: ValueError",
    ),
    ("1" * 5000, "is no plan that plan.py --json wrote: ValueError"),
    ("[]", "is no plan that plan.py --json wrote: TypeError"),
    (
      '{"chips": 1}',
      "is no plan that plan.py --json wrote: KeyError",
    ),
    ('{"chips": 1, "stages": 2}', "is no plan that plan.py --json"),
  ],
)
def test_a_file_that_is_no_plan_ends_with_a_message(
  text, message, tmp_path, capsys
):
  path = tmp_path / "none.json"
  if text is not None:
    path.write_text(text)
  with pytest.raises(SystemExit) as ended:
    plan_tables.main(["--fits", str(path)])
  assert ended.value.code == 2
  assert f"{path} {message}" in capsys.readouterr().err
