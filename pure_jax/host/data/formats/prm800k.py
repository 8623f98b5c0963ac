r"""PRM800K in its original format, and what its labels mean.

A line is one solution as one labeler labelled it
([Lightman et al. 2023](https://arxiv.org/abs/2305.20050))::

  question  problem, ground_truth_answer, in phase 2 also ground_truth_solution
            and the pre-generated solution
  label     steps, finish_reason (solution, found_error, give_up, bad_problem)
    steps     one entry per step of the solution:
      completions        candidates for this step, each with
                         text, rating (1, 0, -1 or null), flagged
      chosen_completion  index of the candidate the solution goes on with
      human_completion   the labeler's own step, where no candidate would do
  generation, is_quality_control_question, is_initial_screening_question

**Which completion continues a step.** The chosen one. Where none is chosen,
the human one. Where there is neither, the solution ends before this step: the
labeler gave up, or (phase 2) found the error that this step's candidates
replace.

**Rows.** Every labelled candidate that does not continue its step becomes a row
of its own: the steps before it, and it. The solution itself is a row too,
unless it ends in such candidates, which then hold it whole. Steps shared by
several rows carry their label in each of them.

**Labels.** Rating 1 is good, 0 (neutral: not wrong, no progress) is good, -1
is bad. A human completion has no rating and is good, being written to replace
what was not. A null rating, and any rating flagged by the labeler as unsure,
is no label: such a candidate makes no row, and continues one unlabelled.

**After the first error** there is nothing: a row ends with its first bad step,
even where a bad candidate was chosen and the labeler went on.

**Left out**, unless asked for: quality-control lines (the same solutions given
to every labeler, so they would count many times), screening lines (given to
labelers before they were trusted), and lines whose problem the labeler
reported as broken (`bad_problem`).
"""

from typing import Any

from pure_jax.host.data.formats import fields
from pure_jax.host.data.formats.fields import Format, Row
from pure_jax.host.data.records import LabelledSolution, step_text

_GOOD = {1: 1, 0: 1, -1: 0}  # By rating.
BAD_PROBLEM = "bad_problem"


def make_format(
  *,
  quality_control: bool = False,
  screening: bool = False,
  bad_problems: bool = False,
) -> Format:
  """How to read PRM800K's original files.

  Args:
    quality_control: keep quality-control lines.
    screening: keep initial screening lines.
    bad_problems: keep lines whose problem was reported as broken.

  Returns:
    The format; a line becomes no row, one or many.
  """

  def parse(row: Row, number: int) -> list[LabelledSolution]:
    label = fields.mapping(row, "label")
    repeated = fields.flag(row, "is_quality_control_question")
    screened = fields.flag(row, "is_initial_screening_question")
    broken = fields.text(label, "finish_reason") == BAD_PROBLEM
    if (
      (repeated and not quality_control)
      or (screened and not screening)
      or (broken and not bad_problems)
    ):
      return []
    question = fields.mapping(row, "question")
    problem = fields.text(question, "problem")
    answer = fields.text(question, "ground_truth_answer")
    return [
      LabelledSolution(
        id=f"prm800k/{number}/{index}",
        source="prm800k",
        problem=problem,
        steps=tuple(text for text, _ in steps),
        labels=tuple(good for _, good in steps),
        answer=answer,
      )
      for index, steps in enumerate(expand(fields.items(label, "steps")))
    ]

  options = f"{quality_control=} {screening=} {bad_problems=}"
  return Format("prm800k", 1, LabelledSolution, parse, options)


def expand(steps: list[Any]) -> list[list[tuple[str, int | None]]]:
  """The rows of one line, by the rules above.

  Args:
    steps: ``label.steps`` of the line.

  Returns:
    Rows of (text of a step, label), alternatives in the order of the file,
    the solution itself last; none where nothing is labelled.

  Raises:
    ValueError: naming the step and completion that is malformed.
  """
  rows: list[list[tuple[str, int | None]]] = []
  solution: list[tuple[str, int | None]] = []
  held_whole = False  # Is the solution a part of a row already?
  for number, step in enumerate(steps, 1):
    try:
      if not isinstance(step, dict):
        raise ValueError("it is not an object")
      candidates = _candidates(step)
      chosen, following = _continuation(step, candidates)
    except ValueError as error:
      raise ValueError(f"step {number}: {error}") from None
    alternatives = [
      [*solution, candidate]
      for index, candidate in enumerate(candidates)
      if index != chosen and candidate[1] is not None
    ]
    rows += alternatives
    if following is None:
      held_whole = bool(alternatives)
      break
    solution.append(following)
    if following[1] == 0:
      break
  if not held_whole and any(good is not None for _, good in solution):
    rows.append(solution)
  return rows


def _candidates(step: Row) -> list[tuple[str, int | None]]:
  """(text, label) of each completion; `completions` may be null."""
  if fields.value(step, "completions") is None:
    return []
  found = []
  for index, completion in enumerate(fields.items(step, "completions"), 1):
    try:
      found.append(_completion(completion))
    except ValueError as error:
      raise ValueError(f"completion {index}: {error}") from None
  return found


def _completion(completion: Any) -> tuple[str, int | None]:
  """(text, label) of one completion of a model."""
  text, flagged = _text(completion)
  rating = None
  if fields.value(completion, "rating") is not None:
    rating = fields.integer(completion, "rating")
    if rating not in _GOOD:
      raise ValueError(f"the rating is {rating}, not 1, 0, -1 or null")
  return text, None if flagged or rating is None else _GOOD[rating]


def _continuation(
  step: Row, candidates: list[tuple[str, int | None]]
) -> tuple[int | None, tuple[str, int | None] | None]:
  """Index of the chosen candidate, and what the solution goes on with."""
  if fields.value(step, "chosen_completion") is not None:
    chosen = fields.integer(step, "chosen_completion")
    if not 0 <= chosen < len(candidates):
      raise ValueError(
        f"chosen_completion is {chosen}, with {len(candidates)} completions"
      )
    return chosen, candidates[chosen]
  human = fields.value(step, "human_completion")
  if human is None:
    return None, None
  text, flagged = _text(human)
  return None, (text, None if flagged else 1)


def _text(completion: Any) -> tuple[str, bool]:
  """A completion's text, and whether the labeler was unsure of it."""
  if not isinstance(completion, dict):
    raise ValueError("a completion is not an object")
  flagged = fields.value(completion, "flagged") is not None
  return (
    step_text(fields.text(completion, "text")),
    flagged and fields.flag(completion, "flagged"),
  )
