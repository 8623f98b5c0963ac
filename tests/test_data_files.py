"""Files that a config names: rows that are not read are told and reported."""

import dataclasses
import json
import pathlib
import sys

import pytest
from prm_evaluations import report, scores
from prm_evaluations import smoke as prm_smoke

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

import config_conversion  # noqa: E402
import evaluate  # noqa: E402
import evaluate_prm  # noqa: E402
import files_task  # noqa: E402
import launch  # noqa: E402
import tiny_files  # noqa: E402
from configs import evaluate as evaluate_config  # noqa: E402
from configs import gsm8k_prm  # noqa: E402
from evaluation_settings import EvaluationSettings  # noqa: E402

from pure_jax.host.data.records import DataError  # noqa: E402

GARBAGE = "{'not': JSON}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """Folder of a tiny policy and its PRM."""
  folder = tmp_path_factory.mktemp("tiny")
  tiny_files.write_policy(folder / "policy", tied=True)
  tiny_files.write_prm(folder / "prm", tied=True)
  return folder


@pytest.fixture
def files(tmp_path):
  """The tiny problems and solutions, each file's second line is garbage.

  Of the solutions, a quality-control question is left out besides.
  """
  paths = tiny_files.write_problems(tmp_path / "problems")
  for name, path in paths.items():
    first, *rest = path.read_text().splitlines()
    if name == "judged":
      rest[3] = json.dumps(
        json.loads(rest[3]) | {"is_quality_control_question": True}
      )
    path.write_text("\n".join([first, GARBAGE, *rest]) + "\n")
  return paths


def training(tiny, files, **changes):
  """Settings of PRM training and RL on the files."""
  made = config_conversion.settings_from_config(gsm8k_prm.get_config("smoke"))
  named = {name: str(path) for name, path in files.items()}
  named |= {"policy": str(tiny / "policy"), "random_model": None}
  return dataclasses.replace(
    made, files=dataclasses.replace(made.files, **named | changes)
  )


def evaluation(tiny, **benchmark):
  """Settings of an evaluation of a few short greedy responses."""
  fields = evaluate_config.get_config("smoke").to_dict()
  fields |= {"random_model": False, "policy": str(tiny / "policy")}
  fields |= {"progress": False, "samples": 0, "k": (), "max_new_tokens": 4}
  skip = benchmark.pop("skip_malformed", False)
  fields["skip_malformed"] = skip
  fields["benchmarks"]["math500"] |= {"problems": 4} | benchmark
  return config_conversion.settings_from_config(fields, EvaluationSettings)


def judging(tiny, file, **changes):
  """Settings of an evaluation of the tiny PRM on a file."""
  row_format = changes.pop("format", "prm800k")
  fields = changes.pop("fields", None)
  data = {"name": "own", "file": str(file), "format": row_format}
  data |= {} if fields is None else {"fields": fields}
  return prm_smoke(
    random_model=None, prm=str(tiny / "prm"), data=(data,), **changes
  )


def test_training_tells_each_file_once_and_keeps_the_numbers(
  tiny, files, tmp_path, capsys
):
  settings = training(tiny, files, skip_malformed=True)
  with launch.open_workspace(settings, str(tmp_path / "run")) as space:
    space.task.judged(space, None)
    # The evaluations after both stages read the file again.
    assert space.task._judged_rows()[1]
  told = [
    line for line in capsys.readouterr().err.splitlines() if "malformed" in line
  ]
  for (name, path), line in zip(files.items(), told, strict=True):
    expected = f"{path}: of 49 rows, 1 malformed (first: {path}:2: not JSON: "
    assert line.startswith(expected)
    assert ("1 left out by the format" in line) == (name == "judged")
  (row,) = map(
    json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  )
  assert row["file_rows"] == 49
  assert row["file_malformed"] == row["file_left_out"] == 1


def test_training_stops_at_a_malformed_row_unless_asked(tiny, files, tmp_path):
  with pytest.raises(DataError, match=r"train\.jsonl:2: not JSON: "):
    files_task.FilesTask(training(tiny, files), tmp_path)


def test_an_evaluation_tells_and_reports_malformed_rows(
  tiny, files, tmp_path, capsys
):
  settings = evaluation(tiny, file=str(files["held_out"]), skip_malformed=True)
  evaluate.evaluate(settings, str(tmp_path / "run"))
  shown = capsys.readouterr()
  assert (
    f"{files['held_out']}: of 49 rows, 1 malformed (first: "
    f"{files['held_out']}:2: "
  ) in shown.err
  assert report(tmp_path / "run")["tables"]["Rows not read"] == {
    "math500": {
      "malformed": {"value": 1, "count": 49},
      "left out by the format": {"value": 0, "count": 49},
    }
  }
  for text in (shown.out, (tmp_path / "run" / "report.md").read_text()):
    assert "| malformed              | 1       |" in text
  settings = evaluation(tiny, file=str(files["held_out"]))
  with pytest.raises(DataError, match=r"held_out\.jsonl:2: not JSON: "):
    evaluate.evaluate(settings, str(tmp_path / "strict"))


def test_an_evaluation_of_a_prm_tells_and_reports_malformed_rows(
  tiny, files, tmp_path, capsys
):
  path = files["judged"]
  settings = judging(tiny, path, skip_malformed=True)
  text = evaluate_prm.evaluate(settings, str(tmp_path / "run"))
  assert (
    f"{path}: of 49 rows, 1 malformed (first: {path}:2: "
  ) in capsys.readouterr().err
  assert len(scores(tmp_path / "run")) == 47
  assert report(tmp_path / "run")["tables"]["Rows not read"]["own"] == {
    "malformed": {"value": 1, "count": 49},
    "left out by the format": {"value": 1, "count": 49},
  }
  assert "Rows not read" in text
  with pytest.raises(DataError, match=r"judged\.jsonl:2: not JSON: "):
    evaluate_prm.evaluate(judging(tiny, path), str(tmp_path / "strict"))


def test_nothing_is_said_of_files_that_are_read_whole(tiny, tmp_path, capsys):
  whole = tiny_files.write_problems(tmp_path / "problems")
  settings = training(tiny, whole, skip_malformed=True)
  files_task.FilesTask(settings, tmp_path).close()
  assert "malformed" not in capsys.readouterr().err
