r"""Labelled steps: the stepwise format, Math-Shepherd, ProcessBench.

* Stepwise, the format of Hugging Face tools: ``prompt`` (text), ``completions``
  (texts of the steps), ``labels`` (a bool per step, true is good). Steps after
  the first bad one keep their labels. Labels that are numbers are an error: a
  file with PRM800K's ratings 1, 0 and -1 would turn neutral steps into bad
  ones. (A file whose ratings were already converted to bools cannot be
  detected.)
* Math-Shepherd: ``input`` is the problem and its steps in one text, with the
  marker "ки" at the end of each step; ``label`` is the same text with "+"
  (good) or "-" (bad) in place of each marker; ``task`` names the source of the
  problem. The first step begins at the last "Step 1:" before the first marker,
  and the text before it is the problem. A row with a marker before "Step 1:" is
  malformed. A label says whether at least one of several continuations of the
  step reached the answer. Steps after the first bad one keep their labels.
* ProcessBench: ``id``, ``generator``, ``problem``, ``steps``,
  ``final_answer_correct``, and ``label``: the index of the first error, or -1
  if there is none. The steps before the first error are good, it is bad, and
  the steps after it are not labelled.

The parsers of Math-Shepherd and ProcessBench follow the published layouts. They
have not been tested on the real files.
"""

import re

from pure_jax.host.data.formats import Format, Row, fields
from pure_jax.host.data.records import LabelledSolution, step_text

_MARKER = "ки"
_STEP_1 = re.compile(r"[Ss]tep 1:")
_SIGNS = {"+": 1, "-": 0}
NO_ERROR = -1  # ProcessBench: every step is right.


def step_texts(row: Row, field: str) -> tuple[str, ...]:
  """Reads the steps of a solution, normalised by `records.step_text`.

  Args:
    row: the raw row.
    field: name of the field, a list of texts.

  Raises:
    ValueError: if it is not a list, or a step is empty or not a text.
  """
  steps = []
  for number, step in enumerate(fields.typed(row, field, list), 1):
    steps.append(step_text(fields.checked_text(step, f"step {number}")))
    if not steps[-1]:
      raise ValueError(f"step {number} is empty")
  return tuple(steps)


def _stepwise(row: Row, number: int) -> list[LabelledSolution]:
  """Parses a row of a stepwise file."""
  labels = fields.typed(row, "labels", list)
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
  """Parses a row of Math-Shepherd."""
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
  starts = [match.start() for match in _STEP_1.finditer(pieces[0])]
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
  """Parses a row of ProcessBench."""
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
      final_correct=fields.typed(row, "final_answer_correct", bool),
      generator=fields.text(row, "generator"),
    )
  ]


STEPWISE = Format("stepwise", 1, LabelledSolution, _stepwise)
MATH_SHEPHERD = Format("math_shepherd", 1, LabelledSolution, _math_shepherd)
PROCESSBENCH = Format("processbench", 1, LabelledSolution, _processbench)
