"""GGUF files as folders: weights, config and tokenizer are the file's."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import re

import numpy as np
import pytest
import real_models
from packaging import version
from safetensors import safe_open
from script_in_process import imported_script
from small_tokenizers import TEMPLATE, save_trained
from torch_models import save, torch, transformers

from pure_jax.host import huggingface
from pure_jax.host.huggingface import (
  HuggingFaceError,
  files,
  gguf_files,
  gguf_header,
)
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.parallel import sharding

gguf = pytest.importorskip("gguf", reason="gguf comes with [test]")
import gguf_models  # noqa: E402, it needs gguf.

newer_only = pytest.mark.skipif(
  version.parse(transformers.__version__)
  < version.parse(gguf_header.LLAMA_TRANSFORMERS),
  reason=f"transformers before {gguf_header.LLAMA_TRANSFORMERS}",
)
LLAMA = pytest.param("llama tied", marks=newer_only)
Q8 = gguf.GGMLQuantizationType.Q8_0
Q4 = gguf.GGMLQuantizationType.Q4_0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A tied Qwen2 and its tokenizer."""
  return gguf_models.make("qwen2 tied", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
  """The bytes of its GGUF file."""
  path = tmp_path_factory.mktemp("whole") / "model.gguf"
  return gguf_models.write(path, made).read_bytes()


def tensors_of(folder):
  """The tensors of a folder by name, as float32."""
  with safe_open(folder / "model.safetensors", "pt") as file:
    tensors = {name: file.get_tensor(name) for name in [*file.keys()]}
  return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def expected_tensors(model):
  """The weights of a model; a tied head has none of its own."""
  state = {k: v.numpy() for k, v in model.state_dict().items()}
  if model.config.tie_word_embeddings:
    del state["lm_head.weight"]
  return state


@pytest.mark.parametrize(
  "name", ["qwen2 tied", "qwen2 untied", LLAMA, "qwen3 untied"]
)
def test_the_folder_holds_the_model_and_tokenizer_of_the_file(name, tmp_path):
  tokenizer = tmp_path / "tokenizer"
  made = gguf_models.make(name, tokenizer)
  model, tokens, _ = made
  file = gguf_models.write(tmp_path / "some name.gguf", made)
  output = tmp_path / "new" / "folder"
  returned = gguf_files.unpack(file, output)
  assert returned.architecture == type(model).__name__

  written, expected = tensors_of(output), expected_tensors(model)
  assert written.keys() == expected.keys()
  for key, weight in expected.items():
    np.testing.assert_array_equal(written[key], weight, err_msg=key)

  config = huggingface.read_config(output)
  theirs = huggingface.read_config(save(model, tmp_path / "theirs"))
  # The file has float32.
  eps = pytest.approx(theirs.model.norm_eps, rel=1e-6)
  assert config.model.norm_eps == eps
  assert config.model == dataclasses.replace(
    theirs.model, norm_eps=config.model.norm_eps
  )
  assert config.max_positions == theirs.max_positions == 64
  assert config.token_ids == huggingface.TokenIds(bos=2, eos=(0,), pad=1)

  first = HuggingFaceTokenizer(tokenizer, vocab_size=len(tokens))
  ours = HuggingFaceTokenizer(output, vocab_size=len(tokens))
  # <user> is a token of text there and begins texts here.
  assert [p for p in ours.pieces if p] == [p for p in first.pieces if p]
  assert (ours.eos_ids, ours.pad_id) == (first.eos_ids, first.pad_id)
  unused = {len(tokens) - 1 - i for i in range(len(gguf_models.UNUSED))}
  assert unused == {*ours.banned_ids} - {ours.pad_id}
  message = [{"role": "user", "content": "Half of 48?"}]
  assert ours.apply_chat_template(message) == first.apply_chat_template(message)
  assert ours.decode(ours.encode("So 48+24=72\n\n")) == "So 48+24=72\n\n"


def test_our_loader_and_transformers_load_the_folder(tmp_path, made):
  file = gguf_models.write(tmp_path / "model.gguf", made)
  gguf_files.unpack(file, tmp_path / "out", "bfloat16")
  params, config = huggingface.load_policy(
    tmp_path / "out", sharding.make_layout(1, 1)
  )
  assert config.tied_embeddings
  rounded = {
    name: torch.tensor(weight).bfloat16().float().numpy()
    for name, weight in expected_tensors(made[0]).items()
  }
  np.testing.assert_array_equal(
    params["embedding"], rounded["model.embed_tokens.weight"]
  )
  kind = transformers.AutoModelForCausalLM
  model, loaded = kind.from_pretrained(
    tmp_path / "out", output_loading_info=True
  )
  assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
  assert model.dtype == torch.bfloat16
  for name, weight in tensors_of(tmp_path / "out").items():
    np.testing.assert_array_equal(weight, rounded[name], err_msg=name)


@pytest.mark.parametrize("stored", [Q8, Q4])
@pytest.mark.parametrize("name", ["qwen2 untied", LLAMA])
def test_rounded_numbers_are_those_that_gguf_reads(name, stored, tmp_path):
  made = gguf_models.make(name, tmp_path / "tokenizer", num_hidden_layers=1)
  file = gguf_models.write(tmp_path / "m.gguf", made, stored=stored)
  gguf_files.unpack(file, tmp_path / "out")
  expected = expected_tensors(made[0])
  for key, written in tensors_of(tmp_path / "out").items():
    weight = expected[key]
    if weight.ndim == 2:
      blocks = gguf.quants.quantize(weight, stored)
      assert 0 < np.abs(written - weight).max() < 0.2 * np.abs(weight).max()
      weight = gguf.quants.dequantize(blocks, stored)
    np.testing.assert_allclose(written, weight, rtol=1e-6, err_msg=key)


def test_what_lies_next_to_the_file_is_not_read(tmp_path, made):
  file = gguf_models.write(tmp_path / "model.gguf", made)
  save_trained(tmp_path, r"\s+|\S+", "{{ 'another' }}", eos_token="<user>")
  (tmp_path / "adapter_config.json").write_text("{}")
  gguf_files.unpack(file, tmp_path / "out")
  tokenizer = HuggingFaceTokenizer(tmp_path / "out")
  assert tokenizer.eos_id == gguf_models.EOS
  inner = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert inner.chat_template == TEMPLATE


def assert_raises(message, file, output):
  """Asserts that nothing is left behind."""
  before = {*output.parent.iterdir()}
  with pytest.raises(HuggingFaceError, match=message):
    gguf_files.unpack(file, output)
  assert {*output.parent.iterdir()} == before


def test_a_file_that_is_none_or_truncated_raises(tmp_path, whole):
  output, file = tmp_path / "out", tmp_path / "model.gguf"
  assert_raises("is not a file", file, output)
  assert_raises("is not a file", tmp_path, output)
  file.write_bytes(b"")
  assert_raises("is not a GGUF file", file, output)
  file.write_bytes(b"PK\3\4" + whole)
  assert_raises("is not a GGUF file", file, output)
  for length in (4, 9, 30, 200, len(whole) // 8, len(whole) // 2):
    file.write_bytes(whole[:length])
    assert_raises(r"is truncated or damaged .*: copy it again", file, output)
  file.write_bytes(whole[:-64])
  assert_raises("is truncated or damaged", file, output)


HALF = np.ones(2, np.float32)
LACKS = r"no weights for model\.layers\.1\.mlp\.down_proj\.weight \(1 in all\)"


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"without": ["blk.1.ffn_down.weight"]}, LACKS),
    ({"without": ["tokens"]}, "has no tokenizer: use the model's folder"),
    ({"extra": [("blk.0.attn_sinks.weight", HALF)]}, "does not read all of"),
    (
      {"extra": [("rope_freqs.weight", HALF)]},
      r"scales its rotary frequencies \(rope_freqs.weight\)",
    ),
    (
      {"edit": lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)},
      r"scales its rotary frequencies \(qwen2.rope.scaling.type=yarn\)",
    ),
    (
      {"edit": lambda w: w.add_uint16("split.count", 3)},
      "is one of 3 files of a model: join them",
    ),
    (
      {"tensors": {"model.norm.weight": np.full(64, np.nan)}},
      r"of model.norm.weight, 64 of 64 values are not finite",
    ),
  ],
)  # fmt: skip
def test_what_transformers_would_not_read_as_it_is_raises(
  options, message, tmp_path, made
):
  file = gguf_models.write(tmp_path / "model.gguf", made, **options)
  assert_raises(message, file, tmp_path / "out")


@pytest.mark.parametrize(
  ("key", "change", "message"),
  [
    ("token_type", lambda old: old[:-1], r"\d+ tokens and \d+ types of tokens"),
    ("eos_token_id", lambda old: 10**6, "eos_token_id=1000000 is none of them"),
  ],
)
def test_a_vocabulary_that_does_not_fit_raises(
  key, change, message, tmp_path, made
):
  def edit(writer):
    (fields,) = writer.kv_data
    field = fields[f"tokenizer.ggml.{key}"]
    field.value = change(field.value)

  file = gguf_models.write(tmp_path / "model.gguf", made, edit=edit)
  assert_raises(message, file, tmp_path / "out")


def test_files_without_scaling_may_say_so(tmp_path, made):
  def edit(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    writer.add_rope_scaling_factor(1.0)
    writer.add_uint16("split.count", 0)

  file = gguf_models.write(tmp_path / "model.gguf", made, edit=edit)
  gguf_files.unpack(file, tmp_path / "out")


@newer_only  # It gives the token its id.
def test_a_token_that_would_get_another_id_raises(tmp_path, made):
  """Such as DeepSeek's, whose special tokens are no ASCII."""
  model, tokens, merges = made
  tokens = ["<｜User｜>" if token == "<user>" else token for token in tokens]
  changed = (model, tokens, merges)
  file = gguf_models.write(tmp_path / "model.gguf", changed)
  message = r"gives '<｜User｜>' the id 2, but the tokenizer .* of it \d+: use"
  assert_raises(message, file, tmp_path / "out")


def test_another_architecture_raises(tmp_path, whole):
  file = tmp_path / "model.gguf"
  file.write_bytes(whole.replace(b"qwen2", b"gemma"))
  assert_raises(
    r"the architecture 'gemma' is not supported; supported are qwen2, llama, "
    "qwen3",
    file, tmp_path / "out",
  )  # fmt: skip


def test_a_folder_that_cannot_be_written_raises(tmp_path, whole, monkeypatch):
  file = tmp_path / "model.gguf"
  file.write_bytes(whole)
  (tmp_path / "taken").mkdir()
  assert_raises("taken exists already", file, tmp_path / "taken")
  with pytest.raises(HuggingFaceError, match=r"Cannot write .*File exists"):
    gguf_files.unpack(file, file / "out")

  def write_file(*arguments):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(files, "write_file", write_file)
  assert_raises(r"Cannot write .*No space left", file, tmp_path / "out")


def run_script(file, output, dtype="float32"):
  """Runs the script; returns its exit status."""
  words = (f"gguf={file}", f"output={output}", f"dtype={dtype}")
  with imported_script("unpack_gguf", *words) as script:
    try:
      script.main(["unpack_gguf.py"])
    except SystemExit as exit_status:
      return exit_status.code
  return 0


@pytest.mark.parametrize("module", gguf_header.PACKAGES)
def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys, module):
  real = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *rest: None if name == module else real(name, *rest),
  )
  assert run_script(tmp_path / "model.gguf", tmp_path / "out") == 1
  assert capsys.readouterr().err.strip() == (
    f"error: {module} is missing: pip install -e '.[gguf]'"
  )


def test_an_older_transformers_is_named_for_a_llama(
  tmp_path, whole, monkeypatch
):
  monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.17.0")
  file = tmp_path / "model.gguf"
  file.write_bytes(whole.replace(b"qwen2", b"llama"))
  assert_raises(r"transformers 5.24 .* 5.17.0: pip", file, tmp_path / "out")


def test_special_tokens_that_transformers_loses_are_those_of_the_file(
  tmp_path, made, monkeypatch
):
  """As transformers 5.17 does: it has none, and another one ends a response."""

  def edit(writer):
    (fields,) = writer.kv_data
    # Besides those that end a response, pad it or have a name.
    fields["tokenizer.ggml.token_type"].value[20:22] = [3, 4]

  file = gguf_models.write(tmp_path / "model.gguf", made, edit=edit)
  gguf_files.unpack(file, tmp_path / "complete")
  read = transformers.AutoTokenizer.from_pretrained

  def read_less(folder, **options):
    tokenizer = read(folder, **options)
    if options:
      text = json.loads(tokenizer.backend_tokenizer.to_str())
      backend = type(tokenizer.backend_tokenizer).from_str(
        json.dumps(text | {"added_tokens": []})
      )
      tokenizer._tokenizer = backend
      tokenizer.eos_token, tokenizer.pad_token = "<user>", None
      tokenizer.init_kwargs["eos_token_id"] = 2
    return tokenizer

  monkeypatch.setattr(
    transformers.AutoTokenizer, "from_pretrained", staticmethod(read_less)
  )
  gguf_files.unpack(file, tmp_path / "out")
  for name in ("tokenizer.json", "tokenizer_config.json"):
    fields, expected = (
      json.loads((tmp_path / folder / name).read_text())
      for folder in ("out", "complete")
    )
    assert fields == expected
  assert expected["eos_token"] == "<end>"
  added = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
  assert [(each["id"], each["special"]) for each in added["added_tokens"]] == [
    *((0, True), (1, True), (2, True), (20, True), (21, False))
  ]


def test_the_script_says_what_it_wrote(tmp_path, whole, capsys):
  file, output = tmp_path / "model.gguf", tmp_path / "out"
  file.write_bytes(whole)
  assert run_script(file, output, "bfloat16") == 0
  said = capsys.readouterr().out
  assert said == f"{output} holds a Qwen2ForCausalLM in bfloat16.\n"
  fields = json.loads((output / "config.json").read_text())
  assert fields["dtype"] == fields["torch_dtype"] == "bfloat16"
  assert run_script(file, output) == 1
  assert re.fullmatch(
    "error: .*out exists already: remove it, or choose another name.\n",
    capsys.readouterr().err,
  )


@pytest.mark.real_model
@pytest.mark.parametrize("name", real_models.names("*.gguf"))
def test_a_real_model_is_that_of_its_file(name, tmp_path):
  file = real_models.require(name)
  config = gguf_files.unpack(file, tmp_path / "out", "bfloat16").model
  reader = gguf.GGUFReader(file)
  stored = {tensor.name: tensor for tensor in reader.tensors}
  written = tensors_of(tmp_path / "out")
  last = config.num_layers - 1
  down = f"model.layers.{last}.mlp.down_proj.weight"
  for theirs, ours in (
    (f"blk.{last}.ffn_down.weight", down),
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
  ):
    tensor = stored[theirs]
    expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    rounded = torch.tensor(expected).bfloat16().float().numpy()
    np.testing.assert_array_equal(written[ours], rounded)
  tokenizer = HuggingFaceTokenizer(
    tmp_path / "out", vocab_size=config.vocab_size
  )
  ends = reader.fields["tokenizer.ggml.eos_token_id"].contents()
  assert tokenizer.eos_id == ends
  text = "First, 48/2 = 24.\n\nSo (24)\n\n日本, naïve 👍"
  assert tokenizer.decode(tokenizer.encode(text)) == text
