"""Names on the Hugging Face hub, fetched by the real client from loopback."""

import json
import os
import pathlib
import signal
import threading
import time

import huggingface_hub
import pytest
from huggingface_hub import constants
from loopback_hub import LoopbackHub, git_hash

from pure_jax.host.distributed import preemption
from pure_jax.host.huggingface import HuggingFaceError, hub
from pure_jax.host.huggingface.hub_names import (
  HubName,
  parse_data,
  parse_model,
)

WEIGHTS = bytes(range(256)) * 40
MODEL = {
  "config.json": b'{"model_type": "qwen2"}',
  "generation_config.json": b"{}",
  "model.safetensors": WEIGHTS,
  "tokenizer.json": b'{"version": "1.0"}',
  "merges.txt": b"a b\n",
  "chat_template.jinja": b"{{ messages }}",
}
OTHERS = {
  "pytorch_model.bin": b"pickle",
  "modeling_own.py": b"import os",
  "README.md": b"# Tiny",
  "consolidated.safetensors": b"the same once more",
  "original/params.json": b"{}",
  "onnx/model.safetensors": b"of another program",
}
NAME = HubName("model", "acme/tiny")
ROWS = HubName("dataset", "acme/rows")


@pytest.fixture
def server(tmp_path):
  """A hub with a model and a data set, used by the client."""
  with LoopbackHub() as server, server.in_use(tmp_path / "home"):
    server.commit("models/acme/tiny", MODEL | OTHERS)
    server.commit(
      "datasets/acme/rows",
      {"main/test.parquet": b"rows", "train.jsonl": b"{}\n", "a.csv": b""},
    )
    yield server


def contents(snapshot):
  """The files of a folder with what they hold."""
  return {path.name: path.read_bytes() for path in snapshot.path.iterdir()}


# ===== Names =====


@pytest.mark.parametrize(
  ("text", "name"),
  [
    ("Qwen/Qwen2.5-Math-1.5B", ("Qwen/Qwen2.5-Math-1.5B", None)),
    ("a/b@refs/pr/1", ("a/b", "refs/pr/1")),
    ("a/b@" + "0" * 40, ("a/b", "0" * 40)),
    *((text, None) for text in ("", "gpt2", "a/b/c", "/a/b", "./a/b", "~/a")),
    *((text, None) for text in ("a/b@", "a b/c", "a/b\n", "-a/b", "a/.b")),
    *((text, None) for text in ("a/b--c", "a/b..c", "a/b.git", "a/b@../c")),
  ],
)
def test_the_form_of_an_id_of_a_model(text, name):
  parsed = parse_model(text)
  assert (parsed and (parsed.repo_id, parsed.revision)) == name


@pytest.mark.parametrize(
  ("text", "name"),
  [
    ("a/b", ("a/b", None, None)),
    ("a/b@v1", ("a/b", None, "v1")),
    ("a/b/c d/e-0-of-1.parquet", ("a/b", "c d/e-0-of-1.parquet", None)),
    ("a/b/c.json@refs/pr/1", ("a/b", "c.json", "refs/pr/1")),
    # A file in a folder here, a folder, another kind of file, a way out.
    *((text, None) for text in ("data/test.jsonl", "a/b/c", "a/b/c.csv")),
    *((text, None) for text in ("/a/b/c.json", "../a/c.json", "a.json")),
    *((text, None) for text in ("a/b/../c.json", "a/b//c.json")),
  ],
)
def test_the_form_of_an_id_of_data(text, name):
  parsed = parse_data(text)
  assert (parsed and (parsed.repo_id, parsed.path, parsed.revision)) == name


# ===== Whole =====


def test_a_model_is_fetched_without_pickles_code_and_copies(server):
  snapshot = hub.fetch_model(NAME)
  assert contents(snapshot) == MODEL
  assert snapshot.commit == server.repos["models/acme/tiny"].revisions["main"]
  sent = server.downloads()
  assert {*sent} == {*MODEL} and len(sent) == len(MODEL)
  assert sent[-1] == "model.safetensors"  # Whoever has it has all files.
  # The client finds it in its cache, as it does what it fetched by itself.
  found = huggingface_hub.try_to_load_from_cache("acme/tiny", "config.json")
  assert found == str(snapshot.path / "config.json")
  server.requests.clear()
  assert hub.fetch_model(NAME) == snapshot
  assert server.downloads() == []


def test_a_model_in_several_files_is_fetched_whole(server):
  shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
  index = {"weight_map": {"a": shards[0], "b": shards[1]}}
  files = {k: v for k, v in MODEL.items() if k != "model.safetensors"}
  files["model.safetensors.index.json"] = json.dumps(index).encode()
  files |= dict.fromkeys(shards, WEIGHTS)
  server.commit("models/acme/large", files | {"extra.safetensors": b""})
  name = HubName("model", "acme/large")
  assert contents(hub.fetch_model(name)) == files
  # Its index names a file that the hub does not have.
  del files[shards[1]]
  server.commit("models/acme/large", files)
  with pytest.raises(HuggingFaceError, match=r"lacks files that its model\.s"):
    hub.fetch_model(name)


def test_a_tokenizer_is_fetched_without_weights(server):
  snapshot = hub.fetch_model(NAME, weights=False)
  assert {*contents(snapshot)} == {*MODEL} - {"model.safetensors"}


def test_a_file_of_a_data_set_is_fetched_alone(server):
  snapshot = hub.fetch_file(ROWS, "main/test.parquet")
  assert snapshot.path.read_bytes() == b"rows"
  assert snapshot.commit in snapshot.path.parts
  assert server.downloads() == ["main/test.parquet"]


def test_a_branch_is_looked_up_each_time_and_a_commit_is_not(server):
  first = hub.fetch_model(NAME)
  newer = server.commit("models/acme/tiny", MODEL | {"merges.txt": b"c d\n"})
  server.requests.clear()
  again = hub.fetch_model(NAME, first.commit)
  assert again == first and contents(again) == MODEL and not server.requests
  assert hub.fetch_model(NAME).commit == newer
  assert server.downloads() == ["merges.txt"]
  tag = server.commit("models/acme/tiny", MODEL | {"a.txt": b""}, "v2")
  assert hub.fetch_model(HubName("model", "acme/tiny", "v2")).commit == tag
  with pytest.raises(HuggingFaceError, match="has no revision v3"):
    hub.fetch_model(HubName("model", "acme/tiny", "v3"))


# ===== Interrupted and damaged =====


def test_a_connection_that_breaks_is_resumed_from_its_last_byte(
  server, monkeypatch
):
  monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
  server.cuts["model.safetensors"] = [5000]
  assert contents(hub.fetch_model(NAME)) == MODEL
  asked = [
    request.headers.get("range")
    for request in server.requests
    if request.path.endswith("model.safetensors") and request.method == "GET"
  ]
  assert asked == [None, "bytes=4096-"]


def test_whole_files_stay_if_the_hub_goes_away(server, monkeypatch, tmp_path):
  """The next start fetches the one that was interrupted, and no other."""
  monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
  monkeypatch.setattr(time, "sleep", lambda seconds: None)
  server.cuts["model.safetensors"] = [5000, *[0] * 6]
  with pytest.raises(
    HuggingFaceError, match=r"was not fetched to its end .* th"
  ):
    hub.fetch_model(NAME)
  server.cuts.clear()
  server.requests.clear()
  assert contents(hub.fetch_model(NAME)) == MODEL
  assert server.downloads() == ["model.safetensors"]
  assert list((tmp_path / "home").rglob("*.incomplete")) == []


def test_ctrl_c_ends_a_download_at_once(server, monkeypatch):
  """Files are fetched in the thread that gets the signal."""
  begun = threading.Event()
  send_file = server.send_file

  def hang(request, **names):
    if request.path.endswith("model.safetensors") and request.method == "GET":
      begun.set()
      time.sleep(60)
    return send_file(request, **names)

  pattern = server.routes[-1][:2]
  server.routes[-1] = (*pattern, hang)

  def interrupt():
    assert begun.wait(60)
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt, daemon=True).start()
  start = time.monotonic()
  with pytest.raises(KeyboardInterrupt), preemption.raise_on_ctrl_c():
    hub.fetch_model(NAME)
  assert time.monotonic() - start < 30
  server.routes[-1] = (*pattern, send_file)
  assert contents(hub.fetch_model(NAME)) == MODEL


@pytest.mark.parametrize(
  ("file", "content"),
  [
    ("model.safetensors", WEIGHTS[::-1]),
    ("tokenizer.json", b'{"version": "2.0"}'),
  ],
  ids=["weights", "tokenizer"],
)
def test_a_file_with_another_hash_is_not_kept(server, file, content):
  """The client compares sizes alone."""
  assert len(content) == len(MODEL[file])
  server.contents[file] = content
  with pytest.raises(HuggingFaceError, match=f"{file} of .* is damaged: its"):
    hub.fetch_model(NAME)
  del server.contents[file]
  assert contents(hub.fetch_model(NAME)) == MODEL


def test_a_file_of_another_size_is_not_kept(server):
  server.contents["model.safetensors"] = WEIGHTS[:-1]
  with pytest.raises(HuggingFaceError, match=r"not fetched to its end .*size"):
    hub.fetch_model(NAME)
  server.contents.clear()
  assert contents(hub.fetch_model(NAME)) == MODEL


# ===== Without the hub =====


def unplugged(server, monkeypatch, how):
  """Takes the hub away."""
  if how == "offline":
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  elif how == "error":
    server.routes.insert(0, ("GET HEAD", ".*", server.fail))
  else:
    server.stop()
    huggingface_hub.close_session()  # It has a connection.


@pytest.mark.parametrize(
  ("how", "reason"),
  [
    ("offline", "HF_HUB_OFFLINE is set"),
    ("stopped", "the Hugging Face hub cannot be reached"),
    ("error", "the Hugging Face hub does not answer"),
  ],
)
def test_without_the_hub_the_cache_is_used_and_a_line_says_so(
  server, monkeypatch, capsys, how, reason
):
  commit = hub.fetch_model(NAME).commit
  row_file = hub.fetch_file(ROWS, "train.jsonl")
  unplugged(server, monkeypatch, how)
  capsys.readouterr()
  assert contents(hub.fetch_model(NAME)) == MODEL
  said = capsys.readouterr().err
  assert said.startswith(f"{reason}") and said.count("\n") == 1, said
  assert "acme/tiny of the Hugging Face hub is taken from the ca" in said
  assert commit in said
  assert hub.fetch_file(ROWS, "train.jsonl") == row_file
  with pytest.raises(
    HuggingFaceError, match=f"{reason}.*, and the cache lacks"
  ):
    hub.fetch_file(ROWS, "main/test.parquet")
  # A commit that is in the cache is not asked for.
  capsys.readouterr()
  hub.fetch_model(NAME, commit)
  assert capsys.readouterr().err == ""


def test_a_commit_without_its_tokenizer_is_completed(server, monkeypatch):
  """Another program may have fetched the weights alone."""
  for file in ("config.json", "model.safetensors"):
    path = huggingface_hub.hf_hub_download("acme/tiny", file)
  commit = pathlib.Path(path).parent.name
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  snapshot = hub.fetch_model(NAME, commit)  # It may be all that there is.
  assert len(contents(snapshot)) == 2
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  assert contents(hub.fetch_model(NAME, commit)) == MODEL


def test_half_a_model_in_the_cache_is_none(server, monkeypatch):
  """Another program may have fetched the tokenizer alone."""
  for file in ("config.json", "tokenizer.json"):
    huggingface_hub.hf_hub_download("acme/tiny", file)
  unplugged(server, monkeypatch, "offline")
  with pytest.raises(HuggingFaceError, match=r"cache lacks .*, or a part of"):
    hub.fetch_model(NAME)
  assert hub.fetch_model(NAME, weights=False).path.is_dir()


# ===== What is no model, or not for everybody =====


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({"model.safetensors": b""}, "has no config.json: it is no model that"),
    ({"config.json": b"{}"}, "has no weights as safetensors. Name another"),
    (
      {"config.json": b"{}", "pytorch_model.bin": b"", "a.pt": b""},
      "It has a.pt, pytorch_model.bin: pickled weights can run code",
    ),
    (
      {"config.json": b"{}", "model.safetensors.index.json": b"{}"},
      "has no weights as safetensors",
    ),
    (
      {"config.json": b"{}", "sub/model.safetensors": b""},
      "has no weights as safetensors",
    ),
  ],
)
def test_what_is_no_model_costs_no_download(server, files, message):
  server.commit("models/acme/other", files)
  with pytest.raises(HuggingFaceError, match=message):
    hub.fetch_model(HubName("model", "acme/other"))
  assert server.downloads() == []


def test_what_the_hub_does_not_have_is_said(server):
  with pytest.raises(
    HuggingFaceError, match=r"model acme/none .* does not exist"
  ):
    hub.fetch_model(HubName("model", "acme/none"))
  with pytest.raises(HuggingFaceError, match=r"data set acme/tiny .* not exi"):
    hub.fetch_file(HubName("dataset", "acme/tiny"), "a.json")
  listed = "has no file no.json. It has main/test.parquet, train.jsonl"
  with pytest.raises(HuggingFaceError, match=listed):
    hub.fetch_file(ROWS, "no.json")


def test_a_gated_model_is_for_those_who_log_in(server, monkeypatch):
  server.repos["models/acme/tiny"].is_gated = True
  for token in (None, "hf_somebody_else"):
    if token:
      monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(
      HuggingFaceError, match="is gated: ask for access on it"
    ):
      hub.fetch_model(NAME)
  monkeypatch.setenv("HF_TOKEN", server.TOKEN)
  assert contents(hub.fetch_model(NAME)) == MODEL


def test_a_full_disk_is_an_error_of_the_file_system(server, monkeypatch):
  """`exit_status` says what to do."""

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device", "blob")

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
  with pytest.raises(OSError, match="No space left") as caught:
    hub.fetch_model(NAME)
  assert caught.value.errno == 28


def test_the_hub_of_the_tests_hashes_as_git_does():
  """`printf 'Hello, World!' | git hash-object --stdin`."""
  assert git_hash(b"Hello, World!") == (
    "b45ef6fec89518d314f546fd6c3025367b721684"
  )
