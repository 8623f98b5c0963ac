"""The file of graded responses of an evaluation of a policy.

Responses are appended when they are graded. Reports are computed only from
this file.
"""

import dataclasses
import os
from typing import Any

from pure_jax.host.evaluation.record_file import (
  RecordFile,
  check_fields,
  is_reward,
)

ResponseKey = tuple[str, str, int | None]


@dataclasses.dataclass(frozen=True)
class Response:
  """A graded response.

  Attributes:
    benchmark: name of the benchmark.
    problem: id of the problem in it.
    sample: number of the sample, from 0; None for the greedy response.
    text: the response, without the end token.
    tokens: number of tokens, the end token included.
    truncated: whether the length limit cut it.
    repetition: how much it repeats itself, 0..1, see `repetition_score`.
    answer: the extracted answer; None if there is none.
    correct: whether the answer is right.
    timed_out: whether the comparison was stopped at its time limit.
    failure: why the comparison failed; None if it did not.
    step_rewards: reward of each step, -1..1; None without a PRM.
    level: difficulty of the problem; None if its source gives none.
    subject: subject of the problem; None if its source gives none.
  """

  benchmark: str
  problem: str
  sample: int | None
  text: str
  tokens: int
  truncated: bool
  repetition: float
  answer: str | None
  correct: bool
  timed_out: bool
  failure: str | None
  step_rewards: tuple[float, ...] | None
  level: int | None
  subject: str | None

  @property
  def key(self) -> ResponseKey:
    """Identifies the response: benchmark, problem and sample."""
    return self.benchmark, self.problem, self.sample


def open_responses(path: str | os.PathLike) -> RecordFile[Response]:
  """Opens a file of responses, or creates it.

  Args:
    path: the file; its folder must exist.

  Raises:
    RecordFileError: if a line is not a response or repeats one, or the file
      cannot be opened.
  """
  return RecordFile(path, _parse, "a response")


def _parse(row: dict[str, Any]) -> Response:
  """Converts JSON to a response; raises a ValueError for a wrong field."""
  check_fields(row, Response, unchecked=("step_rewards",))
  rewards = row["step_rewards"]
  if rewards is not None:
    if not isinstance(rewards, list) or not all(map(is_reward, rewards)):
      raise ValueError(f"step_rewards is {rewards!r}, not numbers in -1..1")
    rewards = tuple(map(float, rewards))
  return Response(**(row | {"step_rewards": rewards}))
