r"""Inputs of a PRM whose steps are encoded one by one, as TRL trains PRMs.

The vocabulary merges as Qwen's does: "```" and "$." are one id each, but not if
they are encoded together with the "\n\n" behind them.
"""

import jax
import numpy as np
import pytest
import transformers
import trl_rows
from small_models import random_params
from small_tokenizers import MERGING, save_trained, save_vocabulary

from pure_jax import steps as device_steps
from pure_jax.host.data.batches import (
  each_step_inputs,
  left_pad,
  pad_prm_texts,
  right_pad,
)
from pure_jax.host.data.records import LabelledSolution
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import (
  PROMPT_FORMATS,
  TokenizerError,
  encode_each_step,
  encode_response,
  merge_overflow,
  separator_table,
  split_texts,
)
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.runs.evaluation import labelled_solutions
from pure_jax.settings import ScoreConfig
from pure_jax.training import score
from pure_jax.training.packing import RowShape, ScoreRows
from pure_jax.training.step_spec import Layouts, StepSpec
from pure_jax.types import Prompts, Rollout

VOCABULARY = [
  *("<end>", "<pad>", "<begin>", "Ċ", "ĊĊ", "x", "5", "=", "$", ".", "`", '"'),
  *("``", "```", "$.", ".ĊĊ", "`ĊĊ", '"ĊĊ', "Ġ", "q", '."'),
]
MERGES = [
  *(("Ċ", "Ċ"), ("`", "`"), (".", "ĊĊ"), ("`", "ĊĊ"), ('"', "ĊĊ")),
  *(("``", "`"), ("$", "."), (".", '"')),
]
# The smallest steps that other modes read with other ids are among them.
EXAMPLES = [
  ("x", ["```", '"q"', "$."]),
  ("x=5.", ["x=5.", '"x."', "x"]),
  ("x\n", ["", "x", ""]),
  (" x", [" x", "x ", "x\n5", "x\n\n5", "<end>x"]),
  ("x", ["x"] * 9),
  ("", ["."]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  made = tmp_path_factory.mktemp("merging")
  return save_vocabulary(made, VOCABULARY, MERGES, None)


@pytest.fixture(scope="module")
def tokenizer(folder):
  return HuggingFaceTokenizer(folder)


def inputs_of(tokenizer, rows, length=64, max_steps=9):
  """`PRMInputs` of (problem, steps) in rows."""
  texts = [
    encode_each_step(tokenizer, tokenizer.encode(problem), steps)
    for problem, steps in rows
  ]
  return pad_prm_texts(texts, length, max_steps, tokenizer.pad_id)


def test_only_this_mode_keeps_the_ids_of_a_step(tokenizer):
  """Steps "```", "$." and '"q"' of one solution, by hand."""
  inputs = inputs_of(tokenizer, [("x", ["```", "$.", '"q"'])])
  pieces = [tokenizer.pieces[i] for i in inputs.tokens[0][inputs.mask[0]]]
  assert pieces == ["x", "```", "\n", "$.", "\n", '"', "q", '"', "\n"]
  ids = encode_response(tokenizer, ["```", "$.", '"q"'], finished=True)
  pieces = [tokenizer.pieces[i] for i in ids]
  assert pieces == ["``", "`\n\n", "$", ".\n\n", '"', "q", '"', ""]


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("own", [True, False])
def test_ids_and_labels_are_those_of_trls_trainer(
  folder, tmp_path, begins, own
):
  tokenize_row = (
    trl_rows.tokenize_row if own else trl_rows.installed_tokenize_row()
  )
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  if begins:  # TRL writes this token even if the tokenizer itself does not.
    theirs.add_special_tokens({"bos_token": "<begin>"})
  theirs.save_pretrained(tmp_path)
  ours = HuggingFaceTokenizer(tmp_path)
  assert ours.bos_id == (2 if begins else None)
  labels = [[i % 3 == 0 for i, _ in enumerate(steps)] for _, steps in EXAMPLES]
  inputs = inputs_of(ours, EXAMPLES)
  for row, (prompt, steps) in enumerate(EXAMPLES):
    expected = tokenize_row(theirs, prompt, steps, labels[row])
    assert trl_rows.padded_row(inputs, labels[row], row) == expected


def test_a_beginning_token_of_the_prompt_is_not_doubled(tokenizer):
  tokenizer = Beginning(tokenizer)
  assert encode_each_step(tokenizer, [5], ["x"]).prompt == [2, 5]
  assert encode_each_step(tokenizer, [2, 5], ["x"]).prompt == [2, 5]
  assert encode_each_step(tokenizer, [], ["x"]).prompt == [2]


class Beginning:
  """A tokenizer with a beginning token."""

  bos_id = 2

  def __init__(self, tokenizer):
    self.encode = tokenizer.encode


def test_a_tokenizer_without_a_line_break_raises(tmp_path):
  save_vocabulary(tmp_path, ["<end>", "<pad>", "x"], [], None)
  tokenizer = HuggingFaceTokenizer(tmp_path)
  with pytest.raises(TokenizerError, match=r"no id for '\\n'"):
    encode_each_step(tokenizer, [2], ["x"])


# ===== Rows =====


def test_a_step_that_does_not_fit_has_no_score_and_none_of_another_step():
  """2 + 3 + 2 tokens; the third step would end at column 9."""
  text = encode_each_step(Letters(), [7, 7], ["aa", "b", "c", "d"])
  assert text.num_tokens == 11 and text.num_response_tokens == 9
  for length, fits, tokens in ((11, 4, 11), (10, 3, 9), (9, 3, 9), (8, 2, 7)):
    inputs = pad_prm_texts([text], length, 5, pad_id=0)
    assert inputs.tokens.shape == (1, length)
    assert inputs.mask.sum() == tokens
    assert inputs.score_mask[0].tolist() == [i < fits for i in range(5)]
    unread = [fits <= i < 4 for i in range(5)]
    assert inputs.unread_mask[0].tolist() == unread
    assert inputs.score_position[0].tolist() == [4, 6, 8, 10][:fits] + [0] * (
      5 - fits
    )
  inputs = pad_prm_texts([text], 2, 5, pad_id=0)
  assert inputs.mask.sum() == 2 and not inputs.score_mask.any()
  with pytest.raises(ValueError, match="Row 0 has 2 tokens"):
    pad_prm_texts([text], 1, 5, pad_id=0)


class Letters:
  """One id for each letter."""

  bos_id, pad_id = None, 0

  def encode(self, text):
    return [ord(letter) for letter in text]


def test_an_unread_step_gets_the_worst_reward(capsys):
  """Any score of another step, or 0, would be a way to hide a bad step."""
  inputs = each_step_inputs(
    Letters(), [[7], [7], [7]], [["a", "bb", "c"], ["a"], []], 5, 3
  )
  assert "2 steps of 1 responses do not fit into the 5 tokens" in (
    capsys.readouterr().err
  )
  logits = np.zeros((3, 5, 2), np.float32)
  logits[..., 1] = np.arange(5) * 0.25
  rewards = jax.jit(device_steps.read_step_rewards)(logits, inputs)
  good = np.tanh(0.5 * 0.5)
  expected = [[good, -1, -1], [good, 0, 0], [0, 0, 0]]
  np.testing.assert_allclose(rewards, expected, atol=1e-6)


def test_steps_beyond_the_limit_are_one_step_with_its_separators():
  steps = ["a", "b", "", "c", "d"]
  assert merge_overflow(steps, 5) == merge_overflow(steps, 9) == steps
  assert merge_overflow(steps, 3) == ["a", "b", "\n\nc\n\nd"]
  assert merge_overflow(steps, 1) == ["\n\n".join(steps)]
  assert merge_overflow([], 2) == []


# ===== Labelled solutions =====


def test_labelled_solutions_are_limited_and_batched_with_their_scores():
  """One score token follows each step; there is no separator and no EOS."""
  rows = [
    *(("p" * 3, ["a" * 5, "b"]), ("p" * 4, ["a"]), ("p", ["a" * 7])),
    *(("p", ["a" * 8]), ("p", ["a", "b", "c"]), ("p", ["é", "a"])),
  ]
  solutions = [
    LabelledSolution("id", "test", problem, tuple(steps), (1,) * len(steps))
    for problem, steps in rows
  ]
  limits = labelled_solutions.SolutionLimits(3, 8, max_steps=2)
  encoded = labelled_solutions.encode_solutions(
    Letters(), PROMPT_FORMATS["raw"], solutions, limits, "each"
  )
  assert encoded.index.tolist() == [0, 2, 5]
  reasons = ["problem too long", "solution too long", "too many steps"]
  assert encoded.left_out == dict(zip((1, 3, 4), reasons, strict=True))
  whole = labelled_solutions.pad_solutions(encoded.texts, limits, pad_id=0)
  assert whole.tokens.shape == (3, 3 + 8) and not whole.unread_mask.any()
  shapes = []
  for indices, batch in labelled_solutions.batches_by_length(
    encoded, limits, 2, 4, pad_id=0
  ):
    shapes.append(batch.tokens.shape)
    for row, index in enumerate(indices):
      expected = "".join(f"{step}\n" for step in rows[encoded.index[index]][1])
      ids = batch.tokens[row][batch.mask[row]].tolist()
      text = "".join(map(chr, ids)).lstrip("p")
      assert text == expected
      positions = batch.score_position[row][batch.score_mask[row]]
      assert [chr(ids[i]) for i in positions] == ["\n"] * expected.count("\n")
  assert shapes == [(2, 12), (2, 12)]  # 5 and 9 tokens, then 11.


# ===== Sampled responses =====

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


def test_every_step_of_a_response_is_scored_and_no_other(trained):
  """Empty steps and overflow too: the PRM's steps are those of the device."""
  rows = [[], [trained.eos_id], *sampled(trained, 100)]
  rollout = rollout_of(trained, rows)
  arrays = rollout.tokens, rollout.completion_mask, separator_table(trained)
  boundaries = device_steps.split_steps(*arrays, max_steps=S)
  terminal = device_steps.terminal_mask(*arrays)
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
      # The content of the step is the text of its tokens, without separator.
      own = rollout.completion_mask[row] & (boundaries.index[row] == step)
      text = trained.decode(rollout.tokens[row][own].tolist())
      last = np.flatnonzero(own)[-1]
      if terminal[row, last] and rollout.tokens[row, last] != trained.eos_id:
        text = text.removesuffix("\n\n")
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
  lengths = score.make_measure(spec)(rollout, texts)
  assert int(lengths[1]) == texts.mask.sum(1).max()


def test_inputs_of_another_mode_raise(plain):
  tokenizer, rollout = plain
  texts = prm_texts_of(tokenizer, rollout, "each")
  table = separator_table(tokenizer)
  with pytest.raises(ValueError, match="'insert' cannot score PRMInputs"):
    score.prm_inputs(ScoreConfig(S), table, texts)
  with pytest.raises(ValueError, match="'each' cannot score Rollout"):
    score.prm_inputs(ScoreConfig(S, "each"), table, rollout)
