"""What a config's text of a model or a file stands for."""

import dataclasses
import pathlib

import pytest
from configs import qwen2p5_math_1p5b
from loopback_hub import LoopbackHub
from prm_evaluations import smoke as prm_smoke

from pure_jax.host.data.formats.public import PUBLIC
from pure_jax.host.huggingface.hub_names import HubName
from pure_jax.runs import locations
from pure_jax.runs.locations import Locator
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError

POLICY = "acme/policy"


@pytest.fixture
def server(tmp_path):
  """A hub with files of a model and of two formats; no test reads them."""
  with LoopbackHub() as server, server.in_use(tmp_path / "home"):
    weights = {"config.json": b"{}", "model.safetensors": b"weights"}
    server.commit(f"models/{POLICY}", weights)
    for name in ("math500", "prm800k"):
      public = PUBLIC[name]
      server.commit(
        f"datasets/{public.repo_id}", dict.fromkeys(public.files(), b"{}\n")
      )
    yield server


def training(folder, **changes):
  """Settings of RL with outcome rewards on a policy in a folder."""
  config = qwen2p5_math_1p5b.get_config("smoke_vr")
  files = conversion.settings_from_config(config).files
  named = {"random_model": None, "policy": str(folder)}
  named |= {"held_out": PUBLIC["math500"].repo_id}
  return dataclasses.replace(files, **named | changes)


def prm_evaluation(folder, **data):
  """Settings of an evaluation of the PRM in a folder, on one data set."""
  return prm_smoke(
    random_model=None, prm=str(folder), data=({"name": "own"} | data,)
  )


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      "/nowhere/model",
      "is no folder, and no id of a model on the Hugging Face",
    ),
    ("model", "is no folder, .* which is ORG/NAME or ORG/NAME@REVISION"),
    (
      "models/typo",
      r"is no folder here, and the model models/typo .* not exist",
    ),
    (f"{POLICY}@v9", "is no folder here, and .* has no revision v9: name a br"),
  ],
)
def test_a_text_that_is_no_model_is_said_to_be_neither(server, text, message):
  with pytest.raises(ConfigError, match=f"^files.policy={text} {message}"):
    Locator({}).model("files.policy", text)


@pytest.mark.parametrize(
  ("text", "row_format", "message"),
  [
    ("/nowhere/a.jsonl", "math500", "is no file, and no id of a data set on"),
    ("data/a.jsonl", "math500", "is no file, and no id of a data set on"),
    (
      "a/b/c.jsonl",
      "math500",
      "is no file here, and the data set a/b .* not ex",
    ),
    ("a/b", "mapped_problems", "does not say which file is meant: .* a/b/PATH"),
    (
      "Qwen/ProcessBench",
      "processbench",
      "as in Qwen/ProcessBench/gsm8k.json,",
    ),
    ("HuggingFaceH4/MATH-500/no.json", "math500", "It has test.jsonl"),
  ],
)
def test_a_text_that_is_no_data_is_said_to_be_neither(
  server, text, row_format, message
):
  with pytest.raises(ConfigError, match=f"^files.train={text} .*{message}"):
    Locator({}).data("files.train", text, row_format)


@pytest.mark.parametrize(
  ("text", "row_format", "use", "files"),
  [
    ("HuggingFaceH4/MATH-500", "math500", "train", ["test.jsonl"]),
    ("a/b@v2", "aime24", "train", ["data/train-00000-of-00001.parquet"]),
    (
      "Qwen/ProcessBench",
      "processbench",
      "train",
      ["gsm8k.json", "math.json", "olympiadbench.json", "omnimath.json"],
    ),
    (
      "peiyi9979/Math-Shepherd",
      "math_shepherd",
      "evaluate",
      ["math-shepherd.jsonl"],
    ),
  ],
)
def test_a_data_set_without_a_file_for_the_use_is_refused(
  server, text, row_format, use, files
):
  """A file of another use is taken only by its own name."""
  name = text.partition("@")[0]
  examples = ", ".join(f"{name}/{file}" for file in files)
  with pytest.raises(ConfigError) as error:
    Locator({}).data(
      "files.train", text, row_format, for_training=use == "train"
    )
  assert str(error.value) == (
    f"files.train={text} is no file here, and as an id of the Hugging Face hub "
    f"it has no file to {use} on. To {use} on another of its files all the "
    f"same, name that file, as in {examples}."
  )
  assert server.requests == []


def test_a_run_trains_on_no_test_set_unless_its_file_is_named(server, tmp_path):
  name, find = PUBLIC["math500"].repo_id, locations.locate_files
  files = training(tmp_path, train=name, train_format="math500")
  with pytest.raises(
    ConfigError, match=r"^files\.train=.* no file to train on"
  ):
    locations.locate(find, files)
  files = dataclasses.replace(files, train=f"{name}/test.jsonl")
  files, _ = locations.locate(find, files)
  assert files.train == files.held_out


@pytest.mark.parametrize("one_in", [None, 4])
def test_held_out_problems_are_those_of_the_file_that_was_split(
  server, tmp_path, one_in
):
  public = PUBLIC["prm800k"]
  settings = prm_evaluation(
    tmp_path, file=public.repo_id, format="prm800k", held_out_one_in=one_in
  )
  located, _ = locations.locate(locations.locate_prm_evaluation, settings)
  expected = public.held_out if one_in is None else public.train
  assert pathlib.Path(located.data[0].file).name == expected


@pytest.mark.parametrize("missing", ["file", "problems"])
def test_the_field_of_a_file_that_is_missing_is_named(
  server, tmp_path, missing
):
  fields = {"file": __file__, "problems": __file__, missing: "no.jsonl"}
  settings = prm_evaluation(
    tmp_path, **fields, format="responses", problems_format="gsm8k"
  )
  with pytest.raises(ConfigError, match=rf"^data\.own\.{missing}=no\.jsonl is"):
    locations.locate(locations.locate_prm_evaluation, settings)


def test_what_is_here_comes_first(server, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for folder in (POLICY, "HuggingFaceH4"):
    (tmp_path / folder).mkdir(parents=True)
  (tmp_path / "HuggingFaceH4" / "MATH-500").write_text("{}\n")
  locator = Locator({})
  assert locator.model("files.policy", POLICY) == POLICY
  name = PUBLIC["math500"].repo_id
  assert locator.data("files.train", name, "math500") == name
  assert locator.commits == {} and server.requests == []


def test_files_of_one_data_set_are_of_one_commit_as_recorded(server):
  name = "datasets/acme/both"
  first = server.commit(name, {"a.json": b"[]", "b.json": b"[]"})
  locator = Locator({})
  locator.data("files.train", "acme/both/a.json", "math500")
  server.commit(name, {"a.json": b"[1]", "b.json": b"[1]"})
  path = locator.data("files.held_out", "acme/both/b.json", "math500")
  assert first in path and locator.commits == {name: first}
  resumed = Locator({name: first})
  path = resumed.data("files.train", "acme/both/a.json", "math500")
  assert first in path and resumed.commits == {name: first}
  # Of a revision that is named, that one.
  second = server.commit(name, {"b.json": b"[2]"}, "v2")
  path = locator.data("files.held_out", "acme/both/b.json@v2", "math500")
  assert second in path
  assert HubName("dataset", "acme/both", "v2").key in locator.commits
