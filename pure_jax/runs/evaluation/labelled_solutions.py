"""Encodes labelled solutions for a PRM: ids within limits, in batches."""

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

# Why a solution is left out; the first reason that applies counts. Solutions
# that are "not tokenized back" contain the text of a special token, or text
# that the tokenizer decodes to another spelling.
LEFT_OUT = (
  "problem too long",
  "solution too long",
  "too many steps",
  "not tokenized back",
)


@dataclasses.dataclass(frozen=True)
class SolutionLimits:
  """Maximum sizes of a problem and its solution.

  Attributes:
    prompt_tokens: tokens of a problem in its prompt format.
    response_tokens: tokens of a solution, EOS included.
    max_steps: steps of a solution.
  """

  prompt_tokens: int
  response_tokens: int
  max_steps: int


@dataclasses.dataclass(frozen=True)
class EncodedSolutions:
  """The solutions of a data set that fit the limits, as ids.

  Attributes:
    index: [n] int64, their rows in the data set, ascending.
    prompts: n lists of ids.
    responses: n lists of ids, each with EOS.
    left_out: by row of the data set, why it is left out, one of `LEFT_OUT`.
  """

  index: np.ndarray
  prompts: list[list[int]]
  responses: list[list[int]]
  left_out: dict[int, str]


def encode_solutions(
  tokenizer: Tokenizer,
  prompt_format: PromptFormat,
  solutions: Sequence[LabelledSolution],
  limits: SolutionLimits,
) -> EncodedSolutions:
  """Encodes the solutions that fit the limits.

  Args:
    tokenizer: the PRM's.
    prompt_format: how the PRM reads a problem.
    solutions: the solutions of a data set.
    limits: maximum sizes.

  Returns:
    Ids by the contract of `pure_jax.host.text.tokenization`.
  """
  index, prompts, responses, left_out = [], [], [], {}
  for row, solution in enumerate(solutions):
    prompt = prompt_format.ids(tokenizer, solution.problem)
    try:
      response = encode_response(tokenizer, solution.steps, finished=True)
    except TokenizerError:
      response = None
    exceeded = (
      len(prompt) > limits.prompt_tokens,
      response is not None and len(response) > limits.response_tokens,
      len(solution.steps) > limits.max_steps,
      response is None,
    )
    if any(exceeded):
      left_out[row] = LEFT_OUT[exceeded.index(True)]
      continue
    index.append(row)
    prompts.append(prompt)
    responses.append(response)
  return EncodedSolutions(np.asarray(index, int), prompts, responses, left_out)


def crop(batch: Demonstrations, multiple: int) -> Demonstrations:
  """Removes the columns that every row of a batch pads.

  Args:
    batch: host arrays; prompts are padded on the left, responses on the right.
    multiple: numbers of columns are rounded up to multiples of it, so that few
      shapes are compiled.

  Returns:
    The batch with fewer columns.
  """
  masks = (batch.prompt_mask, batch.completion_mask)
  prompt_columns, response_columns = (
    -(-int(mask.sum(1).max()) // multiple) * multiple for mask in masks
  )
  return Demonstrations(
    batch.prompt_tokens[:, -prompt_columns:],
    batch.prompt_mask[:, -prompt_columns:],
    batch.tokens[:, :response_columns],
    batch.completion_mask[:, :response_columns],
  )


def batches_by_length(
  solutions: EncodedSolutions,
  limits: SolutionLimits,
  batch_size: int,
  multiple: int,
  pad_id: int,
) -> Iterator[tuple[np.ndarray, Demonstrations]]:
  """Batches every solution once, sorted by length to save padding.

  Args:
    solutions: n encoded solutions.
    limits: the limits they were encoded with.
    batch_size: B.
    multiple: see `crop`.
    pad_id: id of padding.

  Yields:
    (indices of at most B of the n solutions, a host batch of B rows). The last
    batch repeats its own solutions to fill B rows.
  """
  encoded = zip(solutions.prompts, solutions.responses, strict=True)
  lengths = [len(prompt) + len(response) for prompt, response in encoded]
  order = np.argsort(lengths, kind="stable")
  for first in range(0, len(order), batch_size):
    indices = order[first : first + batch_size]
    filled = np.resize(indices, batch_size)
    prompts = batches.left_pad(
      [solutions.prompts[i] for i in filled], limits.prompt_tokens, pad_id
    )
    responses = batches.right_pad(
      [solutions.responses[i] for i in filled], limits.response_tokens, pad_id
    )
    yield indices, crop(Demonstrations(*prompts, *responses), multiple)
