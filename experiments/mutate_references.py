"""Counts wrong answers that the grader accepts: references with one mutation.

  python experiments/mutate_references.py [--references=FOLDER] [--result=FILE]

Each reference answer of MATH500, Minerva, OlympiadBench and the MATH prompts of
PURE that is no integer is changed in one place: a digit, a sign, an operator, a
letter, its case, a bracket, a function, a unit, a base, or one character less.
Four mutations of each reference are graded against it; the seed makes them the
same each time. Some mutations are right. `reason_right` finds them without the
grader: they spell the same numbers (0.50 and .5, 1e5 and 1E5), drop the name of
a value, change the case of a word, or change a sign that is not printed. The
result counts the accepted mutations by kind, and lists those that are not the
same numbers.

FOLDER has `benchmarks` and `math8k`; the default is $PURE_SHARED_DATA. The
result of 2026-11-30 is results/grading/mutations.json: of 16,381 mutations 98
spell the same numbers, 16 others are accepted, and none of these is wrong.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import collections
import contextlib
import json
import os
import pathlib
import random
import re
import sys
import time
from collections.abc import Callable, Iterator

from absl import app, flags

from pure_jax.host import json_text
from pure_jax.host.atomic_files import replace_atomic
from pure_jax.host.data.formats import problems
from pure_jax.host.grading import verify
from pure_jax.host.grading.verify import Reference
from pure_jax.host.logs import console
from pure_jax.host.logs.console import Progress
from pure_jax.host.workers.pool import PoolError

_REFERENCES = flags.DEFINE_string(
  "references", os.environ.get("PURE_SHARED_DATA", ""), "Folder of the data."
)
_RESULT = flags.DEFINE_string("result", None, "File that gets the result.")
_MUTATION_SEED = flags.DEFINE_integer(
  "mutation_seed", 0, "Seed of the mutations."
)
_PER_REFERENCE = flags.DEFINE_integer(
  "per_reference", 4, "Mutations of a reference.", 1, upper_bound=1000
)

FILES = (
  ("benchmarks/math500.jsonl", problems.MATH500),
  ("benchmarks/minerva_math.jsonl", problems.MINERVA_MATH),
  ("benchmarks/olympiadbench.jsonl", problems.OLYMPIADBENCH),
  ("math8k/prompts.json", problems.MATH8K),
)
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_COMMAND = re.compile(r"\\[a-zA-Z]+|\\.")
_WORD = re.compile(r"\\(?:text[a-z]*|mbox|mathrm) *\{[^{}]*\}")
_BASE = re.compile(r"(?<=[0-9])_\{?([0-9]+)\}?$")
_OPERATORS = {
  "+": ("-", r"\cdot "), "-": ("+",), "/": (r"\cdot ",), "=": ("<",),
  "<": (r"\le ", ">"), ">": (r"\ge ", "<"), ",": ("+",), "!": ("",),
  "^": (r"\cdot ",), r"\cdot": ("+",), r"\times": ("+",), r"\le": ("<",),
  r"\leq": ("<",), r"\ge": (">",), r"\geq": (">",), r"\pm": ("+",),
  r"\cup": (r"\cap",), r"\approx": ("=",),
}  # fmt: skip
_BRACKETS = {"(": "[", "[": "(", ")": "]", "]": ")"}
_FUNCTIONS = {
  r"\sin": r"\cos", r"\cos": r"\sin", r"\tan": r"\cot", r"\ln": r"\sin",
  r"\log": r"\sin", r"\sqrt": r"\ln", r"\pi": "e", r"\infty": "9",
  r"\cot": r"\tan", r"\csc": r"\sec", r"\sec": r"\csc", r"\arcsin": r"\arccos",
}  # fmt: skip
SAME_NUMBERS = "the same numbers"
_UNITS = ("cm", "m", "km", "feet", "inches", "degrees", "hours", "dollars")


class InputError(ValueError):
  """The data cannot be read; the message says where and why."""


def read_references(folder: pathlib.Path) -> list[Reference]:
  """Reads the references that are no integers.

  Args:
    folder: has the files of `FILES`.

  Raises:
    InputError: if a file is missing or malformed.
  """
  references = []
  for name, layout in FILES:
    path = folder / name
    try:
      text = path.read_text(encoding="utf-8")
      if path.suffix == ".json":
        rows = json_text.parse(text)
      else:
        rows = [json_text.parse(line) for line in text.splitlines()]
      parsed = [p for at, row in enumerate(rows) for p in layout.parse(row, at)]
    except (OSError, ValueError) as error:
      raise InputError(f"{path}: {error}") from None
    for problem in parsed:
      answer = problem.answer or problem.withheld_answer
      if answer is not None and not _INTEGER.fullmatch(answer.strip()):
        references.append(Reference(answer, problem.several_answers))
  return references


# ===== Mutations =====

Mutation = tuple[str, str]  # (kind, text)


def mutations(text: str, rng: random.Random) -> Iterator[Mutation]:
  """Yields every one-place mutation of a text that this script knows.

  Args:
    text: a reference answer.
    rng: draws what replaces a digit, a letter or a unit.
  """
  base = _BASE.search(text)
  words = [match.span() for match in _WORD.finditer(text)]
  commands = {m.start(): m[0] for m in _COMMAND.finditer(text)}
  inside = {
    at
    for start, command in commands.items()
    for at in range(start, start + len(command))
  }
  for match in _WORD.finditer(text):
    yield from _word_mutations(text, match, rng)
  for at, command in commands.items():
    for kind, table in (("operator", _OPERATORS), ("function", _FUNCTIONS)):
      for other in _as_tuple(table.get(command)):
        yield kind, text[:at] + other + text[at + len(command) :]
  for at, character in enumerate(text):
    in_word = any(start <= at < end for start, end in words)
    if at in inside or in_word:
      continue
    before, behind = text[:at], text[at + 1 :]
    for kind, others in _replacements(character, rng):
      if base and base.start() < at:
        kind = "base"
      for other in others:
        yield kind, before + other + behind
  if not text.startswith(("-", "+", r"\pm", "$-")):
    yield "sign", "-" + text


def _word_mutations(
  text: str, match: re.Match, rng: random.Random
) -> Iterator[Mutation]:
  """Yields a text with another unit, and with one letter changed."""
  start, content = match[0].split("{", 1)
  letters = [at for at, c in enumerate(content) if c.isascii() and c.isalpha()]
  if not letters:
    return
  at = rng.choice(letters)
  changed = content[:at] + _other_letter(content[at], rng) + content[at + 1 :]
  unit = rng.choice([u for u in _UNITS if u not in content])
  before, behind = text[: match.start()], text[match.end() :]
  for other in (changed, f" {unit}}}"):
    yield "unit", f"{before}{start}{{{other}{behind}"


def _replacements(
  character: str, rng: random.Random
) -> Iterator[tuple[str, tuple[str, ...]]]:
  """Yields (kind, texts) that may replace a character."""
  if character.isascii() and character.isdigit():
    yield "digit", (rng.choice([d for d in "0123456789" if d != character]),)
    yield "deletion", ("",)
  elif character.isascii() and character.isalpha():
    yield "letter", (_other_letter(character, rng),)
    yield "case", (character.swapcase(),)
    yield "deletion", ("",)
  elif character in _OPERATORS:
    kind = "sign" if character in "+-" else "operator"
    yield kind, _OPERATORS[character]
  elif character in _BRACKETS:
    yield "bracket", (_BRACKETS[character],)


def _other_letter(letter: str, rng: random.Random) -> str:
  letters = "abcdefghijklmnopqrstuvwxyz"
  other = rng.choice([c for c in letters if c != letter.lower()])
  return other.upper() if letter.isupper() else other


def _as_tuple(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
  if value is None:
    return ()
  return (value,) if isinstance(value, str) else value


def same_numbers(left: str, right: str) -> bool:
  """Tells whether two texts differ only in how their numbers are written.

  >>> same_numbers("x=0.50", "x=.5"), same_numbers("2e5", "2e6")
  (True, False)

  Args:
    left: any text.
    right: any text.
  """
  texts = [
    _NUMBER.sub(
      lambda match: f"<{float(match[0]) + 0.0:.17g}>", "".join(text.split())
    )
    for text in (left, right)
  ]
  return texts[0] == texts[1]


def reason_right(reference: str, mutation: str) -> str | None:
  """Returns why a mutation is right; None if it is not known to be.

  Args:
    reference: a reference answer.
    mutation: the changed text.
  """
  if same_numbers(reference, mutation):
    return SAME_NUMBERS
  name, sign, value = reference.partition("=")
  if sign and name.strip() and mutation.lstrip() == f"={value}":
    return "a value without its name"
  if reference.replace(r"\approx", "=") == mutation:
    return "a value without its name"
  if reference.isalpha() and reference.casefold() == mutation.casefold():
    return "a word in another case"
  if r"\phantom" in reference:
    return "a sign that is not printed"
  return None


def sample_mutations(reference: str, seed: str, count: int) -> list[Mutation]:
  """Draws mutations of different kinds, as far as there are any.

  Args:
    reference: a reference answer.
    seed: the same seed draws the same mutations.
    count: how many, at most.
  """
  rng = random.Random(f"{seed} {reference}")
  by_kind: dict[str, list[str]] = collections.defaultdict(list)
  for kind, text in mutations(reference, rng):
    if "".join(text.split()) != "".join(reference.split()):
      by_kind[kind].append(text)
  kinds = sorted(by_kind)
  rng.shuffle(kinds)
  drawn: dict[str, str] = {}
  while kinds and len(drawn) < count:
    for kind in list(kinds):
      text = by_kind[kind].pop(rng.randrange(len(by_kind[kind])))
      if len(drawn) < count and text.strip():
        drawn.setdefault(text, kind)
      if not by_kind[kind]:
        kinds.remove(kind)
  return [(kind, text) for text, kind in drawn.items()]


# ===== Grading =====


def grade_mutations(
  references: list[Reference], on_total: Callable[[int], Progress]
) -> dict[str, object]:
  """Grades the mutations; returns the result.

  Args:
    references: the right answers.
    on_total: opens the progress of so many comparisons.
  """
  cases = [
    (reference, kind, text)
    for at, reference in enumerate(references)
    for kind, text in sample_mutations(
      reference.answer, f"{_MUTATION_SEED.value} {at}", _PER_REFERENCE.value
    )
  ]
  items = [(text, r.answer, r.several, None) for r, _, text in cases]
  with verify.open_pool() as pool:
    start = time.monotonic()
    with on_total(len(items)) as progress:
      outcomes = pool.run(items, progress.advance)
    seconds = time.monotonic() - start
  accepted = [
    {
      "kind": kind,
      "reference": reference.answer,
      "mutation": text,
      "right": reason_right(reference.answer, text),
    }
    for (reference, kind, text), outcome in zip(cases, outcomes, strict=True)
    if outcome.value is True
  ]
  listed = [row for row in accepted if row["right"] != SAME_NUMBERS]
  graded = collections.Counter(kind for _, kind, _ in cases)
  by_kind = collections.Counter(row["kind"] for row in listed)
  return {
    "references": len(references),
    "mutations": len(cases),
    "same_numbers": len(accepted) - len(listed),
    "accepted": len(listed),
    "accepted_percent": round(100 * len(listed) / max(1, len(cases)), 3),
    "wrong": sum(row["right"] is None for row in listed),
    "timed_out": sum(outcome.timed_out for outcome in outcomes),
    "failed": sum(outcome.failure is not None for outcome in outcomes),
    "by_kind": {
      kind: {"mutations": graded[kind], "accepted": by_kind[kind]}
      for kind in sorted(graded)
    },
    "pairs": listed,
    "comparisons_per_second": round(len(cases) / seconds, 1),
  }


def main(argv: list[str]) -> None:
  """Reads the references, grades their mutations, writes the result."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  if not _REFERENCES.value:
    console.tell(
      "error: name the folder of the data by --references or PURE_SHARED_DATA."
    )
    sys.exit(1)
  try:
    references = read_references(pathlib.Path(_REFERENCES.value))
    with contextlib.ExitStack() as opened:
      file = None
      if _RESULT.value:  # Opened first, so that no grading is lost.
        file = opened.enter_context(replace_atomic(_RESULT.value))
      result = grade_mutations(references, lambda n: Progress("grade", n))
      text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
      if file is not None:
        file.write(text.encode("utf-8"))
  except (InputError, PoolError, OSError) as error:
    console.tell(f"error: {error}")
    sys.exit(1)
  console.show(text.removesuffix("\n"))


if __name__ == "__main__":
  interrupts.run(app.run, main)
