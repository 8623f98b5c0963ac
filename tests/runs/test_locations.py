"""Configs that name models and data on the Hugging Face hub, end to end."""

import dataclasses
import json
import pathlib
import shutil

import evaluate
import evaluate_prm
import pytest
from configs import files as files_config
from configs import (
  paper,
  pure_prm_7b,
  qwen2p5_7b,
  qwen2p5_math_1p5b,
  qwen2p5_math_7b,
)
from huggingface_hub import constants
from loopback_hub import LoopbackHub
from policy_evaluations import on_files, responses
from prm_evaluations import smoke as prm_smoke

from pure_jax.host.checkpoints import integrity
from pure_jax.host.data.formats.public import PUBLIC
from pure_jax.host.evaluation import report as report_files
from pure_jax.host.huggingface import MODEL_FILES
from pure_jax.runs import locations
from pure_jax.runs.planning import planned_spec
from pure_jax.runs.run import open_run
from pure_jax.runs.saved_run import read_run
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.tasks import tiny_files
from pure_jax.runs.workdir import WorkdirError

POLICY, PRM = "acme/policy", "acme/prm"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """Folders of a tiny policy, a PRM, and files of problems."""
  folder = tmp_path_factory.mktemp("tiny")
  tiny_files.write_policy(folder / "policy", tied=True)
  tiny_files.write_prm(folder / "prm", tied=True)
  tiny_files.write_problems(folder / "problems")
  tiny_files.write_solutions(folder / "solutions")
  return folder


@pytest.fixture
def server(tiny, tmp_path, monkeypatch):
  """A hub with the models and the public data sets of some formats."""
  monkeypatch.setattr(report_files, "plot_tables", lambda *unused: [])
  with LoopbackHub() as server, server.in_use(tmp_path / "home"):
    server.commit_folder(f"models/{POLICY}", tiny / "policy")
    server.commit_folder(f"models/{PRM}", tiny / "prm")
    rows = {
      "math8k": (tiny / "problems" / "train.jsonl", "train"),
      "math500": (tiny / "problems" / "held_out.jsonl", "held_out"),
      "prm800k": (tiny / "problems" / "labelled.jsonl", "train"),
    }
    for name, (path, use) in rows.items():
      file = getattr(PUBLIC[name], use).replace(".parquet", ".jsonl")
      server.commit(
        f"datasets/{PUBLIC[name].repo_id}", {file: path.read_bytes()}
      )
    yield server


def recorded(workdir):
  """The config that a folder records."""
  return json.loads((pathlib.Path(workdir) / "config.json").read_text())[
    "config"
  ]


def move_on(server, name):
  """Adds a commit to the branch main, with another weight."""
  repo = server.repos[name]
  files = dict(repo.commits[repo.revisions["main"]])
  weights = bytearray(files["model.safetensors"])
  weights[-1] ^= 1
  return server.commit(
    name, files | {"model.safetensors": bytes(weights), "more.txt": b""}
  )


# ===== Evaluations =====


def test_an_evaluation_from_ids_and_its_resume_at_the_same_commits(
  server, tiny, tmp_path
):
  """Later the branch moves on, and the hub goes away."""
  named = on_files(
    tiny,
    samples=0,
    sampler__max_new_tokens=4,
    policy=POLICY,
    benchmarks__math500__file="HuggingFaceH4/MATH-500",
  )
  evaluate.evaluate(named, str(tmp_path / "run"))
  rows, config = responses(tmp_path / "run"), recorded(tmp_path / "run")
  assert len(rows) == 6
  assert config["policy"] == POLICY
  assert config["contents"] == {
    "policy": integrity.fingerprint(tiny / "policy", MODEL_FILES),
    "benchmarks": {
      "math500": integrity.fingerprint(tiny / "problems" / "held_out.jsonl")
    },
  }
  commit = server.repos[f"models/{POLICY}"].revisions["main"]
  assert config["commits"][f"models/{POLICY}"] == commit
  assert len(config["commits"]) == 2
  report = json.loads((tmp_path / "run" / "report.json").read_text())
  assert report["title"] == "Evaluation of acme/policy"
  newer = move_on(server, f"models/{POLICY}")
  server.requests.clear()
  evaluate.evaluate(named, str(tmp_path / "run"))
  assert server.requests == []
  assert recorded(tmp_path / "run") == config
  assert responses(tmp_path / "run") == rows
  # A new one takes what the branch is now, or the commit that is named.
  find = locations.locate_evaluation
  _, commits = locations.locate(find, named, tmp_path / "new")
  assert commits[f"models/{POLICY}"] == newer
  pinned = dataclasses.replace(named, policy=f"{POLICY}@{commit}")
  assert locations.locate(find, pinned)[0].policy.endswith(commit)


def test_a_prm_is_evaluated_from_ids(server, tiny, tmp_path):
  data = {"name": "own", "file": "tasksource/PRM800K/phase2_train.jsonl"}
  data |= {"format": "prm800k"}
  settings = prm_smoke(
    random_model=None, prm=PRM, tokenizer=POLICY, data=(data,)
  )
  report = evaluate_prm.evaluate(settings, str(tmp_path / "run"))
  assert report.startswith("PRM acme/prm: a step is good above")
  assert {*recorded(tmp_path / "run")["commits"]} == {
    *("models/acme/prm", "models/acme/policy", "datasets/tasksource/PRM800K")
  }
  assert server.downloads().count("model.safetensors") == 1


# ===== Training =====


def training(**changes):
  """Settings of RL on models and data of the hub."""
  config = qwen2p5_math_1p5b.get_config("smoke_prm_vr")
  made = conversion.settings_from_config(config)
  named = {"random_model": None, "policy": POLICY, "prm": PRM}
  named |= {"held_out": PUBLIC["math500"].repo_id}
  named |= {"train": "hkust-nlp/SimpleRL-Zoo-Data/simplelr_qwen_level3to5/t"}
  named["train"] += "rain.jsonl"
  return dataclasses.replace(
    made, files=dataclasses.replace(made.files, **named | changes)
  )


def reopen(settings, workdir, start=None):
  """Opens a run and closes it; its settings."""
  with open_run(settings, str(workdir), start and str(start)) as run:
    return run.spec.settings


def test_a_run_records_ids_and_commits_and_is_resumed_at_them(
  server, tiny, tmp_path, monkeypatch
):
  settings = training()
  opened = reopen(settings, tmp_path / "run")
  assert pathlib.Path(opened.files.policy).is_dir()
  config = recorded(tmp_path / "run")
  assert (config["files"]["policy"], config["files"]["prm"]) == (POLICY, PRM)
  commits = {name: r.revisions["main"] for name, r in server.repos.items()}
  del commits["datasets/tasksource/PRM800K"]
  assert config["commits"] == commits
  move_on(server, f"models/{POLICY}")
  # Neither a resume, nor what is read of the run, nor a run that starts from it
  # asks the hub.
  server.requests.clear()
  assert reopen(settings, tmp_path / "run") == opened
  run = read_run(tmp_path / "run")
  assert run.files.policy == opened.files.policy
  assert run.load_tokenizer().eos_ids and run.settings == settings
  reopen(settings, tmp_path / "other", tmp_path / "run")
  assert server.requests == []
  # One that begins anew does, and does not fit to that start.
  assert reopen(settings, tmp_path / "new").files.policy != opened.files.policy
  shutil.rmtree(tmp_path / "other")
  with pytest.raises(
    WorkdirError, match=r"files\.policy: was 'acme/policy', is"
  ):
    reopen(training(policy=str(tiny / "policy")), tmp_path / "run")


def test_benchmarks_of_the_hub_may_be_added_before_rl(server, tmp_path):
  settings = training()
  reopen(settings, tmp_path / "run")
  benchmarks = dict(settings.files.benchmarks)
  benchmarks["math500"] = dataclasses.replace(
    benchmarks["math500"], file=PUBLIC["math500"].repo_id
  )
  reopen(training(benchmarks=benchmarks), tmp_path / "run")


def test_other_processes_take_the_commits_of_process_zero(
  server, tmp_path, monkeypatch
):
  """The branch may move on between them."""
  settings = training()
  _, commits = locations.locate(locations.locate_files, settings.files)
  move_on(server, f"models/{POLICY}")
  module = locations.processes
  monkeypatch.setattr(module, "on_process_zero", lambda action: None)
  monkeypatch.setattr(module, "broadcast_from_zero", lambda compute: commits)
  files, others = locations.locate(locations.locate_files, settings.files)
  assert others == commits
  assert files.policy.endswith(commits[f"models/{POLICY}"])


@pytest.mark.parametrize("mode", paper.MODES)
@pytest.mark.parametrize(
  ("config_file", "policy"),
  [
    (qwen2p5_7b, "Qwen/Qwen2.5-7B"),
    (qwen2p5_math_7b, "Qwen/Qwen2.5-Math-7B"),
    (qwen2p5_math_1p5b, "Qwen/Qwen2.5-Math-1.5B"),
  ],
)
def test_the_papers_runs_need_nothing_but_a_workdir(config_file, policy, mode):
  """Models and data are named, those of smoke runs are made."""
  prm = None if mode == "vr" else "jinachris/PURE-PRM-7B"
  data = ("hkust-nlp/SimpleRL-Zoo-Data", "HuggingFaceH4/MATH-500")
  for preset in paper.PRESETS:
    for prefix in ("", "smoke_"):
      config = config_file.get_config(f"{prefix}{preset}_{mode}")
      files = conversion.settings_from_config(config).files
      texts = (files.policy, files.prm, files.train, files.held_out)
      named = {*files.named_benchmarks()}
      if prefix:
        assert texts == (None,) * 4 and not named
      else:
        assert texts == (policy, prm, *data)
        assert named == {*files_config.PAPER_BENCHMARKS}


def test_the_papers_prm_needs_nothing_but_a_workdir():
  files = pure_prm_7b.get_config().files
  assert files.policy == "Qwen/Qwen2.5-Math-7B"
  assert files.labelled == "tasksource/PRM800K"


def test_a_plan_fetches_nothing(server):
  config = qwen2p5_math_1p5b.get_config()
  assert config.files.policy == "Qwen/Qwen2.5-Math-1.5B"
  assert config.files.prm == "jinachris/PURE-PRM-7B"
  settings = conversion.settings_from_config(config).for_platform("tpu")
  spec = planned_spec.read_spec(settings, evaluate.jax.devices())
  assert (spec.model.num_layers, spec.prm_model.num_layers) == (28, 28)
  config.files.prm_architecture = None
  settings = conversion.settings_from_config(config)
  with pytest.raises(ConfigError, match=r"files\.prm=jinachris.* is no folder"):
    planned_spec.read_spec(settings, evaluate.jax.devices())
  assert server.requests == []


def test_a_damaged_record_of_commits_is_said(server, tmp_path):
  reopen(training(), tmp_path / "run")
  path = tmp_path / "run" / "config.json"
  record = json.loads(path.read_text())
  record["config"]["commits"] = {"models/acme/policy": 1}
  path.write_text(json.dumps(record))
  for use in (lambda: reopen(training(), tmp_path / "run"),
              lambda: read_run(tmp_path / "run")):  # fmt: skip
    with pytest.raises(
      WorkdirError, match="damaged: commits must be a group of"
    ):
      use()


def test_a_run_goes_on_offline(server, tmp_path, monkeypatch, capsys):
  reopen(training(), tmp_path / "run")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  capsys.readouterr()
  reopen(training(), tmp_path / "run")
  assert "Hugging Face" not in capsys.readouterr().err
  reopen(training(), tmp_path / "new")
  assert capsys.readouterr().err.count("is taken from the cache") == 4
