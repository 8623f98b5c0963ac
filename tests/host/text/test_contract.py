r"""One tokenisation for PRM training, PRM evaluation and RL.

Three kinds of vocabulary: the world's, one that merges "\n\n" with what stands
before it (as Qwen's), one that splits it into "\n", "\n" inside a text (as
GPT-2's and SmolLM2's).
"""

import json
import types

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pure_jax import steps as device_steps
from pure_jax.host.data.batches import left_pad, right_pad
from pure_jax.host.data.records import step_text
from pure_jax.host.data.world.arithmetic import WorldConfig
from pure_jax.host.data.world.dataset import world_tokenizer
from pure_jax.host.text import tokenization
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import (
  PROMPT_FORMATS,
  PromptFormat,
  TokenizerError,
  encode_response,
  separator_table,
  split_texts,
)

STEPS = ["Half of 48 is 24.", "So 48+24=72", "(see above)", "Answer: 72."]
TEXTS = [
  "\n\n".join(STEPS),
  "Let me think.\n\nLet me check.\n\n",
  "a\nb\n\nc)\n\n\n\nd.\n\n",
] * 20
# Punctuation takes the line breaks behind it along, as in Qwen's vocabulary.
MERGING = r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
TEMPLATE = (
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)


def save_tokenizer(folder, splitting, chat_template=None, **special):
  """A small byte-level BPE as transformers saves it."""
  inner = tokenizers.Tokenizer(models.BPE())
  byte_level = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=splitting is None
  )
  inner.pre_tokenizer = byte_level
  if splitting is not None:
    split = pre_tokenizers.Split(tokenizers.Regex(splitting), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
  inner.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<end>", "<pad>", "<user>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  inner.train_from_iterator(TEXTS, trainer)
  special = {"eos_token": "<end>", "pad_token": "<pad>"} | special
  whole = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, additional_special_tokens=["<user>"], **special
  )
  whole.chat_template = chat_template
  whole.save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("tokenizers")
  return {
    "merging": save_tokenizer(root / "merging", MERGING, TEMPLATE),
    "splitting": save_tokenizer(root / "splitting", None),
  }


@pytest.fixture(scope="module", params=["merging", "splitting"])
def tokenizer(request, folders):
  return HuggingFaceTokenizer(folders[request.param])


@pytest.fixture(scope="module")
def merging(folders):
  return HuggingFaceTokenizer(folders["merging"])


@pytest.fixture(scope="module")
def splitting(folders):
  return HuggingFaceTokenizer(folders["splitting"])


def id_of(tokenizer, text):
  return tokenizer.pieces.index(text)


def test_a_merged_separator_keeps_its_stem(merging):
  table = separator_table(merging)
  merged = id_of(merging, ".\n\n")
  assert merged in merging.encode("24.\n\nSo")
  assert table.ends_step[merged] and table.has_stem[merged]
  assert table.stem[merged] == id_of(merging, ".")
  assert not table.half.any()
  # White space alone is no content.
  assert not table.has_stem[id_of(merging, "\n\n")]


def test_a_merged_separator_without_a_stem_of_one_id_stays(merging):
  """Of Qwen's ids that end with a separator one in ten is such."""

  without = types.SimpleNamespace(**vars(merging), encode=merging.encode)
  without.pieces = ["" if text == "." else text for text in merging.pieces]
  merged = id_of(merging, ".\n\n")
  table = separator_table(without)
  assert table.has_stem[merged] and table.stem[merged] == merged


def test_a_separator_written_as_two_ids_is_found(splitting):
  """By the text of single ids alone this response would be one long step."""
  table = separator_table(splitting)
  ids = splitting.encode("24.\n\nSo")
  newline = id_of(splitting, "\n")
  assert ids.count(newline) == 2 and not table.ends_step[ids].any()
  assert np.flatnonzero(table.half).tolist() == [newline]
  row, mask = np.asarray([ids]), np.ones((1, len(ids)), bool)
  cut = device_steps.split_steps(row, mask, table, max_steps=4)
  assert cut.mask[0].tolist() == [True, True, False, False]
  assert split_texts(splitting, row, mask) == [["24.", "So"]]


@pytest.mark.parametrize("finished", [True, False])
def test_steps_survive_the_way_to_ids_and_back(tokenizer, finished):
  rng = np.random.default_rng(0)
  choices = [*STEPS, "x = {1, 2}", "é ∑", "one\ntwo", "...", "}", "a b  c"]
  rows = [rng.choice(choices, n).tolist() for n in rng.integers(1, 7, 200)]
  ids = [encode_response(tokenizer, r, finished=finished) for r in rows]
  assert all((row[-1] == tokenizer.eos_id) == finished for row in ids)
  tokens, mask = right_pad(ids, max(map(len, ids)), tokenizer.pad_id)
  assert split_texts(tokenizer, tokens, mask) == rows
  table = separator_table(tokenizer)
  cut = device_steps.split_steps(tokens, mask, table, max_steps=8)
  assert cut.mask.sum(1).tolist() == [len(row) for row in rows]
  assert not cut.empty.any()


def test_nothing_said_and_steps_that_cannot_be_told_apart(tokenizer):
  eos = tokenizer.eos_id
  assert encode_response(tokenizer, [], finished=True) == [eos]
  assert encode_response(tokenizer, [], finished=False) == []
  for bad in (["a\n\nb"], ["a\n", "b"], ["a", "\n\nb"]):
    with pytest.raises(TokenizerError, match="step_text"):
      encode_response(tokenizer, bad, finished=True)
    encode_response(tokenizer, list(map(step_text, bad)), finished=True)


def test_prompt_formats(merging, splitting):
  plain, boxed = PROMPT_FORMATS["plain"], PROMPT_FORMATS["qwen_boxed"]
  assert plain.text(splitting, "1+1?") == "1+1?\n"
  assert PROMPT_FORMATS["raw"].text(splitting, "1+1?") == "1+1?"
  assert boxed.text(merging, "1+1?") == (
    f"<system>{tokenization.BOXED}<user>1+1?<assistant>"
  )
  assert PROMPT_FORMATS["chat"].text(merging, "x") == "<user>x<assistant>"
  with pytest.raises(TokenizerError, match="no chat template"):
    boxed.text(splitting, "1+1?")
  with pytest.raises(ValueError, match="needs chat=True"):
    PromptFormat(system="Be brief.")


def test_a_prefix_is_the_last_that_is_read_before_the_response(merging):
  """Within the user's message it would be a part of the question."""
  asked = PromptFormat(chat=True, suffix="!", prefix="Step 1:")
  assert asked.text(merging, "x") == "<user>x!<assistant>Step 1:"
  assert PromptFormat(suffix="!", prefix="1:").text(merging, "x") == "x!1:"


@pytest.mark.parametrize(
  ("template", "reason"),
  [
    ("{{ raise_exception('No system role.') }}", "No system role."),
    ("{% for m in messages %}", "Unexpected end of template."),
    ("{{ messages[7].content }}", "list object has no element 7"),
    ("{{ 1 + 'a' }}", "unsupported operand"),
  ],
)
def test_a_chat_template_that_fails_is_named(tmp_path, template, reason):
  folder = save_tokenizer(tmp_path / "own", MERGING, template)
  tokenizer = HuggingFaceTokenizer(folder)
  expected = rf"of {folder} cannot write .* of system, user: {reason}"
  with pytest.raises(TokenizerError, match=expected):
    PROMPT_FORMATS["qwen_boxed"].text(tokenizer, "1+1?")


@pytest.mark.parametrize(("name", "between"), [("raw", ""), ("plain", "\n")])
def test_what_stands_between_the_problem_and_the_first_step(
  tokenizer, name, between
):
  """The paper's PRM was trained with nothing there; a line break is a score."""
  problem = "How many?"
  asked = tokenizer.encode(PROMPT_FORMATS[name].text(tokenizer, problem))
  written = encode_response(tokenizer, STEPS, finished=True)
  table = separator_table(tokenizer)
  prompt = left_pad([asked], 14, tokenizer.pad_id)
  response = right_pad([written], 60, tokenizer.pad_id)
  cut = device_steps.split_steps(*response, table, max_steps=5)
  inputs = device_steps.build_prm_inputs(*prompt, *response, cut, table)
  ids = np.asarray(inputs.tokens[0])[np.asarray(inputs.mask[0])].tolist()
  # Ids of the problem by itself, those between, then the first step's.
  first = [i for text in (problem, between) for i in tokenizer.encode(text)]
  first += tokenizer.encode(STEPS[0])
  assert ids[: len(first)] == first
  assert int(inputs.score_position[0, 0]) == prompt[0].shape[1] + len(
    tokenizer.encode(STEPS[0])
  )


def test_the_world_has_no_chat(tmp_path):
  world = world_tokenizer(WorldConfig(), tmp_path / "world.model")
  with pytest.raises(TokenizerError, match="no chat template"):
    PROMPT_FORMATS["chat"].text(world, "1+1=?")
  assert PROMPT_FORMATS["plain"].text(world, "1+1=?") == "1+1=?\n"


@pytest.mark.parametrize(
  ("kind", "separator", "read"),
  [
    # Punctuation survives.
    ("merging", "insert", STEPS),
    ("splitting", "insert", STEPS),
    # ".\n\n" and ")\n\n" are overwritten whole.
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
def test_what_the_prm_reads_up_to_each_score(folders, kind, separator, read):
  """`test_same_ids` shows that all who run a PRM give it this."""
  tokenizer = HuggingFaceTokenizer(folders[kind])
  asked = PROMPT_FORMATS["plain"].text(tokenizer, "How many?")
  prompts = left_pad([tokenizer.encode(asked)], 12, tokenizer.pad_id)
  response = encode_response(tokenizer, STEPS, finished=True)
  completion = right_pad([response], 60, tokenizer.pad_id)
  table = separator_table(tokenizer)
  cut = device_steps.split_steps(*completion, table, max_steps=5)
  inputs = device_steps.build_prm_inputs(
    *prompts, *completion, cut, table, separator=separator
  )
  ids, kept = np.asarray(inputs.tokens[0]), np.asarray(inputs.mask[0])
  ends = np.asarray(inputs.score_position[0, : len(STEPS)]) + 1
  assert ends[-1] == np.flatnonzero(kept)[-1] + 1
  for count, end in enumerate(ends, 1):
    text = "".join(tokenizer.pieces[i] for i in ids[:end][kept[:end]])
    assert text == asked + "".join(f"{step}\n" for step in read[:count])


# ===== Hugging Face folders =====


def test_padding_is_never_the_end(tmp_path):
  """Qwen's base models and SmolLM2 name one token for both."""
  folder = save_tokenizer(tmp_path, None, pad_token="<end>")
  tokenizer = HuggingFaceTokenizer(folder)
  assert tokenizer.pad_id != tokenizer.eos_id
  assert tokenizer.banned_ids == (tokenizer.pad_id,)
  assert tokenizer.pieces[tokenizer.pad_id] == ""
  with pytest.raises(TokenizerError, match="also ends a response"):
    HuggingFaceTokenizer(folder, pad_token="<end>")
  named = HuggingFaceTokenizer(folder, pad_token="a")
  assert named.pad_id == named.encode("a")[0]


def test_rows_of_the_embedding_without_a_token_are_banned(folders):
  count = HuggingFaceTokenizer(folders["merging"]).vocab_size
  padded = HuggingFaceTokenizer(folders["merging"], vocab_size=count + 3)
  assert set(range(count, count + 3)) < set(padded.banned_ids)
  assert len(padded.pieces) == padded.vocab_size == count + 3
  assert padded.decode([count, *padded.encode("So"), count + 2]) == "So"
  with pytest.raises(TokenizerError, match=f"ids up to {count - 1}, but"):
    HuggingFaceTokenizer(folders["merging"], vocab_size=count - 1)


def test_an_id_beyond_a_gap_must_fit_the_embedding_too(tmp_path):
  """Counted, these tokens fit 512 rows; one of their ids does not."""
  folder = save_tokenizer(tmp_path, None)
  path = folder / "tokenizer.json"
  content = json.loads(path.read_text(encoding="utf-8"))
  vocab = content["model"]["vocab"]
  letter = vocab["z"]
  vocab["z"] = 600
  path.write_text(json.dumps(content), encoding="utf-8")
  assert len(vocab) < 512
  with pytest.raises(TokenizerError, match=r"ids up to 600, but .* only 512"):
    HuggingFaceTokenizer(folder, vocab_size=512)
  # With room for it, nothing is where nothing was, and it is where it is.
  tokenizer = HuggingFaceTokenizer(folder)
  assert tokenizer.vocab_size == len(tokenizer.pieces) == 601
  assert tokenizer.encode("z") == [600]
  assert tokenizer.pieces[600] == tokenizer.decode([600, letter]) == "z"
  assert tokenizer.pieces[letter] == tokenizer.pieces[599] == ""
  assert {letter, 599} < set(tokenizer.banned_ids)
  assert 600 not in tokenizer.banned_ids
  padded = HuggingFaceTokenizer(folder, vocab_size=640)
  assert padded.pieces == tokenizer.pieces + [""] * 39
  assert set(padded.banned_ids) >= {letter, *range(601, 640)}


def test_unusable_folders_end_in_a_sentence(tmp_path, folders):
  with pytest.raises(TokenizerError, match="not a folder"):
    HuggingFaceTokenizer(tmp_path / "absent")
  with pytest.raises(TokenizerError, match="no readable tokenizer"):
    HuggingFaceTokenizer(tmp_path)
  with pytest.raises(TokenizerError, match="'<stop>': name one with eos"):
    HuggingFaceTokenizer(folders["merging"], eos_token="<stop>")
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(TokenizerError, match="no readable tokenizer"):
    HuggingFaceTokenizer(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {}}')
  with pytest.raises(TokenizerError, match="never run"):
    HuggingFaceTokenizer(tmp_path)
