"""The file of step rewards of an evaluation of a PRM.

Solutions are appended when they are scored. Reports are computed only from
this file, so another threshold or bootstrap seed needs no new scores.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from pure_jax.host.data.records import LabelledSolution, problem_key
from pure_jax.host.evaluation.record_file import (
  RecordFile,
  RecordFileError,
  check_fields,
  is_reward,
)
from pure_jax.host.grading.verify import last_number
from pure_jax.runs.evaluation.labelled_solutions import LEFT_OUT

FILE = "scores.jsonl"


@dataclasses.dataclass(frozen=True)
class ScoredSolution:
  """A labelled solution with the PRM's step rewards.

  Attributes:
    data: name of the data set.
    row: its row in the data set.
    id: its id.
    problem: key of its problem; solutions of one problem share it.
    labels: label of each step: 1 good, 0 bad, None unlabelled.
    final_correct: whether its answer is right; None if unknown.
    answer: the last number of the last step; None if there is none.
    left_out: why it was not scored, one of `LEFT_OUT`; None if it was.
    step_rewards: p(good) - p(bad) of each step; None if left out.
  """

  data: str
  row: int
  id: str
  problem: str
  labels: tuple[int | None, ...]
  final_correct: bool | None
  answer: str | None
  left_out: str | None = None
  step_rewards: tuple[float, ...] | None = None

  @property
  def key(self) -> tuple[str, int]:
    """Identifies the solution: data set and row."""
    return self.data, self.row


def unscored(data: str, row: int, solution: LabelledSolution) -> ScoredSolution:
  """Makes the record of a solution, without `left_out` and `step_rewards`.

  Args:
    data: name of the data set.
    row: row of the solution in it.
    solution: the solution.
  """
  return ScoredSolution(
    data=data,
    row=row,
    id=solution.id,
    problem=problem_key(solution.problem),
    labels=tuple(solution.labels),
    final_correct=solution.final_correct,
    answer=last_number(solution.steps[-1]),
  )


def open_scores(
  folder: pathlib.Path, sizes: Mapping[str, int]
) -> RecordFile[ScoredSolution]:
  """Opens the file of scores of a folder, or creates it.

  Args:
    folder: an existing folder.
    sizes: number of rows of each data set, by name.

  Returns:
    The open file, a context manager.

  Raises:
    RecordFileError: if a line is not a scored solution of these data sets.
  """
  return RecordFile(
    folder / FILE, lambda row: _parse(row, sizes), "a scored solution"
  )


def is_scored(
  scores: RecordFile[ScoredSolution], solution: ScoredSolution
) -> bool:
  """Tells whether the file has a solution, scored or left out.

  Args:
    scores: the file.
    solution: from `unscored`.

  Raises:
    RecordFileError: if the file has another solution in that row.
  """
  known = scores.records.get(solution.key)
  if known is None:
    return False
  without_scores = dataclasses.replace(known, left_out=None, step_rewards=None)
  if without_scores != solution:
    raise RecordFileError(
      f"{FILE} has scores of another {solution.data!r}: its file has changed "
      f"since, first in row {solution.row}. Choose another --workdir."
    )
  return True


def _parse(row: dict[str, Any], sizes: Mapping[str, int]) -> ScoredSolution:
  """Converts JSON to a scored solution; raises a ValueError for a wrong one."""
  check_fields(row, ScoredSolution, unchecked=("labels", "step_rewards"))
  if row["data"] not in sizes:
    raise ValueError(f"data is {row['data']!r}, none of {[*sizes]}")
  size = sizes[row["data"]]
  if not 0 <= row["row"] < size:
    raise ValueError(f"row is {row['row']}, but its file has {size} rows")
  labels, rewards = row["labels"], row["step_rewards"]
  if not isinstance(labels, list) or any(
    isinstance(x, bool) or x not in (0, 1, None) for x in labels
  ):
    raise ValueError(f"labels is {labels!r}, not 0, 1 and null")
  row = row | {"labels": tuple(labels)}
  if row["left_out"] is not None:
    if row["left_out"] not in LEFT_OUT or rewards is not None:
      raise ValueError(
        f"left_out is {row['left_out']!r}, not one of {LEFT_OUT} without "
        "step_rewards"
      )
    return ScoredSolution(**row)
  is_complete = isinstance(rewards, list) and len(rewards) == len(labels)
  if not is_complete or not all(map(is_reward, rewards)):
    raise ValueError(
      f"step_rewards is {rewards!r}, not {len(labels)} numbers in -1..1, as "
      "many as labels"
    )
  return ScoredSolution(**(row | {"step_rewards": tuple(rewards)}))
