"""Data files of the user: malformed rows, changed files, mapped fields."""

import dataclasses
import json

import evaluate
import evaluate_prm
import pyarrow
import pyarrow.parquet
import pytest
import train_prm
from configs import evaluate as evaluate_config
from configs import files as files_config
from configs import gsm8k_prm
from ml_collections import ConfigDict
from prm_evaluations import report, scores
from prm_evaluations import smoke as prm_smoke
from script_flags import parsed

from pure_jax.host.data.records import DataError, LabelledSolution, Problem
from pure_jax.host.evaluation import report as report_files
from pure_jax.runs.run import open_run
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.evaluation import EvaluationSettings
from pure_jax.runs.tasks import files as files_task
from pure_jax.runs.tasks import tiny_files
from pure_jax.runs.workdir import WorkdirError

GARBAGE = "{'not': JSON}"


# ===== Rows that are not read =====


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
  monkeypatch.setattr(report_files, "plot_tables", lambda *unused: [])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """Folder of a tiny policy and a PRM with its vocabulary."""
  folder = tmp_path_factory.mktemp("tiny")
  tiny_files.write_policy(folder / "policy", tied=True)
  tiny_files.write_prm(folder / "prm", tied=True)
  return folder


@pytest.fixture
def files(tmp_path):
  """The tiny problems and solutions, with a malformed second line in each file.

  One of the solutions is a quality-control question, which is left out.
  """
  paths = tiny_files.write_problems(tmp_path / "problems")
  for name, path in paths.items():
    first, *rest = path.read_text().splitlines()
    if name == "labelled":
      rest[3] = json.dumps(
        json.loads(rest[3]) | {"is_quality_control_question": True}
      )
    path.write_text("\n".join([first, GARBAGE, *rest]) + "\n")
  return paths


def training(tiny, files, **changes):
  """Settings of PRM training and RL on the files."""
  made = conversion.settings_from_config(gsm8k_prm.get_config("smoke"))
  named = {name: str(path) for name, path in files.items()}
  named |= {"policy": str(tiny / "policy"), "random_model": None}
  return dataclasses.replace(
    made, files=dataclasses.replace(made.files, **named | changes)
  )


def evaluation(tiny, **benchmark):
  """Settings of an evaluation of a few short greedy responses."""
  fields = evaluate_config.get_config("smoke").to_dict()
  fields |= {"random_model": False, "policy": str(tiny / "policy")}
  fields |= {"progress": False, "samples": 0}
  fields["sampler"]["max_new_tokens"] = 4
  skip = benchmark.pop("skip_malformed", False)
  fields["skip_malformed"] = skip
  fields["benchmarks"]["math500"] |= {"problems": 4} | benchmark
  return conversion.settings_from_config(fields, EvaluationSettings)


def prm_evaluation(tiny, file, **changes):
  """Settings of an evaluation of the tiny PRM on one file."""
  row_format = changes.pop("format", "prm800k")
  fields = changes.pop("fields", None)
  data = {"name": "own", "file": str(file), "format": row_format}
  data |= {} if fields is None else {"fields": fields}
  return prm_smoke(
    random_model=None, prm=str(tiny / "prm"), data=(data,), **changes
  )


def test_training_reports_malformed_rows_once_per_file(
  tiny, files, tmp_path, capsys
):
  settings = training(tiny, files, skip_malformed=True)
  with open_run(settings, str(tmp_path / "run")) as run:
    metrics = run.task.labelled(run.spec, run.batches, None).metrics
    # The evaluations after both stages read the file again.
    assert run.task._labelled_rows()[1]
  stderr = capsys.readouterr().err
  lines = [line for line in stderr.splitlines() if "malformed" in line]
  for (name, path), line in zip(files.items(), lines, strict=True):
    expected = f"{path}: of 49 rows, 1 malformed (first: {path}:2: not JSON: "
    assert line.startswith(expected)
    assert ("1 left out by the format" in line) == (name == "labelled")
  assert metrics["file_rows"] == 49
  assert metrics["file_malformed"] == metrics["file_left_out"] == 1


def reopen(settings, workdir, start=None):
  """Opens a run, and closes it; raises if it cannot be opened."""
  with open_run(settings, str(workdir), start):
    pass


@pytest.mark.parametrize("name", ["train", "held_out", "labelled"])
def test_a_run_with_a_changed_file_cannot_be_opened(
  tiny, files, tmp_path, name
):
  """Otherwise its stages would be trained on different data."""
  settings = training(tiny, files, skip_malformed=True)
  reopen(settings, tmp_path / "run")
  before = files[name].read_text()
  files[name].write_text(before + before.splitlines()[0] + "\n")
  with pytest.raises(WorkdirError, match=rf"config:\n  contents\.{name}: was"):
    reopen(settings, tmp_path / "run")
  start = str(tmp_path / "run")
  with pytest.raises(WorkdirError, match=rf"config:\n  contents\.{name}: was"):
    reopen(settings, tmp_path / "other", start)
  assert not (tmp_path / "other").exists()
  files[name].write_text(before)
  reopen(settings, tmp_path / "run")
  reopen(settings, tmp_path / "other", start)


def test_models_are_recorded_and_missing_files_are_named(tiny, files, tmp_path):
  settings = training(tiny, files, skip_malformed=True, prm=str(tiny / "prm"))
  reopen(settings, tmp_path / "run")
  path = tmp_path / "run" / "config.json"
  record = json.loads(path.read_text())
  assert {*record["config"]["contents"]} == {"policy", "prm", *files}
  assert len({*record["config"]["contents"].values()}) == 5
  files["train"].unlink()
  with pytest.raises(
    ConfigError, match=r"files\.train=.* is no file, and no id"
  ):
    reopen(settings, tmp_path / "run")


def test_training_raises_for_malformed_rows_by_default(tiny, files, tmp_path):
  with pytest.raises(DataError, match=r"train\.jsonl:2: not JSON: "):
    files_task.FilesTask(training(tiny, files), tmp_path)


def test_an_evaluation_reports_malformed_rows(tiny, files, tmp_path, capsys):
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


def test_an_evaluation_of_a_prm_reports_malformed_rows(
  tiny, files, tmp_path, capsys
):
  path = files["labelled"]
  settings = prm_evaluation(tiny, path, skip_malformed=True)
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
  with pytest.raises(DataError, match=r"labelled\.jsonl:2: not JSON: "):
    evaluate_prm.evaluate(prm_evaluation(tiny, path), str(tmp_path / "strict"))


def test_files_without_malformed_rows_are_not_reported(tiny, tmp_path, capsys):
  whole = tiny_files.write_problems(tmp_path / "problems")
  settings = training(tiny, whole, skip_malformed=True)
  files_task.FilesTask(settings, tmp_path).close()
  assert "malformed" not in capsys.readouterr().err


# ===== Files by a mapping of fields =====

PROBLEMS = {"id": "key", "problem": "question", "answer": "final result"}
SOLUTIONS = {"problem": "q", "steps": "s", "labels": "is_right"}


@pytest.fixture
def own(tmp_path):
  """Files with other field names: problems in JSON lines, solutions in
  Parquet."""
  problems = tmp_path / "own.jsonl"
  rows = [
    {"key": f"k{n}", "question": f"What is {n} + 1?", "final result": n + 1}
    for n in range(6)
  ]
  problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
  solutions = tmp_path / "own.parquet"
  table = {
    "q": [f"What is {n} + 1?" for n in range(24)],
    "s": [[f"It is {n}.", f"So {n + n % 2}."] for n in range(24)],
    "is_right": [[True, n % 2 == 1] for n in range(24)],
    # Another mapping of labels.
    "is_wrong": [[False, n % 2 == 0] for n in range(24)],
  }
  pyarrow.parquet.write_table(pyarrow.table(table), solutions)
  return {"problems": str(problems), "solutions": str(solutions)}


def mapped_training(tiny, own, **changes):
  """Settings of a run on the files with other field names."""
  return training(
    tiny,
    {"train": own["problems"], "held_out": own["problems"]},
    **{
      "train_format": "mapped_problems",
      "train_fields": PROBLEMS,
      "held_out_format": "mapped_problems",
      "held_out_fields": PROBLEMS,
      "labelled": own["solutions"],
      "labelled_format": "mapped_steps",
      "labelled_fields": SOLUTIONS,
    }
    | changes,
  )


def test_training_reads_mapped_files(tiny, own, tmp_path):
  task = files_task.FilesTask(mapped_training(tiny, own), tmp_path)
  assert task.train[2] == Problem(
    "k2", "mapped_problems", "What is 2 + 1?", "3"
  )
  assert task.held_out == task.train and len(task.train) == 6
  assert task._labelled_file[3] == LabelledSolution(
    id="mapped_steps/3",
    source="mapped_steps",
    problem="What is 3 + 1?",
    steps=("It is 3.", "So 4."),
    labels=(1, 1),
  )
  task.close()
  # Another mapping of the same file is another data set.
  fields = SOLUTIONS | {"labels": "is_wrong"}
  changed = mapped_training(tiny, own, labelled_fields=fields)
  task = files_task.FilesTask(changed, tmp_path)
  assert task._labelled_file[3].labels == (0, 0)
  task.close()


def test_an_evaluation_reads_a_mapped_benchmark(tiny, own, tmp_path):
  settings = evaluation(
    tiny, file=own["problems"], format="mapped_problems", fields=PROBLEMS
  )
  evaluate.evaluate(settings, str(tmp_path / "run"))
  lines = (tmp_path / "run" / "responses.jsonl").read_text().splitlines()
  problems = [json.loads(line)["problem"] for line in lines]
  assert problems == ["k0", "k1", "k2", "k3"]
  # With another mapping it is another evaluation, which cannot resume this one.
  settings = evaluation(
    tiny,
    file=own["problems"],
    format="mapped_problems",
    fields=PROBLEMS | {"answer": "key"},
  )
  with pytest.raises(WorkdirError, match=r"fields\.answer: was 'final result'"):
    evaluate.evaluate(settings, str(tmp_path / "run"))


def test_an_evaluation_of_a_prm_reads_mapped_solutions(tiny, own, tmp_path):
  settings = prm_evaluation(
    tiny, own["solutions"], format="mapped_steps", fields=SOLUTIONS
  )
  evaluate_prm.evaluate(settings, str(tmp_path / "run"))
  labels = [row["labels"] for row in scores(tmp_path / "run")]
  assert labels == [[1, n % 2] for n in range(24)]
  fields = SOLUTIONS | {"labels": "is_wrong"}
  settings = prm_evaluation(
    tiny, own["solutions"], format="mapped_steps", fields=fields
  )
  with pytest.raises(WorkdirError, match=r"was .*is_right.*, is now .*is_w"):
    evaluate_prm.evaluate(settings, str(tmp_path / "run"))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({}, "train_fields: format 'mapped_problems' needs a mapping"),
    ({"train_fields": {"problem": 5}}, r"train_fields\.problem must be str"),
    ({"train_fields": {"answer": "a"}}, r"missing: \['problem'\]"),
    (
      {"train_fields": {"problem": "q", "anwser": "a"}},
      r"train_fields: .*Unknown: \['anwser'\]",
    ),
    (
      {"train_fields": {"problem": "q"}, "labelled_fields": {"steps": "s"}},
      "labelled_fields: format 'prm800k' knows its fields",
    ),
    ({"train_format": "mapped_all"}, "train_format must be one of"),
  ],
)
def test_invalid_mappings_raise_with_the_field(changes, message):
  config = files_config.get_config()
  config.files.random_model = "tied"
  config.files.train_format = "mapped_problems"
  for name, value in changes.items():
    is_mapping = isinstance(value, dict)
    config.files[name] = ConfigDict(value) if is_mapping else value
  with pytest.raises(ConfigError, match=message):
    conversion.settings_from_config(config)


def test_a_mapped_format_must_make_the_right_record(tiny):
  with pytest.raises(ConfigError, match=r"math500: format must be one of"):
    evaluation(tiny, format="mapped_steps", fields=SOLUTIONS)
  with pytest.raises(ConfigError, match=r"data\[0\]: format must be one of"):
    prm_evaluation(tiny, "own.jsonl", format="mapped_problems", fields=PROBLEMS)


def test_a_mapping_on_the_command_line_to_a_missing_field_raises(
  tiny, own, tmp_path
):
  message = (
    rf"{own['problems']}:1: field 'prompt' is missing; there is 'key', "
    "'question', 'final result'"
  )
  with (
    parsed(
      "files.py",
      tmp_path / "run",
      f"--config.files.policy={tiny / 'policy'}",
      f"--config.files.train={own['problems']}",
      "--config.files.train_format=mapped_problems",
      "--config.files.train_fields={'problem': 'prompt'}",
    ),
    pytest.raises(DataError, match=message),
  ):
    train_prm.main([])
