"""The tokenizer of a Hugging Face folder, as a `tokenization.Tokenizer`.

Nothing is downloaded, and no code in the folder is run.
"""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from pure_jax.host import json_text
from pure_jax.host.text import chat_template
from pure_jax.host.text.tokenization import TokenizerError

# Files with a field eos_token_id: one id that ends a response, or several.
EOS_FILES = ("generation_config.json", "config.json")
# Files that show that a folder has a tokenizer.
_OWN_FILES = ("tokenizer.json", "tokenizer_config.json")
# By how much the replacements of a tokenizer.json may multiply a text. Those of
# Llama 2 multiply it by four.
_MAX_GROWTH = 1 << 16
_MAX_POST_PROCESSOR = 1 << 16  # Characters of JSON; it puts ids around texts.


class HuggingFaceTokenizer:
  """Encodes and decodes text with a tokenizer of `transformers`.

  It has the attributes of `tokenization.Tokenizer`. `vocab_size` is the number
  of ids of the model. `eos_ids` are the end token of the tokenizer and those of
  generation_config.json and config.json. `pad_id` is often one of them.
  `banned_ids` also has the rows of the model's embedding that belong to no
  token.
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
      eos_token: text of the token at the end of responses that we encode. None
        takes the tokenizer's, or else the first of generation_config.json or
        config.json. The folder's other end tokens end sampled responses too.
      pad_token: text of the padding token. None takes the folder's, or else
        the end token.

    Raises:
      TokenizerError: if the folder contains no tokenizer, needs code of its
        own, has an id of V or above, has no end token or a damaged list of
        them, or lacks a given token.
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
    self.eos_ids = self._eos_ids(eos_token)
    self.eos_id = self.eos_ids[0]
    pad_token = pad_token or self._inner.pad_token
    self.pad_id = self.eos_id
    if pad_token is not None:
      self.pad_id = self._id_of(pad_token, "pad_token")
    self.bos_id = self._inner.bos_token_id
    unused = set(range(self.vocab_size)) - self._token_ids
    self.banned_ids = tuple(sorted({self.pad_id, *unused} - {*self.eos_ids}))
    special = {*self._inner.all_special_ids, *self.eos_ids}
    readable = sorted(self._token_ids - special)
    if not readable:
      raise TokenizerError(
        f"{folder} holds a tokenizer without a vocabulary: copy tokenizer.json."
      )
    self._readable = frozenset(readable)
    texts = self._inner.batch_decode(
      [[i] for i in readable], clean_up_tokenization_spaces=False
    )
    self.pieces = [""] * self.vocab_size
    for i, text in zip(readable, texts, strict=True):
      self.pieces[i] = text
    self._beginning = self._ids_before_a_text()

  def _id_of(self, token: str | None, name: str) -> int:
    """Looks up the id of a token by its text."""
    index = None if token is None else self._inner.get_vocab().get(token)
    if index is None:
      raise TokenizerError(
        f"{self._folder} has no token {token!r}: name one with {name}."
      )
    return index

  def _ids_before_a_text(self) -> list[int]:
    """The ids that the folder's post-processor puts before a text: BOS."""
    text = next((text for text in self.pieces if text.strip()), "")
    plain, whole = self.encode(text), self._inner.encode(text)
    for count in range(len(whole)):
      if whole[count : count + len(plain)] == plain:
        return whole[:count]
    return []

  def _eos_ids(self, eos_token: str | None) -> tuple[int, ...]:
    """Ids that end a response, that of `eos_token` first."""
    eos_ids = [] if eos_token is None else [self._id_of(eos_token, "eos_token")]
    if self._inner.eos_token is not None:
      eos_ids.append(self._id_of(self._inner.eos_token, "eos_token"))
    for name in EOS_FILES:
      eos_ids += _eos_ids_of_file(
        pathlib.Path(self._folder) / name, self.vocab_size
      )
    if not eos_ids:
      raise TokenizerError(
        f"{self._folder} has no token that ends a response: name one with "
        "eos_token."
      )
    return tuple(dict.fromkeys(eos_ids))

  def encode(self, text: str) -> list[int]:
    """Encodes a text, without a beginning or end token.

    The text of a special token becomes that token.

    Raises:
      TokenizerError: if the tokenizer fails, as regular expressions may.
    """
    try:
      return self._inner.encode(text, add_special_tokens=False)
    except BaseException as error:
      self._explain_panic(error)
      raise

  def encode_prompt(self, text: str) -> list[int]:
    """Encodes a text as `encode`, after the tokens that begin a sequence.

    These are the ids of `transformers`, except that tokens which the folder's
    post-processor appends (an end token) are left out: the response follows.
    """
    return self._beginning + self.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes ids, with U+FFFD for bytes that are not UTF-8.

    Raises:
      TokenizerError: as for `encode`.
    """
    try:
      return self._inner.decode(
        [i for i in ids if i in self._readable],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
      )
    except BaseException as error:
      self._explain_panic(error)
      raise

  def _explain_panic(self, error: BaseException) -> None:
    """Raises a TokenizerError for a panic of the tokenizer's Rust code.

    A panic is no Exception, and its class cannot be imported.
    """
    if type(error).__module__ == "pyo3_runtime":
      raise TokenizerError(
        f"The tokenizer of {self._folder} cannot read a text: {_reason(error)}."
      ) from error

  def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> str:
    """Formats a conversation as the text before the model's answer.

    Raises:
      TokenizerError: if the folder has no chat template, or if its template
        fails on these messages or exceeds the limits of
        `text.chat_template`.
      PoolError: if the process that renders templates cannot be started.
    """
    if self._inner.chat_template is None:
      raise TokenizerError(
        f"{self._folder} has no chat template: use a prompt format without "
        "chat, such as 'plain', or add chat_template.jinja to the folder."
      )
    try:
      return chat_template.render(
        self._inner.get_chat_template(),
        messages,
        self._inner.special_tokens_map,
      )
    # A folder with several templates must name one of them "default".
    except ValueError as error:
      roles = ", ".join(message["role"] for message in messages)
      raise TokenizerError(
        f"The chat template of {self._folder} cannot write a conversation of "
        f"{roles}: {_reason(error)}. Use another prompt format, or mend it."
      ) from error


def texts_to_compare(
  first: HuggingFaceTokenizer, second: HuggingFaceTokenizer
) -> tuple[list[str], list[str]]:
  """Texts by id of two tokenizers, to see whether they have one vocabulary.

  An id that ends a response has no text. Folders of one vocabulary may name
  different ones, so here the end ids of either have none.

  Args:
    first: a tokenizer.
    second: another one.
  """
  ends = {*first.eos_ids, *second.eos_ids}
  texts = [
    ["" if i in ends else text for i, text in enumerate(tokenizer.pieces)]
    for tokenizer in (first, second)
  ]
  return texts[0], texts[1]


def tokenizer_of_prm(
  folder: str | os.PathLike,
  vocab_size: int,
  policy: HuggingFaceTokenizer,
  *,
  eos_token: str | None = None,
) -> HuggingFaceTokenizer:
  """The tokenizer of a PRM that reads the responses of a policy.

  It makes the PRM's prompts, in RL as in evaluations: its folder may put BOS
  before a text, or have a chat template, where the policy's does not.

  Args:
    folder: folder of the PRM.
    vocab_size: V of the PRM, which may differ from the policy's.
    policy: the policy's tokenizer.
    eos_token: as for `HuggingFaceTokenizer`.

  Returns:
    The tokenizer of the folder; the policy's if the folder has none.

  Raises:
    TokenizerError: if an id of the policy is no id of the PRM, or is another
      text to the PRM.
  """
  written = [i for i, text in enumerate(policy.pieces) if text]
  largest = max(*written, *policy.eos_ids, policy.pad_id)
  if largest >= vocab_size:
    raise TokenizerError(
      f"The PRM {folder} has only {vocab_size} ids, and the policy's go up to "
      f"{largest}: they are of different models."
    )
  if not any((pathlib.Path(folder) / name).exists() for name in _OWN_FILES):
    return policy
  own = HuggingFaceTokenizer(folder, vocab_size=vocab_size, eos_token=eos_token)
  ours, theirs = texts_to_compare(policy, own)
  if any(ours[i] and ours[i] != theirs[i] for i in written):
    raise TokenizerError(
      f"The PRM {folder} has another vocabulary than the policy's: it cannot "
      "read its ids."
    )
  return own


def _read(folder: pathlib.Path) -> Any:
  """Reads the PreTrainedTokenizerBase of a folder."""
  # Imported late: see `huggingface.architectures.Family`.
  import transformers

  if not folder.is_dir():
    raise TokenizerError(f"{folder} is not a folder with a tokenizer.")
  _check_files(folder)
  settings = folder / "tokenizer_config.json"
  try:
    if settings.exists() and "auto_map" in json_text.parse(
      settings.read_bytes()
    ):
      raise TokenizerError(
        f"{settings} asks for code of its own (auto_map), which is never run: "
        "convert the tokenizer to tokenizer.json."
      )
    _check_growth(folder / "tokenizer.json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      str(folder), local_files_only=True, trust_remote_code=False
    )
    # Some faults of a folder show only when a text is encoded.
    known = {*tokenizer.get_vocab().values(), *tokenizer.all_special_ids}
    unknown = {*tokenizer.encode("1 + 1")} - known
  except TokenizerError:
    raise
  # transformers and tokenizers raise errors of any type, even Exception.
  except BaseException as error:
    # A panic of Rust is no Exception, and its class cannot be imported.
    is_panic = type(error).__module__ == "pyo3_runtime"
    if not (is_panic or isinstance(error, Exception)):
      raise
    raise TokenizerError(
      f"{folder} holds no readable tokenizer: {_reason(error)}"
    ) from error
  if unknown:
    raise TokenizerError(
      f"{folder} holds a tokenizer that puts the ids {sorted(unknown)[:5]} "
      "into texts, which its vocabulary does not have."
    )
  return tokenizer


def _check_files(folder: pathlib.Path) -> None:
  """Checks that a folder has nothing that would be read for ever."""
  try:
    for path in sorted(folder.iterdir()):
      # Whoever opens a pipe waits for a writer, and some devices never end.
      if path.exists() and not (path.is_file() or path.is_dir()):
        raise TokenizerError(f"{path} is no file: remove it.")
  except OSError as error:
    raise TokenizerError(
      f"{folder} cannot be read: {_reason(error)}."
    ) from error


def _check_growth(path: pathlib.Path) -> None:
  """Raises a TokenizerError for a tokenizer that multiplies texts.

  The tokenizers library limits neither memory nor time: 28 replacements of "a"
  by "aa", one after another, make gigabytes of a word. A map of characters
  (Precompiled), which may do that as well, is not looked into.
  """
  if not path.is_file():
    return
  fields = json_text.parse(path.read_bytes())
  for name in ("normalizer", "pre_tokenizer", "decoder"):
    if _growth(fields.get(name)) > _MAX_GROWTH:
      raise TokenizerError(
        f"{path}: the replacements of its {name} may make a text more than "
        f"{_MAX_GROWTH:,} times as long."
      )
  if len(json_text.dump(fields.get("post_processor"))) > _MAX_POST_PROCESSOR:
    raise TokenizerError(
      f"{path}: its post_processor, which puts ids around each text, has more "
      f"than {_MAX_POST_PROCESSOR:,} characters."
    )


def _growth(steps: Any) -> float:
  """By how much the replacements among some steps multiply a text, at most."""
  if isinstance(steps, list):
    return math.prod(map(_growth, steps))
  if not isinstance(steps, dict):
    return 1.0
  own, content, pattern = 1.0, steps.get("content"), steps.get("pattern")
  if steps.get("type") == "Replace" and isinstance(content, str):
    text = pattern.get("String") if isinstance(pattern, dict) else None
    # A regular expression may match between any two characters.
    own = max(1, len(content) / len(text)) if text else 1.0 + len(content)
  return own * math.prod(map(_growth, steps.values()))


def _eos_ids_of_file(path: pathlib.Path, vocab_size: int) -> list[int]:
  """The ids of a file's field eos_token_id; none without field or file."""
  try:
    fields = json_text.parse(path.read_bytes())
  except FileNotFoundError:
    return []
  except (OSError, ValueError) as error:
    raise TokenizerError(f"{path} cannot be read: {_reason(error)}.") from error
  if not isinstance(fields, dict):
    raise TokenizerError(f"{path} holds no JSON object.")
  eos_ids = fields.get("eos_token_id")
  if eos_ids is None:
    return []
  eos_ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
  for index in eos_ids:
    if type(index) is not int or not 0 <= index < vocab_size:
      raise TokenizerError(
        f"{path} has {str(index)[:40]!r} in eos_token_id: it must be one or "
        f"several of the model's ids, 0 to {vocab_size - 1}."
      )
  return eos_ids


def _reason(error: BaseException) -> str:
  """The beginning of an error message, in one line."""
  return " ".join(str(error).split())[:300] or repr(error)
