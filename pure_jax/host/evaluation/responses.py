"""A file of graded responses that survives being killed at any moment.

One line of strict JSON for each response, appended when it is graded. Whatever
an evaluation reports is computed from these lines.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

ResponseKey = tuple[str, str, int | None]


class ResponsesError(RuntimeError):
  """A file of responses that cannot be read or written; says where."""


@dataclasses.dataclass(frozen=True)
class Response:
  """A response with all that is known of it.

  Attributes:
    benchmark: which set the problem is of.
    problem: id of the problem in it.
    sample: number of the sample from 0 on; None is the greedy response.
    text: what was written, without the end token.
    tokens: how many tokens that were, the end token included.
    truncated: whether the length limit cut it.
    answer: what was extracted; None where no answer was found.
    correct: the verdict.
    timed_out: whether the comparison was stopped at its time limit.
    failure: why the comparison came to no end otherwise; None where it did.
    step_rewards: of each step, -1..1; None without a PRM.
    level: difficulty of the problem; None where its source gives none.
    subject: of the problem; None where its source gives none.
  """

  benchmark: str
  problem: str
  sample: int | None
  text: str
  tokens: int
  truncated: bool
  answer: str | None
  correct: bool
  timed_out: bool
  failure: str | None
  step_rewards: tuple[float, ...] | None
  level: int | None
  subject: str | None

  @property
  def key(self) -> ResponseKey:
    """What there is one response of: benchmark, problem and sample."""
    return self.benchmark, self.problem, self.sample


class ResponsesFile:
  """Responses by key, in memory and in a file that only grows.

  Attributes:
    responses: what is in the file, by `Response.key`, in its order.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads what is there and opens the file to go on.

    A last line without its end is what a killed process leaves: it is dropped.

    Args:
      path: the file, created if missing; its folder must exist.

    Raises:
      ResponsesError: naming the line that is no response, or is there twice;
        the file is left as it is. Also if it cannot be opened.
    """
    self._path = pathlib.Path(path)
    try:
      content = self._path.read_bytes() if self._path.exists() else b""
      whole = content[: content.rfind(b"\n") + 1]
      self.responses = _read(self._path, whole)
      self._file = self._path.open("ab")
      self._file.truncate(len(whole))
    except OSError as error:
      raise ResponsesError(f"{self._path} cannot be opened: {error}") from error

  def __enter__(self) -> "ResponsesFile":
    return self

  def __exit__(self, *unused: object) -> None:
    # What `append` could not write, it has told of.
    with contextlib.suppress(OSError):
      self._file.close()

  def append(self, responses: Sequence[Response]) -> None:
    """Writes responses, and out of this process at once.

    Args:
      responses: none of which is there yet.

    Raises:
      ResponsesError: if one is there already, or the file cannot be written.
    """
    lines = []
    for response in responses:
      if response.key in self.responses:
        raise ResponsesError(f"{self._path} already holds {response.key}.")
      self.responses[response.key] = response
      row = json.dumps(dataclasses.asdict(response), allow_nan=False)
      lines.append(row.encode() + b"\n")
    try:
      self._file.write(b"".join(lines))
      self._file.flush()
    except OSError as error:
      raise ResponsesError(
        f"{self._path} cannot be written: {error}. Started again, the "
        "evaluation continues from what is there."
      ) from error


def _read(path: pathlib.Path, content: bytes) -> dict[ResponseKey, Response]:
  """Responses of whole lines, by key."""
  found: dict[ResponseKey, Response] = {}
  for number, line in enumerate(content.split(b"\n")[:-1], 1):
    try:
      response = _parse(json.loads(line))
    # The latter for brackets nested without end.
    except (ValueError, RecursionError) as error:
      raise ResponsesError(
        f"{path}:{number} is not a response: {error}. Remove that line, and "
        "the response will be made again."
      ) from error
    if response.key in found:
      raise ResponsesError(
        f"{path}:{number} holds {response.key} a second time. Remove one of "
        "the two lines."
      )
    found[response.key] = response
  return found


def _parse(row: Any) -> Response:
  """A response from JSON, each field of its type."""
  fields = dataclasses.fields(Response)
  if not isinstance(row, dict) or row.keys() != {f.name for f in fields}:
    raise ValueError("it has other fields")
  values = dict(row)
  rewards = values.pop("step_rewards")
  for field in fields:
    if field.name not in values:
      continue
    value = values[field.name]
    # JSON's true is an int to Python.
    wrong_bool = isinstance(value, bool) and field.type is not bool
    if wrong_bool or not isinstance(value, field.type):
      raise ValueError(f"{field.name} is {value!r}")
  if rewards is not None:
    if not isinstance(rewards, list) or not all(
      isinstance(reward, float | int) and -1 <= reward <= 1
      for reward in rewards
    ):
      raise ValueError(f"step_rewards is {rewards!r}, not numbers in -1..1")
    rewards = tuple(map(float, rewards))
  return Response(**values, step_rewards=rewards)
