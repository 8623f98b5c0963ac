"""The tokenizer of a Hugging Face folder, as a `tokenization.Tokenizer`.

Nothing is downloaded, and no code in the folder is run.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from pure_jax.host.text.tokenization import TokenizerError


class HuggingFaceTokenizer:
  """Encodes and decodes text with a tokenizer of `transformers`.

  It has the attributes of `tokenization.Tokenizer`. `vocab_size` is the number
  of ids of the model. `pad_id` differs from `eos_id` even if the folder uses
  one token for both. `banned_ids` also has the rows of the model's embedding
  that belong to no token.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    vocab_size: int | None = None,
    eos_token: str | None = None,
    pad_token: str | None = None,
  ):
    """Reads a folder.

    Args:
      folder: folder with the files that `save_pretrained` writes.
      vocab_size: V of the model. Embeddings are often padded beyond the largest
        id. None takes the largest id plus one.
      eos_token: text of the token that ends a response. None takes the
        folder's. A chat model may end its turns with another token.
      pad_token: text of the padding token. None takes the folder's, or, if that
        is the end token as well, the last other special token.

    Raises:
      TokenizerError: if the folder contains no tokenizer, needs code of its
        own, has an id of V or above, or lacks a given token.
    """
    self._inner = _read(pathlib.Path(folder))
    self._folder = folder
    # A vocabulary may leave ids out: the largest is not its size minus one.
    self._token_ids = frozenset(self._inner.get_vocab().values())
    last = max(self._token_ids, default=-1)
    self.vocab_size = last + 1 if vocab_size is None else vocab_size
    if last >= self.vocab_size:
      raise TokenizerError(
        f"{folder} has ids up to {last}, but the model has only "
        f"{self.vocab_size} ids: they do not belong together."
      )
    self.eos_id = self._id_of(eos_token or self._inner.eos_token, "eos_token")
    self.bos_id = self._inner.bos_token_id
    self.pad_id = self._pad_id(pad_token)
    unused = set(range(self.vocab_size)) - self._token_ids
    self.banned_ids = tuple(sorted({self.pad_id, *unused}))
    readable = sorted(self._token_ids - set(self._inner.all_special_ids))
    texts = self._inner.batch_decode(
      [[i] for i in readable], clean_up_tokenization_spaces=False
    )
    self.pieces = [""] * self.vocab_size
    for i, text in zip(readable, texts, strict=True):
      self.pieces[i] = text

  def _id_of(self, token: str | None, name: str) -> int:
    """Looks up the id of a token by its text."""
    index = None if token is None else self._inner.get_vocab().get(token)
    if index is None:
      raise TokenizerError(
        f"{self._folder} has no token {token!r}: name one with {name}."
      )
    return index

  def _pad_id(self, pad_token: str | None) -> int:
    """Chooses an id for padding that does not end a response."""
    chosen = pad_token or self._inner.pad_token
    if chosen is not None:
      index = self._id_of(chosen, "pad_token")
      if index != self.eos_id:
        return index
      if pad_token is not None:
        raise TokenizerError(
          f"pad_token={pad_token!r} also ends a response: a row that is over "
          "could not be told from one that has just ended. Name another one."
        )
    others = set(self._inner.all_special_ids) - {self.eos_id}
    if not others:
      raise TokenizerError(
        f"{self._folder} has no special token besides the end to pad with: "
        "name any other token with pad_token; it will never be sampled."
      )
    return max(others)

  def encode(self, text: str) -> list[int]:
    """Encodes a text, without a beginning or end token.

    The text of a special token becomes that token.
    """
    return self._inner.encode(text, add_special_tokens=False)

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes ids, with U+FFFD for bytes that are not UTF-8."""
    return self._inner.decode(
      [i for i in ids if i in self._token_ids],
      skip_special_tokens=True,
      clean_up_tokenization_spaces=False,
    )

  def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> str:
    """Formats a conversation as the text before the model's answer.

    Raises:
      TokenizerError: if the folder has no chat template, or if its template
        fails on these messages.
    """
    if self._inner.chat_template is None:
      raise TokenizerError(
        f"{self._folder} has no chat template: use a prompt format without "
        "chat, such as 'plain', or add chat_template.jinja to the folder."
      )
    try:
      return self._inner.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True
      )
    # A template is a program, which may raise any error.
    except Exception as error:
      roles = ", ".join(message["role"] for message in messages)
      raise TokenizerError(
        f"The chat template of {self._folder} cannot write a conversation of "
        f"{roles}: {_reason(error)}. Use another prompt format, or mend it."
      ) from error


def _read(folder: pathlib.Path) -> Any:
  """Reads the PreTrainedTokenizerBase of a folder."""
  # Imported late: see `huggingface.architectures.Family`.
  import transformers

  if not folder.is_dir():
    raise TokenizerError(f"{folder} is not a folder with a tokenizer.")
  settings = folder / "tokenizer_config.json"
  try:
    if settings.exists() and "auto_map" in json.loads(settings.read_text()):
      raise TokenizerError(
        f"{settings} asks for code of its own (auto_map), which is never run: "
        "convert the tokenizer to tokenizer.json."
      )
    return transformers.AutoTokenizer.from_pretrained(
      str(folder), local_files_only=True, trust_remote_code=False
    )
  except TokenizerError:
    raise
  # transformers and tokenizers raise errors of any type, even Exception.
  except Exception as error:
    raise TokenizerError(
      f"{folder} holds no readable tokenizer: {_reason(error)}"
    ) from error


def _reason(error: Exception) -> str:
  """The first line of an error message."""
  return str(error).splitlines()[0] if str(error) else repr(error)
