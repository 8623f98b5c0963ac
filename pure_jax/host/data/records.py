r"""What a row of data is, whichever file it came from.

Two records serve every source. `Problem` is what RL and evaluation read: a
text to prompt with and an answer to grade against. `LabelledSolution` is what
PRM training and PRM evaluation read: a problem, a solution cut into steps, a
label for each step that has one. Fields that a source does not have are None.

A step never holds a blank line and never begins or ends with white space, so
``"\n\n".join(steps)`` splits into the same steps again. `step_text` makes it
so: PRM800K's last steps, for one, hold ``"\n\n# Answer\n\n29"``.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Sequence

import numpy as np

_BLANK_LINES = re.compile(r"\s*\n\s*\n\s*")


class DataError(RuntimeError):
  """A data set that cannot be prepared or read."""


@dataclasses.dataclass(frozen=True)
class Problem:
  """A problem with what is known of its answer.

  Attributes:
    id: unique within a data set.
    source: the name of the format it was read with.
    problem: the text, as a policy or a PRM reads it.
    answer: what a response is graded against; None where there is none, so
      this problem has no verifiable reward.
    withheld_answer: an answer the source knows but keeps from training (MATH
      prompts of PURE): to measure with, never to reward with.
    several_answers: `answer` lists several values, in any order.
    tolerance: absolute error at which a number still counts as right.
    unit: of the answer, which holds the number alone.
    solution: a worked solution, to imitate or to show.
    level: difficulty as the source rates it, 1 (easy) to 5.
    subject: the source's own division, to report accuracy by.
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
    """Refuses a row that nothing could be done with."""
    if not self.problem.strip():
      raise ValueError("the problem is empty")
    if self.answer is not None and not self.answer.strip():
      raise ValueError("the answer is empty")
    if self.tolerance is not None and not 0 <= self.tolerance < math.inf:
      raise ValueError(f"the tolerance is {self.tolerance}, not 0 or more")

  @property
  def has_answer(self) -> bool:
    """Whether a response can be graded."""
    return self.answer is not None


@dataclasses.dataclass(frozen=True)
class LabelledSolution:
  """A solution in steps, labelled step by step.

  Attributes:
    id: unique within a data set.
    source: the name of the format it was read with.
    problem: the text; the solutions of one problem share it, and so its
      `problem_key`.
    steps: S texts, at least one.
    labels: for each step 1 (good), 0 (bad) or None (not labelled).
    answer: the right answer, None where the source does not say.
    final_correct: whether the solution arrives at it, None where unknown.
    generator: which model wrote the solution, None where unknown.
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
    """Refuses a row that nothing could be done with."""
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

  @property
  def has_answer(self) -> bool:
    """Whether the right answer is known."""
    return self.answer is not None

  @property
  def first_error(self) -> int | None:
    """Index of the first step labelled bad, None where there is none.

    It is the first error where every step before it is labelled good, as in
    PRM800K and ProcessBench.
    """
    return self.labels.index(0) if 0 in self.labels else None


def step_text(text: str) -> str:
  r"""A step's text without blank lines inside and white space around.

  >>> step_text(" So it is 29.\n\n# Answer\n\n29\n")
  'So it is 29.\n# Answer\n29'

  Args:
    text: as the source has it.

  Returns:
    The text; "" for a step of white space alone.
  """
  return _BLANK_LINES.sub("\n", text.strip())


def problem_key(problem: str) -> str:
  """A short name of a problem, from its text alone.

  Solutions of one problem share it, so best-of-N groups by it; it is the same
  in every file that holds the problem.

  >>> problem_key("What is 1+1?") == problem_key(" What is 1+1?\\n")
  True

  Args:
    problem: the text; white space around it does not count.

  Returns:
    16 hexadecimal digits.
  """
  return hashlib.blake2b(problem.strip().encode(), digest_size=8).hexdigest()


def split_by_problem(
  rows: Sequence[Problem | LabelledSolution], one_in: int
) -> tuple[np.ndarray, np.ndarray]:
  """Row indices of a training and a held-out part that share no problem.

  Where a problem goes follows from its text alone: neither other rows nor
  their order matter, and two files that share a problem agree about it.

  Args:
    rows: any rows.
    one_in: one problem in so many is held out, on average; at least 2.

  Returns:
    (training, held-out) indices, int64, ascending; either may be empty.

  Raises:
    ValueError: if `one_in` is below 2.
  """
  if one_in < 2:
    raise ValueError(f"one_in must be at least 2, got {one_in}.")
  held_out = np.asarray(
    [int(problem_key(row.problem), 16) % one_in == 0 for row in rows], bool
  )
  return np.flatnonzero(~held_out), np.flatnonzero(held_out)
