"""Folders that cannot be loaded raise an error that names the cause."""

import json
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy
from small_models import TINY
from torch_models import LLAMA3, edit_config, make_model, save

from pure_jax.host import huggingface
from pure_jax.host.huggingface import HuggingFaceError
from pure_jax.parallel import sharding

LAYER = "model.layers.1."
FOLDERS = {
  "qwen2": ("qwen2 untied", "ForCausalLM", {}),
  "tied": ("qwen2 tied", "ForCausalLM", {}),
  "llama": ("llama tied", "ForCausalLM", {}),
  "prm": ("qwen2 tied", "ForTokenClassification", {}),
  "many": ("qwen2 untied", "ForCausalLM", {"max_shard_size": "6KB"}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A valid folder of each kind. Tests change copies of them."""
  parent = tmp_path_factory.mktemp("saved")
  for kind, (name, head, options) in FOLDERS.items():
    save(make_model(name, head), parent / kind, **options)
  return parent


@pytest.fixture
def copy_of(saved, tmp_path):
  """Copies a valid folder of a kind."""
  return lambda kind: shutil.copytree(saved / kind, tmp_path / kind)


@pytest.fixture(scope="module")
def layout():
  return sharding.make_layout()


def assert_raises(folder, layout, *words, load=huggingface.load_policy):
  """Loading must raise, with the folder and all words in the message."""
  with pytest.raises(HuggingFaceError) as error:
    load(folder, layout)
  for word in (folder.name, *words):
    assert word in str(error.value)


def edit_tensors(folder, change):
  """Rewrites model.safetensors with its dict of tensors changed."""
  path = folder / "model.safetensors"
  stored = safetensors.numpy.load_file(path)
  change(stored)
  safetensors.numpy.save_file(
    {name: np.ascontiguousarray(x) for name, x in stored.items()}, path
  )


@pytest.mark.parametrize(
  ("kind", "fields", "words"),
  [
    ("qwen2", {"architectures": ["MistralForCausalLM"]}, ["Mistral", "Llama"]),
    ("qwen2", {"architectures": ["Qwen2Model", "X"]}, ["Qwen2Model"]),
    ("qwen2", {"architectures": None}, ["architecture None"]),
    ("qwen2", {"auto_map": {"AutoModel": "x.Y"}}, ["auto_map", "remote code"]),
    ("qwen2", {"hidden_act": "gelu"}, ["hidden_act", '"gelu"', '"silu"']),
    ("qwen2", {"quantization_config": {"bits": 4}}, ["quantization_config"]),
    ("llama", {"attention_bias": True}, ["attention_bias is true"]),
    ("llama", {"mlp_bias": True}, ["mlp_bias is true"]),
    (
      "qwen2",
      {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
      ["rope type 'yarn'", "'llama3'"],
    ),
    (
      "llama",
      {
        "rope_parameters": None,
        "rope_scaling": {"type": "linear", "factor": 2},
      },
      ["rope type 'linear'"],
    ),
    (
      "llama",
      {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
      ["low_freq_factor"],
    ),
    (
      "llama",
      {"rope_parameters": LLAMA3 | {"low_freq_factor": 9.0}},
      ["low_frequency_factor", "9.0"],
    ),
    (
      "llama",
      {"rope_parameters": LLAMA3 | {"beta": 1.0}},
      ["rope parameters", "'beta'"],
    ),
    (
      "qwen2",
      {
        "rope_parameters": {
          "rope_type": "default",
          "rope_theta": 1e6,
          "partial_rotary_factor": 0.5,
        }
      },
      ["partial_rotary_factor"],
    ),
    ("qwen2", {"rope_theta": 1e4}, ["rope_theta", "10000.0", "1000000.0"]),
    (
      "qwen2",
      {
        "layer_types": None,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
      },
      ["use_sliding_window", "sliding_attention"],
    ),
    (
      "qwen2",
      {"layer_types": ["full_attention", "sliding_attention"]},
      ["layer_types"],
    ),
    ("qwen2", {"hidden_size": "wide"}, ["hidden_size"]),
    ("qwen2", {"num_attention_heads": 5}, ["num_attention_heads=5"]),
    ("qwen2", {"num_key_value_heads": 3}, ["num_kv_heads=3"]),
  ],
)
def test_unsupported_configs_raise_with_the_field(
  kind, fields, words, copy_of, layout
):
  folder = copy_of(kind)
  edit_config(folder, **fields)
  assert_raises(folder, layout, "config.json", *words)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"num_labels": 3}, ["2 labels", "3"]),
    ({"id2label": {"0": "a", "1": "b", "2": "c"}}, ["2 labels"]),
    ({"id2label": {"0": "alpha", "1": "beta"}}, ["'alpha'", "good_class"]),
    ({"id2label": {"0": "good", "1": "correct"}}, ["'correct'", "good_class"]),
    ({"token_classification_bias": False}, ["token_classification_bias"]),
  ],
)
def test_labels_that_are_not_good_and_bad_raise(fields, words, copy_of, layout):
  folder = copy_of("prm")
  edit_config(folder, **fields)
  assert_raises(
    folder, layout, "config.json", *words, load=huggingface.load_prm
  )


def test_damaged_configs_raise_with_the_file(copy_of, layout):
  folder = copy_of("qwen2")
  path = folder / "config.json"
  path.write_text(path.read_text()[:50])
  assert_raises(folder, layout, "config.json cannot be read")
  path.write_text("[]")
  assert_raises(folder, layout, "config.json holds no JSON object")
  path.unlink()
  assert_raises(folder, layout, "config.json is missing")


def test_loading_a_policy_as_prm_or_a_prm_as_policy_raises(copy_of, layout):
  load_prm = huggingface.load_prm
  assert_raises(copy_of("qwen2"), layout, "init_prm_from_policy", load=load_prm)
  folder = copy_of("prm")
  assert_raises(folder, layout, "use load_prm")
  with pytest.raises(ValueError, match="good_class must be 0, 1 or None"):
    load_prm(folder, layout, good_class=2)


@pytest.mark.parametrize(
  ("kind", "change", "words"),
  [
    (
      "qwen2",
      lambda t: t.pop(LAYER + "self_attn.q_proj.bias"),
      ["model.layers.1.self_attn.q_proj.bias is missing"],
    ),
    ("qwen2", lambda t: t.pop("lm_head.weight"), ["lm_head.weight is missing"]),
    (
      "qwen2",
      lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.ones(3)}),
      ["model.layers.2.mlp.up_proj.weight is not part"],
    ),
    (
      "tied",
      lambda t: t.update({"score.weight": np.ones((2, 24), np.float32)}),
      ["score.weight is not part"],
    ),
    (
      "qwen2",
      lambda t: t.update({"model.norm.weight": np.ones(25, np.float32)}),
      ["model.norm.weight is (25,)", "(24,)"],
    ),
    (
      "qwen2",
      lambda t: t.update(
        {LAYER + "mlp.up_proj.weight": t[LAYER + "mlp.up_proj.weight"].T}
      ),
      ["up_proj.weight is (24, 20)", "(20, 24)"],
    ),
    (
      "qwen2",
      lambda t: t.update({"model.norm.weight": np.ones(24, np.int8)}),
      ["model.norm.weight is stored as I8", "BF16"],
    ),
    (
      "tied",
      lambda t: t.update({"lm_head.weight": np.ones((23, 24), np.float32)}),
      ["tie_word_embeddings", "lm_head.weight"],
    ),
    (
      "tied",
      lambda t: t.update({"lm_head.weight": np.ones((2, 24), np.float32)}),
      ["lm_head.weight is (2, 24)"],
    ),
  ],
)
def test_tensors_that_do_not_fit_raise_with_their_name(
  kind, change, words, copy_of, layout
):
  folder = copy_of(kind)
  edit_tensors(folder, change)
  assert_raises(folder, layout, *words)


def test_up_to_twenty_tensors_that_do_not_fit_are_listed(copy_of, layout):
  folder = copy_of("qwen2")
  edit_config(folder, num_hidden_layers=4, layer_types=None)
  assert_raises(folder, layout, "model.layers.2.", "and 4 more")


def shards(folder):
  return sorted(folder.glob("*.safetensors"))


def test_shards_that_are_missing_cut_or_in_the_wrong_file_raise(
  copy_of, layout
):
  folder = copy_of("many")
  first, second, *_ = shards(folder)
  whole = second.read_bytes()
  for length in (len(whole) - 1, 20, 0):
    second.write_bytes(whole[:length])
    assert_raises(folder, layout, second.name, "truncated or damaged")
  second.unlink()
  assert_raises(folder, layout, second.name, "is missing")
  second.write_bytes(first.read_bytes())
  assert_raises(folder, layout, second.name, "does not list there")
  stored = safetensors.numpy.load(whole)
  gone = sorted(stored)[0]
  del stored[gone]
  stored["spare"] = np.ones(1, np.float32)
  safetensors.numpy.save_file(stored, second)
  assert_raises(folder, layout, "spare", "does not list there")
  del stored["spare"]
  safetensors.numpy.save_file(stored, second)
  assert_raises(folder, layout, f"{gone} in {second.name}")


@pytest.mark.parametrize(
  ("weight_map", "words"),
  [
    (None, ["no weight_map"]),
    ({}, ["no weight_map"]),
    ({"a": "../model.safetensors"}, ["'../model.safetensors'"]),
    ({"a": 3}, ["a is in 3"]),
    ({"a": "pytorch_model.bin"}, ["no safetensors file"]),
  ],
)
def test_invalid_indices_raise_with_the_file(
  weight_map, words, copy_of, layout
):
  folder = copy_of("many")
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": weight_map}))
  assert_raises(folder, layout, "model.safetensors.index.json", *words)


def test_pickles_and_folders_without_weights_raise(copy_of, layout):
  folder = copy_of("qwen2")
  weights = folder / "model.safetensors"
  (folder / "model.safetensors.index.json").write_text("{}")
  assert_raises(folder, layout, "holds both")
  (folder / "model.safetensors.index.json").unlink()
  weights.rename(folder / "pytorch_model.bin")
  assert_raises(folder, layout, "pytorch_model.bin", "pickled", "can run code")
  (folder / "pytorch_model.bin").unlink()
  assert_raises(folder, layout, "neither model.safetensors nor")


def test_ids_beyond_the_embedding_raise():
  huggingface.check_vocabulary(TINY.vocab_size - 1, TINY)
  message = re.escape("ids up to 23, the embedding only rows for 0..22")
  with pytest.raises(HuggingFaceError, match=message):
    huggingface.check_vocabulary(TINY.vocab_size, TINY)


def test_texts_longer_than_the_models_positions_log_a_warning(saved, caplog):
  folder = saved / "qwen2"
  config = huggingface.read_config(folder)
  huggingface.warn_beyond_positions(folder, config, config.max_positions)
  assert not caplog.records
  huggingface.warn_beyond_positions(folder, config, config.max_positions + 1)
  (record,) = caplog.records
  for word in (str(folder), str(config.max_positions), "prompt included"):
    assert word in record.getMessage()
