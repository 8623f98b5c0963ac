"""The policy of a run as a folder: the weights of the checkpoint asked for."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from pure_jax.host import huggingface, workdir
from pure_jax.host.checkpoint import Checkpoints
from pure_jax.host.huggingface import HuggingFaceError
from pure_jax.host.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.models import policy
from pure_jax.models.params import init_params
from pure_jax.parallel import sharding
from pure_jax.training import train
from pure_jax.training.optim import make_optimizer

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

import config_conversion  # noqa: E402
import export  # noqa: E402
import tiny_files  # noqa: E402
from configs import arithmetic, files  # noqa: E402
from run_settings import ConfigError  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """What a run leaves: (folder, weights by iteration). The second is best."""
  folder = tmp_path_factory.mktemp("runs") / "run"
  config = files.get_config().to_dict()
  config["files"] |= {"random_model": "tied", "compute_dtype": "float32"}
  settings = config_conversion.settings_from_config(config)
  record = dataclasses.asdict(settings) | {"start": None}
  workdir.prepare_workdir(folder, record)
  tiny = tiny_files.make_files(settings.files, folder / "tiny")
  model = huggingface.read_config(tiny.policy).model
  optimizer = make_optimizer(settings.rl.optim)
  weights = {}
  with Checkpoints(folder / "rl", best_metric="accuracy") as checkpoints:
    for step, accuracy in ((1, 0.2), (2, 0.5), (3, 0.1)):
      params = init_params(jax.random.key(step), policy.declare_policy(model))
      weights[step] = jax.device_get(params)
      state = train.new_state(params, optimizer)
      checkpoints.save(step, state, metrics={"accuracy": accuracy})
  return folder, weights


@pytest.mark.parametrize(("which", "step"), [("latest", 3), ("best", 2)])
def test_the_folder_has_the_weights_of_that_iteration(
  run, tmp_path, which, step
):
  folder, weights = run
  output = tmp_path / "policy"
  assert export.export(folder, output, which) == step
  params, model = huggingface.load_policy(output, sharding.make_mesh(1, 1))
  jax.tree.map(np.testing.assert_array_equal, params, weights[step])
  # It writes and reads what the first policy did.
  first = HuggingFaceTokenizer(folder / "tiny" / "policy", vocab_size=512)
  tokenizer = HuggingFaceTokenizer(output, vocab_size=model.vocab_size)
  assert tokenizer.pieces == first.pieces
  message = [{"role": "user", "content": "1+1?"}]
  template = tokenizer.apply_chat_template(message)
  assert template == first.apply_chat_template(message)
  assert [path.name for path in tmp_path.iterdir()] == ["policy"]
  with pytest.raises(HuggingFaceError, match="is there already"):
    export.export(folder, output, which)


def test_what_is_no_such_run_is_refused(run, tmp_path):
  def refused(message):
    with pytest.raises(ConfigError, match=message):
      export.export(tmp_path / "run", tmp_path / "policy", "latest")

  refused("is not the workdir of a run")
  config = arithmetic.get_config("smoke")
  settings = config_conversion.settings_from_config(config)
  record = dataclasses.asdict(settings) | {"start": None}
  workdir.prepare_workdir(tmp_path / "run", record)
  refused("a run on the embedded world")
  record = json.loads((run[0] / "config.json").read_text())
  (tmp_path / "run" / "config.json").write_text(json.dumps(record))
  refused("has no checkpoint")
  assert not (tmp_path / "policy").exists()


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
