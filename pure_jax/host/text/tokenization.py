r"""The tokenisation contract: how prompts and steps become ids, and back.

PRM training, PRM evaluation and RL must give a model the same ids for the same
text; one checkpoint's published scores differ by 20 points with such details.
So what they share is decided here, once:

* A response is its steps joined by the separator "\n\n", encoded as one text,
  as a policy writes it, and EOS where it is finished. A truncated response has
  no EOS, an empty step is a separator with nothing before it.
* A step ends at every id whose text ends with the separator (".\n\n" is one id
  in Qwen's vocabulary). A tokenizer that never writes such an id inside a text
  (GPT-2's splitting gives "\n", "\n") ends a step at the second half.
* The PRM reads the score token "\n" after each step's content. "insert" keeps
  the content of a merged id by writing its stem; where no single id is the
  stem, the merged id stays and the score token follows. "replace" overwrites
  the id, as the paper's reference does. `pure_jax.steps` applies either on the
  device, to sampled and to encoded responses alike.
  A PRM whose trainer encodes each step by itself, as TRL's does, was trained
  on other ids where the end of a step and the separator are merged in another
  way: "$." alone is one id in Qwen's vocabulary, "$.\n\n" is "$" and ".\n\n",
  of which "insert" makes "$" and ".". So it is with 24 of the 170 different
  steps in the four lines of PRM800K that the tests read.
* The PRM's prompt is the raw problem in the format it was trained with, not
  the policy's chat prompt; the reference's RL gives it the latter.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pure_jax.types import SeparatorTable

SEPARATOR = "\n\n"
SCORE_TEXT = "\n"
BOXED = (
  "Please reason step by step, and put your final answer within \\boxed{}."
)


class TokenizerError(ValueError):
  """A tokenizer that cannot be made, read or used."""


class Tokenizer(Protocol):
  """What the project asks of a tokenizer.

  Attributes:
    vocab_size: V, number of ids the model has.
    pad_id: padding, no id that a response can end with.
    eos_id: end of a response.
    banned_ids: ids that are never sampled: padding and ids without text.
    pieces: V texts, of each id alone; "" for control ids.
  """

  vocab_size: int
  pad_id: int
  eos_id: int
  banned_ids: tuple[int, ...]
  pieces: Sequence[str]

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without beginning or end.

    Args:
      text: what to encode.
    """
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; control ids have none.

    Args:
      ids: any ids of the vocabulary.
    """
    ...

  def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> str:
    """A conversation as the text before the model's answer.

    Args:
      messages: each with ``role`` and ``content``.
    """
    ...


@dataclasses.dataclass(frozen=True)
class PromptFormat:
  """How a problem is put to a model.

  Attributes:
    chat: True wraps it with the tokenizer's chat template.
    system: system message of the chat; None has none.
    suffix: text after the problem.
    prefix: text with which every response is made to begin. It is part of the
      prompt: what is sampled, graded and cut into steps comes after it.
  """

  chat: bool = False
  system: str | None = None
  suffix: str = ""
  prefix: str = ""

  def __post_init__(self):
    """Refuses a system message that nobody would see."""
    if self.system is not None and not self.chat:
      raise ValueError("A system message needs chat=True.")

  def text(self, tokenizer: Tokenizer, problem: str) -> str:
    """The prompt's text.

    Args:
      tokenizer: applies its chat template where the format asks for it.
      problem: the problem's text.

    Returns:
      What is encoded, in front of the response.

    Raises:
      TokenizerError: if the tokenizer has no chat template and needs one.
    """
    if not self.chat:
      return problem + self.suffix + self.prefix
    messages = [{"role": "user", "content": problem + self.suffix}]
    if self.system is not None:
      messages.insert(0, {"role": "system", "content": self.system})
    return tokenizer.apply_chat_template(messages) + self.prefix


PROMPT_FORMATS = {
  # The paper's PRM: the problem, and straight after it the first step. Its
  # trainer (TRL) puts nothing between them.
  "raw": PromptFormat(),
  # For a model without a chat: problem, line break. Of a problem's last "?"
  # and the line break Qwen's vocabulary makes one id, which "raw" never has.
  "plain": PromptFormat(suffix="\n"),
  "chat": PromptFormat(chat=True),
  # What Qwen2.5-Math is evaluated with, and PURE trains with.
  "qwen_boxed": PromptFormat(chat=True, system=BOXED),
}


def encode_response(
  tokenizer: Tokenizer, steps: Sequence[str], *, finished: bool
) -> list[int]:
  """Ids of a response as a policy would have written it.

  Args:
    tokenizer: the tokenizer.
    steps: texts without blank lines inside or white space around, as
      `data.records.step_text` makes them; none gives EOS alone.
    finished: True ends the response with EOS, False leaves it open as the
      length limit does.

  Returns:
    The ids. `split_texts` gives the steps back.

  Raises:
    TokenizerError: if the ids have other step boundaries than `steps`.
  """
  ids = tokenizer.encode(SEPARATOR.join(steps))
  ids += [tokenizer.eos_id] * finished
  row = np.asarray([ids], np.int64)
  (found,) = split_texts(tokenizer, row, np.ones(row.shape, bool))
  if found != (list(steps) or [""] * finished):
    raise TokenizerError(
      f"{len(steps)} steps become {len(found)} steps of ids, or other texts: "
      f"{found[:3]!r} ... Pass each step through records.step_text first."
    )
  return ids


def split_texts(
  tokenizer: Tokenizer, tokens: np.ndarray, completion_mask: np.ndarray
) -> list[list[str]]:
  """Texts of the steps of each response, as `steps.split_steps` cuts them.

  Args:
    tokenizer: the tokenizer.
    tokens: [B, C] int, completion ids.
    completion_mask: [B, C] bool.

  Returns:
    B lists of step texts, without separators. Any number of steps; the last
    is there even if it is empty, unless the row has no token.
  """
  halves = set(_halves(tokenizer))
  rows = []
  for ids, mask in zip(tokens.tolist(), completion_mask, strict=True):
    ids = ids[: int(mask.sum())]
    steps, start, run = [], 0, 0
    for position, token in enumerate(ids):
      run = run + 1 if token in halves else 0
      ends = tokenizer.pieces[token].endswith(SEPARATOR) or run == 2
      if ends or token == tokenizer.eos_id or position == len(ids) - 1:
        text = tokenizer.decode(ids[start : position + 1])
        steps.append(text.removesuffix(SEPARATOR) if ends else text)
        start = position + 1
    rows.append(steps)
  return rows


def _halves(tokenizer: Tokenizer) -> list[int]:
  """Ids of half a separator, where a text has no id that ends with it."""
  # A small vocabulary may lack any given letter, so one of its own.
  letter = next(
    text for text in tokenizer.pieces if len(text) == 1 and not text.isspace()
  )
  inside = tokenizer.encode(f"{letter}{SEPARATOR}{letter}")
  if any(tokenizer.pieces[i].endswith(SEPARATOR) for i in inside):
    return []
  half = SEPARATOR[: len(SEPARATOR) // 2]
  return [i for i, text in enumerate(tokenizer.pieces) if text == half]


def separator_table(tokenizer: Tokenizer) -> SeparatorTable:
  """Which ids end a step, for the device.

  Args:
    tokenizer: the tokenizer.

  Returns:
    The table, numpy arrays over V ids.

  Raises:
    TokenizerError: if no single id is the score token.
  """
  size = tokenizer.vocab_size
  ends_step, half, has_stem = (np.zeros(size, bool) for _ in range(3))
  stem = np.zeros(size, np.int32)
  half[_halves(tokenizer)] = True
  first_id = {}
  for i, text in enumerate(tokenizer.pieces):
    first_id.setdefault(text, i)
  if SCORE_TEXT not in first_id:
    raise TokenizerError(
      f"The vocabulary has no id for {SCORE_TEXT!r}, where the PRM's scores "
      "are read."
    )
  for i, text in enumerate(tokenizer.pieces):
    if text.endswith(SEPARATOR):
      ends_step[i] = True
      content = text.removesuffix(SEPARATOR)
      if content.strip():  # "\n\n\n" is a separator like any other.
        has_stem[i], stem[i] = True, first_id.get(content, i)
  return SeparatorTable(
    ends_step=ends_step,
    half=half,
    stem=stem,
    has_stem=has_stem,
    score_id=np.int32(first_id[SCORE_TEXT]),
    eos_id=np.int32(tokenizer.eos_id),
    pad_id=np.int32(tokenizer.pad_id),
  )
