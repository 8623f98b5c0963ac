r"""Checks the equations in the text of a step, such as ``48 / 2 = 24``.

A policy writes no calculator annotations, but much of its arithmetic can be
read. The checker is strict: what it may misread has no verdict. Its rules:

1. **Text.** Signs of currency and LaTeX's delimiters and spaces are removed,
  ``\times``, ``\div``, ``\frac{a}{b}``, ``×`` and ``÷`` become ``*`` and
  ``/``, ``\boxed{24}`` becomes ``24``. An equation lies in one sentence.
2. **An equation** is a run of sides of decimals, ``+ - * /``, brackets and per
  cent, joined by ``=``. One side at least has an operator: ``x = 5`` claims
  nothing that can be checked.
3. **The first side** may be the end of a longer expression, as in ``2x + 3``,
  ``half of 10 + 2`` and ``5 apples + 3``. At the beginning of a sentence it
  counts. After other text it counts only if it has an operator, but not as its
  first sign, if it is separated from the word before, and if that word is no
  operation such as ``of``. Otherwise it is dropped.
4. **The last side** may be the beginning of a longer expression, or rounded:
  ``7x``, ``3 million``, ``1 hour 30 minutes``, ``3 (rounded down)``. Such a
  side is dropped.
5. **An equation is true** if all its sides equal the last one, which may be
  rounded as in `calculator.agrees`. ``12 / 48 * 100 = 25%`` is true as well.
"""

import re

from pure_jax.host.data.formats import calculator

_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_UNWRAPPED = re.compile(r"\\(?:boxed|mathbf|bm)\s*\{([^{}]*)\}")
_REPLACED = (
  (re.compile(r"\\\$|[$€£]|\\[()\[\],;!: ]|\\(?:left|right)(?![a-z])"), ""),
  (re.compile(r"\{,\}"), ","),
  (re.compile(r"\\%"), "%"),
  (re.compile(r"\\(?:times|cdot)(?![a-z])|[×·∗⋅]"), "*"),
  (re.compile(r"\\div(?![a-z])|[÷∕]"), "/"),
  (re.compile(r"[−–]"), "-"),
  (re.compile(r"(?<=\d)\s*[xX]\s*(?=[\d.(])"), "*"),
  # Bold in Markdown; between two numbers it may be a power.
  (re.compile(r"(?<![\d)])\*\*|\*\*(?![\d(])"), ""),
)
_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")
_SENTENCE_END = re.compile(r"[.,;:?!]+(?:\s+(?:and\s+)?|$)")
_RUN = re.compile(r"[\d.,+\-*/()%= ]+", re.ASCII)
_OPERATOR = re.compile(r"[\d)%]\s*[-+*/]")
_TWO_QUOTIENTS = re.compile(r"/[^-+*()/]*/")  # 14 / 1/2 may be 14 / (1/2).
# Words before a side that make it part of something else.
_OPERATION = re.compile(
  r"\b(?:of|times|by|plus|minus|and|half|twice|thrice|double|triple|over|than|"
  r"from|squared?|cubed?|root|log|percent|into|[b-hj-z])\W*$",
  re.IGNORECASE,
)
# What changes the meaning of the number before it, or says that it is rounded.
_CHANGED = re.compile(
  r"\s*(?:k|hundred|thousand|million|billion|dozen|percent|cents?|r|and)\b|"
  r"\s*[a-z]+,?\s+(?:and\s+)?\d|.*(?:round|approx|about|remain|left over)",
  re.IGNORECASE | re.DOTALL,
)


def label_step(text: str) -> int | None:
  r"""Labels a step by its equations: 1 (good), 0 (bad) or None.

  >>> label_step(r"In May it is \( 48 \div 2 = 24 \) clips.")
  1
  >>> label_step("48 / 2 = $24, and 24 + 48 = $71.")
  0
  >>> label_step("Natalia sold half of 48 = 24 clips.") is None
  True

  Args:
    text: the step, in plain text or LaTeX.

  Returns:
    0 if an equation is false, 1 if there is one and all are true, None if
    there is none.
  """
  verdicts = equation_verdicts(text)
  return int(all(verdicts)) if verdicts else None


def equation_verdicts(text: str) -> list[bool]:
  """Checks the equations of a text that can be read, in their order.

  >>> equation_verdicts("3 + 4 = 7. So 7 * 2 = 15.")
  [True, False]

  Args:
    text: any text.
  """
  text = _plain(text)
  verdicts = []
  for sentence in _sentences(text):
    for run in _RUN.finditer(sentence):
      verdict = _check(sentence[: run.start()], run[0], sentence[run.end() :])
      if verdict is not None:
        verdicts.append(verdict)
  return verdicts


def _plain(text: str) -> str:
  """Writes LaTeX and typographic signs as plain arithmetic."""
  before = None
  while before != text:  # Innermost first.
    before = text
    text = _FRACTION.sub(r"((\1)/(\2))", text)
    text = _UNWRAPPED.sub(r"\1", text)
  for pattern, replacement in _REPLACED:
    text = pattern.sub(replacement, text)
  return text


def _sentences(text: str) -> list[str]:
  """Cuts a text where no equation goes on, without marks of list items."""
  lines = (_ITEM.sub("", line, count=1) for line in text.split("\n"))
  return [piece for line in lines for piece in _SENTENCE_END.split(line)]


def _check(before: str, run: str, after: str) -> bool | None:
  """Checks a run of sides between two texts; None if too little is read."""
  sides = run.split("=")
  if _continues(before, sides[0]):
    sides = sides[1:]
  if sides and _goes_on(sides[-1], after):
    sides = sides[:-1]
  sides = [side.strip() for side in sides]
  if len(sides) < 2 or not any(map(_OPERATOR.search, sides)):
    return None
  values = [calculator.evaluate(side) for side in sides]
  if None in values or any(map(_TWO_QUOTIENTS.search, sides)):
    return None
  lasts = {sides[-1], sides[-1].removesuffix("%").strip()}
  return any(
    all(calculator.agrees(value, last) for value in values[:-1])
    for last in lasts
  )


def _continues(before: str, side: str) -> bool:
  """Whether a first side is, or may be, the end of something longer."""
  stripped = side.strip()
  if not stripped or stripped[0] in "+*/,.)%":
    return True
  if not before.strip():
    return False
  is_attached = not side.startswith(" ") and before[-1] not in " (['\""
  is_lone = _OPERATOR.search(stripped) is None
  return (
    is_attached
    or is_lone
    or stripped[0] == "-"
    or _OPERATION.search(before) is not None
  )


def _goes_on(side: str, after: str) -> bool:
  """Whether a last side is, or may be, the beginning of something longer."""
  is_attached = not side.endswith(" ") and after[:1] not in ("", " ", ")", "]")
  return is_attached or _CHANGED.match(after) is not None
