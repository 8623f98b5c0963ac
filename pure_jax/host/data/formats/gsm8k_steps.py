r"""GSM8K solutions by language models, each step labelled by a calculator.

``example_model_solutions.jsonl`` has, for each test problem of GSM8K, one
reference solution and one solution by each of four models (`GENERATORS`). The
solutions contain calculator annotations such as ``48/2 = <<48/2=24>>24 clips``,
which a program can check. The rules:

1. **Steps.** Each line is a step. The last line, ``A: 24``, is the final
  answer.
   A solution without that line was cut off, and has no final step. Annotations
   are removed from the text after they have been checked.
2. **An annotation is true** if all its sides are equal. The last side, the
   result, may be rounded up or down at its last decimal place (a whole number
   has none and must be exact), or have the error of a float (1e-9, relative).
   The number written right after the annotation must be the result, rounded up
   or down at its own last place; its sign is ignored. An annotation has no
   verdict if a side is not arithmetic (``+ - * /``, brackets, decimals, per
   cent). A number whose meaning the following text changes ("3/4", "%",
   "million") is not compared.
3. **A solution is right** if its final answer is the reference's number.
4. **In a right solution** a step is bad if an annotation is false, not labelled
   if an annotation has no verdict, and good otherwise.
5. **In a wrong solution** all annotations may be true and the error lies in
   the choice of operations. A step is good only if it has annotations, all of
   them are true, the reference computes each of their results too (to within
   0.005), and the same holds for all annotated steps before it. A step with a
   false annotation is bad, and so is the final answer. All other steps are not
   labelled.
6. **After the first bad step** no step is labelled.

With ``departures=True``, rule 5 also labels as bad the first step with true
annotations of which one result is not computed by the reference: a departure.
This puts the error where the solution leaves the reference's path, not at its
end. It is a guess, because another correct path departs as well.

With ``answers=True``, the final answer of a wrong solution is bad also after
another bad step, against rule 6. With departures alone most wrong answers have
no label, so that a final answer is nearly always good.

On the real file (1,319 problems, 5,276 solutions, 23,141 steps), 10,520 steps
are good, 3,269 are bad and 9,352 are not labelled. The models call a
calculator, so false annotations are rare, and 3,193 of the bad steps are final
answers. With departures, 3,077 of 3,274 bad steps come before the last; with
answers as well, 6,342 steps are bad. The error of the guess is known from right
solutions: 12 % of their annotated steps, which are all good, depart.

The problems are GSM8K's *test* problems: a model trained on them must not be
evaluated on them. `records.split_by_problem` holds problems out, with all four
solutions of a problem in the same split.
"""

import dataclasses
import re
from fractions import Fraction

from pure_jax.host.data.formats import Format, Row, fields
from pure_jax.host.data.formats.calculator import (
  agrees,
  evaluate,
  read_number,
  rounds,
)
from pure_jax.host.data.formats.problems import (
  plain_number,
  strip_annotations,
)
from pure_jax.host.data.records import LabelledSolution, step_text

GENERATORS = (
  "6b_finetuning",
  "6b_verification",
  "175b_finetuning",
  "175b_verification",
)
FINAL = "A: "
SAME_RESULT = Fraction(5, 1000)

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
# The number written after an annotation, and text that changes its meaning.
_WRITTEN = re.compile(
  r"\s*\$?\s*(-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|-?\.\d+)"
  r"(?P<changed>[/,.]?\d|\s*(?:%|(?:k|hundred|thousand|million|billion)\b))?",
  re.ASCII,
)
_SPACED = re.compile(r"\s*\$?\s*(\d{1,3}(?: \d{3})+)(?!\d)", re.ASCII)


@dataclasses.dataclass(frozen=True)
class _CheckedLine:
  """The checked annotations of one line of a solution.

  Attributes:
    results: the results that are numbers.
    verdict: True if all annotations are true, False if one is false, None if
      there is none, or none is false but one has no verdict.
    annotated: whether the line has annotations.
  """

  results: tuple[Fraction, ...]
  verdict: bool | None
  annotated: bool


def make_format(*, departures: bool = False, answers: bool = False) -> Format:
  """Makes the format of ``example_model_solutions.jsonl``, four records a line.

  Args:
    departures: True also labels departures as bad: many more bad steps, some of
      them wrongly.
    answers: True labels the final answer of every wrong solution as bad.
  """

  def parse(row: Row, number: int) -> list[LabelledSolution]:
    problem = fields.text(row, "question")
    reference = fields.text(row, "ground_truth").split("\n")
    if not reference[-1].startswith(FINAL):
      raise ValueError("the last line of 'ground_truth' is not 'A: ' ...")
    answer = plain_number(reference[-1].removeprefix(FINAL).strip())
    records = []
    for generator in GENERATORS:
      sample = fields.typed(row, generator, dict)
      lines = fields.text(sample, "solution").split("\n")
      labels = label_solution(
        lines, reference, departures=departures, answers=answers
      )
      correct = _final(lines) == Fraction(answer)
      if correct != fields.typed(sample, "is_correct", bool):
        raise ValueError(
          f"{generator}: 'is_correct' is {not correct}, the final answer "
          f"{'is' if correct else 'is not'} the reference's"
        )
      records.append(
        LabelledSolution(
          id=f"gsm8k_steps/{number}/{generator}",
          source="gsm8k_steps",
          problem=problem,
          steps=tuple(step_text(strip_annotations(line)) for line in lines),
          labels=tuple(labels),
          answer=answer,
          final_correct=correct,
          generator=generator,
        )
      )
    return records

  options = f"{departures=}" + f" {answers=}" * answers
  return Format("gsm8k_steps", 1, LabelledSolution, parse, options)


def label_solution(
  lines: list[str],
  reference: list[str],
  *,
  departures: bool = False,
  answers: bool = False,
) -> list[int | None]:
  """Labels the lines of a solution: 1 (good), 0 (bad) or None (not labelled).

  >>> reference = ["16-3-4 = <<16-3-4=9>>9", "9*2 = <<9*2=18>>18", "A: 18"]
  >>> wrong = ["16-3-4 = <<16-3-4=9>>9", "9+2 = <<9+2=11>>11", "A: 11"]
  >>> label_solution(wrong, reference)
  [1, None, 0]
  >>> label_solution(wrong, reference, departures=True)
  [1, 0, None]
  >>> label_solution(wrong, reference, departures=True, answers=True)
  [1, 0, 0]

  Args:
    lines: lines of the solution, with annotations.
    reference: lines of the reference solution.
    departures: as in `make_format`.
    answers: as in `make_format`.
  """
  answer, final = _final(reference), _final(lines)
  has_final = lines[-1].startswith(FINAL)
  right = has_final and final is not None and final == answer
  computed = [r for line in reference for r in _check(line).results]
  if answer is not None:
    computed.append(answer)
  labels: list[int | None] = []
  on_path = True  # All annotated steps so far compute what the reference does.
  for index, line in enumerate(lines):
    checked = _check(line)
    is_final = has_final and index == len(lines) - 1
    if 0 in labels:
      label = 0 if answers and is_final and not right else None
    elif is_final:
      label = int(right)
    elif checked.verdict is False:
      label = 0
    elif right:
      label = None if checked.annotated and checked.verdict is None else 1
    elif not checked.annotated:
      label = None
    else:
      known = all(
        any(abs(result - other) <= SAME_RESULT for other in computed)
        for result in checked.results
      )
      departed = on_path and checked.verdict is True and not known
      on_path = on_path and checked.verdict is True and known
      label = 1 if on_path else 0 if departed and departures else None
    labels.append(label)
  return labels


def _check(line: str) -> _CheckedLine:
  """Checks the annotations of a line, by rule 2."""
  results, verdicts = [], []
  for annotation in _ANNOTATION.finditer(line):
    sides = annotation[1].split("=")
    values = [evaluate(side) for side in sides]
    result = values[-1]
    if result is not None:
      results.append(result)
    if len(sides) < 2 or None in values:
      verdicts.append(None)
      continue
    equal = all(agrees(value, sides[-1]) for value in values[:-1])
    verdicts.append(equal and _is_written(result, line, annotation.end()))
  verdict = None
  if False in verdicts:
    verdict = False
  elif verdicts and None not in verdicts:
    verdict = True
  return _CheckedLine(tuple(results), verdict, bool(verdicts))


def _is_written(result: Fraction, line: str, start: int) -> bool:
  """Whether the number at `start`, if there is one, is the result."""
  written = _WRITTEN.match(line, start)
  if written is None or written["changed"]:
    return True
  spaced = _SPACED.match(line, start)  # As in "17 500".
  return rounds(abs(result), written[1].removeprefix("-")) or (
    spaced is not None and rounds(abs(result), spaced[1].replace(" ", ""))
  )


def _final(lines: list[str]) -> Fraction | None:
  """The final answer; None if it is missing or not a number."""
  if not lines[-1].startswith(FINAL):
    return None
  return read_number(lines[-1].removeprefix(FINAL).strip().removeprefix("$"))
