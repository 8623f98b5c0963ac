"""Invalid input of an evaluation of a PRM."""

import dataclasses
import pathlib
import shutil
import types

import cli
import evaluate_prm
import jax
import jax.numpy as jnp
import pytest
from prm_evaluations import finished_evaluation, mesh, scores, smoke
from small_models import initial_params

from pure_jax.host import huggingface
from pure_jax.host.evaluation.record_file import RecordFileError
from pure_jax.models import prm
from pure_jax.runs import workdir
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.evaluation import EvaluatePRMSettings
from pure_jax.runs.workdir import WorkdirError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Folder and text of a finished evaluation; not to be changed."""
  return finished_evaluation(tmp_path_factory.getbasetemp())


@pytest.fixture
def copy(finished, tmp_path):
  """A copy of the finished evaluation, to be changed."""
  return pathlib.Path(shutil.copytree(finished[0], tmp_path / "copy"))


GOOD = {"name": "a", "file": "a.jsonl", "format": "processbench"}
RESPONSES = GOOD | {
  "format": "responses",
  "problems": "p",
  "problems_format": "gsm8k",
}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"prm": "folder"}, "set one of them"),
    ({"random_model": None}, "set one of them"),
    ({"random_model": "bent"}, "random_model must be one of"),
    ({"random_model": None, "prm": "folder"}, r"data is empty\. Name files"),
    ({"data": (GOOD, GOOD)}, "data has a name twice"),
    ({"data": (GOOD | {"format": "gsm8k"},)}, r"data\[0\]: format must be one"),
    ({"data": (GOOD | {"name": " "},)}, "name is empty"),
    ({"data": ({"name": "a", "file": "b"},)}, r"data\[0\]\.format is missing"),
    (
      {"data": (GOOD | {"held_out_one_in": 1},)},
      "held_out_one_in must be at least 2",
    ),
    (
      {"data": (GOOD | {"format": "responses"},)},
      "set both with it, and neither with another format",
    ),
    (
      {"data": (GOOD | {"problems": "p", "problems_format": "gsm8k"},)},
      "set both with it, and neither with another format",
    ),
    (
      {"data": (RESPONSES | {"problems_format": "processbench"},)},
      "problems_format must be one of",
    ),
    (
      {"data": (RESPONSES | {"fields": {"steps": "s"}},)},
      "format='responses' knows its fields",
    ),
    ({"data": ("a",)}, r"data\[0\] must be a group of fields"),
    ({"threshold": "high"}, "threshold must be one of"),
    ({"threshold": "best_on"}, "set both or neither"),
    ({"threshold_data": "a"}, "set both or neither"),
    (
      {"data": (GOOD,), "threshold": "best_on", "threshold_data": "b"},
      "threshold_data must be one of",
    ),
    ({"score__max_steps": 0}, "max_steps must be >= 1"),
    ({"resamples": 0}, "resamples must be between 1 and"),
    ({"bins": 0}, "bins must be between 1 and"),
    ({"bootstrap_seed": -1}, "bootstrap_seed must be at least 0"),
    ({"mesh": mesh(data=3)}, "not divisible by the 3 row shards"),
    ({"good_class": 7}, "good_class must be 0, 1 or None, got 7"),
    ({"score__separator": "drop"}, "separator must be one of"),
    ({"prompt_format": "poem"}, "prompt_format must be one of"),
  ],
)
def test_an_invalid_value_is_reported_with_its_field(changes, message):
  with pytest.raises(ConfigError, match=message):
    smoke(**changes)


def test_a_missing_file_or_run_is_reported_and_leaves_no_workdir(tmp_path):
  settings = smoke(data=(GOOD | {"file": str(tmp_path / "no.jsonl")},))
  with pytest.raises(
    ConfigError, match=r"data\.a\.file=.*no\.jsonl is no file"
  ):
    evaluate_prm.evaluate(settings, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
  data = tmp_path / "data.jsonl"
  data.write_text("{}\n")
  settings = smoke(
    random_model=None, run=str(tmp_path), data=(GOOD | {"file": str(data)},)
  )
  with pytest.raises(ConfigError, match="is not the workdir of a run"):
    evaluate_prm.evaluate(settings, str(tmp_path / "run"))


def test_threshold_data_must_be_a_data_set(copy):
  settings = smoke(threshold="best_on", threshold_data="elsewhere")
  with pytest.raises(ConfigError, match="threshold_data must be one of"):
    evaluate_prm.evaluate(settings, str(copy))


def test_scores_of_changed_data_are_not_mixed(copy):
  path = copy / "tiny" / "prm800k.jsonl"
  path.write_text(path.read_text().replace('"rating": -1', '"rating": 1'))
  before = (copy / "scores.jsonl").read_bytes()
  with pytest.raises(RecordFileError, match="scores of another 'prm800k'"):
    evaluate_prm.evaluate(smoke(), str(copy))
  assert (copy / "scores.jsonl").read_bytes() == before


def test_a_damaged_file_of_scores_is_reported_and_not_changed(copy):
  path = copy / "scores.jsonl"
  path.write_bytes(b"{}\n" + path.read_bytes())
  before = path.read_bytes()
  with pytest.raises(RecordFileError, match=r"scores\.jsonl:1 is not a"):
    evaluate_prm.evaluate(smoke(), str(copy))
  assert path.read_bytes() == before


def test_a_workdir_of_another_evaluation_is_not_used(copy):
  with pytest.raises(WorkdirError, match=r"score\.max_steps: was 8, is now 7"):
    evaluate_prm.evaluate(smoke(score__max_steps=7), str(copy))


def test_a_workdir_in_use_is_left_alone(copy):
  """Two writers would write every row twice."""
  path = copy / "scores.jsonl"
  path.write_bytes(path.read_bytes()[:500])
  with (
    workdir.lock_folder(copy),
    pytest.raises(WorkdirError, match="Another process is running"),
  ):
    evaluate_prm.evaluate(smoke(), str(copy))
  assert path.stat().st_size == 500


@pytest.fixture
def without_scores(finished, tmp_path, monkeypatch):
  """An evaluation of files before any score: (its settings, its folder)."""
  tiny = finished[0] / "tiny"
  for name in ("prm", "other"):
    shutil.copytree(tiny / "prm", tmp_path / name)
  shutil.copy(tiny / "prm800k.jsonl", tmp_path)
  data = {
    "name": "a",
    "file": str(tmp_path / "prm800k.jsonl"),
    "format": "prm800k",
  }
  settings = smoke(
    random_model=None,
    prm=str(tmp_path / "prm"),
    tokenizer=str(tmp_path / "other"),
    data=(data,),
  )
  monkeypatch.setattr(evaluate_prm, "evaluate_in", lambda *unused: "")
  evaluate_prm.evaluate(settings, str(tmp_path / "run"))
  return settings, tmp_path


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ("prm/model.safetensors", r"contents\.prm: was"),
    ("prm/config.json", r"contents\.prm: was"),
    ("other/tokenizer.json", r"contents\.tokenizer: was"),
    ("prm800k.jsonl", r"contents\.data\.a: was"),
  ],
)
def test_a_resumed_evaluation_needs_the_same_file_contents(
  without_scores, changed, message
):
  """Otherwise some scores would be of another PRM or of other solutions."""
  settings, folder = without_scores
  evaluate_prm.evaluate(settings, str(folder / "run"))  # No change yet.
  (folder / changed).write_bytes((folder / changed).read_bytes() + b"\n")
  with pytest.raises(WorkdirError, match=message):
    evaluate_prm.evaluate(settings, str(folder / "run"))


def test_a_missing_tokenizer_is_reported(without_scores):
  settings, folder = without_scores
  settings = dataclasses.replace(settings, tokenizer="/nowhere")
  with pytest.raises(ConfigError, match="tokenizer=/nowhere is no folder"):
    evaluate_prm.evaluate(settings, str(folder / "new"))
  assert not (folder / "new").exists()


def test_scores_that_are_not_finite_are_not_written(finished, copy):
  shutil.rmtree(copy / "tiny" / "prm")
  config = huggingface.read_config(finished[0] / "tiny" / "prm").model
  params = initial_params(prm.declare_prm(config))
  # Finite weights whose products with hidden states are not.
  params["score"] = jax.tree.map(lambda x: 3e38 * jnp.sign(x), params["score"])
  huggingface.export_prm(
    copy / "tiny" / "prm", params, config, max_positions=1024
  )
  for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(finished[0] / "tiny" / "prm" / name, copy / "tiny" / "prm")
  (copy / "scores.jsonl").unlink()
  with pytest.raises(FloatingPointError, match="are not finite"):
    evaluate_prm.evaluate(smoke(), str(copy))
  assert not scores(copy)


def test_too_few_devices_are_reported(tmp_path):
  settings = smoke(mesh=mesh(data=16))
  with pytest.raises(ConfigError, match=r"lower mesh\.data"):
    evaluate_prm.evaluate(settings, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_the_flag_start_raises(monkeypatch):
  """If ignored, it would seem to evaluate the PRM of another run."""
  flag = types.SimpleNamespace(value="elsewhere")
  monkeypatch.setattr(cli, "_START", flag)
  with pytest.raises(ConfigError, match="--start is for training"):
    cli.config_and_workdir(EvaluatePRMSettings)
