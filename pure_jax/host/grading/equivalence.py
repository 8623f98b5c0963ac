r"""Tells whether an answer equals the reference answer.

Grading has to accept right answers, and no wrong one that a policy could learn
to write. The steps for a pair of answers, each in a file of `answers`:

1. `spelling` rewrites both in a common spelling. Equal spellings are equal.
2. `reading` reads the structure: words, lists, tuples, sets, matrices,
   relations, names, ratios, bases, and values with `units` behind them.
3. `formula` reads each value as a sympy expression. It is strict: nothing is
   dropped.
4. `comparison` compares structure with structure, and `numeric` value with
   value, by evaluating both. What cannot be read equals only the same text.

Each file states its rules in order. What is forgiven, and why, is listed in
docs/deviations.md.

Evaluating an answer may run forever, or use all memory, so a `pool.WorkerPool`
runs `equivalent`; `start_worker` prepares each of its processes. No part of an
answer is executed, and `sandbox` forbids it in any case. Workers load this file
without the rest of `pure_jax`: it imports only files of this folder, and sympy
when it is needed.
"""

import fractions
import logging
import re

from pure_jax.host.grading import sandbox
from pure_jax.host.grading.answers import spelling
from pure_jax.host.grading.answers.spelling import (
  MAX_ANSWER_CHARS,
  normalize,
  vote_key,
)

__all__ = [
  "MAX_ANSWER_CHARS", "equivalent", "normalize", "start_worker", "vote_key"
]  # fmt: skip

_UNIT_WORD = re.compile(r"\\(?:text|mathrm|mbox|textrm)\s*\{([^{}]*)\}")


def equivalent(
  answer: str,
  reference: str,
  several: bool = False,
  tolerance: float | None = None,
) -> bool:
  """Tells whether an answer equals the reference answer.

  Several values are compared as a list in any order. Every comma separates two
  of them, except ``{,}``, which is part of a number. Without `several`, 8,221
  is one number.

  Args:
    answer: the answer, LaTeX or plain text, without its box.
    reference: the right answer.
    several: whether the right answer lists several values.
    tolerance: absolute error at which a decimal number is still right, 0 or
      more; None compares by the rules above. 50% is 50 here.

  Returns:
    True if they are equal. False if either is empty, or if they differ as texts
    and one is longer than `MAX_ANSWER_CHARS`.

  >>> equivalent("1,000", r"$1000$"), equivalent("7", "-7")
  (True, False)
  """
  if tolerance is not None:
    values = [_decimal(text) for text in (answer, reference)]
    if None not in values:
      # The decimal that was written, not the float next to it.
      return abs(values[0] - values[1]) <= fractions.Fraction(str(tolerance))
  if several:
    answer, reference = _as_list(answer), _as_list(reference)
  left, right = normalize(answer), normalize(reference)
  if not left or not right:
    return False
  if left == right:
    return True
  if max(len(left), len(right)) > MAX_ANSWER_CHARS:
    return False
  if _without_spaces(left) == _without_spaces(right):
    return True
  values = [spelling.rational(text) for text in (left, right)]
  if None not in values and "." not in left + right:
    return values[0] == values[1]
  return _same(left, right)


def _same(answer: str, reference: str) -> bool:
  """Compares two spellings by their structure."""
  from pure_jax.host.grading.answers import comparison, reading

  try:
    return comparison.same(
      reading.read(reference, _unit_words(answer)),
      reading.read(answer, _unit_words(reference)),
    )
  # A formula that is nested too deeply, or that sympy cannot evaluate, or only
  # by code that it would have to compile.
  except (
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    sandbox.ForbiddenCallError,
  ):
    return False


def _unit_words(text: str) -> frozenset[str]:
  """Returns the words in text commands, which may be units."""
  from pure_jax.host.grading.answers import units

  words = re.findall(r"[^\W\d_]+", " ".join(_UNIT_WORD.findall(text)))
  return frozenset(
    word.casefold() for word in words if len(word) > 1 or word in units.LETTERS
  )


def start_worker() -> None:
  """Prepares a process for grading.

  It imports and warms up the libraries of `equivalent`, outside the limits of
  items. From then on, compiling text, writing files, starting processes and
  opening connections raise a `ForbiddenCallError` in this process.
  """
  logging.disable(logging.CRITICAL)
  for answer, reference in _WARM_UP:
    _same(answer, reference)
  sandbox.forbid()


# Formulas for which sympy imports what it imports late.
_WARM_UP = (
  (r"\frac{x^2}{2}+\sin(x)", r"0.5x^2+\cos(x)"),
  (r"(-\infty,2)\cup(3,\infty)", r"x<2 \text{ or } x>3"),
  (r"\sqrt{2}+\ln 3+\lfloor 2.5\rfloor", r"1.41"),
  (r"10!+\binom{5}{2}\sum_{n=1}^{3}n", r"|x-y|"),
  (r"x^2+y=1", r"2x^2+2y=2"),
)


def _without_spaces(text: str) -> str:
  """Removes the spaces next to operators and brackets: 1, 234 keeps its own."""
  return re.sub(r" *([-+*/=(){}\[\]^_<>|&]) *", r"\1", text)


def _as_list(text: str) -> str:
  """Adds spaces, so that commas between values do not group digits."""
  return re.sub(r",(?=\S)", ", ", text.replace("{,}", ""))


def _decimal(text: str) -> fractions.Fraction | None:
  """Returns the exact value of a decimal number, ignoring a per cent sign."""
  text = re.sub(r"\\?%$", "", normalize(text)).strip()
  return (
    spelling.rational(text) if "/" not in text and "\\" not in text else None
  )
