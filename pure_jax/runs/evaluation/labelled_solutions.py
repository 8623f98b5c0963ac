"""Encodes labelled solutions for a PRM: ids within limits, in batches."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pure_jax.host.data import batches
from pure_jax.host.data.records import LabelledSolution
from pure_jax.host.distributed import preemption
from pure_jax.host.text.prompt_formats import PromptFormat
from pure_jax.host.text.tokenization import (
  PRMText,
  Tokenizer,
  TokenizerError,
  encode_each_step,
  encode_response,
)
from pure_jax.training.supervised import Demonstrations
from pure_jax.types import PRMInputs

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
    response_tokens: tokens of a solution, with EOS, or with the score tokens
      if every step is encoded by itself.
    max_steps: steps of a solution.
  """

  prompt_tokens: int
  response_tokens: int
  max_steps: int


@dataclasses.dataclass(frozen=True)
class EncodedSolution:
  """A solution as a policy would have written it.

  Attributes:
    prompt: ids of the problem.
    response: ids of the solution, with EOS.
  """

  prompt: list[int]
  response: list[int]

  @property
  def num_response_tokens(self) -> int:
    """Number of ids of the solution."""
    return len(self.response)

  @property
  def num_tokens(self) -> int:
    """Number of ids of problem and solution."""
    return len(self.prompt) + len(self.response)


@dataclasses.dataclass(frozen=True)
class EncodedSolutions:
  """The solutions of a data set that fit the limits, as ids.

  Attributes:
    index: [n] int64, their rows in the data set, ascending.
    texts: n solutions, all `PRMText` if every step is encoded by itself.
    left_out: by row of the data set, why it is left out, one of `LEFT_OUT`.
  """

  index: np.ndarray
  texts: list[EncodedSolution] | list[PRMText]
  left_out: dict[int, str]


def encode_solutions(
  tokenizer: Tokenizer,
  prompt_format: PromptFormat,
  solutions: Sequence[LabelledSolution],
  limits: SolutionLimits,
  separator: str,
) -> EncodedSolutions:
  """Encodes the solutions that fit the limits.

  Args:
    tokenizer: the PRM's.
    prompt_format: how the PRM reads a problem.
    solutions: the solutions of a data set.
    limits: maximum sizes.
    separator: what the PRM reads, see `ScoreConfig.separator`.

  Returns:
    Ids by the contract of `pure_jax.host.text.tokenization`.
  """
  index, texts, left_out = [], [], {}
  for row, solution in enumerate(solutions):
    prompt = prompt_format.ids(tokenizer, solution.problem)
    text: EncodedSolution | PRMText | None
    if separator == "each":
      text = encode_each_step(tokenizer, prompt, solution.steps)
      prompt = text.prompt
    else:
      text = _as_a_response(tokenizer, prompt, solution.steps)
    exceeded = (
      len(prompt) > limits.prompt_tokens,
      text is not None and text.num_response_tokens > limits.response_tokens,
      len(solution.steps) > limits.max_steps,
      text is None,
    )
    if any(exceeded):
      left_out[row] = LEFT_OUT[exceeded.index(True)]
      continue
    index.append(row)
    texts.append(text)
  return EncodedSolutions(np.asarray(index, int), texts, left_out)


def _as_a_response(
  tokenizer: Tokenizer, prompt: list[int], steps: Sequence[str]
) -> EncodedSolution | None:
  """The solution as a policy writes it; None if it is not tokenized back."""
  try:
    return EncodedSolution(
      prompt, encode_response(tokenizer, steps, finished=True)
    )
  except TokenizerError:
    return None


def pad_solutions(
  texts: Sequence[EncodedSolution] | Sequence[PRMText],
  limits: SolutionLimits,
  pad_id: int,
  multiple: int | None = None,
) -> Demonstrations | PRMInputs:
  """Pads solutions to the longest of them, or to their limits.

  Args:
    texts: B solutions of one kind, at least one.
    limits: the limits they were encoded with.
    pad_id: id of padding.
    multiple: the longest text is rounded up to this multiple of columns, but
      not beyond the limits; `crop` keeps no more of any batch. None pads to
      the limits, which may be far longer.

  Returns:
    Host arrays of B rows, `PRMInputs` if every step is encoded by itself.
  """

  def columns(limit: int, lengths: Iterable[int]) -> int:
    if multiple is None:
      return limit
    return min(limit, -(-max(lengths) // multiple) * multiple)

  if isinstance(texts[0], PRMText):
    length = columns(
      limits.prompt_tokens + limits.response_tokens,
      (text.num_tokens for text in texts),
    )
    return batches.pad_prm_texts(texts, length, limits.max_steps, pad_id)
  prompts = batches.left_pad(
    [text.prompt for text in texts],
    columns(limits.prompt_tokens, (len(text.prompt) for text in texts)),
    pad_id,
  )
  responses = batches.right_pad(
    [text.response for text in texts],
    columns(limits.response_tokens, (len(text.response) for text in texts)),
    pad_id,
  )
  return Demonstrations(*prompts, *responses)


def crop(
  batch: Demonstrations | PRMInputs, multiple: int
) -> Demonstrations | PRMInputs:
  """Removes the columns that every row of a batch pads.

  Args:
    batch: host arrays, from `pad_solutions`.
    multiple: numbers of columns are rounded up to multiples of it, so that few
      shapes are compiled.

  Returns:
    The batch with fewer columns.
  """
  if isinstance(batch, PRMInputs):
    columns = -(-int(batch.mask.sum(1).max()) // multiple) * multiple
    return batch.replace(
      tokens=batch.tokens[:, :columns], mask=batch.mask[:, :columns]
    )
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
) -> Iterator[tuple[np.ndarray, Demonstrations | PRMInputs]]:
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
  lengths = [text.num_tokens for text in solutions.texts]
  order = np.argsort(lengths, kind="stable")
  for first in range(0, len(order), batch_size):
    preemption.raise_received()
    indices = order[first : first + batch_size]
    filled = [solutions.texts[i] for i in np.resize(indices, batch_size)]
    batch = pad_solutions(filled, limits, pad_id, multiple)
    yield indices, crop(batch, multiple)
