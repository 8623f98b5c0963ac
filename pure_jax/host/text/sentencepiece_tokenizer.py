"""The embedded world's tokenizer, a sentencepiece model trained on first
use."""

import os
import pathlib
from collections.abc import Iterable, Sequence

import sentencepiece

from pure_jax.host.atomic_files import replace_atomic
from pure_jax.host.text.tokenization import (
  SCORE_TEXT,
  SEPARATOR,
  TokenizerError,
)

_SPACE = "▁"  # How sentencepiece writes a space inside a piece.


class SentencePieceTokenizer:
  """Encodes and decodes text with a sentencepiece model.

  It has the attributes of `tokenization.Tokenizer`. `banned_ids` are those of
  padding, unknown and beginning.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads a model file.

    Raises:
      TokenizerError: if the file is missing or damaged, or has no id for
        padding, the end or the score token.
    """
    path = pathlib.Path(path)
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
      self.vocab_size = self._model.vocab_size()
    except (OSError, RuntimeError) as error:
      raise TokenizerError(
        f"{path} is not a readable sentencepiece model: remove it, and it "
        "will be made again."
      ) from error
    self.pad_id, self.eos_id = self._model.pad_id(), self._model.eos_id()
    self.eos_ids = (self.eos_id,)
    self.bos_id = None  # The texts that models are trained on have none.
    self.pieces = [
      ""
      if self._model.is_control(i) or self._model.is_unknown(i)
      else self._model.id_to_piece(i).replace(_SPACE, " ")
      for i in range(self.vocab_size)
    ]
    if self.pad_id < 0 or self.eos_id < 0 or SCORE_TEXT not in self.pieces:
      raise TokenizerError(
        f"{path} has no id for padding, end or {SCORE_TEXT!r}: it is damaged "
        "or of another project. Remove it, and it will be made again."
      )
    # A file that was cut off between two records loads, with other settings.
    text = "".join(self.pieces)
    if self.decode(self._model.encode(text)) != text:
      raise TokenizerError(
        f"{path} does not give texts back as they were: it is damaged or of "
        "another project. Remove it, and it will be made again."
      )
    self.banned_ids = tuple(
      i
      for i in range(self.vocab_size)
      if i != self.eos_id
      and (self._model.is_control(i) or self._model.is_unknown(i))
    )

  def encode(self, text: str) -> list[int]:
    """Encodes a text, without an end token; `decode` returns the same text.

    Raises:
      TokenizerError: if the vocabulary lacks a character of the text.
    """
    ids = self._model.encode(text)
    if self._model.unk_id() in ids:
      raise TokenizerError(
        f"The vocabulary cannot write {text!r}: it was trained on the texts "
        "of another world."
      )
    return ids

  def encode_prompt(self, text: str) -> list[int]:
    """Encodes a text as `encode`: no sequence begins with a token of its own.

    Raises:
      TokenizerError: as `encode`.
    """
    return self.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes ids. Control ids have no text."""
    return "".join(self.pieces[i] for i in ids)

  def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> str:
    """Raises a TokenizerError: this tokenizer has no chat template."""
    del messages
    raise TokenizerError(
      "A sentencepiece model has no chat template: use a prompt format "
      "without chat, such as 'plain'."
    )


def train_tokenizer(
  texts: Iterable[str],
  symbols: Sequence[str],
  path: str | os.PathLike,
  vocab_size: int,
) -> SentencePieceTokenizer:
  r"""Reads a sentencepiece model, and trains it first if it does not exist.

  Args:
    texts: training texts, read only if the file does not exist.
    symbols: texts that are one id each, in addition to "\n" and "\n\n".
    path: the model file. It is written atomically.
    vocab_size: number of ids: control ids, symbols, characters, and merges of
      characters for the rest.

  Raises:
    TokenizerError: if the file exists but cannot be read, or has another
      vocabulary size or lacks a symbol.
  """
  path = pathlib.Path(path)
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomic(path) as file:
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=file,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=[SCORE_TEXT, SEPARATOR, *symbols],
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=3,
        num_threads=1,  # With more, the result depends on their number.
        minloglevel=2,
      )
  tokenizer = SentencePieceTokenizer(path)
  absent = [text for text in symbols if text not in tokenizer.pieces]
  if tokenizer.vocab_size != vocab_size or absent:
    raise TokenizerError(
      f"{path} has {tokenizer.vocab_size} ids, not {vocab_size}, "
      f"and lacks {absent[:3]}: it is damaged or was trained for another "
      "world. Remove it, and it will be made again."
    )
  return tokenizer
