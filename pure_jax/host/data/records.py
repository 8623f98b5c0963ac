r"""The two records that every data format is parsed into.

RL and evaluation read `Problem`: a text to prompt with and an answer to grade
against. PRM training and PRM evaluation read `LabelledSolution`: a problem, a
solution cut into steps, and a label for each step that has one. A field that
the source does not have is None.

A step contains no blank line and has no white space at its ends, so that
``"\n\n".join(steps)`` splits into the same steps again. `step_text` normalises
a step. PRM800K needs it: some last steps contain ``"\n\n# Answer\n\n29"``.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Sequence

import numpy as np

# Types of fields that may be None, to the type without None.
OPTIONAL = {kind | None: kind for kind in (str, bool, int, float)}
_BLANK_LINES = re.compile(r"\s*\n\s*\n\s*")


class DataError(RuntimeError):
  """A data set that cannot be prepared or read."""


@dataclasses.dataclass(frozen=True)
class Problem:
  """A problem, with the facts about its answer that the source gives.

  Attributes:
    id: unique within a data set.
    source: name of the format that the file was read with.
    problem: the text that a policy or a PRM reads.
    answer: the reference that responses are graded against. None if there is
      no reference: the problem then has no verifiable reward.
    withheld_answer: a reference for measuring accuracy that must not be used
      as a reward (the MATH prompts of PURE have it).
    several_answers: True if `answer` lists several values, in any order.
    tolerance: largest absolute error of a correct numeric answer.
    unit: unit of the answer. `answer` is the number without it.
    solution: a worked solution.
    level: difficulty given by the source, 1 (easy) to 5.
    subject: subject given by the source.
  """

  id: str
  source: str
  problem: str
  answer: str | None = None
  withheld_answer: str | None = None
  several_answers: bool = False
  tolerance: float | None = None
  unit: str | None = None
  solution: str | None = None
  level: int | None = None
  subject: str | None = None

  def __post_init__(self):
    """Validates the fields."""
    if not self.problem.strip():
      raise ValueError("the problem is empty")
    if self.answer is not None and not self.answer.strip():
      raise ValueError("the answer is empty")
    if self.tolerance is not None and not 0 <= self.tolerance < math.inf:
      raise ValueError(f"the tolerance is {self.tolerance}, not 0 or more")
    # It is stored in 32 bits.
    if self.level is not None and not -(2**31) <= self.level < 2**31:
      raise ValueError(f"the level is {self.level}, beyond 32 bits")

  @property
  def has_answer(self) -> bool:
    """Whether a reward may use the answer."""
    return self.answer is not None

  @property
  def known_answer(self) -> str | None:
    """The answer, else the one withheld from training; None without both."""
    return self.answer or self.withheld_answer


@dataclasses.dataclass(frozen=True)
class LabelledSolution:
  """A solution cut into steps, with a label per step.

  Attributes:
    id: unique within a data set.
    source: name of the format that the file was read with.
    problem: the text of the problem. All solutions of one problem have the
      same text and therefore the same `problem_key`.
    steps: S texts, at least one.
    labels: S labels: 1 (good), 0 (bad) or None (not labelled).
    answer: the reference answer, None if unknown.
    final_correct: whether the solution's final answer is correct, None if
      unknown.
    generator: the model that wrote the solution, None if unknown.
  """

  id: str
  source: str
  problem: str
  steps: tuple[str, ...]
  labels: tuple[int | None, ...]
  answer: str | None = None
  final_correct: bool | None = None
  generator: str | None = None

  def __post_init__(self):
    """Validates the fields."""
    if not self.problem.strip():
      raise ValueError("the problem is empty")
    if not self.steps:
      raise ValueError("there is no step")
    if len(self.labels) != len(self.steps):
      raise ValueError(f"{len(self.steps)} steps, {len(self.labels)} labels")
    for number, step in enumerate(self.steps, 1):
      if step != step_text(step) or not step:
        raise ValueError(f"step {number} is empty or holds a blank line")
    if not {*self.labels} <= {0, 1, None}:
      raise ValueError(f"labels are 1, 0 or None, not {self.labels}")


def step_text(text: str) -> str:
  r"""Removes blank lines from a step, and white space from its ends.

  >>> step_text(" So it is 29.\n\n# Answer\n\n29\n")
  'So it is 29.\n# Answer\n29'

  Args:
    text: the step as the source has it.
  """
  return _BLANK_LINES.sub("\n", text.strip())


def label_arrays(
  labels: Sequence[Sequence[int | None]], max_steps: int
) -> tuple[np.ndarray, np.ndarray]:
  """Collects the labels of responses, aligned with `steps.split_steps`.

  If a response has more than S steps, its last entry stands for the rest, and
  is good only if all labels of the rest are.

  >>> label_arrays([[1, None, 0], [1]], max_steps=2)[0]
  array([[1, 0],
         [1, 0]], dtype=int32)

  Args:
    labels: of each of n responses, the label of each step: 1 (good), 0 (bad) or
      None (not labelled).
    max_steps: S.

  Returns:
    (labels [n, S] int32, 0 without a label; their mask [n, S] bool).
  """
  values = np.zeros((len(labels), max_steps), np.int32)
  mask = np.zeros((len(labels), max_steps), bool)
  for row, of_row in enumerate(labels):
    for step, label in enumerate(of_row):
      if label is None:
        continue
      last = min(step, max_steps - 1)
      before = values[row, last] if mask[row, last] else 1
      values[row, last], mask[row, last] = min(label, before), True
  return values, mask


def label_early_ends(
  labels: Sequence[Sequence[int | None]], early: Sequence[bool]
) -> list[list[int | None]]:
  """Labels the last step of a response bad if it ends there too early.

  >>> label_early_ends([[1, None], [0, None], [1]], [True, True, False])
  [[1, 0], [0, None], [1]]

  Args:
    labels: as for `label_arrays`.
    early: of each response, whether it ended without an answer. Nothing changes
      if a step is bad already.
  """
  return [
    [*of_row[:-1], 0] if ends and of_row and 0 not in of_row else [*of_row]
    for of_row, ends in zip(labels, early, strict=True)
  ]


def problem_key(problem: str) -> str:
  """A hash of a problem's text, 16 hexadecimal digits, the same in every file.

  Best-of-N groups the solutions of a problem by it.

  >>> problem_key("What is 1+1?") == problem_key(" What is 1+1?\\n")
  True

  Args:
    problem: the text. White space at its ends is ignored.
  """
  return hashlib.blake2b(problem.strip().encode(), digest_size=8).hexdigest()


def split_by_problem(
  rows: Sequence[Problem | LabelledSolution], one_in: int
) -> tuple[np.ndarray, np.ndarray]:
  """Splits rows into training and held-out rows that share no problem.

  The split of a problem depends on its text only, not on the other rows or
  their order. Two files that share a problem put it in the same split. Returns
  (training, held-out) row indices, int64, ascending; either may be empty.

  Args:
    rows: problems or labelled solutions.
    one_in: on average one problem in `one_in` is held out; at least 2.
  """
  if one_in < 2:
    raise ValueError(f"one_in must be at least 2, got {one_in}.")
  held_out = np.asarray(
    [int(problem_key(row.problem), 16) % one_in == 0 for row in rows], bool
  )
  return np.flatnonzero(~held_out), np.flatnonzero(held_out)
