"""Small models as GGUF files, written by the package gguf itself."""

import gguf
import numpy as np
import torch_models
from small_tokenizers import TEMPLATE, save_trained

from pure_jax.host import json_text

UNUSED = ("[PAD0]", "[PAD1]", "[PAD2]")
FLOAT32 = gguf.GGMLQuantizationType.F32
NORMAL, CONTROL, UNUSED_TYPE = 1, 3, 5
EOS, PAD, BOS = 0, 1, 2  # <end>, <pad> and <user> of `save_trained`.


def make(name, folder, **changes):
  """A random model and its tokenizer: (model, vocabulary, merges).

  Sizes are multiples of 32, as blocks of numbers are. The tokenizer's folder
  is `folder`.
  """
  save_trained(folder, None, TEMPLATE)
  fields = json_text.parse((folder / "tokenizer.json").read_bytes())["model"]
  tokens = sorted(fields["vocab"], key=fields["vocab"].get) + list(UNUSED)
  sizes = {
    "vocab_size": len(tokens),
    "hidden_size": 64,
    "intermediate_size": 32,
    # What transformers takes for a Qwen3, whose file does not say it to it.
    "head_dim": {"qwen3": 128, "llama": 16}.get(name.split()[0]),
  }
  sizes = {key: value for key, value in sizes.items() if value is not None}
  model = torch_models.make_model(name, **sizes | changes)
  return model, tokens, [" ".join(pair) for pair in fields["merges"]]


def write(
  path, made, *, stored=FLOAT32, without=(), extra=(), edit=None, tensors=None
):
  """Writes a GGUF file of what `make` returns; returns the file.

  `stored` is the type of matrices, `without` names tensors and fields to leave
  out, `edit` gets the writer before anything is written, `extra` are further
  (name, array), `tensors` replaces weights by their names in transformers.
  """
  model, tokens, merges = made
  config = model.config
  arch = config.model_type
  writer = gguf.GGUFWriter(path, arch)
  writer.add_context_length(config.max_position_embeddings)
  writer.add_block_count(config.num_hidden_layers)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_attention_heads)
  writer.add_head_count_kv(config.num_key_value_heads)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
  if arch == "llama":
    writer.add_rope_dimension_count(config.head_dim)
  _add_tokenizer(writer, tokens, merges, without)
  if edit is not None:
    edit(writer)
  for name, array in _named(model, tensors or {}):
    if name not in without:
      kind = stored if array.ndim == 2 else FLOAT32
      data = gguf.quants.quantize(array, kind)
      writer.add_tensor(name, data, raw_dtype=kind)
  for name, array in extra:
    writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def _add_tokenizer(writer, tokens, merges, without):
  if "tokens" in without:
    return
  kinds = [
    UNUSED_TYPE if token in UNUSED
    else CONTROL if token.startswith("<") and token.endswith(">")
    else NORMAL
    for token in tokens
  ]  # fmt: skip
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("qwen2")
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_merges(merges)
  writer.add_bos_token_id(BOS)
  writer.add_eos_token_id(EOS)
  writer.add_pad_token_id(PAD)
  writer.add_add_bos_token(False)
  writer.add_chat_template(TEMPLATE)


def _named(model, replaced):
  """(name in the file, array) of each weight; a tied head is left out."""
  config = model.config
  kind = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
  names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
  heads = {
    "q_proj": config.num_attention_heads,
    "k_proj": config.num_key_value_heads,
  }
  for name, weight in model.state_dict().items():
    if name == "lm_head.weight" and config.tie_word_embeddings:
      continue
    array = replaced.get(name, weight.numpy()).astype(np.float32)
    base, _, suffix = name.rpartition(".")
    projection = base.rpartition(".")[2]
    if config.model_type == "llama" and projection in heads:
      # Pairs of a head's numbers that a rotation mixes are neighbours there.
      halves = array.reshape(heads[projection], 2, -1, *array.shape[1:])
      array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
    yield f"{names.get_name(base)}.{suffix}", array
