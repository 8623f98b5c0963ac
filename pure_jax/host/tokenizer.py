r"""Text in and out: a sentencepiece tokenizer, and its table of separators.

The tokenisation contract of the project is here and in `pure_jax.steps`: this
module says which ids end a step (every id whose text ends with the separator,
merged ids like ".\n\n" included) and what stands before the separator in a
merged id; that module applies it on the device.
"""

import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from pure_jax.types import SeparatorTable

SEPARATOR = "\n\n"
SCORE_TEXT = "\n"
_SPACE = "▁"  # How sentencepiece writes a space inside a piece.


class TokenizerError(ValueError):
  """A tokenizer that cannot be made, read or used."""


class SentencePieceTokenizer:
  """Encodes and decodes text; ids of padding and end are its attributes.

  Attributes:
    vocab_size: number of ids.
    pad_id: padding.
    eos_id: end of a response.
    banned_ids: ids that are never sampled: padding, unknown, beginning.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads a model file.

    Args:
      path: a sentencepiece model.

    Raises:
      TokenizerError: if the file is missing, damaged, or lacks an id this
        project needs.
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
    self._texts = [
      ""
      if self._model.is_control(i) or self._model.is_unknown(i)
      else self._model.id_to_piece(i).replace(_SPACE, " ")
      for i in range(self.vocab_size)
    ]
    if self.pad_id < 0 or self.eos_id < 0 or SCORE_TEXT not in self._texts:
      raise TokenizerError(
        f"{path} has no id for padding, end or {SCORE_TEXT!r}: it is damaged "
        "or of another project. Remove it, and it will be made again."
      )
    # A file cut between two records still loads, with other settings.
    everything = "".join(self._texts)
    if self.decode(self._model.encode(everything)) != everything:
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
    """Ids of a text, without an end.

    Args:
      text: what to encode.

    Returns:
      The ids; `decode` gives the text back.

    Raises:
      TokenizerError: for a text the vocabulary cannot write.
    """
    ids = self._model.encode(text)
    if self._model.unk_id() in ids:
      raise TokenizerError(
        f"The vocabulary cannot write {text!r}: it was trained on the texts "
        "of another world."
      )
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids.

    Args:
      ids: any ids of the vocabulary; padding, end and other control ids
        have no text.

    Returns:
      The text.
    """
    return "".join(self._texts[i] for i in ids)

  def split_texts(
    self, tokens: np.ndarray, completion_mask: np.ndarray
  ) -> list[list[str]]:
    """Texts of the steps of each response, as `steps.split_steps` cuts them.

    Args:
      tokens: [B, C] int, completion ids.
      completion_mask: [B, C] bool.

    Returns:
      B lists of step texts, without separators. Any number of steps; the
      last is there even if it is empty, unless the row has no token.
    """
    rows = []
    for ids, mask in zip(tokens.tolist(), completion_mask, strict=True):
      length = int(mask.sum())
      steps, current = [], []
      for position, token in enumerate(ids[:length]):
        text = self._texts[token]
        ends = text.endswith(SEPARATOR)
        current.append(text.removesuffix(SEPARATOR) if ends else text)
        if ends or token == self.eos_id or position == length - 1:
          steps.append("".join(current))
          current = []
      rows.append(steps)
    return rows

  def separator_table(self) -> SeparatorTable:
    """Which ids end a step, for the device.

    Returns:
      The table, numpy arrays.

    Raises:
      TokenizerError: if the text before a merged separator is not one id.
    """
    ends_step = np.zeros(self.vocab_size, bool)
    stem = np.zeros(self.vocab_size, np.int32)
    has_stem = np.zeros(self.vocab_size, bool)
    for i, text in enumerate(self._texts):
      if not text.endswith(SEPARATOR):
        continue
      ends_step[i] = True
      content = text.removesuffix(SEPARATOR)
      if content:
        if content not in self._texts:
          raise TokenizerError(
            f"Id {i} is {text!r}, but {content!r} is not one id by itself."
          )
        has_stem[i], stem[i] = True, self._texts.index(content)
    return SeparatorTable(
      ends_step=ends_step,
      stem=stem,
      has_stem=has_stem,
      score_id=np.int32(self._texts.index(SCORE_TEXT)),
      eos_id=np.int32(self.eos_id),
      pad_id=np.int32(self.pad_id),
    )


def train_tokenizer(
  texts: Iterable[str],
  symbols: Sequence[str],
  path: str | os.PathLike,
  vocab_size: int,
) -> SentencePieceTokenizer:
  r"""Trains a sentencepiece model on first use, and reads it ever after.

  Args:
    texts: training texts, read only if the file does not exist.
    symbols: pieces that are always one id each, beside "\n" and "\n\n".
    path: the model file, written whole or not at all.
    vocab_size: number of ids; what symbols, characters and control ids
      leave goes to merges of characters.

  Returns:
    The tokenizer.

  Raises:
    TokenizerError: if the file exists but cannot be read, or has another
      vocabulary than asked for.
  """
  path = pathlib.Path(path)
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    _train(texts, symbols, path, vocab_size)
  tokenizer = SentencePieceTokenizer(path)
  absent = [text for text in symbols if text not in tokenizer._texts]
  if tokenizer.vocab_size != vocab_size or absent:
    raise TokenizerError(
      f"{path} has {tokenizer.vocab_size} ids, not the {vocab_size} asked for, "
      f"and lacks {absent[:3]}: it is damaged or was trained for another "
      "world. Remove it, and it will be made again."
    )
  return tokenizer


def _train(
  texts: Iterable[str],
  symbols: Sequence[str],
  path: pathlib.Path,
  vocab_size: int,
) -> None:
  """Trains a model and puts it at `path`, whole or not at all."""
  file = tempfile.NamedTemporaryFile(dir=path.parent, delete=False)  # noqa: SIM115
  try:
    with file:
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
        num_threads=1,  # More would make the result depend on their number.
        minloglevel=2,
      )
    os.replace(file.name, path)
  finally:
    pathlib.Path(file.name).unlink(missing_ok=True)
