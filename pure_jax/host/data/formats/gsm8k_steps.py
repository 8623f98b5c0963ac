r"""GSM8K solutions by language models, each step labelled by a calculator.

``example_model_solutions.jsonl`` has, for each test problem of GSM8K, one
reference solution and one by each of four models (`GENERATORS`); the solutions
carry calculator annotations such as ``48/2 = <<48/2=24>>24 clips``, which is
what makes their steps checkable. The rules:

1. **LabelledSolution.** Each line is a step. The last line, ``A: 24``, is the
  final
   answer. A solution without that line was cut off; it has no final step.
   Annotations are removed from the text once they have been read.
2. **An annotation is true** if all its sides are equal. The last one, the
   result, may be rounded up or down at the last decimal place it is written
   with (a whole number has none, so it must be exact), or be off by a float's
   error (1e-9, relative). The number written right after the annotation must
   be its result, rounded up or down at its own last place, signs aside: the
   annotation is removed, so what the text says has to be true. No verdict is
   given where a side is no arithmetic (``+ - * /``, brackets, decimals, per
   cent), nor on a number followed by what changes it ("3/4", "%", "million").
3. **A solution is right** if its final answer is the reference's number.
4. **In a right solution** a step is good; one with an annotation that is not
   true is bad; one with an annotation without a verdict has no label.
5. **In a wrong solution** every annotation may be true and the error in what
   was computed: true is not yet good. A step is good only if it has
   annotations, all true, each with a result that the reference computes too
   (to within 0.005), and no step with annotations before it failed to. A step
   with a false annotation is bad. Every other step has no label, and the final
   answer, being wrong, is bad.
6. **After the first bad step** nothing is labelled.

With ``departures=True`` rule 5 also calls bad the first step whose annotations
are true, but of which one has a result that the reference never computes. This
puts the error where the solution leaves the way, not at its end. It is a guess:
another way to the same answer departs too.

On the real file (1,319 problems, 5,276 solutions, 23,141 steps): 10,520 steps
are good, 3,269 bad, 9,352 without a label. Models call a calculator, so false
annotations are rare, and 3,193 of the bad steps are final answers; with
departures 3,077 of 3,274 bad steps come before the last. What a departure is
worth: of the annotated steps of right solutions, all of them good, 12 % depart.

The problems are GSM8K's *test* problems. Nothing trained on them may be
evaluated on them: hold problems out with `records.split_by_problem`, which
keeps the four solutions of a problem together.
"""

import dataclasses
import re
from fractions import Fraction

from pure_jax.host.data.formats import fields
from pure_jax.host.data.formats.calculator import (
  agrees,
  evaluate,
  read_number,
  rounds,
)
from pure_jax.host.data.formats.fields import Format, Row
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
# The number written after an annotation, and what would change its meaning.
_WRITTEN = re.compile(
  r"\s*\$?\s*(-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|-?\.\d+)"
  r"(?P<changed>[/,.]?\d|\s*(?:%|(?:k|hundred|thousand|million|billion)\b))?",
  re.ASCII,
)
_SPACED = re.compile(r"\s*\$?\s*(\d{1,3}(?: \d{3})+)(?!\d)", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Line:
  """What checking a line of a solution says.

  Attributes:
    results: of its annotations, as far as they are numbers.
    verdict: True if every annotation is true, False if one is not, None if
      there is none or one has no verdict.
    annotated: whether it has annotations.
  """

  results: tuple[Fraction, ...]
  verdict: bool | None
  annotated: bool


def make_format(*, departures: bool = False) -> Format:
  """How to read ``example_model_solutions.jsonl``.

  Args:
    departures: call bad, in a wrong solution, the first step that leaves what
      the reference computes: many more bad steps, not all of them truly so.

  Returns:
    The format; a line becomes four rows.
  """

  def parse(row: Row, number: int) -> list[LabelledSolution]:
    problem = fields.text(row, "question")
    reference = fields.text(row, "ground_truth").split("\n")
    if not reference[-1].startswith(FINAL):
      raise ValueError("the last line of 'ground_truth' is not 'A: ' ...")
    answer = plain_number(reference[-1].removeprefix(FINAL).strip())
    found = []
    for generator in GENERATORS:
      made = fields.mapping(row, generator)
      lines = fields.text(made, "solution").split("\n")
      labels = label_solution(lines, reference, departures=departures)
      correct = _final(lines) == Fraction(answer)
      if correct != fields.flag(made, "is_correct"):
        raise ValueError(
          f"{generator}: 'is_correct' is {not correct}, the final answer "
          f"{'is' if correct else 'is not'} the reference's"
        )
      found.append(
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
    return found

  return Format("gsm8k_steps", 1, LabelledSolution, parse, f"{departures=}")


def label_solution(
  lines: list[str], reference: list[str], *, departures: bool = False
) -> list[int | None]:
  """Labels of a solution's lines, by the rules above.

  >>> reference = ["16-3-4 = <<16-3-4=9>>9", "9*2 = <<9*2=18>>18", "A: 18"]
  >>> wrong = ["16-3-4 = <<16-3-4=9>>9", "9+2 = <<9+2=11>>11", "A: 11"]
  >>> label_solution(wrong, reference)
  [1, None, 0]
  >>> label_solution(wrong, reference, departures=True)
  [1, 0, None]

  Args:
    lines: of the solution, annotations included.
    reference: lines of the reference solution.
    departures: as in `make_format`.

  Returns:
    1 (good), 0 (bad) or None (no label), one per line.
  """
  answer, final = _final(reference), _final(lines)
  has_final = lines[-1].startswith(FINAL)
  right = has_final and final is not None and final == answer
  computed = [r for line in reference for r in check(line).results]
  if answer is not None:
    computed.append(answer)
  labels: list[int | None] = []
  on_the_way = True  # Has every step so far computed what the reference does?
  for index, line in enumerate(lines):
    checked = check(line)
    if 0 in labels:
      label = None
    elif has_final and index == len(lines) - 1:
      label = int(right)
    elif checked.verdict is False:
      label = 0
    elif right:
      label = None if checked.annotated and checked.verdict is None else 1
    elif not checked.annotated:
      label = None
    else:
      known = all(_among(result, computed) for result in checked.results)
      departed = on_the_way and checked.verdict is True and not known
      on_the_way = on_the_way and checked.verdict is True and known
      label = 1 if on_the_way else 0 if departed and departures else None
    labels.append(label)
  return labels


def check(line: str) -> Line:
  """Reads and checks the annotations of a line, by rule 2.

  Args:
    line: one line of a solution.

  Returns:
    What was found.
  """
  results, verdicts = [], []
  for found in _ANNOTATION.finditer(line):
    sides = found[1].split("=")
    values = [evaluate(side) for side in sides]
    result = values[-1]
    if result is not None:
      results.append(result)
    if len(sides) < 2 or None in values:
      verdicts.append(None)
      continue
    equal = all(agrees(value, sides[-1]) for value in values[:-1])
    verdicts.append(equal and _is_written(result, line, found.end()))
  verdict = None
  if False in verdicts:
    verdict = False
  elif verdicts and None not in verdicts:
    verdict = True
  return Line(tuple(results), verdict, bool(verdicts))


def _is_written(result: Fraction, line: str, start: int) -> bool:
  """Whether no other number than the result stands at a place of a line."""
  written = _WRITTEN.match(line, start)
  if written is None or written["changed"]:
    return True
  spaced = _SPACED.match(line, start)  # As in "17 500".
  return rounds(abs(result), written[1].removeprefix("-")) or (
    spaced is not None and rounds(abs(result), spaced[1].replace(" ", ""))
  )


def _final(lines: list[str]) -> Fraction | None:
  """The final answer, None where there is none or it is no number."""
  if not lines[-1].startswith(FINAL):
    return None
  return read_number(lines[-1].removeprefix(FINAL).strip().removeprefix("$"))


def _among(result: Fraction, computed: list[Fraction]) -> bool:
  """Whether the reference computes a result."""
  return any(abs(result - other) <= SAME_RESULT for other in computed)
