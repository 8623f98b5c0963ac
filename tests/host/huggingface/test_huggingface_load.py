"""Models loaded from folders of transformers have the same logits here."""

import collections
import dataclasses
import functools
import json
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from small_models import random_prompts
from torch_models import (
  COMMON,
  LLAMA3,
  MODELS,
  assert_same,
  assert_trees_equal,
  edit_config,
  make_model,
  our_decoded_logits,
  our_logits,
  our_scores,
  save,
  their_logits,
  torch,
)

from pure_jax.host import huggingface
from pure_jax.host.huggingface import files
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig, RopeScaling
from pure_jax.parallel import sharding


@pytest.fixture(scope="module")
def layout():
  return sharding.make_layout()


@pytest.fixture
def prompts():
  """Left-padded. The longest is longer than LLAMA3's original length of 8."""
  return random_prompts(np.random.default_rng(1), [16, 7, 1], 16)


@pytest.fixture(scope="module")
def load(tmp_path_factory, layout):
  """Saves and loads a model once: (model, folder, params, config) by name."""

  @functools.cache
  def load(name):
    model = make_model(name)
    folder = save(model, tmp_path_factory.mktemp("saved"))
    return model, folder, *huggingface.load_policy(folder, layout)

  return load


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name, load, prompts):
  model, _, params, config = load(name)
  weights.check_params(params, policy.declare_policy(config))
  tokens, mask = prompts
  theirs = their_logits(model, tokens, mask)
  assert_same(our_logits(params, config, tokens, mask), theirs, mask)


def test_decoded_logits_are_those_of_transformers(load, prompts):
  """The tests of decoding compare it with whole texts for the others."""
  model, _, params, config = load("llama 3 untied")
  tokens, mask = prompts
  whole = np.ones(mask.shape, bool)
  theirs = their_logits(model, tokens, whole)[:, 4:]
  decoded = our_decoded_logits(params, config, tokens, whole, 5)
  assert_same(decoded, theirs, whole[:, 4:])


@pytest.mark.parametrize("name", ["qwen2 untied", "llama tied", "qwen3 tied"])
def test_scores_are_those_of_the_token_classifier(
  name, tmp_path, layout, prompts
):
  """The trunks have the logits above; one score shows how both are joined."""
  model = make_model(name, "ForTokenClassification")
  params, config = huggingface.load_prm(save(model, tmp_path), layout)
  weights.check_params(params, prm.declare_prm(config))
  assert_scores_are(params, model)
  if name == "qwen2 untied":
    theirs = their_logits(model, *prompts)
    assert_same(our_scores(params, config, *prompts), theirs, prompts[1])


def assert_scores_are(params, model, order=(0, 1)):
  """Asserts that the head is the model's, with its classes in this order."""
  head = model.score.weight.detach().numpy()
  bias = model.score.bias.detach().numpy()
  np.testing.assert_array_equal(params["score"]["kernel"], head[[*order]].T)
  np.testing.assert_array_equal(params["score"]["bias"], bias[[*order]])


@pytest.mark.parametrize(
  ("labels", "good"),
  [
    (("LABEL_0", "LABEL_1"), 1),
    (("negative", "positive"), 1),
    (("Good", "Bad"), 0),
    (("+", "-"), 0),
  ],
)
def test_the_good_class_becomes_class_1(labels, good, tmp_path, layout):
  model = make_model("qwen2 tied", "ForTokenClassification")
  model.config.id2label = dict(enumerate(labels))
  folder = save(model, tmp_path)
  params, _ = huggingface.load_prm(folder, layout)
  assert_scores_are(params, model, (1 - good, good))
  # The argument overrides the names.
  flipped, _ = huggingface.load_prm(folder, layout, good_class=1 - good)
  assert_scores_are(flipped, model, (good, 1 - good))


def test_scaled_frequencies_change_logits_and_are_read_in_the_old_layout(
  load, prompts
):
  _, folder, params, config = load("llama 3 untied")
  assert config.rope_scaling == RopeScaling(8.0, 0.1, 0.7, 8)
  plain = dataclasses.replace(config, rope_scaling=None)
  logits = our_logits(params, config, *prompts)
  assert np.abs(our_logits(params, plain, *prompts) - logits).max() > 0.1
  old = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
  edit_config(folder, rope_parameters=None, rope_theta=5e2, rope_scaling=old)
  assert huggingface.read_config(folder).model == config


def test_missing_fields_have_the_defaults_of_transformers(tmp_path):
  """A config.json written by an old release of transformers."""
  fields = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "torch_dtype": "float16",
    "vocab_size": 23,
  }
  (tmp_path / "config.json").write_text(json.dumps(fields))
  content = huggingface.read_config(tmp_path)
  assert content.model == ModelConfig(
    vocab_size=23,
    width=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=6,
    mlp_width=20,
    rope_theta=1e4,
    norm_eps=1e-6,
    attention_bias=False,
    tied_embeddings=False,
  )
  assert (content.is_prm, content.labels, content.max_positions) == (
    False,
    (),
    2048,
  )
  fields |= {"architectures": ["Qwen3ForTokenClassification"], "head_dim": 10}
  fields |= {"model_type": "qwen3", "rope_theta": 1000000}
  fields |= {"num_key_value_heads": 2}
  (tmp_path / "config.json").write_text(json.dumps(fields))
  content = huggingface.read_config(tmp_path)
  assert content.is_prm and content.labels == ("LABEL_0", "LABEL_1")
  assert content.model.qk_norm and not content.model.attention_bias
  assert (content.model.head_dim, content.model.rope_theta) == (10, 1e6)


def test_a_sliding_window_that_no_layer_uses_is_accepted(tmp_path):
  """The config of Qwen2.5 has a window that is turned off."""
  changes = {"sliding_window": 4, "max_window_layers": 1}
  folder = save(make_model("qwen2 tied", **changes), tmp_path)
  plain = huggingface.read_config(folder)
  edit_config(folder, layer_types=None, use_sliding_window=False)
  assert huggingface.read_config(folder) == plain
  edit_config(folder, use_sliding_window=True, max_window_layers=2)
  assert huggingface.read_config(folder) == plain


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_bfloat16_files_are_read_exactly(param_dtype, tmp_path, layout):
  model = make_model("qwen2 untied").to(torch.bfloat16)
  folder = save(model, tmp_path)
  params, config = huggingface.load_policy(
    folder, layout, param_dtype=param_dtype, compute_dtype="bfloat16"
  )
  assert (config.param_dtype, config.compute_dtype) == (param_dtype, "bfloat16")
  weights.check_params(params, policy.declare_policy(config))
  theirs = model.model.layers[1].self_attn.k_proj.weight.float().detach()
  ours = np.asarray(params["layers"]["key"][1], np.float32)
  np.testing.assert_array_equal(ours.reshape(24, 12).T, theirs.numpy())


def test_float32_files_are_rounded_once_to_bfloat16(tmp_path, layout):
  model = make_model("qwen2 untied")
  params, _ = huggingface.load_policy(
    save(model, tmp_path), layout, param_dtype="bfloat16"
  )
  exact = model.model.embed_tokens.weight.detach().numpy()
  np.testing.assert_array_equal(
    params["embedding"], exact.astype(ml_dtypes.bfloat16)
  )


def test_many_files_and_many_devices_give_the_same_parameters(
  tmp_path, load, monkeypatch
):
  model, _, expected, config = load("qwen3 untied")
  many = save(model, tmp_path / "many", max_shard_size="6KB")
  assert len(list(many.glob("*.safetensors"))) > 3
  wide = sharding.make_layout(data=2, fsdp=4)
  params, _ = huggingface.load_policy(many, wide)
  assert_trees_equal(params, expected)
  declared = policy.declare_policy(config)
  shardings = sharding.weight_shardings(declared, wide)
  assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings
  query = params["layers"]["query"]
  assert {s.data.shape for s in query.addressable_shards} == {(2, 6, 4, 8)}
  # A rule that shards the layers changes no value.
  rules = sharding.RULE_SETS["fsdp"] | {"width": (), "layers": ("data",)}
  monkeypatch.setitem(sharding.RULE_SETS, "by layer", rules)
  by_layer = sharding.make_layout(data=2, fsdp=4, rules="by layer")
  params, _ = huggingface.load_policy(many, by_layer)
  assert_trees_equal(params, expected)
  assert params["layers"]["query"].sharding.spec[0] == "data"


def test_each_tensor_is_read_once(tmp_path, layout, monkeypatch):
  """Also a tied head that is saved, which is compared with the embedding."""
  folder = save(make_model("qwen2 tied"), tmp_path)
  path = folder / "model.safetensors"
  stored = safetensors.numpy.load_file(path)
  stored["lm_head.weight"] = stored["model.embed_tokens.weight"].copy()
  stored["model.rotary_emb.inv_freq"] = np.ones(3, np.float32)
  safetensors.numpy.save_file(stored, path)
  reads = collections.Counter()

  class Counting:
    def __init__(self, *args, **kwargs):
      self.opened = safetensors.safe_open(*args, **kwargs)

    def __enter__(self):
      return self

    def __exit__(self, *unused):
      pass

    def offset_keys(self):
      return self.opened.offset_keys()

    def get_slice(self, name):
      return self.opened.get_slice(name)

    def get_tensor(self, name):
      reads[name] += 1
      return self.opened.get_tensor(name)

  fake = type("Module", (), {"safe_open": Counting})
  fake.SafetensorError = safetensors.SafetensorError
  monkeypatch.setattr(files, "safetensors", fake)
  huggingface.load_policy(folder, layout)
  del stored["model.rotary_emb.inv_freq"]
  assert reads == dict.fromkeys(stored, 1)


def test_host_memory_contains_one_tensor_at_a_time(tmp_path, layout):
  """In units of the largest tensor. Two at once would be 2, the model 9.

  tracemalloc counts allocations of numpy, safetensors and Python, but not the
  parameters, which are device memory.
  """
  sizes = {"intermediate_size": 2**15, "num_hidden_layers": 3}
  largest = 4 * COMMON["hidden_size"] * sizes["intermediate_size"]

  folder = save(make_model("qwen2 untied", **sizes), tmp_path / "in")

  def peaks(name):
    params, config = huggingface.load_policy(folder, layout)
    before, loading = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    out = tmp_path / name
    huggingface.export_policy(out, params, config, max_positions=64)
    return loading, tracemalloc.get_traced_memory()[1] - before

  peaks("warm up")  # It allocates for imports, tracing and compilation.
  tracemalloc.start()
  try:
    loading, exporting = peaks("traced")
  finally:
    tracemalloc.stop()
  assert 1.0 <= loading / largest < 1.3
  # On a CPU the device's copy is written. A tensor transposed on the host would
  # add 1.0.
  assert exporting / largest < 0.3
