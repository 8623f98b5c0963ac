r"""Problems with answers: GSM8K, the MATH prompts of PURE, five benchmarks.

The layouts of the real files:

* GSM8K: ``question``; ``answer`` is a worked solution with calculator
  annotations such as ``<<48/2=24>>``, then ``####`` and the final answer.
  Thousands separators (``1,080``) are removed from it.
* MATH prompts of PURE (``prompts.json``, one array): ``answer`` is the text
  "null" except in 879 rows, those of the 10 % verifiable setting.
  ``ref_answer`` is the answer of the other rows, and "null" in the 879: each
  row has exactly one of the two. Two ``ref_answer`` are empty, and one problem
  occurs twice. ``level`` is "3", "4" or "5". On the hub the same prompts are in
  SimpleRL-Zoo-Data: there ``gt_answer`` has every answer, and ``level`` is a
  number.
* MATH500: ``problem``, ``answer``, ``solution``, ``subject``, ``level`` (a
  number), ``unique_id``.
* Minerva: ``problem``, ``solution``, ``type``, ``idx``. The answer is the
  content of the last ``\boxed{}`` of the solution. On the hub: ``question`` and
  ``answer``, no other field.
* OlympiadBench: ``question``, ``solution`` (a list of alternatives, of which
  the first is used), ``final_answer`` (a list of one text). Dollar signs in
  that text, which are not always paired (``$221,$8$``), and a full stop at its
  end are removed. ``is_multiple_answer``, ``unit`` and ``error`` (``1e-1`` in
  one row) become fields of the record. A ``context`` is put before the
  question.
* AIME 2024: ``answer`` has three digits (``025``), and becomes a plain number.
* AMC 2023: ``answer`` is a float (``27.0``), and becomes a plain number. On the
  hub the problem is ``question``, and the answer may be a text.
"""

import re

from pure_jax.host.data.formats import Format, Row, fields
from pure_jax.host.data.records import Problem
from pure_jax.host.grading.verify import boxed

_GSM8K_ANSWER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", re.ASCII)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_ANNOTATION = re.compile(r"<<[^<>]*>>")
NULL = "null"  # The MATH prompts: there is no answer.


def strip_annotations(text: str) -> str:
  """Removes the calculator annotations from a GSM8K solution, or a part of it.

  >>> strip_annotations("48/2 = <<48/2=24>>24 clips")
  '48/2 = 24 clips'

  Args:
    text: the solution, or some of its lines.
  """
  return _ANNOTATION.sub("", text)


def plain_number(text: str) -> str:
  """Removes thousands separators from a GSM8K answer.

  >>> plain_number("1,080")
  '1080'

  Args:
    text: a decimal number.

  Raises:
    ValueError: if it is not a decimal number.
  """
  if not _GSM8K_ANSWER.fullmatch(text):
    raise ValueError(f"the final answer {text!r} is not a number")
  return text.replace(",", "")


def _gsm8k(row: Row, number: int) -> list[Problem]:
  """Parses a row of GSM8K."""
  parts = fields.text(row, "answer").split("####")
  if len(parts) != 2:
    raise ValueError(f"field 'answer' has {len(parts) - 1} '####', not one")
  return [
    Problem(
      id=f"gsm8k/{number}",
      source="gsm8k",
      problem=fields.text(row, "question"),
      answer=plain_number(parts[1].strip()),
      solution=strip_annotations(parts[0]).strip() or None,
    )
  ]


def _math8k(row: Row, number: int) -> list[Problem]:
  """Parses a row of the MATH prompts of PURE."""
  if "gt_answer" in row:
    answer, withheld = fields.optional_text(row, "gt_answer"), None
    level = fields.value(row, "level")
  else:
    answer = fields.text(row, "answer")
    withheld = fields.optional_text(row, "ref_answer")
    level = fields.text(row, "level")
  return [
    Problem(
      id=f"math8k/{number}",
      source="math8k",
      problem=fields.text(row, "question"),
      answer=None if answer in (NULL, "", None) else answer,
      withheld_answer=None if withheld in (NULL, "", None) else withheld,
      level=_level(level),
    )
  ]


def _math500(row: Row, number: int) -> list[Problem]:
  """Parses a row of MATH500."""
  del number
  return [
    Problem(
      id=f"math500/{fields.text(row, 'unique_id')}",
      source="math500",
      problem=fields.text(row, "problem"),
      answer=fields.text(row, "answer"),
      solution=fields.text(row, "solution"),
      level=_level(fields.integer(row, "level")),
      subject=fields.text(row, "subject"),
    )
  ]


def _minerva(row: Row, number: int) -> list[Problem]:
  """Parses a row of Minerva's OCW courses."""
  if "question" in row:
    return [
      Problem(
        id=f"minerva_math/{number}",
        source="minerva_math",
        problem=fields.text(row, "question"),
        answer=fields.text(row, "answer"),
      )
    ]
  solution = fields.text(row, "solution")
  answer = (boxed(solution) or "").strip()
  if not answer:
    raise ValueError("the solution has no closed \\boxed{} with an answer")
  return [
    Problem(
      id=f"minerva_math/{fields.integer(row, 'idx')}",
      source="minerva_math",
      problem=fields.text(row, "problem"),
      answer=answer,
      solution=solution,
      subject=fields.text(row, "type"),
    )
  ]


def _olympiadbench(row: Row, number: int) -> list[Problem]:
  """Parses a row of OlympiadBench (English, text only, with an answer)."""
  del number
  answers = fields.typed(row, "final_answer", list)
  if len(answers) != 1:
    raise ValueError(
      f"field 'final_answer' holds {len(answers)} texts, not one"
    )
  answer = fields.checked_text(answers[0], "field 'final_answer'")
  context = fields.optional_text(row, "context")
  question = fields.text(row, "question")
  solutions = fields.typed(row, "solution", list)
  error = fields.optional_text(row, "error")
  return [
    Problem(
      id=f"olympiadbench/{fields.integer(row, 'id')}",
      source="olympiadbench",
      problem=f"{context}\n\n{question}" if context else question,
      answer=answer.replace("$", "").strip().removesuffix("."),
      several_answers=fields.typed(row, "is_multiple_answer", bool),
      tolerance=None if error is None else _tolerance(error),
      unit=fields.optional_text(row, "unit") or None,
      solution=fields.checked_text(solutions[0], "the solution")
      if solutions
      else None,
      subject=fields.text(row, "subfield"),
    )
  ]


def _aime24(row: Row, number: int) -> list[Problem]:
  """Parses a row of AIME 2024."""
  del number
  answer = fields.text(row, "answer")
  if not (answer.isascii() and answer.isdecimal()):
    raise ValueError(f"the answer {answer!r} is not a number from 0 to 999")
  return [
    Problem(
      id=f"aime24/{fields.integer(row, 'id')}",
      source="aime24",
      problem=fields.text(row, "problem"),
      answer=str(int(answer)),
      solution=fields.text(row, "solution"),
    )
  ]


def _amc23(row: Row, number: int) -> list[Problem]:
  """Parses a row of AMC 2023."""
  del number
  if "problem" not in row and "question" in row:
    return [_amc23_of_the_hub(row)]
  return [
    Problem(
      id=f"amc23/{fields.integer(row, 'id')}",
      source="amc23",
      problem=fields.text(row, "problem"),
      answer=fields.number_text(fields.number(row, "answer")),
    )
  ]


def _amc23_of_the_hub(row: Row) -> Problem:
  """Parses a row of AMC 2023, whose numbers may be texts."""
  numbers = {}
  for name in ("id", "answer"):
    value = fields.value(row, name)
    if not isinstance(value, str):
      numbers[name] = fields.number_text(fields.number(row, name))
    elif _NUMBER.fullmatch(value.strip()):
      numbers[name] = value.strip().removesuffix(".0")
    else:
      raise ValueError(f"field {name!r} is {value!r}, not a number")
  return Problem(
    id=f"amc23/{numbers['id']}",
    source="amc23",
    problem=fields.text(row, "question"),
    answer=numbers["answer"],
  )


def _level(value: int | str) -> int:
  """The level of a MATH problem."""
  if str(value) not in {"1", "2", "3", "4", "5"}:
    raise ValueError(f"the level {value!r} is not one of 1 to 5")
  return int(value)


def _tolerance(value: str) -> float:
  """Reads the absolute error of an OlympiadBench answer."""
  try:
    return float(value)
  except ValueError:
    raise ValueError(f"field 'error' is {value!r}, not a number") from None


GSM8K = Format("gsm8k", 1, Problem, _gsm8k)
MATH8K = Format("math8k", 1, Problem, _math8k)
MATH500 = Format("math500", 1, Problem, _math500)
MINERVA_MATH = Format("minerva_math", 1, Problem, _minerva)
OLYMPIADBENCH = Format("olympiadbench", 1, Problem, _olympiadbench)
AIME24 = Format("aime24", 1, Problem, _aime24)
AMC23 = Format("amc23", 1, Problem, _amc23)
