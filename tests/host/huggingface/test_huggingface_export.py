"""Exported folders load in transformers, and are written atomically."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors
import transformers
from small_models import TINY, random_params, random_prompts
from torch_models import (
  assert_same,
  assert_trees_equal,
  make_model,
  our_logits,
  our_scores,
  save,
  their_logits,
  torch,
)

from pure_jax.host import huggingface
from pure_jax.host.huggingface import HuggingFaceError, export
from pure_jax.models import policy, prm
from pure_jax.models.config import RopeScaling
from pure_jax.parallel import sharding

# An architecture of each family of transformers. Heads times head size differ
# from the width in all of them.
CONFIGS = {
  "Qwen2": dataclasses.replace(TINY, rope_theta=1e6),
  "Llama": dataclasses.replace(
    TINY,
    attention_bias=False,
    tied_embeddings=False,
    norm_eps=1e-5,
    rope_scaling=RopeScaling(8.0, 0.1, 0.7, 5),
  ),
  "Qwen3": dataclasses.replace(TINY, attention_bias=False, qk_norm=True),
}


@pytest.fixture(scope="module")
def layout():
  return sharding.make_layout()


@pytest.fixture
def prompts():
  return random_prompts(np.random.default_rng(1), [12, 7, 1], 12)


def their_model(auto_class, folder):
  """Loads a folder in transformers, without missing or unexpected weights."""
  model, info = auto_class.from_pretrained(
    folder, output_loading_info=True, attn_implementation="eager"
  )
  assert not any(info.values()), info
  return model.eval()


def tensors_of(folder):
  """All tensors of a folder, read by torch."""
  by_name = {}
  for file in folder.glob("*.safetensors"):
    with safetensors.safe_open(file, "pt") as opened:
      assert opened.metadata() == {"format": "pt"}
      by_name |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
  return by_name


@pytest.mark.parametrize("family", CONFIGS)
def test_an_exported_policy_has_the_same_logits_in_transformers(
  family, tmp_path, layout, prompts
):
  config = CONFIGS[family]
  params = random_params(policy.declare_policy(config))
  huggingface.export_policy(
    tmp_path / "out",
    params,
    config,
    max_positions=64,
    token_ids=huggingface.TokenIds(bos=3, eos=(2, 4), pad=1),
  )
  model = their_model(transformers.AutoModelForCausalLM, tmp_path / "out")
  assert type(model).__name__ == f"{family}ForCausalLM"
  assert (model.config.eos_token_id, model.config.pad_token_id) == ([2, 4], 1)
  assert model.generation_config.eos_token_id == [2, 4]
  assert model.generation_config.bos_token_id == 3
  read = huggingface.read_config(tmp_path / "out").token_ids
  assert read == huggingface.TokenIds(bos=3, eos=(2, 4), pad=1)
  assert model.config.max_position_embeddings == 64
  # Logits of Qwen2 are compared below, by its PRM.
  if family != "Qwen2":
    ours = our_logits(params, config, *prompts)
    assert_same(ours, their_logits(model, *prompts), prompts[1])
  loaded, loaded_config = huggingface.load_policy(tmp_path / "out", layout)
  assert loaded_config == config
  assert_trees_equal(loaded, params)


@pytest.mark.parametrize("family", CONFIGS)
def test_an_exported_prm_has_the_same_scores_in_transformers(
  family, tmp_path, layout, prompts
):
  """The extra layer of a PRM becomes a further layer of the decoder.

  One family is enough for scores: `test_huggingface_load` has the others.
  """
  config = CONFIGS[family]
  params = random_params(prm.declare_prm(config, extra_layers=1))
  huggingface.export_prm(tmp_path / "out", params, config, max_positions=64)
  auto_class = transformers.AutoModelForTokenClassification
  model = their_model(auto_class, tmp_path / "out")
  assert type(model).__name__ == f"{family}ForTokenClassification"
  assert model.config.id2label == {0: "bad", 1: "good"}
  if family == "Qwen2":
    ours = our_scores(params, config, *prompts)
    assert_same(ours, their_logits(model, *prompts), prompts[1])
  loaded, loaded_config = huggingface.load_prm(tmp_path / "out", layout)
  assert loaded_config == prm.extend_config(config, 1)
  assert_trees_equal(loaded, params)


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    ("qwen2 tied", "bfloat16"),
    ("qwen2 tied", "float32"),
    ("llama 3 untied", "bfloat16"),
    ("qwen3 untied", "bfloat16"),
  ],
)
def test_a_folder_loaded_and_exported_has_the_same_tensors(
  name, dtype, tmp_path, layout
):
  model = make_model(name).to(getattr(torch, dtype))
  folder = save(model, tmp_path / "in")
  params, config = huggingface.load_policy(folder, layout, param_dtype=dtype)
  huggingface.export_policy(
    tmp_path / "out", params, config, max_positions=64, shard_bytes=5000
  )
  before, after = tensors_of(folder), tensors_of(tmp_path / "out")
  assert before.keys() == after.keys()
  for key, tensor in before.items():
    assert tensor.dtype == after[key].dtype
    assert torch.equal(tensor, after[key]), key
  fields = json.loads((tmp_path / "out/config.json").read_text())
  assert fields["dtype"] == fields["torch_dtype"] == dtype
  assert fields["rope_theta"] == config.rope_theta


def test_files_are_below_the_size_limit_and_listed_in_the_index(
  tmp_path, layout
):
  config = CONFIGS["Qwen3"]
  params = random_params(policy.declare_policy(config))
  huggingface.export_policy(
    tmp_path / "out", params, config, max_positions=64, shard_bytes=4000
  )
  sizes = [f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors")]
  header = 2000
  assert len(sizes) > 3 and max(sizes) < 4000 + header
  index = json.loads(
    (tmp_path / "out/model.safetensors.index.json").read_text()
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert index["metadata"]["total_size"] == 4 * count
  loaded, _ = huggingface.load_policy(tmp_path / "out", layout)
  assert_trees_equal(loaded, params)
  their_model(transformers.AutoModelForCausalLM, tmp_path / "out")


def test_an_export_from_eight_devices_has_the_same_bytes_as_from_one(tmp_path):
  config = CONFIGS["Qwen2"]
  declared = policy.declare_policy(config)
  params = random_params(declared)
  wide = sharding.make_layout(data=2, fsdp=4)
  spread = jax.device_put(params, sharding.weight_shardings(declared, wide))
  for name, tree in (("one", params), ("eight", spread)):
    huggingface.export_policy(tmp_path / name, tree, config, max_positions=64)
  for file in (tmp_path / "one").iterdir():
    assert file.read_bytes() == (tmp_path / "eight" / file.name).read_bytes()


def test_an_interrupted_export_leaves_nothing_behind(tmp_path, monkeypatch):
  config = CONFIGS["Qwen2"]
  params = random_params(policy.declare_policy(config))
  write_file, seen = export.files.write_file, []

  def interrupt(path, *arguments):
    if seen:
      # After a kill, the unfinished folder could not be mistaken for a model.
      assert not (tmp_path / "out").exists()
      assert not (path.parent / "config.json").exists()
      raise KeyboardInterrupt
    seen.append(path)
    write_file(path, *arguments)

  monkeypatch.setattr(export.files, "write_file", interrupt)
  with pytest.raises(KeyboardInterrupt):
    huggingface.export_policy(
      tmp_path / "out", params, config, max_positions=64, shard_bytes=4000
    )
  assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_raises(tmp_path):
  config = CONFIGS["Qwen2"]
  params = random_params(policy.declare_policy(config))

  def attempt(folder, params=params, config=config, **options):
    huggingface.export_policy(
      folder, params, config, max_positions=64, **options
    )

  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "notes.txt").write_text("mine")
  with pytest.raises(HuggingFaceError, match=r"full exists already"):
    attempt(tmp_path / "full")
  with pytest.raises(HuggingFaceError, match=r"Cannot write .*notes"):
    attempt(tmp_path / "full" / "notes.txt" / "out")
  assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
  with pytest.raises(ValueError, match="shard_bytes must be positive"):
    attempt(tmp_path / "out", shard_bytes=0)
  with pytest.raises(ValueError, match=r"\['embedding'\] is missing"):
    attempt(tmp_path / "out", {k: params[k] for k in ("layers", "final_norm")})
  both = dataclasses.replace(config, qk_norm=True)
  with pytest.raises(
    HuggingFaceError, match="attention_bias=True with qk_norm"
  ):
    attempt(tmp_path / "out", config=both)
  odd = dataclasses.replace(CONFIGS["Llama"], width=18)
  with pytest.raises(HuggingFaceError, match="not a multiple of the number"):
    attempt(tmp_path / "out", config=odd)
  assert not (tmp_path / "out").exists()
  # An empty folder may exist.
  (tmp_path / "out").mkdir()
  attempt(tmp_path / "out")
  assert (tmp_path / "out" / "config.json").exists()
