"""The baseline "tunix": the sampler of google-tunix, on a folder of weights.

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

# No token has this id, so no response ends before its length.
NO_ID = -1


class _Numbers:
  """A tokenizer of texts of numbers, for a sampler that needs texts."""

  def __init__(self, pad_id: int):
    self._pad_id = pad_id

  def encode(self, text: str) -> list[int]:
    return [int(word) for word in text.split()]

  def decode(self, ids: list[int]) -> str:
    return " ".join(map(str, ids))

  def bos_id(self) -> int:
    return 0  # The sampler puts nothing before a text.

  def eos_id(self) -> int:
    return NO_ID

  def pad_id(self) -> int:
    return self._pad_id


class TunixSampler:
  """A model and the prompts that it generates responses to."""

  def load(self, policy: str, dtype: str) -> dict[str, Any]:
    """Reads a folder that transformers can load."""
    fields = json.loads((pathlib.Path(policy) / "config.json").read_text())
    self._shape = shape = dict(
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
    tied, dtype = fields["tie_word_embeddings"], jnp.dtype(dtype)
    if fields["model_type"] == "qwen2":
      config = qwen2.ModelConfig(
        **shape, use_tied_embedding=tied, dtype=dtype, param_dtype=dtype
      )
      read = qwen2_params.create_model_from_safe_tensors
    elif fields["model_type"] == "llama":
      config = llama3.ModelConfig(**shape, weight_tying=tied)
      # Release 0.1.7 ignores the theta of its config and uses the default of
      # this function.
      llama3.apply_rope.__defaults__ = (fields["rope_theta"],)
      read = llama3_params.create_model_from_safe_tensors
    else:
      raise ValueError(f"no model of tunix for {fields['model_type']!r}")
    self._model = read(policy, config, dtype=dtype)
    return exchange.versions("google-tunix", "jax", "flax")

  def prepare(
    self,
    tokens: list[list[int]],
    samples: int,
    new_tokens: int,
    pad_id: int,
    lengths: list[int] | None,
    greedy: bool,
  ) -> dict[str, Any]:
    """Takes what `transformers_sampler.generate_arguments` does."""
    # The sampler ends a row at an id, not after a length, and decodes ended
    # rows until the longest has ended. The longest row alone therefore
    # determines the number of steps.
    self._lengths = lengths or [new_tokens] * (len(tokens) * samples)
    tokenizer = _Numbers(pad_id)
    self._texts = [
      tokenizer.decode(row) for row in tokens for _ in range(samples)
    ]
    self._pad_id, length = pad_id, len(tokens[0])
    self._arguments = dict(
      max_generation_steps=max(self._lengths),
      max_prompt_length=length,
      eos_tokens=[NO_ID],
      forbidden_tokens=[pad_id],
      # Without top_p it decodes greedily.
      **({} if greedy else {"temperature": 1.0, "top_p": 1.0}),
    )
    cache = CacheConfig(
      cache_size=length + new_tokens,
      num_layers=self._shape["num_layers"],
      num_kv_heads=self._shape["num_kv_heads"],
      head_dim=self._shape["head_dim"],
    )
    self._sampler = Sampler(self._model, tokenizer, cache)
    return {}

  def run(self) -> dict[str, Any]:
    """Generates once; returns the seconds and the number of new tokens."""
    start = time.perf_counter()
    output = jax.block_until_ready(
      self._sampler(self._texts, **self._arguments)
    )
    answer = exchange.timed(start)
    self._new = [
      row[:length]
      for row, length in zip(output.tokens, self._lengths, strict=True)
    ]
    count = sum(int((row != self._pad_id).sum()) for row in self._new)
    return {**answer, "tokens": count}

  def answer(self) -> dict[str, Any]:
    """Returns the tokens of the last run, [B, C]."""
    return {"tokens": [row.tolist() for row in self._new]}


if __name__ == "__main__":
  exchange.serve(TunixSampler())
