"""Labelled solutions as a PRM reads them: ids within limits, in batches."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from pure_jax.host.data import batches
from pure_jax.host.data.records import LabelledSolution
from pure_jax.host.text.tokenization import (
  PromptFormat,
  Tokenizer,
  TokenizerError,
  encode_response,
)
from pure_jax.training.supervised import Demonstrations

# Why a row is left out, in the order they are asked. The last holds a special
# token as text, or what the tokenizer writes in another way.
LEFT_OUT = (
  "problem too long",
  "solution too long",
  "too many steps",
  "not tokenized back",
)


@dataclasses.dataclass(frozen=True)
class Limits:
  """What there is room for.

  Attributes:
    prompt_tokens: of a problem in its prompt format.
    response_tokens: of a solution, EOS included.
    max_steps: steps of a solution.
  """

  prompt_tokens: int
  response_tokens: int
  max_steps: int


@dataclasses.dataclass(frozen=True)
class EncodedRows:
  """The rows of a data set that a PRM can read, as ids.

  Attributes:
    index: [n] int64, which rows of the data set, ascending.
    prompts: n lists of ids.
    responses: n lists of ids, each with EOS.
    left_out: by index of a row, which of `LEFT_OUT` it is.
  """

  index: np.ndarray
  prompts: list[list[int]]
  responses: list[list[int]]
  left_out: dict[int, str]


def encode_rows(
  tokenizer: Tokenizer,
  prompt_format: PromptFormat,
  rows: Sequence[LabelledSolution],
  limits: Limits,
) -> EncodedRows:
  """Ids of the rows, by the contract of `pure_jax.host.text.tokenization`."""
  index, prompts, responses, left_out = [], [], [], {}
  for number, row in enumerate(rows):
    asked = tokenizer.encode(prompt_format.text(tokenizer, row.problem))
    try:
      response = encode_response(tokenizer, row.steps, finished=True)
    except TokenizerError:
      response = None
    excess = (
      len(asked) > limits.prompt_tokens,
      response is not None and len(response) > limits.response_tokens,
      len(row.steps) > limits.max_steps,
      response is None,
    )
    if any(excess):
      left_out[number] = LEFT_OUT[excess.index(True)]
      continue
    index.append(number)
    prompts.append(asked)
    responses.append(response)
  return EncodedRows(np.asarray(index, int), prompts, responses, left_out)


def crop(batch: Demonstrations, multiple: int) -> Demonstrations:
  """Without the columns that no row of a host batch needs.

  Columns of prompts and of responses come in multiples: few shapes to compile.
  """
  asked, written = (
    -(-int(mask.sum(1).max()) // multiple) * multiple
    for mask in (batch.prompt_mask, batch.completion_mask)
  )
  return Demonstrations(
    batch.prompt_tokens[:, -asked:],
    batch.prompt_mask[:, -asked:],
    batch.tokens[:, :written],
    batch.completion_mask[:, :written],
  )


def in_batches(
  rows: EncodedRows, limits: Limits, batch_size: int, multiple: int, pad_id: int
) -> Iterator[tuple[np.ndarray, Demonstrations]]:
  """Every row once, long ones beside long ones.

  Args:
    rows: n of them.
    limits: those they were encoded with.
    batch_size: B.
    multiple: of columns, see `crop`.
    pad_id: the filler.

  Yields:
    (at most B places among the n rows, a host batch of B rows). The last batch
    is filled up with its own rows.
  """
  lengths = [
    len(asked) + len(written)
    for asked, written in zip(rows.prompts, rows.responses, strict=True)
  ]
  order = np.argsort(lengths, kind="stable")
  for first in range(0, len(order), batch_size):
    chosen = order[first : first + batch_size]
    filled = np.resize(chosen, batch_size)
    prompts = batches.left_pad(
      [rows.prompts[i] for i in filled], limits.prompt_tokens, pad_id
    )
    responses = batches.right_pad(
      [rows.responses[i] for i in filled], limits.response_tokens, pad_id
    )
    batch = Demonstrations(*prompts, *responses)
    yield chosen, crop(batch, multiple)
