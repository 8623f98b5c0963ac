"""Tokenizers of Hugging Face folders, and folders that cannot be used."""

import json
import shutil

import numpy as np
import pytest
from small_tokenizers import MERGING, TEMPLATE, save_trained

from pure_jax.host.text.huggingface_tokenizer import (
  HuggingFaceTokenizer,
  texts_to_compare,
)
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS
from pure_jax.host.text.tokenization import (
  TokenizerError,
  separator_table,
  split_texts,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with a tokenizer, which no test changes."""
  return save_trained(tmp_path_factory.mktemp("folder"), MERGING, TEMPLATE)


@pytest.mark.parametrize(
  ("template", "reason"),
  [
    ("{{ raise_exception('No system role.') }}", "No system role."),
    ("{% for m in messages %}", "Unexpected end of template."),
    ("{{ messages[7].content }}", "list object has no element 7"),
    ("{{ 1 + 'a' }}", "unsupported operand"),
  ],
)
def test_an_error_of_a_chat_template_has_its_reason(tmp_path, template, reason):
  tokenizer = HuggingFaceTokenizer(save_trained(tmp_path, MERGING, template))
  expected = rf"of {tmp_path} cannot write .* of system, user: {reason}"
  with pytest.raises(TokenizerError, match=expected):
    PROMPT_FORMATS["qwen_boxed"].text(tokenizer, "1+1?")


def test_padding_is_banned_unless_it_ends_a_response(tmp_path):
  """Qwen's base models and SmolLM2 use one token for both."""
  folder = save_trained(tmp_path, None, pad_token="<end>")
  tokenizer = HuggingFaceTokenizer(folder)
  assert tokenizer.pad_id == tokenizer.eos_id == 0
  assert tokenizer.banned_ids == ()
  assert tokenizer.pieces[tokenizer.pad_id] == ""
  named = HuggingFaceTokenizer(folder, pad_token="a")
  assert named.pad_id == named.encode("a")[0]
  assert named.banned_ids == (named.pad_id,)


def with_ends(folder, copy, **eos_token_ids):
  """A copy of a folder, with eos_token_id in generation_config and config."""
  shutil.copytree(folder, copy)
  for name, ids in eos_token_ids.items():
    (copy / f"{name}.json").write_text(json.dumps({"eos_token_id": ids}))
  return copy


@pytest.mark.parametrize(
  ("ends", "eos_token", "expected"),
  [
    ({}, None, (0,)),
    ({"generation_config": 0}, None, (0,)),
    ({"generation_config": [2, 0]}, None, (0, 2)),
    ({"generation_config": [0, 2], "config": 2}, None, (0, 2)),
    ({"generation_config": None, "config": [2]}, None, (0, 2)),
    ({"generation_config": [], "config": None}, None, (0,)),
    # The id that we write is first; the folder's others still end a response.
    ({"generation_config": [0, 1]}, "<user>", (2, 0, 1)),
    ({}, "<user>", (2, 0)),
  ],
)
def test_all_end_ids_of_a_folder(folder, tmp_path, ends, eos_token, expected):
  copy = with_ends(folder, tmp_path / "copy", **ends)
  tokenizer = HuggingFaceTokenizer(copy, eos_token=eos_token)
  assert tokenizer.eos_ids == expected
  assert tokenizer.eos_id == expected[0]
  assert not {*expected} & {*tokenizer.banned_ids}
  # <pad> is 1: it is banned unless it ends a response.
  assert tokenizer.pad_id == 1 and (1 in tokenizer.banned_ids) == (
    1 not in expected
  )
  table = separator_table(tokenizer)
  assert table.eos_ids.tolist() == list(expected)


def test_a_tokenizer_without_an_end_takes_that_of_the_model(tmp_path):
  folder = save_trained(tmp_path / "none", MERGING, eos_token=None)
  with pytest.raises(TokenizerError, match="no token that ends a response"):
    HuggingFaceTokenizer(folder)
  copy = with_ends(folder, tmp_path / "copy", generation_config=[2, 0])
  assert HuggingFaceTokenizer(copy).eos_ids == (2, 0)


def test_an_end_id_has_no_text_even_if_its_token_is_ordinary(folder, tmp_path):
  """The PRM's folder may not name it: both still have one vocabulary."""
  (letter,) = HuggingFaceTokenizer(folder).encode("z")
  copy = with_ends(folder, tmp_path / "copy", generation_config=[0, letter])
  tokenizer = HuggingFaceTokenizer(copy)
  assert tokenizer.pieces[letter] == "" == tokenizer.decode([letter, 0])
  other = HuggingFaceTokenizer(folder)
  assert other.pieces != tokenizer.pieces
  ours, theirs = texts_to_compare(tokenizer, other)
  assert ours == theirs and "a" in ours
  row = np.array([[*tokenizer.encode("a\n\na"), letter]])
  assert split_texts(tokenizer, row, np.ones(row.shape, bool)) == [["a", "a"]]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"eos_token_id": 9999}', "'9999' in eos_token_id: .* 0 to 290"),
    ('{"eos_token_id": [0, -1]}', "'-1' in eos_token_id"),
    ('{"eos_token_id": "<end>"}', "'<end>' in eos_token_id"),
    ('{"eos_token_id": [0, true]}', "'True' in eos_token_id"),
    ('{"eos_token_id": NaN}', "'nan' in eos_token_id"),
    ('{"eos_token_id": {"a": 1}}', "in eos_token_id"),
    ("[0]", "holds no JSON object"),
    ("{", "generation_config.json cannot be read"),
    ("[" * 100_000, "generation_config.json cannot be read"),
    ("\xff", "generation_config.json cannot be read"),
  ],
)
def test_damaged_end_ids_raise(folder, tmp_path, text, message):
  copy = with_ends(folder, tmp_path / "copy")
  (copy / "generation_config.json").write_bytes(text.encode("latin-1"))
  with pytest.raises(TokenizerError, match=message):
    HuggingFaceTokenizer(copy)


def test_rows_of_the_embedding_without_a_token_are_banned(folder):
  count = HuggingFaceTokenizer(folder).vocab_size
  padded = HuggingFaceTokenizer(folder, vocab_size=count + 3)
  assert set(range(count, count + 3)) < set(padded.banned_ids)
  assert len(padded.pieces) == padded.vocab_size == count + 3
  assert padded.decode([count, *padded.encode("So"), count + 2]) == "So"
  with pytest.raises(TokenizerError, match=f"ids up to {count - 1}, but"):
    HuggingFaceTokenizer(folder, vocab_size=count - 1)


def test_the_largest_id_must_fit_the_embedding(tmp_path):
  """There are fewer than 512 tokens, but one has the id 600."""
  folder = save_trained(tmp_path, None)
  path = folder / "tokenizer.json"
  content = json.loads(path.read_text(encoding="utf-8"))
  vocab = content["model"]["vocab"]
  letter = vocab["z"]
  vocab["z"] = 600
  path.write_text(json.dumps(content), encoding="utf-8")
  assert len(vocab) < 512
  with pytest.raises(TokenizerError, match=r"ids up to 600, but .* only 512"):
    HuggingFaceTokenizer(folder, vocab_size=512)
  # In a larger embedding, the ids between have no token.
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


def test_folders_without_a_usable_tokenizer_raise(tmp_path, folder):
  with pytest.raises(TokenizerError, match="not a folder"):
    HuggingFaceTokenizer(tmp_path / "absent")
  with pytest.raises(TokenizerError, match="no readable tokenizer"):
    HuggingFaceTokenizer(tmp_path)
  with pytest.raises(TokenizerError, match="'<stop>': name one with eos"):
    HuggingFaceTokenizer(folder, eos_token="<stop>")
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(TokenizerError, match="no readable tokenizer"):
    HuggingFaceTokenizer(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {}}')
  with pytest.raises(TokenizerError, match="never run"):
    HuggingFaceTokenizer(tmp_path)


def with_steps(folder, copy, **steps):
  """A copy of a folder whose tokenizer.json has other steps."""
  shutil.copytree(folder, copy)
  path = copy / "tokenizer.json"
  fields = json.loads(path.read_text(encoding="utf-8"))
  path.write_text(json.dumps(fields | steps), encoding="utf-8")
  return copy


def replace(pattern, content):
  return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(kind, steps):
  return {"type": "Sequence", kind: steps}


@pytest.mark.parametrize(
  ("steps", "message"),
  [
    (
      {
        "normalizer": sequence(
          "normalizers", [replace({"String": "a"}, "aa")] * 28
        )
      },
      "its normalizer may make a text more than 65,536 times as long",
    ),
    (
      {"normalizer": replace({"Regex": ""}, "x" * 70_000)},
      "its normalizer may make",
    ),
    (
      {"decoder": sequence("decoders", [replace({"String": "a"}, "aa")] * 28)},
      "its decoder may make",
    ),
    (
      {
        "post_processor": {
          "type": "TemplateProcessing",
          "single": [{"SpecialToken": {"id": "<user>", "type_id": 0}}] * 2000,
          "pair": [],
          "special_tokens": {},
        }
      },
      "its post_processor, .* has more than 65,536 characters",
    ),
  ],
)
def test_a_tokenizer_that_multiplies_texts_raises(
  folder, tmp_path, steps, message
):
  """tokenizers would take all the memory there is, and end the process."""
  copy = with_steps(folder, tmp_path / "copy", **steps)
  with pytest.raises(TokenizerError, match=rf"tokenizer\.json: .*{message}"):
    HuggingFaceTokenizer(copy)


def test_replacements_of_real_models_are_read(folder, tmp_path):
  """Llama 2's, and forty that make no text longer."""
  normalizers = [{"type": "Prepend", "prepend": "_"}]
  normalizers += [replace({"String": " "}, "_")]
  normalizers += [replace({"String": "\u201c"}, '"')] * 40
  copy = with_steps(
    folder,
    tmp_path / "copy",
    normalizer=sequence("normalizers", normalizers),
  )
  tokenizer = HuggingFaceTokenizer(copy)
  assert tokenizer.decode(tokenizer.encode("a \u201cb")) == '_a_"b'


def test_a_regular_expression_that_gives_up_is_an_error(
  folder, tmp_path, capfd
):
  """The library panics, which is no Exception."""
  copy = with_steps(
    folder,
    tmp_path / "copy",
    pre_tokenizer={
      "type": "Split",
      "pattern": {"Regex": "(x+x+)+y"},
      "behavior": "Isolated",
      "invert": False,
    },
  )
  tokenizer = HuggingFaceTokenizer(copy)
  with pytest.raises(
    TokenizerError, match=rf"of {copy} cannot read a text: .*retry-limit"
  ):
    tokenizer.encode("x" * 40)
  capfd.readouterr()
