r"""Inputs of a PRM whose steps are encoded one by one, as TRL trains PRMs.

The vocabulary merges as Qwen's does: "```" and "$." are one id each, but not if
they are encoded together with the "\n\n" behind them.
"""

import jax
import numpy as np
import pytest
import transformers
import trl_rows
from small_tokenizers import save_vocabulary

from pure_jax import steps as device_steps
from pure_jax.host.data.batches import (
  each_step_inputs,
  pad_prm_texts,
)
from pure_jax.host.data.records import LabelledSolution
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS
from pure_jax.host.text.tokenization import (
  TokenizerError,
  encode_each_step,
  encode_response,
  merge_overflow,
)
from pure_jax.runs.evaluation import labelled_solutions

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

  encode_prompt = encode


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
    encoded, limits, 2, 3, pad_id=0
  ):
    shapes.append(batch.tokens.shape)
    for row, index in enumerate(indices):
      expected = "".join(f"{step}\n" for step in rows[encoded.index[index]][1])
      ids = batch.tokens[row][batch.mask[row]].tolist()
      text = "".join(map(chr, ids)).lstrip("p")
      assert text == expected
      positions = batch.score_position[row][batch.score_mask[row]]
      assert [chr(ids[i]) for i in positions] == ["\n"] * expected.count("\n")
  assert shapes == [(2, 9), (2, 11)]  # 5 and 9 tokens, then 11.
