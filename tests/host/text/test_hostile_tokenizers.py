"""Files of an untrusted tokenizer: a fault is one sentence, without a wait."""

import json
import os
import shutil

import pytest
from small_tokenizers import TEMPLATE, save_trained

from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import TokenizerError

V = 410
CONFIG, TOKENIZER = "tokenizer_config.json", "tokenizer.json"
NOT_A_TEXT = [True, 0, 1.5, [], [1], {"a": 1}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = save_trained(tmp_path_factory.mktemp("saved"), None, TEMPLATE)
  fields = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
  (folder / "config.json").write_text(json.dumps(fields))
  (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / "model")


def edit(folder, name, *keys, value):
  """Sets a value of a JSON file, at any depth."""
  path = folder / name
  content = holder = json.loads(path.read_text())
  for key in keys[:-1]:
    holder = holder[key]
  holder[keys[-1]] = value
  path.write_text(json.dumps(content))


def assert_refused(folder, *words):
  with pytest.raises(TokenizerError) as error:
    HuggingFaceTokenizer(folder, vocab_size=V)
  message = str(error.value)
  for word in (str(folder), *words):
    assert word in message
  assert len(message.splitlines()) == 1


def test_the_folder_is_valid_before_it_is_changed(folder):
  tokenizer = HuggingFaceTokenizer(folder, vocab_size=V)
  assert tokenizer.eos_ids == (0, 2) and tokenizer.pad_id == 1


@pytest.mark.parametrize(
  ("keys", "values"),
  [
    *((["eos_token"], [*NOT_A_TEXT]), (["unk_token"], [*NOT_A_TEXT, ""])),
    (["pad_token"], [*NOT_A_TEXT]),
    (["model_max_length"], ["x", "", [], [1], {"a": 1}]),
    (["added_tokens_decoder"], [1.5, "x", [1], {"x": 1}, {"-1": "x"}]),
    (["extra_special_tokens"], [1.5, "x", [1]]),
    (["padding_side"], [-1, [1], "up"]),
    (["auto_map"], [None, {}, {"AutoTokenizer": ["x.Y", None]}]),
    (["encode"], [1]),
  ],
  ids=lambda x: x[0] if isinstance(x[0], str) else "",
)
def test_wrong_values_of_the_config_are_refused(keys, values, folder):
  for value in values:
    shutil.copy(folder / CONFIG, folder / "kept")
    edit(folder, CONFIG, *keys, value=value)
    assert_refused(folder)
    shutil.move(folder / "kept", folder / CONFIG)


TEMPLATE_OF_IDS = {
  "type": "TemplateProcessing",
  "single": [
    {"SpecialToken": {"id": "<x>", "type_id": 0}},
    {"Sequence": {"id": "A", "type_id": 0}},
  ],
  "pair": [
    {"Sequence": {"id": "A", "type_id": 0}},
    {"Sequence": {"id": "B", "type_id": 0}},
  ],
  "special_tokens": {"<x>": {"id": "<x>", "ids": [99_999], "tokens": ["<x>"]}},
}


@pytest.mark.parametrize(
  ("keys", "value", "words"),
  [
    (["model"], {}, ()),
    (["model", "type"], 3, ()),
    (["model", "vocab"], [1], ()),
    (["model", "vocab", "zz"], -1, ()),
    (["model", "vocab", "zz"], 2**32, ()),
    (["model", "vocab", "zz"], 2**32 - 1, ("4294967295", str(V))),
    (["model", "vocab", "zz"], V, (str(V),)),
    (["model", "merges"], [["q", "qq"]], ()),
    (["added_tokens", 0, "content"], 3, ()),
    (["decoder"], {"type": "x"}, ()),
    (["post_processor"], TEMPLATE_OF_IDS, ("99999",)),
    # The tokenizer of Rust panics.
    (["post_processor"], TEMPLATE_OF_IDS | {"special_tokens": {}}, ()),
  ],
)
def test_wrong_values_of_the_tokenizer_are_refused(keys, value, words, folder):
  edit(folder, TOKENIZER, *keys, value=value)
  assert_refused(folder, *words)


@pytest.mark.parametrize(
  "name", [TOKENIZER, CONFIG, "special_tokens_map.json", "added_tokens.json"]
)
@pytest.mark.parametrize(
  "content",
  [b"", b"[" * 200_000, b'{"a":' * 200_000, b"\xff\xfe\x00", b"{"],
  ids=lambda content: ascii(content[:6]),
)
def test_files_that_are_not_json_are_refused(name, content, folder):
  (folder / name).write_bytes(content)
  assert_refused(folder)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
  "value", [True, -1, 1.5, "x", [0, None], [0, V], [[0]], {"0": 1}, 10**40]
)
def test_wrong_end_tokens_are_refused(name, value, folder):
  edit(folder, name, "eos_token_id", value=value)
  # transformers reads config.json before us, and does not name it.
  file = name if name != "config.json" else ""
  assert_refused(folder, file, "eos_token_id")


@pytest.mark.parametrize("kind", ["missing", "folder", "loop"])
def test_a_tokenizer_without_its_file_is_refused(kind, folder):
  # transformers makes an empty tokenizer of what is left.
  path = folder / TOKENIZER
  path.unlink()
  if kind == "folder":
    path.mkdir()
  elif kind == "loop":
    path.symlink_to(path.name)
  reason = "without a vocabulary" if kind == "missing" else "cannot be read"
  assert_refused(folder, reason, TOKENIZER)


@pytest.mark.parametrize(
  "name",
  [CONFIG, TOKENIZER, "special_tokens_map.json", "added_tokens.json"],
)
@pytest.mark.parametrize("text", ["", "[" * 200_000, "[1]", "null", '{"a": '])
def test_a_damaged_file_is_named(name, text, folder):
  (folder / name).write_text(text)
  assert_refused(folder, f"{folder / name} ")


@pytest.mark.parametrize(
  "name", [TOKENIZER, CONFIG, "generation_config.json", "chat_template.jinja"]
)
@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_what_would_be_read_for_ever_is_refused(name, kind, folder):
  path = folder / name
  path.unlink()
  if kind == "pipe":
    os.mkfifo(path)
  else:
    path.symlink_to("/dev/zero")
  assert_refused(folder, f"{name} is not a regular file")
