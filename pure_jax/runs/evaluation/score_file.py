"""Step scores as JSON lines: what an evaluation of a PRM keeps.

A row is what is known of one row of the data:

  data, row         name of the data set, number of the row in it
  id, problem       of the row; its solutions share the name of a problem
  left_out          why it was not scored, null where it was
  step_rewards      p(good) - p(bad) of each step; absent where left out
  labels            1 good, 0 bad, null not labelled, of each step
  final_correct     whether the solution is right, null where unknown
  answer            the last number of the last step, null if there is none

The report is computed from these rows alone.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pure_jax.host.data.records import LabelledSolution, problem_key
from pure_jax.host.grading.verify import last_number
from pure_jax.runs.evaluation.labelled_solutions import LEFT_OUT
from pure_jax.runs.workdir import WorkdirError

FILE = "scores.jsonl"

Row = dict[str, Any]


class ScoreFile:
  """An append-only file of scored rows.

  Attributes:
    rows: those it holds, by data set and number, in their order.
  """

  def __init__(self, folder: pathlib.Path, sizes: Mapping[str, int]):
    """Opens the file, or begins it; a line that was cut off is dropped.

    Args:
      folder: where it is.
      sizes: number of rows of each data set, by name.

    Raises:
      WorkdirError: naming the line that is no scored row of these data sets,
        or is there twice; the file is left as it is.
    """
    self._path = folder / FILE
    whole = b""
    if self._path.exists():
      found = self._path.read_bytes()
      whole = found[: found.rfind(b"\n") + 1]
    self.rows = _read(self._path, whole, sizes)
    self._file = self._path.open("ab")
    self._file.truncate(len(whole))

  def __enter__(self) -> "ScoreFile":
    return self

  def __exit__(self, *unused: object) -> None:
    self._file.close()

  def holds(self, data: str, number: int, row: LabelledSolution) -> bool:
    """Whether a row is done.

    Args:
      data: name of the data set.
      number: of the row.
      row: the row.

    Raises:
      WorkdirError: if another row was done under its name.
    """
    done = self.rows.get((data, number))
    if done is None:
      return False
    mine = describe(data, number, row)
    if any(done[name] != mine[name] for name in mine):
      raise WorkdirError(
        f"{self._path} has scores of another {data!r}: its file has changed "
        f"since, first in row {number}. Choose another --workdir."
      )
    return True

  def append(self, rows: Sequence[Row]) -> None:
    """Writes rows, and out of this process at once."""
    for row in rows:
      self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
      self.rows[row["data"], row["row"]] = row
    self._file.flush()


def describe(data: str, number: int, row: LabelledSolution) -> Row:
  """What is known of a row before it is scored.

  Args:
    data: name of the data set.
    number: of the row.
    row: the row.

  Returns:
    The fields of the file but for `left_out` and `step_rewards`.
  """
  return {
    "data": data,
    "row": number,
    "id": row.id,
    "problem": problem_key(row.problem),
    "labels": list(row.labels),
    "final_correct": row.final_correct,
    "answer": last_number(row.steps[-1]),
  }


# Types of the fields every row has.
_KINDS = {
  "data": str,
  "row": int,
  "id": str,
  "problem": str,
  "left_out": str | None,
  "labels": list,
  "final_correct": bool | None,
  "answer": str | None,
}


def _read(
  path: pathlib.Path, content: bytes, sizes: Mapping[str, int]
) -> dict[tuple[str, int], Row]:
  """Rows of whole lines, by data set and number."""
  rows: dict[tuple[str, int], Row] = {}
  for number, line in enumerate(content.split(b"\n")[:-1], 1):
    try:
      row = json.loads(line)
      _check(row, sizes)
    # The latter for brackets nested without end.
    except (ValueError, RecursionError) as error:
      raise WorkdirError(
        f"{path}:{number} is not a scored row: {error}. Remove that line, and "
        "the row will be scored again."
      ) from error
    place = row["data"], row["row"]
    if place in rows:
      raise WorkdirError(
        f"{path}:{number} holds row {row['row']} of {row['data']!r} a second "
        "time. Remove one of the two lines."
      )
    rows[place] = row
  return rows


def _check(row: Any, sizes: Mapping[str, int]) -> None:
  """Raises ValueError for what `ScoreFile.append` did not write."""
  if (
    not isinstance(row, dict) or row.keys() - {"step_rewards"} != _KINDS.keys()
  ):
    raise ValueError("it has other fields")
  for name, kind in _KINDS.items():
    # JSON's true is an int to Python.
    wrong_bool = isinstance(row[name], bool) and name != "final_correct"
    if wrong_bool or not isinstance(row[name], kind):
      raise ValueError(f"{name} is {row[name]!r}")
  if row["data"] not in sizes:
    raise ValueError(f"data is {row['data']!r}, none of {[*sizes]}")
  size = sizes[row["data"]]
  if not 0 <= row["row"] < size:
    raise ValueError(f"row is {row['row']}, but its file has {size} rows")
  labels = row["labels"]
  if any(isinstance(x, bool) or x not in (0, 1, None) for x in labels):
    raise ValueError(f"labels is {labels!r}, not 0, 1 and null")
  if row["left_out"] is not None:
    if row["left_out"] not in LEFT_OUT or "step_rewards" in row:
      raise ValueError(
        f"left_out is {row['left_out']!r}, not one of {LEFT_OUT} without "
        "step_rewards"
      )
    return
  rewards = row.get("step_rewards")
  if (
    not isinstance(rewards, list)
    or len(rewards) != len(labels)
    or not all(
      isinstance(x, int | float) and not isinstance(x, bool) and -1 <= x <= 1
      for x in rewards
    )
  ):
    raise ValueError(
      f"step_rewards is {rewards!r}, not {len(labels)} numbers in -1..1, as "
      "many as labels"
    )
