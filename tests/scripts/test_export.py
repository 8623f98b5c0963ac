"""Export of a run's policy or PRM as a folder that transformers loads."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import export
import jax
import numpy as np
import pytest
from checkout import ROOT
from configs import arithmetic, files, gsm8k_prm
from small_models import initial_params

from pure_jax.host import huggingface
from pure_jax.host.checkpoints.checkpointer import Checkpoints
from pure_jax.host.huggingface import HuggingFaceError
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.models import policy, prm
from pure_jax.parallel import sharding
from pure_jax.runs import workdir
from pure_jax.runs.run import open_run
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.tasks import files as files_task
from pure_jax.runs.tasks import tiny_files
from pure_jax.runs.workdir import WorkdirError
from pure_jax.training import train
from pure_jax.training.optim import make_optimizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run: (folder, weights by iteration). Iteration 2 is the best."""
  folder = tmp_path_factory.mktemp("runs") / "run"
  config = files.get_config().to_dict()
  config["files"]["random_model"] = "tied"
  config["files"]["model"]["compute_dtype"] = "float32"
  settings = conversion.settings_from_config(config)
  record = dataclasses.asdict(settings) | {"start": None}
  workdir.prepare_workdir(folder, record)
  tiny = tiny_files.make_files(settings.files, folder / "tiny")
  model = huggingface.read_config(tiny.policy).model
  optimizer = make_optimizer(settings.rl.optim)
  weights = {}
  with Checkpoints(folder / "rl", best_metric="accuracy") as checkpoints:
    for step, accuracy in ((1, 0.2), (2, 0.5), (3, 0.1)):
      params = initial_params(policy.declare_policy(model), step)
      weights[step] = jax.device_get(params)
      state = train.new_state(params, optimizer)
      checkpoints.save(step, state, metrics={"accuracy": accuracy})
  return folder, weights


@pytest.mark.parametrize(("which", "step"), [("latest", 3), ("best", 2)])
def test_the_folder_has_the_weights_of_the_chosen_checkpoint(
  run, tmp_path, which, step
):
  folder, weights = run
  output = tmp_path / "policy"
  description = export.export(folder, output, which)
  assert description == f"the policy after iteration {step}"
  params, model = huggingface.load_policy(output, sharding.make_layout(1, 1))
  jax.tree.map(np.testing.assert_array_equal, params, weights[step])
  # The tokenizer is that of the first policy.
  first = HuggingFaceTokenizer(folder / "tiny" / "policy", vocab_size=512)
  tokenizer = HuggingFaceTokenizer(output, vocab_size=model.vocab_size)
  assert tokenizer.pieces == first.pieces
  message = [{"role": "user", "content": "1+1?"}]
  template = tokenizer.apply_chat_template(message)
  assert template == first.apply_chat_template(message)
  assert [path.name for path in tmp_path.iterdir()] == ["policy"]
  with pytest.raises(HuggingFaceError, match="exists already"):
    export.export(folder, output, which)


@pytest.mark.parametrize(
  ("config", "generation_config", "eos_token", "expected"),
  [
    # As in Qwen2.5-Instruct: the list is kept, with all other fields.
    (2, {"bos_token_id": 7, "eos_token_id": [2, 0], "top_k": 3}, None, [2, 0]),
    # A model without generation_config.json.
    ([2, 0], None, None, [2, 0]),
    # The run ended responses at an id that the folder does not name.
    (None, {"eos_token_id": 0, "top_k": 3}, "<|im_end|>", [2, 0]),
    (None, None, None, 0),
  ],
)
def test_the_folder_ends_responses_as_the_run_did(
  run, tmp_path, config, generation_config, eos_token, expected
):
  pytest.importorskip("torch", reason="torch comes with [test]")
  import transformers

  workdir = tmp_path / "run"
  shutil.copytree(run[0], workdir)
  first = workdir / "tiny" / "policy"
  fields = json.loads((first / "config.json").read_text())
  fields |= {"eos_token_id": config, "bos_token_id": 7}
  (first / "config.json").write_text(json.dumps(fields))
  path = first / "generation_config.json"
  if generation_config is not None:
    path.write_text(json.dumps(generation_config))
  record = json.loads((workdir / "config.json").read_text())
  record["config"]["files"]["eos_token"] = eos_token
  (workdir / "config.json").write_text(json.dumps(record))
  before = HuggingFaceTokenizer(first, eos_token=eos_token)
  output = tmp_path / "policy"
  export.export(workdir, output, "latest")
  kind = transformers.AutoModelForCausalLM
  exported = kind.from_pretrained(output).generation_config
  ends = exported.eos_token_id
  listed = ends if isinstance(ends, list) else [ends]
  assert sorted(listed) == sorted(np.atleast_1d(expected).tolist())
  assert exported.bos_token_id == 7
  if config == 2:
    assert json.loads((output / path.name).read_text()) == generation_config
  after = HuggingFaceTokenizer(output)
  assert {*after.eos_ids} == {*before.eos_ids}


def test_a_folder_that_is_no_run_on_files_raises(run, tmp_path):
  def assert_raises(message):
    with pytest.raises(ConfigError, match=message):
      export.export(tmp_path / "run", tmp_path / "policy", "latest")

  assert_raises("is not the workdir of a run")
  config = arithmetic.get_config("smoke")
  settings = conversion.settings_from_config(config)
  record = dataclasses.asdict(settings) | {"start": None}
  workdir.prepare_workdir(tmp_path / "run", record)
  assert_raises("a run on the embedded world")
  record = json.loads((run[0] / "config.json").read_text())
  (tmp_path / "run" / "config.json").write_text(json.dumps(record))
  assert_raises("has no checkpoint")
  for damage in ({"start": [1]}, {"contents": [1]}):
    damaged = record | {"config": record["config"] | damage}
    (tmp_path / "run" / "config.json").write_text(json.dumps(damaged))
    with pytest.raises(WorkdirError, match=r"config\.json is damaged"):
      export.export(tmp_path / "run", tmp_path / "policy", "latest")
  assert not (tmp_path / "policy").exists()


@pytest.fixture(scope="module")
def prm_run(tmp_path_factory):
  """A run that trained a deeper PRM: (folder, settings, weights)."""
  folder = tmp_path_factory.mktemp("runs") / "prm"
  config = gsm8k_prm.get_config("smoke")
  config.prm.extra_layers = 1
  settings = conversion.settings_from_config(config)
  with open_run(settings, str(folder)) as run:
    declared = prm.declare_prm(run.spec.prm_model)
    params = initial_params(declared, 7)
    run.folder.finish_stage("prm", params, {})
  return folder, settings, jax.device_get(params)


def test_the_folder_has_the_weights_of_the_prm_and_another_run_loads_it(
  prm_run, tmp_path
):
  folder, settings, weights = prm_run
  output = tmp_path / "prm"
  description = export.export(folder, output, "latest", "prm")
  assert description.endswith("prompt_format='plain' and separator='insert'")
  params, model = huggingface.load_prm(output, sharding.make_layout(1, 1))
  jax.tree.map(np.testing.assert_array_equal, params, weights)
  tiny = tiny_files.make_files(settings.files, folder / "tiny")
  other = dataclasses.replace(
    settings, files=dataclasses.replace(tiny, prm=str(output))
  )
  task = files_task.FilesTask(other, tmp_path)
  assert task.prm_model.num_layers == model.num_layers == 3
  task.close()


def test_transformers_reads_the_folder_of_a_prm(prm_run, tmp_path):
  torch = pytest.importorskip("torch", reason="torch comes with [test]")
  import transformers

  output = tmp_path / "prm"
  export.export(prm_run[0], output, "latest", "prm")
  kind = transformers.AutoModelForTokenClassification
  model, loaded = kind.from_pretrained(output, output_loading_info=True)
  assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
  assert model.config.id2label == {0: "bad", 1: "good"}
  score = model.score(torch.eye(model.config.hidden_size))
  kernel, bias = (
    prm_run[2]["score"]["kernel"],
    prm_run[2]["score"]["bias"],
  )
  np.testing.assert_allclose(score.detach().numpy(), kernel + bias, atol=1e-6)
  tokenizer = transformers.AutoTokenizer.from_pretrained(output)
  first = HuggingFaceTokenizer(prm_run[0] / "tiny" / "policy")
  assert tokenizer.encode("So it is 29.\n\n") == first.encode(
    "So it is 29.\n\n"
  )


def test_a_run_without_a_prm_raises(run, prm_run, tmp_path):
  output = tmp_path / "prm"

  def assert_raises(workdir, which, message):
    with pytest.raises(ConfigError, match=message):
      export.export(workdir, output, which, "prm")

  assert_raises(prm_run[0], "best", "a run has only one PRM")
  assert_raises(run[0], "latest", "has no finished PRM")
  record = json.loads((prm_run[0] / "config.json").read_text())
  record["config"]["files"]["prm"] = "FOLDER"
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text(json.dumps(record))
  assert_raises(tmp_path / "run", "latest", "took its PRM from FOLDER")
  assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_mistake_on_the_command_line_ends_in_a_sentence(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      str(ROOT / "experiments" / "export.py"),
      f"--run={tmp_path}",
      f"--folder={tmp_path / 'policy'}",
    ],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert "is not the workdir of a run" in done.stderr
  assert "Traceback" not in done.stderr
