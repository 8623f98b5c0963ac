"""Tokenizers of Hugging Face folders, and folders that cannot be used."""

import json

import pytest
from small_tokenizers import MERGING, TEMPLATE, save_trained

from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import PROMPT_FORMATS, TokenizerError


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
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(TokenizerError, match="no readable tokenizer"):
    HuggingFaceTokenizer(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {}}')
  with pytest.raises(TokenizerError, match="never run"):
    HuggingFaceTokenizer(tmp_path)
