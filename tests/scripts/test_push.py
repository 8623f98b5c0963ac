"""export.py --push: the card, and the upload to a hub on loopback."""

import dataclasses
import json
import re

import export
import huggingface_hub
import jax
import numpy as np
import pytest
import yaml
from configs import files
from huggingface_hub import constants
from loopback_hub import Answer
from script_in_process import imported_script
from small_models import initial_params
from upload_hub import UploadHub

from pure_jax.host import huggingface
from pure_jax.host.checkpoints.checkpointer import Checkpoints
from pure_jax.host.huggingface import HuggingFaceError, upload
from pure_jax.models import policy
from pure_jax.parallel import sharding
from pure_jax.runs import workdir
from pure_jax.runs.model_card import facts, text
from pure_jax.runs.rl import roll_backs
from pure_jax.runs.saved_run import read_run
from pure_jax.runs.settings import conversion
from pure_jax.runs.tasks import tiny_files
from pure_jax.training import train
from pure_jax.training.optim import make_optimizer

ROWS = [
  {"stage": "rl_eval", "step": 0, "accuracy": 0.25, "math500/accuracy": 0.5},
  {"stage": "rl", "step": 1, "accuracy": 0.99},
  {"stage": "rl_eval", "step": 2, "accuracy": 0.625, "math500/accuracy": None},
  {"stage": "rl_eval", "step": 4, "accuracy": 0.99},
]
COMMIT = "0123456789" * 4


def write_rows(folder, rows):
  lines = [json.dumps(row) + "\n" for row in rows]
  (folder / "metrics.jsonl").write_text("".join(lines))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with checkpoints of iterations 3 and 4, and its log."""
  folder = tmp_path_factory.mktemp("runs") / "secret" / "run"
  config = files.get_config().to_dict()
  config["files"]["random_model"] = "tied"
  config["files"]["model"]["compute_dtype"] = "float32"
  settings = conversion.settings_from_config(config)
  workdir.prepare_workdir(
    folder, dataclasses.asdict(settings) | {"start": None}
  )
  tiny = tiny_files.make_files(settings.files, folder / "tiny")
  model = huggingface.read_config(tiny.policy).model
  optimizer = make_optimizer(settings.rl.optim)
  with Checkpoints(folder / "rl", best_metric="accuracy") as checkpoints:
    for step, accuracy in ((3, 0.9), (4, 0.1)):
      params = initial_params(policy.declare_policy(model), step)
      checkpoints.save(
        step,
        train.new_state(params, optimizer),
        metrics={"accuracy": accuracy},
      )
  write_rows(folder, ROWS)
  return folder


@pytest.fixture
def hub():
  with UploadHub() as hub:
    yield hub


def push(run, output, *words, repo="acme/tiny"):
  """Runs the script; returns its exit status."""
  flags = (f"run={run}", f"folder={output}", f"push={repo}", *words)
  with imported_script("export", *flags) as script:
    try:
      script.main(["export.py"])
    except SystemExit as exit_status:
      return exit_status.code
  return 0


def front_matter(card):
  return yaml.safe_load(card.split("---\n")[1])


def test_the_pushed_model_is_the_folder_and_is_loaded_from_the_hub(
  run, hub, tmp_path, capsys
):
  output = tmp_path / "exported"
  with hub.in_use(tmp_path / "home"):
    assert push(run, output, "which=best") == 0
  said = capsys.readouterr().out.splitlines()
  assert said == [
    f"{output} holds the policy after iteration 3.",
    f"Uploaded to {hub.url}/acme/tiny.",
  ]
  assert hub.messages == ["Upload the policy after iteration 3"]
  repo = hub.repos["models/acme/tiny"]
  pushed = repo.commits[repo.find("main")]
  del pushed[".gitattributes"]
  assert pushed == {path.name: path.read_bytes() for path in output.iterdir()}
  assert not hub.private
  # As another user, who has no token.
  with hub.in_use(tmp_path / "other", token=None):
    fetched = huggingface_hub.snapshot_download("acme/tiny")
  layout = sharding.make_layout(1, 1)
  jax.tree.map(
    np.testing.assert_array_equal,
    huggingface.load_policy(fetched, layout)[0],
    huggingface.load_policy(output, layout)[0],
  )


def test_a_private_repository_is_private(run, hub, tmp_path, capsys):
  with hub.in_use(tmp_path / "home"):
    assert push(run, tmp_path / "a", "private=true") == 0
    assert hub.private == {"models/acme/tiny"}
    assert push(run, tmp_path / "b") == 0  # It exists, and stays private.
    assert hub.private == {"models/acme/tiny"}
    hub.private.clear()
    hub.messages.clear()
    capsys.readouterr()
    assert push(run, tmp_path / "c", "private=true") == 1
  assert "acme/tiny exists and is public: make it" in capsys.readouterr().err
  assert (tmp_path / "c").is_dir() and not hub.messages


def test_stale_weights_of_the_repository_are_removed(run, hub, tmp_path):
  stale = {
    "model-00001-of-00002.safetensors": b"old",
    "model.safetensors.index.json": b"{}",
    "chat_template.jinja": b"old",
    "LICENSE": b"kept",
    "notes.txt": b"kept",
    "onnx/config.json": b"kept",
  }
  hub.commit("models/acme/tiny", stale)
  output = tmp_path / "exported"
  with hub.in_use(tmp_path / "home"):
    assert push(run, output) == 0
  repo = hub.repos["models/acme/tiny"]
  kept = {"LICENSE", "notes.txt", "onnx/config.json"}
  own = {path.name: path.read_bytes() for path in output.iterdir()}
  assert repo.commits[repo.find("main")] == own | dict.fromkeys(kept, b"kept")


LATER = r"The folder is whole, and stays: `hf upload {} .*` uploads it later"


@pytest.mark.parametrize(
  ("repo", "token", "message"),
  [
    ("acme/tiny", "hf_other", "does not accept the token for acme/tiny: log"),
    ("other/tiny", UploadHub.TOKEN, "The token may not write other/tiny: "),
  ],
)
def test_what_the_hub_refuses_ends_in_a_sentence(
  run, hub, tmp_path, capsys, repo, token, message
):
  with hub.in_use(tmp_path / "home", token=token):
    assert push(run, tmp_path / "out", repo=repo) == 1
  said = capsys.readouterr().err
  assert re.search(f"^error: .*{message}.*{LATER.format(repo)}", said)
  assert len(said.splitlines()) == 1
  huggingface.read_config(tmp_path / "out")
  assert not hub.repos


def test_a_hub_that_fails_or_is_gone_ends_in_a_sentence(
  run, hub, tmp_path, capsys
):
  output = tmp_path / "out"
  export.export(run, output, "latest")
  for step in ("create", "choose_modes", "list_objects", "receive_commit"):
    (route,) = [r for r in hub.routes if r[2] == getattr(hub, step)]
    place = hub.routes.index(route)
    hub.routes[place] = (*route[:2], lambda *_, **__: Answer(418))
    message = "The Hugging Face hub refuses acme/tiny: .*418"
    with (
      hub.in_use(tmp_path / "home"),
      pytest.raises(HuggingFaceError, match=message),
    ):
      upload.upload_model(output, "acme/tiny", "Upload", private=False)
    hub.routes[place] = route
    assert not hub.messages
  with hub.in_use(tmp_path / "home"):
    hub.stop()
    assert push(run, tmp_path / "gone") == 1
  said = capsys.readouterr().err
  assert re.search("cannot be reached.*" + LATER.format("acme/tiny"), said)
  huggingface.read_config(tmp_path / "gone")


def test_what_cannot_be_uploaded_is_said_before_the_export(
  run, hub, tmp_path, capsys, monkeypatch
):
  def assert_refused(message, *words, token=UploadHub.TOKEN, **options):
    with hub.in_use(tmp_path / "home", token=token):
      assert push(run, tmp_path / "out", *words, **options) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists() and not hub.requests

  for repo in ("tiny", "acme/tiny/x", "acme/ti ny", "acme/ti--ny", ""):
    assert_refused("no id of a model on the Hugging", repo=repo)
  assert_refused("There is no token .*: log in with", token=None)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(HuggingFaceError, match="HF_HUB_OFFLINE is set"):
    upload.check_upload("acme/tiny")
  with (
    imported_script(
      "export", f"run={run}", f"folder={tmp_path / 'out'}", "private=true"
    ) as script,
    pytest.raises(SystemExit),
  ):
    script.main(["export.py"])
  assert "--private needs --push=ORG/NAME." in capsys.readouterr().err


def card_of(run, model="policy", iteration=3, name="acme/tiny", **changes):
  """The card that a run has if these fields of its config.json differ."""
  saved = read_run(run)
  path = run / "config.json"
  before = path.read_text()
  record = json.loads(before)
  record["config"]["files"] |= changes.pop("files", {})
  record["config"] |= changes
  path.write_text(json.dumps(record))
  try:
    known = facts.collect_facts(saved, model, iteration)
  finally:
    path.write_text(before)
  return text.write_card(known, name, "Qwen2ForCausalLM", on_hub=True)


def test_the_card_names_what_is_on_the_hub_and_no_path(run):
  card = card_of(
    run,
    files={
      "random_model": None,
      "policy": "Qwen/Qwen2.5-0.5B@v1",
      "prm": "/home/secret/prm",
      "train": "openai/gsm8k/main/train-00000-of-00001.parquet",
      "held_out": "../secret/held_out.jsonl",
      "labelled": "acme/steps/steps.jsonl",
      "benchmarks": {"math500": {"file": "acme/math500/test.jsonl"}},
    },
    commits={
      "models/Qwen/Qwen2.5-0.5B@v1": COMMIT,
      "datasets/openai/gsm8k": "a",
      "datasets/acme/math500": "b",
      "datasets/acme/steps": "c",
    },
  )
  front = front_matter(card)
  assert front["base_model"] == "Qwen/Qwen2.5-0.5B"
  # Of training alone, and the PRM is another run's.
  assert front["datasets"] == ["openai/gsm8k"]
  assert "| benchmark math500 | acme/math500/test.jsonl | b |" in card
  assert (front["license"], front["library_name"]) == (
    "unknown",
    "transformers",
  )
  assert front["pipeline_tag"] == "text-generation"
  assert f"| base model | Qwen/Qwen2.5-0.5B | {COMMIT} |" in card
  assert (
    "| problems | openai/gsm8k/main/train-00000-of-00001.parquet | a |" in card
  )
  assert "| process reward model | prm | not from the hub |" in card
  assert "| held-out problems | held\\_out.jsonl | not from the hub |" in card
  assert "secret" not in card and str(run) not in card
  assert "| rl.credit.form | min |" in card
  commit = read_versions(run)["commit"] or "not known"
  assert f"| commit of pure\\_jax | {commit} |" in card
  assert "learning on process and outcome rewards, trained from" in card


def read_versions(run):
  return workdir.read_record(run)["versions"][-1]


def test_a_base_model_that_is_a_folder_is_no_name_on_the_hub(run):
  card = card_of(
    run,
    files={"random_model": None, "policy": "Qwen/local", "prm": "some/prm"},
    commits={"models/some/prm": COMMIT},
  )
  assert "base_model" not in front_matter(card)
  assert "| base model | local | not from the hub |" in card
  assert "base model | a tiny random model (tied) |" in card_of(run)


def test_the_card_has_the_evaluation_before_the_checkpoint(run):
  card = card_of(run)
  assert "After iteration 2, by the run itself, on at most 256 held-out" in card
  assert "| accuracy | 0.25 | 0.625 |" in card
  assert "| math500/accuracy | 0.5 | – |" in card
  assert "0.99" not in card
  assert "| accuracy | 0.25 | 0.99 |" in card_of(run, iteration=4)


def test_the_card_of_a_prm_has_its_last_evaluation(run, tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / "config.json").write_text((run / "config.json").read_text())
  write_rows(
    folder,
    [
      {"stage": "prm_eval", "step": 9, "auc": 0.5},
      {"stage": "prm_eval", "step": 140, "auc": 0.60612, "problems": 133.0},
    ],
  )
  card = card_of(folder, "prm", None)
  assert front_matter(card)["pipeline_tag"] == "token-classification"
  assert "after update 140 of the last stage" in card
  assert "| auc | 0.6061 |\n| problems | 133 |" in card
  assert "| prm.score.separator |" in card
  for content in (None, "", "damaged\n"):
    (folder / "metrics.jsonl").unlink()
    if content is not None:
      (folder / "metrics.jsonl").write_text(content)
    assert "has no evaluation of this model" in card_of(folder, "prm", None)
    (folder / "metrics.jsonl").touch()


def test_the_card_says_that_a_run_was_rolled_back(run):
  path = run / roll_backs.RECORD_FILE
  record = [dataclasses.asdict(roll_backs.RollBack("kl", "", 3, 2, {}))] * 2
  path.write_text(json.dumps(record))
  try:
    assert "Alarms rolled the run back 2 times" in card_of(run)
    assert "rolled" not in card_of(run, model="prm", iteration=None)
  finally:
    path.unlink()
  assert "rolled" not in card_of(run)


def test_a_record_without_versions_ends_in_a_sentence(run, tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  record = json.loads((run / "config.json").read_text())
  for versions in ([{}], ["1.0"], [record["versions"][0] | {"packages": 1}]):
    changed = record | {"versions": versions}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(workdir.WorkdirError, match="damaged: it has no vers"):
      facts.collect_facts(read_run(folder), "policy", 3)


def assert_code_loads(card):
  """Runs the code of a card: both programs load one model."""
  blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
  assert len(blocks) == 2
  names: dict = {}
  for block in blocks:
    exec(block, names)
  theirs = names["model"].state_dict()["model.norm.weight"].numpy()
  np.testing.assert_array_equal(names["params"]["final_norm"], theirs)
  assert names["tokenizer"].decode(names["tokenizer"].encode("1+1")) == "1+1"


def test_the_code_of_the_card_loads_the_model(run, hub, tmp_path, monkeypatch):
  pytest.importorskip("torch", reason="torch comes with [test]")
  output = tmp_path / 'a "policy"'
  export.export(run, output, "latest")
  monkeypatch.chdir(tmp_path)
  assert_code_loads((output / "README.md").read_text())
  with hub.in_use(tmp_path / "home"):
    assert push(run, tmp_path / "out") == 0
    assert_code_loads((tmp_path / "out" / "README.md").read_text())
