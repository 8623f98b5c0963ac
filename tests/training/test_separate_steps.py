"""Scores of rollouts whose steps the PRM reads encoded one by one."""

import jax
import numpy as np
import pytest
from small_models import random_params
from small_tokenizers import MERGING, save_trained, save_vocabulary

from pure_jax import steps as device_steps
from pure_jax.host.data.batches import each_step_inputs, left_pad, right_pad
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import (
  encode_response,
  separator_table,
  split_texts,
)
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.settings import ScoreConfig
from pure_jax.training import row_choice, score
from pure_jax.training.packing import RowShape, ScoreRows
from pure_jax.training.step_spec import Layouts, StepSpec
from pure_jax.types import Prompts, Rollout

L, C, S, V = 4, 48, 5, 64
MODEL = ModelConfig(
  vocab_size=V,
  width=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_width=24,
)


def rollout_of(tokenizer, responses):
  """A rollout of given ids, with prompts of its own."""
  B = len(responses)
  tokens, mask = right_pad(responses, C, tokenizer.pad_id)
  prompts = left_pad([[5, 6 + i % 2] for i in range(B)], L, tokenizer.pad_id)
  logp = np.where(mask, np.float32(-1), np.float32(0))
  return Rollout(*prompts, tokens, mask, logp, logp, np.zeros(B, bool))


def prm_texts_of(tokenizer, rollout, separator):
  """What the PRM reads, before each response or in all."""
  prompts = [
    tokens[mask].tolist()
    for tokens, mask in zip(
      rollout.prompt_tokens, rollout.prompt_mask, strict=True
    )
  ]
  if separator != "each":
    return Prompts(rollout.prompt_tokens, rollout.prompt_mask)
  texts = split_texts(tokenizer, rollout.tokens, rollout.completion_mask)
  return each_step_inputs(tokenizer, prompts, texts, L + C + S, S)


def score_of(tokenizer, rollout, separator, rows=None, micro_batch_rows=None):
  """Scores of a rollout by `make_score`."""
  table = separator_table(tokenizer)
  spec = StepSpec(
    MODEL,
    MODEL,
    SamplingConfig(
      max_new_tokens=C, pad_id=tokenizer.pad_id, stop_ids=(tokenizer.eos_id,)
    ),
    ScoreConfig(S, separator),
    table,
    Layouts.same(sharding.make_layout()),
    micro_batch_rows=micro_batch_rows,
  )
  trunk = random_params(policy.declare_policy(MODEL), 0)
  params = random_params(prm.declare_prm(MODEL), 1)
  texts = prm_texts_of(tokenizer, rollout, separator)
  scores, _ = score.make_score(spec, rows)(trunk, trunk, params, rollout, texts)
  return jax.device_get(scores)


@pytest.fixture(scope="module", params=["merging", "splitting"])
def trained(request, tmp_path_factory):
  """Vocabularies that merge "\n\n" with punctuation, or write it as two ids."""
  splitting = {"merging": MERGING, "splitting": None}[request.param]
  made = tmp_path_factory.mktemp(request.param)
  return HuggingFaceTokenizer(save_trained(made, splitting), vocab_size=512)


def sampled(tokenizer, count, seed=0):
  """Ids as a policy may sample them: any, with many separators."""
  rng = np.random.default_rng(seed)
  ends = [i for i, text in enumerate(tokenizer.pieces) if text.endswith("\n")]
  texts = [i for i, text in enumerate(tokenizer.pieces) if text]
  rows = []
  for _ in range(count):
    length = rng.integers(0, C)
    ids = rng.choice(texts, length)
    ids = np.where(rng.random(length) < 0.4, rng.choice(ends, length), ids)
    rows.append(ids.tolist() + [tokenizer.eos_id] * int(rng.integers(2)))
  return rows


def content(tokenizer, ids, ends):
  """The text of a step's tokens, with one "\n\n" for each separator inside."""
  ends, parts = ends & (ids != tokenizer.eos_id), []
  cuts = np.flatnonzero(ends[:-1]) + 1
  for part, is_end in zip(
    np.split(ids, cuts), np.split(ends, cuts), strict=True
  ):
    text, last = tokenizer.decode(part.tolist()), tokenizer.pieces[part[-1]]
    if is_end[-1] and last.endswith("\n\n"):
      # All white space that is one id with the separator.
      text = text[: len(text) - len(last) + len(last.rstrip())]
    parts.append(
      text.removesuffix("\n\n") if last == "\n" and is_end[-1] else text
    )
  return "\n\n".join(parts)


def test_every_step_of_a_response_is_scored_and_no_other(trained):
  """Empty steps and overflow too: the PRM's steps are those of the device."""
  rows = [[], [trained.eos_id], *sampled(trained, 100)]
  rollout = rollout_of(trained, rows)
  arrays = rollout.tokens, rollout.completion_mask, separator_table(trained)
  boundaries, terminal = jax.device_get(
    (
      device_steps.split_steps(*arrays, max_steps=S),
      device_steps.terminal_mask(*arrays),
    )
  )
  assert boundaries.overflow.any() and boundaries.empty.any()
  inputs = prm_texts_of(trained, rollout, "each")
  np.testing.assert_array_equal(
    inputs.score_mask | inputs.unread_mask, boundaries.mask
  )
  newline = trained.encode("\n")
  for row, ids in enumerate(inputs.tokens):
    begin = 2  # Of the response: the prompts have two ids.
    positions = inputs.score_position[row][inputs.score_mask[row]]
    for step, end in enumerate(positions.tolist()):
      own = rollout.completion_mask[row] & (boundaries.index[row] == step)
      text = content(trained, rollout.tokens[row][own], terminal[row][own])
      assert ids[begin : end + 1].tolist() == trained.encode(text) + newline
      begin = end + 1


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """(tokenizer, responses whose steps have the same ids before a separator)."""
  made = tmp_path_factory.mktemp("plain")
  vocabulary = ["<end>", "<pad>", "Ċ", "ĊĊ", *"abcdefgh0123", "ab", "cd", ".ĊĊ"]
  merges = [("Ċ", "Ċ"), ("a", "b"), ("c", "d"), (".", "ĊĊ")]
  vocabulary.insert(2, ".")
  save_vocabulary(made, vocabulary, merges, None)
  tokenizer = HuggingFaceTokenizer(made, vocab_size=V)
  rng = np.random.default_rng(0)
  rows = []
  for index in range(8):
    steps = [
      "".join(rng.choice(list("abcdefgh0123"), rng.integers(0, 9)))
      + "." * int(rng.integers(2))
      for _ in range(index % 5 + 1)
    ]
    if index == 0:
      steps = ["ab", "", ""]
    # A response that is cut off has no empty step at its end.
    finished = bool(index % 3) or not steps[-1]
    rows.append(encode_response(tokenizer, steps, finished=finished))
  return tokenizer, rollout_of(tokenizer, rows)


@pytest.fixture(scope="module")
def inserted(plain):
  """Scores of the responses with inserted score tokens."""
  return score_of(*plain, "insert")


@pytest.mark.parametrize(
  ("rows", "micro_batch_rows"),
  [
    (None, 2),
    (ScoreRows(RowShape(60, 2), RowShape(60, 2)), None),
    (ScoreRows(RowShape(L + C, 4), RowShape(L + C + S, 4, False)), None),
  ],
)
def test_scores_are_those_of_inserted_tokens_where_no_ids_differ(
  plain, inserted, rows, micro_batch_rows
):
  """In micro-batches, in packed rows, and in a row for each text."""
  each = score_of(*plain, "each", rows, micro_batch_rows)
  assert inserted.steps.empty.any() and inserted.steps.mask.sum() > 20
  jax.tree.map(np.testing.assert_array_equal, each.steps, inserted.steps)
  np.testing.assert_allclose(
    each.step_rewards, inserted.step_rewards, atol=1e-5
  )
  np.testing.assert_allclose(each.ref_logp, inserted.ref_logp, atol=1e-5)
  assert np.ptp(inserted.step_rewards[inserted.steps.mask]) > 0.1


def test_the_longest_text_of_the_inputs_chooses_the_rows(plain):
  tokenizer, rollout = plain
  texts = prm_texts_of(tokenizer, rollout, "each")
  spec = StepSpec(
    MODEL,
    MODEL,
    SamplingConfig(max_new_tokens=C, pad_id=1, stop_ids=(0,)),
    ScoreConfig(S, "each"),
    separator_table(tokenizer),
    Layouts.same(sharding.make_layout()),
  )
  lengths = row_choice.make_measure(spec)(rollout, texts)
  assert int(lengths[1]) == texts.mask.sum(1).max()


def test_inputs_of_another_mode_raise(plain):
  tokenizer, rollout = plain
  texts = prm_texts_of(tokenizer, rollout, "each")
  table = separator_table(tokenizer)
  with pytest.raises(ValueError, match="'insert' cannot score PRMInputs"):
    score.prm_inputs(ScoreConfig(S), table, texts)
  with pytest.raises(ValueError, match="'each' cannot score Rollout"):
    score.prm_inputs(ScoreConfig(S, "each"), table, rollout)
