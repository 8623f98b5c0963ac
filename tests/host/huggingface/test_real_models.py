"""Real models compute here what they do in transformers.

  PURE_REAL_MODELS=DIR python -m pytest -m real_model

`real_models` says what DIR holds. Each model is in memory twice, in float32.
"""

import jax
import numpy as np
import pytest
import real_models
from torch_models import our_logits, their_logits, torch, transformers

from pure_jax.host import huggingface
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import rollouts
from pure_jax.types import Prompts

pytestmark = pytest.mark.real_model

TEXTS = (
  "Natalia sold clips to 48 of her friends in April, and then she sold half "
  "as many clips in May. Altogether she sold",
  "The capital of France is",
  "def fibonacci(n):",
)
NEW_TOKENS = 24


@pytest.fixture(scope="module", params=real_models.names("*/model.safetensors"))
def folder(request):
  return real_models.require(request.param).parent


@pytest.fixture(scope="module")
def tokenizer(folder):
  return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager"
  ).eval()


@pytest.fixture(scope="module")
def loaded(folder):
  return huggingface.load_policy(folder, sharding.make_layout())


@pytest.fixture(scope="module")
def prompts(tokenizer):
  """Left-padded ids of TEXTS."""
  rows = [tokenizer.encode(text) for text in TEXTS]
  columns = max(map(len, rows))
  tokens = np.zeros((len(rows), columns), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, ids in enumerate(rows):
    tokens[row, columns - len(ids) :] = ids
    mask[row, columns - len(ids) :] = True
  return tokens, mask


def test_the_architecture_is_that_of_transformers(
  folder, model, loaded, tokenizer
):
  params, config = loaded
  theirs = sum(weight.numel() for weight in model.parameters())
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == theirs
  huggingface.check_vocabulary(max(tokenizer.get_vocab().values()), config)
  if folder.name == real_models.SMOLLM2:
    assert theirs == 134_515_008
    assert (config.num_layers, config.width) == (30, 576)


def test_logits_are_those_of_transformers(model, loaded, prompts):
  params, config = loaded
  tokens, mask = prompts
  theirs = their_logits(model, tokens, mask)[mask]
  ours = our_logits(params, config, tokens, mask)[mask]
  # 1e-5 of the largest logit, not of each: SmolLM2's residual stream has
  # entries of 22,500, where float32 numbers are 0.002 apart. Measured against
  # transformers in float64, its logits up to 42 are off by up to 1.6e-4 here
  # and by up to 0.6e-4 in transformers itself.
  error, scale = np.abs(ours - theirs).max(), np.abs(theirs).max()
  print(f"largest error {error:.2e} of logits up to {scale:.1f}")
  assert error < 1e-5 * scale


def test_a_greedy_continuation_is_that_of_transformers(
  model, loaded, prompts, tokenizer
):
  params, config = loaded
  tokens, mask = prompts
  with torch.no_grad():
    theirs = model.generate(
      torch.tensor(tokens, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
      do_sample=False,
      max_new_tokens=NEW_TOKENS,
      min_new_tokens=NEW_TOKENS,
      pad_token_id=0,
    )[:, tokens.shape[1] :].numpy()
  sampler = SamplingConfig(NEW_TOKENS, pad_id=0, stop_ids=(), temperature=0.0)
  generate = rollouts.make_generate(config, sampler, 1, sharding.make_layout())
  ours = generate(params, Prompts(tokens, mask), jax.random.key(0))
  for row in np.asarray(ours.tokens):
    print(repr(tokenizer.decode(row)))
  assert np.asarray(ours.completion_mask).all()
  np.testing.assert_array_equal(ours.tokens, theirs)
