"""Step scores as JSON lines: what an evaluation of a PRM keeps.

A row is what is known of one row of the data:

  data, row         name of the data set, number of the row in it
  id, problem       of the row; its solutions share the name of a problem
  left_out          why it was not scored, null where it was
  step_rewards      p(good) - p(bad) of each step
  labels            1 good, 0 bad, null not judged, of each step
  final_correct     whether the solution is right, null where unknown
  answer            the last number of the last step, null if there is none

The report is computed from these rows alone.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from pure_jax.host.data.records import Steps, problem_key
from pure_jax.host.verify import last_number
from pure_jax.host.workdir import WorkdirError

FILE = "scores.jsonl"

Row = dict[str, Any]


class ScoreFile:
  """An append-only file of scored rows.

  Attributes:
    rows: those it holds, by data set and number, in their order.
  """

  def __init__(self, folder: pathlib.Path):
    """Opens the file, or begins it; a line that was cut off is dropped."""
    self._path = folder / FILE
    whole = b""
    if self._path.exists():
      found = self._path.read_bytes()
      whole = found[: found.rfind(b"\n") + 1]
    self.rows: dict[tuple[str, int], Row] = {}
    for number, line in enumerate(whole.splitlines(), 1):
      try:
        row = json.loads(line)
        self.rows[row["data"], row["row"]] = row
      except (ValueError, KeyError, TypeError) as error:
        raise WorkdirError(
          f"{self._path}:{number} is not a scored row ({error!r}): mend it, or "
          "remove the file to score anew."
        ) from error
    self._file = self._path.open("ab")
    self._file.truncate(len(whole))

  def __enter__(self) -> "ScoreFile":
    return self

  def __exit__(self, *unused: object) -> None:
    self._file.close()

  def holds(self, data: str, number: int, row: Steps) -> bool:
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


def describe(data: str, number: int, row: Steps) -> Row:
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
