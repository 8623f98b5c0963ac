"""Responses that `evaluate.py` wrote, as solutions with labelled steps.

Each line of ``responses.jsonl`` has ``text``, ``correct``, ``sample``, and the
id of its ``problem``, whose text is in the file of the benchmark:
`with_problems` puts it in. A step ends at a blank line. Its label is that of
its equations, see `equations.label_step`. A response without text is left out.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from pure_jax.host.data.formats import Format, Row, equations, fields
from pure_jax.host.data.records import (
  DataError,
  LabelledSolution,
  Problem,
  step_text,
)
from pure_jax.host.text.tokenization import SEPARATOR

NAME = "responses"
_GREEDY = "greedy"


def _parse(row: Row, number: int) -> list[LabelledSolution]:
  """Parses a response; in place of its problem's text it has the id."""
  text = fields.checked_text(fields.value(row, "text"), "field 'text'")
  steps = tuple(filter(None, map(step_text, text.split(SEPARATOR))))
  generator = _GREEDY
  if fields.value(row, "sample") is not None:
    generator = f"sample {fields.integer(row, 'sample')}"
  correct, problem = (
    fields.typed(row, "correct", bool),
    fields.text(row, "problem"),
  )
  if not steps:
    return []
  return [
    LabelledSolution(
      id=f"{NAME}/{number}",
      source=NAME,
      problem=problem,
      steps=steps,
      labels=tuple(map(equations.label_step, steps)),
      final_correct=correct,
      generator=generator,
    )
  ]


RESPONSES = Format(NAME, 1, LabelledSolution, _parse)


def with_problems(
  responses: Sequence[LabelledSolution], problems: Iterable[Problem], file: str
) -> list[LabelledSolution]:
  """Gives responses the texts of their problems.

  Greedy responses are left out if there are samples: a best-of-n is one of the
  samples of a problem.

  Args:
    responses: of the format `RESPONSES`.
    problems: the problems of the benchmark.
    file: their file, for the message.

  Raises:
    DataError: if a problem is missing, or there is no response.
  """
  texts = {problem.id: problem.problem for problem in problems}
  missing = {r.problem for r in responses} - texts.keys()
  if missing:
    raise DataError(
      f"{file} lacks {len(missing)} problems of the responses, such as "
      f"{min(missing)}: name the file and the format of the benchmark that "
      "they answer."
    )
  samples = [r for r in responses if r.generator != _GREEDY]
  return [
    dataclasses.replace(response, problem=texts[response.problem])
    for response in samples or responses
  ]
