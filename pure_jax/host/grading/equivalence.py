r"""Whether two answers are the same: math-verify, with what must not run shut.

math-verify reads both answers as LaTeX and compares them as sympy expressions.
That may take for ever, or all memory, so a `grading_pool.GradingPool` runs
`equivalent`; `start_worker` prepares each of its processes.

Nothing of an answer is executed. sympy reads a *string* by evaluating Python
(`parse_expr`). The one string of an answer that math-verify's LaTeX path hands
it is a number (`latex2sympy`: ``sympy.Number(text)`` of a token of digits);
the path that hands it arithmetic, `ExprExtractionConfig`, is not used here.
`start_worker` does not rely on that: from then on the process refuses to
compile any text that is not such a number, sympy's own code apart, and to
touch files for writing, processes and the network.

This file is loaded by its path in workers: it imports nothing of the library,
and math-verify only when it is needed.
"""

import fractions
import functools
import importlib
import logging
import re
import sys
from typing import Any

# Above any answer people write (the longest of MATH500, Minerva, Olympiad,
# AIME and AMC has 210 characters); what is longer is compared as text only.
MAX_ANSWER_CHARS = 1_000
# Where both are below this size, equal numbers also differ by no more than
# this part of the reference: math-verify rounds to six decimals or drops what
# is small, and takes 3e-20 for 1.6e-19.
SMALL = 1e-3
SMALL_ERROR = 1e-6

_SCIENTIFIC = re.compile(
  r"(?<![\w.\\])([0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]{1,3})(?!\w)"
)
_FORMULA = re.compile(r"(?<!\\)\$([^$]*)(?<!\\)\$")
_JOINT = re.compile(r"[,;]|,?\s*(?:and|or)")
_INTEGER = re.compile(r"[+-]?([0-9]{1,3}(,[0-9]{3})+|[0-9]+)")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,3}(,[0-9]{3})+|[0-9]+)?(\.[0-9]+)?")
_FRACTION = re.compile(
  r"([+-]?)(?:\\frac\{([0-9]+)\}\{([0-9]+)\}|([0-9]+)/([0-9]+))"
)
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\{([^{}\\$]*)\}")
_WORDS = re.compile(r"[^\W\d_]{2,}( [^\W\d_]+)*")
# How sympy spells a number to Python, and a fraction of two.
_NUMBER_SOURCE = re.compile(
  r"from sympy import \*"
  r"|(?:(?:Integer|Float) \('?[0-9.]+(?:[eE][+-]?[0-9]+)?'? \)|[ ()/+-])+"
)
_REFUSED = (
  "ctypes.",
  "os.chmod",
  "os.chown",
  "os.exec",
  "os.fork",
  "os.link",
  "os.mkdir",
  "os.posix_spawn",
  "os.remove",
  "os.rename",
  "os.rmdir",
  "os.symlink",
  "os.system",
  "os.truncate",
  "shutil.",
  "socket.",
  "subprocess.",
)
# Code that sympy writes from numbers of variables alone.
_WRITES_CODE = ("sympy/polys/monomials.py",)


class RefusedError(BaseException):
  """Something tried to execute an answer, or to touch the outside.

  Not an Exception: math-verify would take it for a comparison that failed.
  """


def normalize(answer: str) -> str:
  r"""An answer in the one spelling of several that mean the same in LaTeX.

  Only what cannot change the meaning: minus signs, sizes of brackets and
  fractions, thin spaces, ``{,}`` between digits, dollars around the whole, a
  full stop at the end, runs of white space.

  Args:
    answer: any text.

  Returns:
    The spelling. Equal ones mean the same; the reverse does not hold.

  >>> print(normalize(r"$ \left( \dfrac{1}{2}, 10{,}000 \right) $."))
  (\frac{1}{2}, 10,000)
  """
  text = answer.replace("\u2212", "-").replace("{,}", ",")
  text = re.sub(r"(?<!\\)\\[!,;:]", "", text)
  text = re.sub(r"(?<!\\)\\(?:left|right)(?![a-zA-Z.]) *", "", text)
  text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
  text = " ".join(text.split()).removesuffix(".").strip()
  if len(text) > 1 and text[0] == text[-1] == "$" and "$" not in text[1:-1]:
    text = text[1:-1].strip()
  return re.sub(r"(?<=[(\[]) | (?=[)\]])", "", text)


def vote_key(answer: str) -> str:
  r"""What answers that vote for the same thing have in common.

  Their value where they are an integer, a decimal or a fraction of integers,
  else their spelling by `normalize`, without spaces beside signs. Cheap, and
  the same rule for right and wrong answers. Those that only a computer algebra
  system would call equal stay different.

  Args:
    answer: any text.

  Returns:
    The key.

  >>> {vote_key(text) for text in (r"\dfrac{1}{2}", "1/2", "0.50", "$.5$")}
  {'1/2'}
  """
  text = normalize(answer)
  if len(text) > MAX_ANSWER_CHARS:
    return text
  value = _decimal(text)
  if value is not None:
    return str(value)
  found = _FRACTION.fullmatch(text)
  if found is not None:
    top, bottom = (int(digits) for digits in found.groups()[1:] if digits)
    if bottom:
      sign = -1 if found[1] == "-" else 1
      return str(fractions.Fraction(sign * top, bottom))
  return re.sub(r"(?<!\w) | (?!\w)", "", text)


def _decimal(text: str) -> fractions.Fraction | None:
  """The exact value of a decimal number, a per cent sign passed over."""
  text = re.sub(r"\\?%$", "", text).strip()
  if len(text) > MAX_ANSWER_CHARS or not text[-1:].isdigit():
    return None
  if not _DECIMAL.fullmatch(text):
    return None
  return fractions.Fraction(text.replace(",", ""))


def equivalent(
  answer: str,
  reference: str,
  several: bool = False,
  tolerance: float | None = None,
) -> bool:
  """Whether an answer is the same as the reference answer.

  Decided by the text where that settles it: equal spellings are the same, two
  integers are the same if they are one number, two answers of words if they
  are the same words. Everything else is up to math-verify, in its default,
  strict mode. It forgives what a grader should: forms of one number
  (decimals to 6 places, and below `SMALL` also to `SMALL_ERROR` of the
  reference), degrees, ``x=`` before a value, the order of a set. It also
  takes 50% for 50, {1, 2} for the interval (1, 2), and passes over the unit
  after a number and the base below it.

  Several values are compared as a set, as math-verify compares lists: order
  and repetition do not count, each value does. Every comma in them separates
  two values but for ``{,}``, which groups digits: without `several`, 8,221 is
  one number.

  Args:
    answer: what was answered, LaTeX or plain, without its box.
    reference: the right answer.
    several: whether the right answer lists several values.
    tolerance: absolute error at which a decimal number is still right, 0 or
      more; None compares as above. 50% is 50 here too.

  Returns:
    True if they are the same; False if not, if either is empty, or if they
    differ and one is longer than `MAX_ANSWER_CHARS`.

  >>> equivalent("1,000", r"$1000$"), equivalent("7", "-7")
  (True, False)
  """
  if tolerance is not None:
    values = [_decimal(normalize(text)) for text in (answer, reference)]
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
  if _INTEGER.fullmatch(left) and _INTEGER.fullmatch(right):
    return int(left.replace(",", "")) == int(right.replace(",", ""))
  words = _words(left), _words(right)
  # Unmarked letters may be a product: xy is yx.
  if None not in words and (_TEXT.fullmatch(left) or _TEXT.fullmatch(right)):
    return words[0] == words[1]
  return _math_verify_says(answer, reference)


def start_worker() -> None:
  """Prepares a process for grading, and shuts it against answers.

  Imports and warms what `equivalent` needs, so that no item pays for it. Then
  compiling text, writing files, starting processes and opening connections
  raise `RefusedError`, for the rest of the process's life.
  """
  logging.disable(logging.CRITICAL)
  # sympy imports it late, and reads names of units as strings then.
  importlib.import_module("sympy.physics.units")
  _math_verify_says(r"\frac{x^2}{2}", r"(0.5, \infty)")
  sys.dont_write_bytecode = True
  sys.addaudithook(_refuse)


def _as_list(text: str) -> str:
  """Values whose commas cannot be taken for those that group digits."""
  return re.sub(r",(?=\S)", ", ", text.replace("{,}", ""))


def _words(text: str) -> str | None:
  """The words of an answer that is nothing but words."""
  inner = _TEXT.fullmatch(text)
  plain = (inner[1] if inner else text).strip().removesuffix(".")
  return plain.casefold() if _WORDS.fullmatch(plain) else None


@functools.cache
def _extraction() -> list[Any]:
  """What math-verify is to find: LaTeX alone, see above."""
  from math_verify import LatexExtractionConfig

  return [LatexExtractionConfig(boxed_match_priority=-1)]


def _as_latex(text: str) -> str | None:
  """An answer as one formula; None where it is several, and no list."""
  text = text.replace("\u2212", "-").strip()
  # It would read 4.4e7 as 4.4 * e * 7.
  text = _SCIENTIFIC.sub(r"\1 \\cdot 10^{\2}", text)
  formulas = _FORMULA.findall(text)
  if len(formulas) == 1:
    return text  # "$5$ cm" is for math-verify to read.
  if not formulas:
    text = re.sub(r"(?<!\\)\$", r"\\$", text)  # $5: a sign of currency.
    return f"${text}$"
  # It would take the last of them, unless they are joined as it expects.
  between = [part.strip() for part in _FORMULA.sub("$", text).split("$")]
  if between[0] or between[-1] or not all(map(_JOINT.fullmatch, between[1:-1])):
    return None
  return f"${','.join(formulas)}$"


def _math_verify_says(answer: str, reference: str) -> bool:
  """Its verdict, without its own time limits, which are alarms."""
  import math_verify

  parsed = []
  for text in (reference, answer):
    latex = _as_latex(text)
    if latex is None:
      return False
    parsed.append(math_verify.parse(latex, _extraction(), parsing_timeout=None))
  if not all(parsed) or not math_verify.verify(*parsed, timeout_seconds=None):
    return False
  # Of a per cent sign it takes either meaning: two values, which are far apart.
  has_percent = "%" in answer or "%" in reference
  return has_percent or not _small_and_apart(parsed[0][0], parsed[1][0])


def _small_and_apart(reference: Any, answer: Any) -> bool:
  """Whether both are small numbers, and differ by more than `SMALL_ERROR`."""
  import sympy

  values = []
  for found in (reference, answer):
    if isinstance(found, sympy.Equality):  # x = 5, compared as 5.
      found = found.rhs
    if not isinstance(found, sympy.Expr) or not found.is_comparable:
      return False
    values.append(found.evalf())
  right, value = values
  if max(abs(right), abs(value)) >= SMALL:
    return False
  return bool(abs(value - right) > SMALL_ERROR * abs(right))


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
  """An audit hook: lets through what a grader does, and no more."""
  if event == "compile":
    if not (_is_number(arguments[0]) or _is_code_of_a_library()):
      raise RefusedError("An answer must not be executed.")
  elif event == "open":
    mode, flags = arguments[1:]
    writes = set("wax+") & set(mode) if mode else flags & 0o3
    if writes and arguments[0] != "/dev/null":
      raise RefusedError("A grader must not write files.")
  elif event.startswith(_REFUSED):
    raise RefusedError(f"A grader must not call {event}.")


def _is_number(source: Any) -> bool:
  """Whether this is how sympy spells numbers to Python."""
  if isinstance(source, bytes):
    source = source.decode(errors="replace")
  return isinstance(source, str) and bool(_NUMBER_SOURCE.fullmatch(source))


def _is_code_of_a_library() -> bool:
  """Whether a module is being imported, or sympy compiles its own code."""
  frame = sys._getframe(2)
  if frame.f_code.co_filename.endswith(_WRITES_CODE):
    return True
  while frame is not None:
    if frame.f_code.co_filename.startswith("<frozen importlib"):
      return True
    frame = frame.f_back
  return False
