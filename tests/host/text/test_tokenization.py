r"""The tokenisation contract: step boundaries, PRM inputs and prompt formats.

Two kinds of vocabularies: one merges "\n\n" with the text before it, as Qwen's
does; one splits it into "\n", "\n" inside a text, as GPT-2's and SmolLM2's do.
`test_sentencepiece_tokenizer` has a third, that of the embedded world.
"""

import re
import types

import jax
import numpy as np
import pytest
from small_tokenizers import (
  MERGING,
  STEPS,
  TEMPLATE,
  save_trained,
  save_vocabulary,
)

from pure_jax import steps as device_steps
from pure_jax.host.data.batches import each_step_inputs, left_pad, right_pad
from pure_jax.host.data.records import step_text
from pure_jax.host.data.world.arithmetic import WorldConfig
from pure_jax.host.data.world.dataset import world_tokenizer
from pure_jax.host.text import prompt_formats
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS, PromptFormat
from pure_jax.host.text.tokenization import (
  TokenizerError,
  encode_response,
  separator_table,
  split_texts,
)

# One vocabulary size, length and number of steps: everything compiles once.
V, PROMPT, LENGTH, MAX_STEPS = 512, 14, 96, 8

split_steps = jax.jit(device_steps.split_steps, static_argnames="max_steps")
build_prm_inputs = jax.jit(
  device_steps.build_prm_inputs, static_argnames="separator"
)


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
  folder = tmp_path_factory.mktemp("merging")
  return HuggingFaceTokenizer(
    save_trained(folder, MERGING, TEMPLATE), vocab_size=V
  )


@pytest.fixture(scope="module")
def splitting(tmp_path_factory):
  folder = tmp_path_factory.mktemp("splitting")
  return HuggingFaceTokenizer(save_trained(folder, None), vocab_size=V)


@pytest.fixture(params=["merging", "splitting"])
def tokenizer(request):
  return request.getfixturevalue(request.param)


def id_of(tokenizer, text):
  return tokenizer.pieces.index(text)


# ===== Steps =====


def test_a_merged_separator_has_its_content_as_stem(merging):
  table = separator_table(merging)
  merged = id_of(merging, ".\n\n")
  assert merged in merging.encode("24.\n\nSo")
  assert table.ends_step[merged] and table.has_stem[merged]
  assert table.stem[merged] == id_of(merging, ".")
  assert not table.half.any()
  # White space alone is no content.
  assert not table.has_stem[id_of(merging, "\n\n")]


def test_a_merged_separator_is_its_own_stem_if_no_id_has_its_content(merging):
  """One in ten of Qwen's merged separators is of this kind."""
  without = types.SimpleNamespace(**vars(merging), encode=merging.encode)
  without.pieces = ["" if text == "." else text for text in merging.pieces]
  merged = id_of(merging, ".\n\n")
  table = separator_table(without)
  assert table.has_stem[merged] and table.stem[merged] == merged


def test_a_separator_of_two_ids_ends_a_step(splitting):
  """By the texts of single ids this response would be one long step."""
  table = separator_table(splitting)
  ids = splitting.encode("24.\n\nSo")
  newline = id_of(splitting, "\n")
  assert ids.count(newline) == 2 and not table.ends_step[ids].any()
  assert np.flatnonzero(table.half).tolist() == [newline]
  row, mask = right_pad([ids], LENGTH, splitting.pad_id)
  cut = split_steps(row, mask, table, max_steps=MAX_STEPS)
  assert cut.mask[0].tolist() == [True] * 2 + [False] * 6
  assert split_texts(splitting, row, mask) == [["24.", "So"]]


@pytest.mark.parametrize("finished", [True, False])
def test_encoded_steps_decode_to_the_same_steps(tokenizer, finished):
  rng = np.random.default_rng(0)
  choices = [*STEPS, "x = {1, 2}", "é ∑", "one\ntwo", "...", "}", "a b  c"]
  rows = [rng.choice(choices, n).tolist() for n in rng.integers(1, 7, 200)]
  ids = [encode_response(tokenizer, r, finished=finished) for r in rows]
  assert all((row[-1] == tokenizer.eos_id) == finished for row in ids)
  tokens, mask = right_pad(ids, LENGTH, tokenizer.pad_id)
  assert split_texts(tokenizer, tokens, mask) == rows
  table = separator_table(tokenizer)
  cut = split_steps(tokens, mask, table, max_steps=MAX_STEPS)
  assert cut.mask.sum(1).tolist() == [len(row) for row in rows]
  assert not cut.empty.any()


def test_a_response_without_steps_is_eos_alone(tokenizer):
  eos = tokenizer.eos_id
  assert encode_response(tokenizer, [], finished=True) == [eos]
  assert encode_response(tokenizer, [], finished=False) == []


@pytest.mark.parametrize("steps", [["a\n\nb"], ["a\n", "b"], ["a", "\n\nb"]])
def test_steps_that_would_decode_to_other_steps_raise(tokenizer, steps):
  with pytest.raises(TokenizerError, match="step_text"):
    encode_response(tokenizer, steps, finished=True)
  encode_response(tokenizer, list(map(step_text, steps)), finished=True)


def test_steps_of_white_space_are_empty(tokenizer):
  """And one of "<user>", which has no text. The last is of EOS."""
  assert tokenizer.pieces[tokenizer.encode("<user>")[0]] == ""
  separator, ids = id_of(tokenizer, "\n\n"), []
  for text in ("24.", " ", "\n ", "a b", "<user>"):
    ids += [*tokenizer.encode(text), separator]
  row, mask = right_pad([[*ids, tokenizer.eos_id]], LENGTH, tokenizer.pad_id)
  cut = split_steps(row, mask, separator_table(tokenizer), max_steps=MAX_STEPS)
  empty = [False, True, True, False, True, True]
  assert cut.mask[0].tolist() == [True] * 6 + [False] * 2
  assert cut.empty[0].tolist() == [*empty, False, False]


# ===== Prompt formats =====


def test_prompts_of_all_formats(merging, splitting):
  plain, boxed = PROMPT_FORMATS["plain"], PROMPT_FORMATS["qwen_boxed"]
  assert plain.text(splitting, "1+1?") == "1+1?\n"
  assert PROMPT_FORMATS["raw"].text(splitting, "1+1?") == "1+1?"
  assert boxed.text(merging, "1+1?") == (
    f"<system>{prompt_formats.BOXED}<user>1+1?<assistant>"
  )
  assert PROMPT_FORMATS["chat"].text(merging, "x") == "<user>x<assistant>"
  with pytest.raises(TokenizerError, match="no chat template"):
    boxed.text(splitting, "1+1?")
  with pytest.raises(ValueError, match="needs chat=True"):
    PromptFormat(system="Be brief.")


def test_examples_come_before_the_problem_and_are_solved_in_steps(merging):
  text = PROMPT_FORMATS["two_examples"].text(merging, "1+1?")
  *examples, last = text.split("Question: ")[1:]
  assert last == "1+1?\n\nAnswer:\n\n"
  for example in examples:
    _, answer = example.split("\n\nAnswer:\n\n")
    *steps, box = answer.strip().split("\n\n")
    for step in steps:
      (left, right), *_ = re.findall(r"([\d*/+ -]+) = (\d+)", step)
      assert eval(left) == int(right)
    assert box == rf"\boxed{{{right}}}"


def test_the_prefix_is_the_last_text_before_the_response(merging):
  """Within the user's message it would be a part of the question."""
  chat = PromptFormat(chat=True, suffix="!", prefix="Step 1:")
  assert chat.text(merging, "x") == "<user>x!<assistant>Step 1:"
  assert PromptFormat(suffix="!", prefix="1:").text(merging, "x") == "x!1:"


def test_the_embedded_world_has_no_chat(tmp_path):
  world = world_tokenizer(WorldConfig(), tmp_path / "world.model")
  with pytest.raises(TokenizerError, match="no chat template"):
    PROMPT_FORMATS["chat"].text(world, "1+1=?")
  assert PROMPT_FORMATS["plain"].text(world, "1+1=?") == "1+1=?\n"


# ===== What a PRM reads =====


def prm_inputs(tokenizer, prompt, **options):
  """The ids, mask and score positions of `STEPS` after a prompt."""
  table = separator_table(tokenizer)
  prompts = left_pad([tokenizer.encode(prompt)], PROMPT, tokenizer.pad_id)
  response = encode_response(tokenizer, STEPS, finished=True)
  completion = right_pad([response], LENGTH, tokenizer.pad_id)
  cut = split_steps(*completion, table, max_steps=MAX_STEPS)
  inputs = build_prm_inputs(*prompts, *completion, cut, table, **options)
  return (
    np.asarray(inputs.tokens[0]),
    np.asarray(inputs.mask[0]),
    np.asarray(inputs.score_position[0]),
  )


@pytest.mark.parametrize(("name", "between"), [("raw", ""), ("plain", "\n")])
def test_text_between_the_problem_and_the_first_step(tokenizer, name, between):
  """The paper's PRM was trained with nothing there; a line break is a score."""
  problem = "How many?"
  prompt = PROMPT_FORMATS[name].text(tokenizer, problem)
  tokens, mask, score_position = prm_inputs(tokenizer, prompt)
  # The ids of the problem by itself, of the text between, of the first step.
  first = [i for text in (problem, between) for i in tokenizer.encode(text)]
  first += tokenizer.encode(STEPS[0])
  assert tokens[mask].tolist()[: len(first)] == first
  assert score_position[0] == PROMPT + len(tokenizer.encode(STEPS[0]))


@pytest.mark.parametrize(
  ("kind", "separator", "steps"),
  [
    # Punctuation survives.
    ("merging", "insert", STEPS),
    ("splitting", "insert", STEPS),
    # ".\n\n" and ")\n\n" are overwritten as a whole.
    (
      "merging",
      "replace",
      ["Half of 48 is 24", "So 48+24=72", "(see above", "Answer: 72."],
    ),
    # Of two halves only the second is overwritten.
    (
      "splitting",
      "replace",
      ["Half of 48 is 24.\n", "So 48+24=72\n", "(see above)\n", "Answer: 72."],
    ),
  ],
)
def test_text_that_a_prm_reads_up_to_each_score(
  request, kind, separator, steps
):
  """`test_same_ids` shows that all callers of a PRM give it this text."""
  tokenizer = request.getfixturevalue(kind)
  prompt = PROMPT_FORMATS["plain"].text(tokenizer, "How many?")
  tokens, mask, score_position = prm_inputs(
    tokenizer, prompt, separator=separator
  )
  ends = score_position[: len(STEPS)] + 1
  assert ends[-1] == np.flatnonzero(mask)[-1] + 1
  for count, end in enumerate(ends, 1):
    text = "".join(tokenizer.pieces[i] for i in tokens[:end][mask[:end]])
    assert text == prompt + "".join(f"{step}\n" for step in steps[:count])


@pytest.fixture(scope="module")
def blank_lines(tmp_path_factory):
  """Merges up to three blank lines with punctuation; "?!" is no id itself."""
  merges = [("Ċ", "Ċ"), ("ĊĊ", "ĊĊ")]
  merges += [(end, blank) for end in ".!" for blank in ("ĊĊĊĊ", "ĊĊ")]
  merges += [("?", "!ĊĊĊĊ"), ("?", "!ĊĊ")]
  single = ["<end>", "<pad>", "x", "y", ".", "?", "!", "Ċ"]
  vocabulary = single + ["".join(merge) for merge in merges]
  folder = tmp_path_factory.mktemp("blank_lines")
  save_vocabulary(folder, vocabulary, merges, None)
  return HuggingFaceTokenizer(folder, vocab_size=V)


@pytest.mark.parametrize("separator", ["insert", "each"])
def test_a_prm_reads_no_more_blank_lines_than_in_its_training(
  blank_lines, separator
):
  """Of "x.\n\n\n\ny" it would read "x.\n\n\ny" in RL, and "x.\ny" before."""
  tokenizer, table = blank_lines, separator_table(blank_lines)
  steps = ["x.", "x?!", "y", "x"]
  trained = encode_response(tokenizer, steps, finished=True)
  sampled = [*tokenizer.encode("\n\n\n\n".join(steps)), tokenizer.eos_id]
  pieces = {tokenizer.pieces[i] for i in sampled}
  assert pieces >= {".\n\n\n\n", "?!\n\n\n\n", "\n\n\n\n"}
  tokens, mask = right_pad([trained, sampled], LENGTH, tokenizer.pad_id)
  texts = split_texts(tokenizer, tokens, mask)
  assert texts == [steps, steps]
  cut = split_steps(tokens, mask, table, max_steps=MAX_STEPS)
  prompts = left_pad([[2], [2]], PROMPT, tokenizer.pad_id)
  if separator == "each":
    inputs = each_step_inputs(
      tokenizer, [[2], [2]], texts, PROMPT + LENGTH + MAX_STEPS, MAX_STEPS
    )
  else:
    inputs = build_prm_inputs(*prompts, tokens, mask, cut, table)
  ids, others = (inputs.tokens[row][inputs.mask[row]] for row in range(2))
  assert ids.tolist() == others.tolist()
  assert inputs.score_mask.sum(1).tolist() == [4, 4]
