r"""PRM800K in its original format, and the meaning of its labels.

A line is one solution, labelled by one labeler
([Lightman et al. 2023](https://arxiv.org/abs/2305.20050))::

  question  problem, ground_truth_answer, in phase 2 also ground_truth_solution
            and the pre-generated solution
  label     steps, finish_reason (solution, found_error, give_up, bad_problem)
    steps     one entry per step of the solution:
      completions        candidates for this step, each with
                         text, rating (1, 0, -1 or null), flagged
      chosen_completion  index of the candidate that the solution continues with
      human_completion   the labeler's own step, if no candidate was acceptable
  generation, is_quality_control_question, is_initial_screening_question

**Continuation.** The solution continues with the chosen completion, or else
with the human completion. If a step has neither, the solution ends before this
step: the labeler gave up, or (phase 2) found the error that the candidates of
this step replace.

**Records.** Every labelled candidate that the solution does not continue with
makes a record: the steps before it, then the candidate. The solution makes the
last record, unless it ends at a step whose candidates made records: these
already contain it. A step that several records share has its label in each.

**Labels.** Rating 1 is good and -1 is bad. Rating 0 is neutral: not wrong, but
no progress. `NEUTRAL_LABELS` lists the choices of its label: "good" (Lightman
et al.), "bad" or "unlabelled". TRL's conversion of the file takes only rating 1
as good, so neutral and unrated candidates are bad there. Whether the data set
that the paper's PRM was trained on did so is unknown. A human completion has no
rating and is good, because it was written to replace bad candidates. A
candidate whose rating is null, or flagged by the labeler as unsure, has no
label. A candidate without a label makes no record of its own, and is an
unlabelled step if the solution continues with it.

**First error.** A record ends with its first bad step, even if the labeler
chose a bad candidate and went on. With neutral_labels="bad" a neutral step is
such an end. TRL's conversion goes on after bad steps.

**Left out** by default: quality-control lines (every labeler got the same
solutions, so they would count many times), screening lines (given to labelers
before they were accepted), and lines whose problem was reported as broken
(`bad_problem`).
"""

from collections.abc import Mapping
from typing import Any

from pure_jax.host.data.formats import Format, Row, fields
from pure_jax.host.data.records import LabelledSolution, step_text

# The label of rating 0, by the names that configs use.
NEUTRAL_LABELS: dict[str, int | None] = {
  "good": 1,
  "bad": 0,
  "unlabelled": None,
}
BAD_PROBLEM = "bad_problem"

_Labels = Mapping[int | None, int | None]  # Rating -> label.


def make_format(
  *,
  quality_control: bool = False,
  screening: bool = False,
  bad_problems: bool = False,
  neutral_labels: str = "good",
) -> Format:
  """Makes the format of PRM800K's original files, any number of records a line.

  Args:
    quality_control: True includes quality-control lines.
    screening: True includes initial screening lines.
    bad_problems: True includes lines whose problem was reported as broken.
    neutral_labels: label of neutral steps, one of `NEUTRAL_LABELS`.

  Raises:
    ValueError: neutral_labels is none of them.
  """
  if neutral_labels not in NEUTRAL_LABELS:
    raise ValueError(
      f"neutral_labels must be one of {(*NEUTRAL_LABELS,)}, not "
      f"{neutral_labels!r}."
    )
  labels: _Labels = {1: 1, 0: NEUTRAL_LABELS[neutral_labels], -1: 0, None: None}

  def parse(row: Row, number: int) -> list[LabelledSolution]:
    label = fields.typed(row, "label", dict)
    repeated = fields.typed(row, "is_quality_control_question", bool)
    screened = fields.typed(row, "is_initial_screening_question", bool)
    broken = fields.text(label, "finish_reason") == BAD_PROBLEM
    if (
      (repeated and not quality_control)
      or (screened and not screening)
      or (broken and not bad_problems)
    ):
      return []
    question = fields.typed(row, "question", dict)
    problem = fields.text(question, "problem")
    answer = fields.text(question, "ground_truth_answer")
    return [
      LabelledSolution(
        id=f"prm800k/{number}/{index}",
        source="prm800k",
        problem=problem,
        steps=tuple(text for text, _ in steps),
        labels=tuple(label for _, label in steps),
        answer=answer,
      )
      for index, steps in enumerate(
        _expand(fields.typed(label, "steps", list), labels)
      )
    ]

  options = f"{quality_control=} {screening=} {bad_problems=} {neutral_labels=}"
  return Format("prm800k", 1, LabelledSolution, parse, options)


def _expand(
  steps: list[Any], labels: _Labels
) -> list[list[tuple[str, int | None]]]:
  """Makes the labelled solutions of one line, by the rules above.

  Each is a list of (text of a step, label): the alternatives in the order of
  the file, then the solution itself. Empty if nothing is labelled. A ValueError
  names a step or completion that is malformed by its number.
  """
  rows: list[list[tuple[str, int | None]]] = []
  solution: list[tuple[str, int | None]] = []
  is_contained = False  # Whether the rows contain the whole solution already.
  for number, step in enumerate(steps, 1):
    try:
      if not isinstance(step, dict):
        raise ValueError("it is not an object")
      candidates = _candidates(step, labels)
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
      is_contained = bool(alternatives)
      break
    solution.append(following)
    if following[1] == 0:
      break
  if not is_contained and any(label is not None for _, label in solution):
    rows.append(solution)
  return rows


def _candidates(step: Row, labels: _Labels) -> list[tuple[str, int | None]]:
  """(text, label) of each completion. `completions` may be null."""
  if fields.value(step, "completions") is None:
    return []
  candidates = []
  for index, completion in enumerate(
    fields.typed(step, "completions", list), 1
  ):
    try:
      candidates.append(_completion(completion, labels))
    except ValueError as error:
      raise ValueError(f"completion {index}: {error}") from None
  return candidates


def _completion(completion: Any, labels: _Labels) -> tuple[str, int | None]:
  """(text, label) of a completion written by a model."""
  text, flagged = _text(completion)
  rating = None
  if fields.value(completion, "rating") is not None:
    rating = fields.integer(completion, "rating")
    if rating not in labels:
      raise ValueError(f"the rating is {rating}, not 1, 0, -1 or null")
  return text, None if flagged else labels[rating]


def _continuation(
  step: Row, candidates: list[tuple[str, int | None]]
) -> tuple[int | None, tuple[str, int | None] | None]:
  """(index of the chosen candidate, step that the solution continues with)."""
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
  """(text of a completion, whether the labeler flagged it as unsure)."""
  if not isinstance(completion, dict):
    raise ValueError("a completion is not an object")
  flagged = fields.value(completion, "flagged") is not None
  return (
    step_text(fields.text(completion, "text")),
    flagged and fields.typed(completion, "flagged", bool),
  )
