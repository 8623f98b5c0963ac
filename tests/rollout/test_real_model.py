"""A real language model continues real problems as transformers does.

  PURE_REAL_MODEL=FOLDER python -m pytest -m slow \\
    tests/rollout/test_real_model.py

FOLDER is a Hugging Face folder of a Qwen2, Qwen3 or Llama. With a model of
0.5B parameters the test needs 8 GB and some minutes.
"""

import os
import pathlib

import jax
import numpy as np
import pytest
import real_data
from torch_models import torch, transformers

from pure_jax.host import huggingface
from pure_jax.host.data.batches import left_pad
from pure_jax.host.data.file_dataset import read_file
from pure_jax.host.data.formats.named import find_format
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS
from pure_jax.parallel import sharding
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import rollouts
from pure_jax.types import Prompts

pytestmark = pytest.mark.slow

PROBLEMS = 20
NEW_TOKENS = 128
# Two logits closer than this may change places by rounding: float32 sums over
# 900 to 5,000 terms differ by about 1e-5 of the largest logits, which are 30.
TIE = 1e-3


@pytest.fixture(scope="module")
def folder():
  name = os.environ.get("PURE_REAL_MODEL")
  if name is None:
    pytest.skip("PURE_REAL_MODEL names no folder of a real model.")
  return pathlib.Path(name)


@pytest.fixture(scope="module")
def tokenizer(folder):
  vocab_size = huggingface.read_config(folder).model.vocab_size
  return HuggingFaceTokenizer(folder, vocab_size=vocab_size)


@pytest.fixture(scope="module")
def prompts(tokenizer, tmp_path_factory):
  """Left-padded prompts of the first problems of GSM8K."""
  rows = read_file(
    find_format("gsm8k"),
    real_data.require("gsm8k/test.jsonl"),
    tmp_path_factory.mktemp("data"),
  )
  prompt_format = PROMPT_FORMATS["qwen_boxed"]
  ids = [
    prompt_format.ids(tokenizer, row.problem) for row in list(rows)[:PROBLEMS]
  ]
  return Prompts(*left_pad(ids, max(map(len, ids)), tokenizer.pad_id))


@pytest.fixture(scope="module")
def ours(folder, tokenizer, prompts):
  """Greedy tokens [B, C] of the engine, whose slots hold half of the rows."""
  layout = sharding.make_layout()
  params, model = huggingface.load_policy(folder, layout)
  sampler = SamplingConfig(
    NEW_TOKENS,
    pad_id=tokenizer.pad_id,
    stop_ids=tokenizer.eos_ids,
    banned_ids=tokenizer.banned_ids,
    temperature=0.0,
  )
  engine = rollouts.make_engine(
    model, sampler, 1, layout, EngineConfig(PROBLEMS // 2, 32)
  )
  keys = jax.random.split(jax.random.key(0), PROBLEMS)
  rollout = engine.generate(params, prompts, keys)
  return np.asarray(rollout.tokens), np.asarray(rollout.completion_mask)


@pytest.fixture(scope="module")
def theirs(folder, tokenizer, prompts, ours):
  """Greedy tokens [B, C] and their logits [B, C, V] of transformers."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  with torch.no_grad():
    out = model.generate(
      torch.tensor(prompts.tokens, dtype=torch.long),
      attention_mask=torch.tensor(prompts.mask, dtype=torch.long),
      generation_config=transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=tokenizer.pad_id,
        eos_token_id=list(tokenizer.eos_ids),
        suppress_tokens=list(tokenizer.banned_ids),
        return_dict_in_generate=True,
        output_logits=True,
      ),
    )
  logits = np.stack([step.numpy() for step in out.logits], 1)
  return out.sequences[:, prompts.tokens.shape[1] :].numpy(), logits


def test_greedy_tokens_of_real_problems_are_those_of_transformers(ours, theirs):
  """Up to a tie: from there on the two read different texts."""
  tokens, mask = ours
  their_tokens, logits = theirs
  equal = 0
  for row, (mine, other) in enumerate(zip(tokens, their_tokens, strict=True)):
    length = int(mask[row].sum())
    differs = np.flatnonzero(mine[:length] != other[:length])
    equal += not differs.size
    if differs.size:
      first = differs[0]
      chosen = logits[row, first, [mine[first], other[first]]]
      print(f"row {row} differs from token {first} on: logits {chosen}")
      assert abs(chosen[1] - chosen[0]) < TIE
  print(f"{equal} of {len(tokens)} responses are equal to the last token")
  assert equal >= 0.9 * len(tokens)
  assert mask.sum() > 20 * len(tokens)  # The texts are not trivially short.
