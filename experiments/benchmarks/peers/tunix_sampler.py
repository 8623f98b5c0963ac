"""The peer "tunix": the sampler of google-tunix, on a folder of weights.

Its environment is that of `tunix.txt`.
"""

import json
import pathlib
import time
from typing import Any

import exchange
import jax
import jax.numpy as jnp
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3 import model as llama3
from tunix.models.llama3 import params as llama3_params
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params as qwen2_params

# No id of a token: nothing ends before its length.
NO_ID = -1


class Numbers:
  """A tokenizer of texts that are ids, for a sampler that wants texts."""

  def __init__(self, pad_id: int):
    """Says what padding is.

    Args:
      pad_id: id of padding.
    """
    self._pad_id = pad_id

  def encode(self, text: str) -> list[int]:
    """The numbers of a text."""
    return [int(word) for word in text.split()]

  def decode(self, ids: list[int]) -> str:
    """A text of numbers."""
    return " ".join(map(str, ids))

  def bos_id(self) -> int:
    """None: nothing is put in front of a text."""
    return 0

  def eos_id(self) -> int:
    """None."""
    return NO_ID

  def pad_id(self) -> int:
    """Of the padding of prompts."""
    return self._pad_id


class Generator:
  """A model, prompts, and what is asked of them."""

  def load(self, policy: str, dtype: str) -> dict[str, Any]:
    """Reads a folder as transformers saves it."""
    fields = json.loads((pathlib.Path(policy) / "config.json").read_text())
    shape = dict(
      num_layers=fields["num_hidden_layers"],
      vocab_size=fields["vocab_size"],
      embed_dim=fields["hidden_size"],
      hidden_dim=fields["intermediate_size"],
      num_heads=fields["num_attention_heads"],
      head_dim=fields["head_dim"],
      num_kv_heads=fields["num_key_value_heads"],
      rope_theta=fields["rope_theta"],
      norm_eps=fields["rms_norm_eps"],
    )
    tied, kind = fields["tie_word_embeddings"], jnp.dtype(dtype)
    if fields["model_type"] == "qwen2":
      config = qwen2.ModelConfig(
        **shape, use_tied_embedding=tied, dtype=kind, param_dtype=kind
      )
      read = qwen2_params.create_model_from_safe_tensors
    elif fields["model_type"] == "llama":
      config = llama3.ModelConfig(**shape, weight_tying=tied)
      # Release 0.1.7 rotates by the default of this function, whatever its
      # config says.
      llama3.apply_rope.__defaults__ = (fields["rope_theta"],)
      read = llama3_params.create_model_from_safe_tensors
    else:
      raise ValueError(f"no model of tunix for {fields['model_type']!r}")
    self._shape, self._model = shape, read(policy, config, dtype=kind)
    return exchange.facts("google-tunix", "jax", "flax")

  def prepare(self, **fields: Any) -> dict[str, Any]:
    """Says what a run is, by the fields of `exchange.Asked`."""
    asked = exchange.Asked(**fields)
    # It ends a row at an id, not after a length, and goes on decoding it until
    # the longest has ended: so the longest alone says how many steps there are.
    rows = len(asked.tokens) * asked.samples
    self._lengths = asked.lengths or [asked.new_tokens] * rows
    tokenizer = Numbers(asked.pad_id)
    self._texts = [
      tokenizer.decode(row)
      for row in asked.tokens
      for _ in range(asked.samples)
    ]
    self._pad_id, length = asked.pad_id, len(asked.tokens[0])
    self._asked = dict(
      max_generation_steps=max(self._lengths),
      max_prompt_length=length,
      eos_tokens=[NO_ID],
      forbidden_tokens=[asked.pad_id],
      # Of all ids; without top_p it is greedy.
      **({} if asked.greedy else {"temperature": 1.0, "top_p": 1.0}),
    )
    cache = CacheConfig(
      cache_size=length + asked.new_tokens,
      num_layers=self._shape["num_layers"],
      num_kv_heads=self._shape["num_kv_heads"],
      head_dim=self._shape["head_dim"],
    )
    self._sampler = Sampler(self._model, tokenizer, cache)
    return {}

  def run(self) -> dict[str, Any]:
    """Generates once, and says how long that took and how many tokens."""
    start = time.perf_counter()
    found = jax.block_until_ready(self._sampler(self._texts, **self._asked))
    answer = exchange.timed(start)
    self._new = [
      row[:length]
      for row, length in zip(found.tokens, self._lengths, strict=True)
    ]
    count = sum(int((row != self._pad_id).sum()) for row in self._new)
    return {**answer, "tokens": count}

  def answer(self) -> dict[str, Any]:
    """The tokens of the last run, [B, C]."""
    return {"tokens": [row.tolist() for row in self._new]}


if __name__ == "__main__":
  exchange.serve(Generator())
