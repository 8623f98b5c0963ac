r"""Labelled steps: the stepwise format, Math-Shepherd, ProcessBench.

* Stepwise, as Hugging Face tools use it: ``prompt`` (text), ``completions``
  (texts of the steps), ``labels`` (a bool per step, true is good). Labels are
  kept as they are, also after the first bad step. Numbers are refused: a file
  with PRM800K's ratings 1, 0 and -1 would turn neutral steps into bad ones.
  (A conversion that has already done so cannot be told from one that has not.)
* Math-Shepherd: ``input`` is the problem and its steps in one text, each step
  closed by the marker "ки"; ``label`` is the same text with "+" (good) or "-"
  (bad) in place of each marker; ``task`` says where the problem is from. The
  first step begins at the last "Step 1:" before the first marker, everything
  before it is the problem. Rows where a marker comes before "Step 1:" are
  malformed: a part of the problem has a label. Labels are estimates, whether
  any of several continuations reached the answer, each step for itself: they
  are kept also after the first bad one.
* ProcessBench: ``id``, ``generator``, ``problem``, ``steps``,
  ``final_answer_correct``, and ``label``: the index of the first error, or -1
  where there is none. Steps before it are good, it is bad, those after it are
  not labelled.

Math-Shepherd and ProcessBench are read as their authors publish their layout;
neither was tried on the real files.
"""

import re

from pure_jax.host.data.formats import fields
from pure_jax.host.data.formats.fields import Format, Row
from pure_jax.host.data.records import LabelledSolution, step_text

_MARKER = "ки"
_STEP_1 = re.compile(r"[Ss]tep 1:")
_SIGNS = {"+": 1, "-": 0}
NO_ERROR = -1  # How ProcessBench writes that every step is right.


def step_texts(row: Row, field: str) -> tuple[str, ...]:
  """The steps of a solution from a list of texts.

  Args:
    row: the raw row.
    field: its name.

  Returns:
    Their texts, as `records.step_text` leaves them.

  Raises:
    ValueError: if it is no list, or a step is empty or no text.
  """
  found = []
  for number, step in enumerate(fields.items(row, field), 1):
    found.append(step_text(fields.checked_text(step, f"step {number}")))
    if not found[-1]:
      raise ValueError(f"step {number} is empty")
  return tuple(found)


def _stepwise(row: Row, number: int) -> list[LabelledSolution]:
  """One of a stepwise-supervision file."""
  labels = fields.items(row, "labels")
  for label in labels:
    if not isinstance(label, bool):
      raise ValueError(
        f"the label {label!r} is neither true nor false; ratings of PRM800K "
        "need its original format"
      )
  return [
    LabelledSolution(
      id=f"stepwise/{number}",
      source="stepwise",
      problem=fields.text(row, "prompt"),
      steps=step_texts(row, "completions"),
      labels=tuple(map(int, labels)),
    )
  ]


def _math_shepherd(row: Row, number: int) -> list[LabelledSolution]:
  """One of Math-Shepherd: its published layout, not tried on the real file."""
  whole = fields.text(row, "input")
  signed = fields.text(row, "label")
  *pieces, rest = whole.split(_MARKER)
  if not pieces or rest.strip():
    raise ValueError(f"field 'input' does not end with the marker {_MARKER!r}")
  labels, position = [], 0
  for piece in pieces:
    end = position + len(piece)
    if signed[position:end] != piece or signed[end : end + 1] not in _SIGNS:
      raise ValueError(
        f"field 'label' is not field 'input' with + or - for {_MARKER!r}, from "
        f"character {position} on"
      )
    labels.append(_SIGNS[signed[end]])
    position = end + 1
  if signed[position:].strip():
    raise ValueError("field 'label' goes on after its last sign")
  starts = [found.start() for found in _STEP_1.finditer(pieces[0])]
  if not starts:
    raise ValueError("no 'Step 1:' before the first marker")
  steps = [pieces[0][starts[-1] :], *pieces[1:]]
  return [
    LabelledSolution(
      id=f"math_shepherd/{number}",
      source=f"math_shepherd/{fields.text(row, 'task').lower()}",
      problem=pieces[0][: starts[-1]].strip(),
      steps=tuple(step_text(step) for step in steps),
      labels=tuple(labels),
    )
  ]


def _processbench(row: Row, number: int) -> list[LabelledSolution]:
  """One of ProcessBench: its published layout, not tried on the real files."""
  del number
  steps = step_texts(row, "steps")
  first_error = fields.integer(row, "label")
  if not NO_ERROR <= first_error < len(steps):
    raise ValueError(
      f"the label {first_error} is neither -1 nor one of {len(steps)} steps"
    )
  labels: list[int | None] = [1] * len(steps)
  if first_error != NO_ERROR:
    after = len(steps) - first_error - 1
    labels[first_error:] = [0, *[None] * after]
  return [
    LabelledSolution(
      id=f"processbench/{fields.text(row, 'id')}",
      source="processbench",
      problem=fields.text(row, "problem"),
      steps=steps,
      labels=tuple(labels),
      final_correct=fields.flag(row, "final_answer_correct"),
      generator=fields.text(row, "generator"),
    )
  ]


STEPWISE = Format("stepwise", 1, LabelledSolution, _stepwise)
MATH_SHEPHERD = Format("math_shepherd", 1, LabelledSolution, _math_shepherd)
PROCESSBENCH = Format("processbench", 1, LabelledSolution, _processbench)
