r"""The tokenisation contract: how prompts and steps become ids, and back.

PRM training, PRM evaluation and RL must give a model the same ids for the same
text: such details change the published scores of one checkpoint by 20 points.
All three therefore use the rules of this module:

* A response is encoded as one text, as a policy writes it: its steps joined by
  the separator "\n\n", then EOS if it is finished. A truncated response has no
  EOS. An empty step is a separator with nothing before it.
* A step ends at every id whose text ends with the separator. Vocabularies merge
  the separator with punctuation: ".\n\n" is one id in Qwen's. Some tokenizers
  never write such an id inside a text (the splitting of GPT-2 gives "\n",
  "\n"): then a step ends at the second half of the separator.
* The PRM reads its score at the token "\n" after the content of each step.
  "insert" replaces a merged id by its stem (".") and the score token. If no
  single id is the stem, the merged id stays and the score token follows.
  Further blank lines are no content: a policy may write ".\n\n\n\n", which is
  read as ".\n\n", since the steps of a PRM's training have none at their ends.
  "replace" overwrites the merged id, as the paper's reference code does.
  `pure_jax.steps` does both on the device, for sampled and encoded responses.
* "each" encodes the text of each step by itself, followed by the score token.
  The PRM then reads no separators. These are the ids of TRL's PRMTrainer,
  which trained the paper's PRM. The texts of a sampled response are those of
  `split_texts`, so step s is the same step in all three.
* The PRM's prompt is the problem in the format that the PRM was trained with,
  not the policy's prompt, which the PRM of the reference code reads in RL
  ("pure").
* A prompt has the ids that transformers gives it (`prompt_formats`).
* A response ends at any id in `Tokenizer.eos_ids`; one that is encoded here
  ends at the first.

"insert" and "each" give a PRM other ids if the end of a step merges with the
separator: "$." is one id in Qwen's vocabulary, but "$.\n\n" is "$" and
".\n\n", which "insert" turns into "$" and ".". This happens in 24 of the 170
different steps in the four lines of PRM800K that the tests read.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pure_jax.types import SeparatorTable

SEPARATOR = "\n\n"
SCORE_TEXT = "\n"


class TokenizerError(ValueError):
  """A tokenizer cannot be made, read or used."""


class Tokenizer(Protocol):
  """The interface of a tokenizer.

  Attributes:
    vocab_size: V, the number of ids of the model.
    pad_id: id of padding. It may be one of `eos_ids`, so masks alone tell
      padding from tokens.
    eos_id: the first of `eos_ids`, which ends the responses that we encode.
    eos_ids: all ids that end a response.
    banned_ids: ids that must never be sampled: padding and ids without text,
      except `eos_ids`.
    bos_id: id of the token that begins a text, None if the vocabulary has
      none. Read only if every step is encoded by itself: TRL puts it before
      the prompt, whether or not the tokenizer does.
    pieces: V texts, one per id; "" for control ids.
  """

  vocab_size: int
  pad_id: int
  eos_id: int
  eos_ids: tuple[int, ...]
  bos_id: int | None
  banned_ids: tuple[int, ...]
  pieces: Sequence[str]

  def encode(self, text: str) -> list[int]:
    """Encodes a text, without a beginning or end token."""
    ...

  def encode_prompt(self, text: str) -> list[int]:
    """Encodes the text that begins a sequence, without an end token.

    These are the ids of `encode`, after a beginning token (BOS) if the model
    was trained with one.
    """
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes any ids of the vocabulary. Control ids have no text."""
    ...

  def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> str:
    """Formats a conversation as the text before the model's answer.

    Args:
      messages: dicts with ``role`` and ``content``.
    """
    ...


def encode_response(
  tokenizer: Tokenizer, steps: Sequence[str], *, finished: bool
) -> list[int]:
  """Encodes a response as a policy would have written it.

  `split_texts` returns the steps again.

  Args:
    tokenizer: the tokenizer.
    steps: texts of the steps, normalised by `data.records.step_text`. Without
      steps the response is EOS only.
    finished: True adds EOS. False is a response cut off by the length limit.

  Raises:
    TokenizerError: if the ids do not decode to the same steps.
  """
  ids = tokenizer.encode(SEPARATOR.join(steps))
  ids += [tokenizer.eos_id] * finished
  row = np.asarray([ids], np.int64)
  (decoded,) = split_texts(tokenizer, row, np.ones(row.shape, bool))
  if decoded != (list(steps) or [""] * finished):
    raise TokenizerError(
      f"{len(steps)} steps become {len(decoded)} steps of ids, or other texts: "
      f"{decoded[:3]!r} ... Pass each step through records.step_text first."
    )
  return ids


def ended_by_choice(
  tokenizer: Tokenizer, tokens: np.ndarray, completion_mask: np.ndarray
) -> np.ndarray:
  """Which responses end with EOS, [B] bool; the others were cut off.

  Args:
    tokenizer: the tokenizer.
    tokens: [B, C] int, completion ids.
    completion_mask: [B, C] bool, True for the ids of the completion.
  """
  is_eos = np.isin(tokens, [*tokenizer.eos_ids])
  return (is_eos & completion_mask).any(axis=1)


def split_texts(
  tokenizer: Tokenizer, tokens: np.ndarray, completion_mask: np.ndarray
) -> list[list[str]]:
  """Decodes the steps of each response, cut as `steps.split_steps` cuts them.

  Step texts have no separators, and no white space that is one id with a
  separator. They have any length; the last one may be empty. A row without
  tokens has no step.

  Args:
    tokenizer: the tokenizer.
    tokens: [B, C] int, completion ids.
    completion_mask: [B, C] bool, True for the ids of the completion.
  """
  halves = set(_half_separator_ids(tokenizer))
  rows = []
  for ids, mask in zip(tokens.tolist(), completion_mask, strict=True):
    ids = ids[: int(mask.sum())]
    steps, start, run = [], 0, 0
    for position, token in enumerate(ids):
      run = run + 1 if token in halves else 0
      piece = tokenizer.pieces[token]
      ends = piece.endswith(SEPARATOR) or run == 2
      if ends or token in tokenizer.eos_ids or position == len(ids) - 1:
        text = tokenizer.decode(ids[start : position + 1])
        steps.append(text.removesuffix(_blank_end(piece)) if ends else text)
        start = position + 1
    rows.append(steps)
  return rows


def _blank_end(piece: str) -> str:
  """What the text of an id that ends a step has behind the step's content."""
  if not piece.endswith(SEPARATOR):
    return SEPARATOR  # The id is its second half.
  return piece[len(piece.rstrip()) :]


@dataclasses.dataclass(frozen=True)
class PRMText:
  """What a PRM reads of one response, if every step is encoded by itself.

  Attributes:
    prompt: ids of the prompt.
    steps: ids of each step, the last of which is that of its score.
  """

  prompt: list[int]
  steps: list[list[int]]

  @property
  def num_response_tokens(self) -> int:
    """Number of ids of the steps, score tokens included."""
    return sum(map(len, self.steps))

  @property
  def num_tokens(self) -> int:
    """Number of ids of prompt and steps."""
    return len(self.prompt) + self.num_response_tokens


def encode_each_step(
  tokenizer: Tokenizer, prompt: Sequence[int], steps: Sequence[str]
) -> PRMText:
  r"""Encodes each step by itself, as TRL's `PRMTrainer.tokenize_row` does.

  The ids are the token that begins a text, if the vocabulary has one and the
  prompt does not begin with it already, the prompt, and for each step its ids
  and those of "\n", the score text. The score is read at the last of these.

  TRL writes BOS and the prompt's text, and no other token before them. So its
  ids differ for a tokenizer that puts another token before a text, which is
  part of the prompt here, and for a problem that begins with the text of BOS,
  which TRL doubles.

  Args:
    tokenizer: the tokenizer.
    prompt: ids of the PRM's prompt.
    steps: texts of the steps, which may be empty or have blank lines. Without
      steps the PRM reads the prompt only, and scores nothing.

  Raises:
    TokenizerError: if the tokenizer cannot write the score text or a step.
  """
  score_ids = tokenizer.encode(SCORE_TEXT)
  if not score_ids:
    raise TokenizerError(
      f"The tokenizer has no id for {SCORE_TEXT!r}, where the PRM's scores are "
      "read."
    )
  beginning = list(prompt)
  if tokenizer.bos_id is not None and beginning[:1] != [tokenizer.bos_id]:
    beginning.insert(0, tokenizer.bos_id)
  return PRMText(
    beginning, [[*tokenizer.encode(step), *score_ids] for step in steps]
  )


def merge_overflow(steps: Sequence[str], max_steps: int) -> list[str]:
  """Merges the steps of a response as `steps.split_steps` does.

  Args:
    steps: n texts, from `split_texts`.
    max_steps: S, the largest number of steps.

  Returns:
    The texts of at most S steps, with separators inside the last one.
  """
  if len(steps) <= max_steps:
    return list(steps)
  last = max_steps - 1
  return [*steps[:last], SEPARATOR.join(steps[last:])]


def _half_separator_ids(tokenizer: Tokenizer) -> list[int]:
  """Ids of half a separator; none if the tokenizer writes whole separators."""
  # A small vocabulary may lack any given letter: take one that it has.
  letter = next(
    text for text in tokenizer.pieces if len(text) == 1 and not text.isspace()
  )
  inside = tokenizer.encode(f"{letter}{SEPARATOR}{letter}")
  if any(tokenizer.pieces[i].endswith(SEPARATOR) for i in inside):
    return []
  half = SEPARATOR[: len(SEPARATOR) // 2]
  return [i for i, text in enumerate(tokenizer.pieces) if text == half]


def separator_table(tokenizer: Tokenizer) -> SeparatorTable:
  """Makes the table over V ids by which `pure_jax.steps` finds ends of steps.

  Args:
    tokenizer: the tokenizer.

  Raises:
    TokenizerError: if no single id is the score token.
  """
  size = tokenizer.vocab_size
  ends_step, half, has_stem = (np.zeros(size, bool) for _ in range(3))
  stem = np.zeros(size, np.int32)
  half[_half_separator_ids(tokenizer)] = True
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
      content = text.removesuffix(_blank_end(text))
      if content:  # "\n\n\n" has no content: it is a bare separator.
        # Without a stem, the id that encoded steps have, if there is one.
        whole = first_id.get(content + SEPARATOR, i)
        has_stem[i], stem[i] = True, first_id.get(content, whole)
  return SeparatorTable(
    ends_step=ends_step,
    half=half,
    stem=stem,
    has_stem=has_stem,
    score_id=np.int32(first_id[SCORE_TEXT]),
    eos_ids=np.asarray(tokenizer.eos_ids, np.int32),
    pad_id=np.int32(tokenizer.pad_id),
    blank=np.asarray([not text.strip() for text in tokenizer.pieces], bool),
  )
