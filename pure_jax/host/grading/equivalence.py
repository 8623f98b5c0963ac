r"""Compares two answers with math-verify, in a process that executes nothing.

math-verify parses both answers as LaTeX and compares them as sympy expressions.
That may run forever, or use all memory, so a `pool.GradingPool` runs
`equivalent`; `start_worker` prepares each of its processes.

No part of an answer is executed. sympy parses a *string* by evaluating Python
(`parse_expr`). math-verify's LaTeX parser passes it one kind of string from an
answer, numbers (`latex2sympy`: ``sympy.Number(text)`` of a token of digits).
Its other parser, `ExprExtractionConfig`, passes arithmetic and is not used
here. `start_worker` does not rely on that: it forbids the process to compile
any text but such numbers (except sympy's own code), to write files, to start
processes and to use the network.

Workers load this file by its path: it imports nothing of the library, and
math-verify only when it is needed.
"""

import fractions
import functools
import importlib
import logging
import re
import sys
from typing import Any

# Longer answers are compared as text only. The longest answer of MATH500,
# Minerva, Olympiad, AIME and AMC has 210 characters.
MAX_ANSWER_CHARS = 1_000
# Two numbers below SMALL are equal only if they differ by at most SMALL_ERROR
# of the reference. By itself, math-verify rounds to six decimals, or drops
# small terms, and takes 3e-20 for 1.6e-19.
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
# Python source that sympy writes for a number or a fraction.
_NUMBER_SOURCE = re.compile(
  r"from sympy import \*"
  r"|(?:(?:Integer|Float) \('?[0-9.]+(?:[eE][+-]?[0-9]+)?'? \)|[ ()/+-])+"
)
_FORBIDDEN_EVENTS = (
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
# sympy code that compiles source made only of variable counts.
_COMPILES_CODE = ("sympy/polys/monomials.py",)


class ForbiddenCallError(BaseException):
  """An answer tried to execute code or to reach files, processes or network.

  Not an Exception, which math-verify would take for a failed comparison.
  """


def normalize(answer: str) -> str:
  r"""Rewrites an answer in a common spelling of LaTeX.

  It changes only parts without meaning: minus signs, sizes of brackets and
  fractions, thin spaces, ``{,}`` between digits, dollars around the whole, a
  full stop at the end, runs of white space. Equal spellings mean the same; the
  reverse does not hold.

  Args:
    answer: any text.

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
  r"""Returns a key that is equal for answers that count as the same vote.

  The key is the value of an integer, a decimal or a fraction of integers, and
  otherwise the spelling by `normalize`, without spaces next to signs. It is
  cheap, and the rule is the same for right and wrong answers. Answers that only
  a computer algebra system would call equal have different keys.

  Args:
    answer: any text.

  >>> {vote_key(text) for text in (r"\dfrac{1}{2}", "1/2", "0.50", "$.5$")}
  {'1/2'}
  """
  text = normalize(answer)
  if len(text) > MAX_ANSWER_CHARS:
    return text
  value = _decimal(text)
  if value is not None:
    return str(value)
  match = _FRACTION.fullmatch(text)
  if match is not None:
    top, bottom = (int(digits) for digits in match.groups()[1:] if digits)
    if bottom:
      sign = -1 if match[1] == "-" else 1
      return str(fractions.Fraction(sign * top, bottom))
  return re.sub(r"(?<!\w) | (?!\w)", "", text)


def _decimal(text: str) -> fractions.Fraction | None:
  """Returns the exact value of a decimal number, ignoring a per cent sign."""
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
  """Tells whether an answer equals the reference answer.

  The text decides where it can: equal spellings are equal, two integers are
  equal if they are the same number, two answers of words if they are the same
  words. math-verify decides the rest, in its default, strict mode. It accepts
  different forms of a number (decimals to 6 places, and below `SMALL` also to
  `SMALL_ERROR` of the reference), degrees, ``x=`` before a value, and any order
  of a set. It also takes 50% for 50 and {1, 2} for the interval (1, 2), and
  ignores a unit after a number and the base of a number.

  Several values are compared as a set, as math-verify compares lists: order
  and repetition have no effect. Every comma between them separates two values,
  except ``{,}``, which groups digits. Without `several`, 8,221 is one number.

  Args:
    answer: the answer, LaTeX or plain text, without its box.
    reference: the right answer.
    several: whether the right answer lists several values.
    tolerance: absolute error at which a decimal number is still right, 0 or
      more; None compares as above. 50% is 50 here too.

  Returns:
    True if they are equal. False if either is empty, or if they differ as texts
    and one is longer than `MAX_ANSWER_CHARS`.

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
  # Letters without \text may be a product: xy is yx.
  if None not in words and (_TEXT.fullmatch(left) or _TEXT.fullmatch(right)):
    return words[0] == words[1]
  return _math_verify_equal(answer, reference)


def start_worker() -> None:
  """Prepares a process for grading.

  It imports and warms up the libraries of `equivalent`, outside the limits of
  items. From then on, compiling text, writing files, starting processes and
  opening connections raise a `ForbiddenCallError` in this process.
  """
  logging.disable(logging.CRITICAL)
  # sympy imports it late, and reads names of units as strings then.
  importlib.import_module("sympy.physics.units")
  _math_verify_equal(r"\frac{x^2}{2}", r"(0.5, \infty)")
  sys.dont_write_bytecode = True
  sys.addaudithook(_forbid)


def _as_list(text: str) -> str:
  """Adds spaces, so that commas between values do not group digits."""
  return re.sub(r",(?=\S)", ", ", text.replace("{,}", ""))


def _words(text: str) -> str | None:
  """Returns the words of an answer that consists of words; None otherwise."""
  inner = _TEXT.fullmatch(text)
  plain = (inner[1] if inner else text).strip().removesuffix(".")
  return plain.casefold() if _WORDS.fullmatch(plain) else None


@functools.cache
def _extraction() -> list[Any]:
  """Returns the parsers of math-verify: only LaTeX, see above."""
  from math_verify import LatexExtractionConfig

  return [LatexExtractionConfig(boxed_match_priority=-1)]


def _as_latex(text: str) -> str | None:
  """Returns an answer as one formula; None if it has several and no list."""
  text = text.replace("\u2212", "-").strip()
  # math-verify would read 4.4e7 as 4.4 * e * 7.
  text = _SCIENTIFIC.sub(r"\1 \\cdot 10^{\2}", text)
  formulas = _FORMULA.findall(text)
  if len(formulas) == 1:
    return text  # math-verify reads "$5$ cm".
  if not formulas:
    text = re.sub(r"(?<!\\)\$", r"\\$", text)  # $5 is an amount of money.
    return f"${text}$"
  # math-verify would take the last one, unless they are joined as a list.
  between = [part.strip() for part in _FORMULA.sub("$", text).split("$")]
  if between[0] or between[-1] or not all(map(_JOINT.fullmatch, between[1:-1])):
    return None
  return f"${','.join(formulas)}$"


def _math_verify_equal(answer: str, reference: str) -> bool:
  """Compares by math-verify, without its own time limits, which are alarms."""
  import math_verify

  parsed = []
  for text in (reference, answer):
    latex = _as_latex(text)
    if latex is None:
      return False
    parsed.append(math_verify.parse(latex, _extraction(), parsing_timeout=None))
  if not all(parsed) or not math_verify.verify(*parsed, timeout_seconds=None):
    return False
  # A per cent sign has two meanings, whose values are far apart.
  has_percent = "%" in answer or "%" in reference
  return has_percent or not _small_and_different(parsed[0][0], parsed[1][0])


def _small_and_different(reference: Any, answer: Any) -> bool:
  """Tells whether both are small and differ by more than `SMALL_ERROR`."""
  import sympy

  values = []
  for expression in (reference, answer):
    if isinstance(expression, sympy.Equality):  # x = 5, compared as 5.
      expression = expression.rhs
    if not isinstance(expression, sympy.Expr) or not expression.is_comparable:
      return False
    values.append(expression.evalf())
  right, value = values
  if max(abs(right), abs(value)) >= SMALL:
    return False
  return bool(abs(value - right) > SMALL_ERROR * abs(right))


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
  """Audit hook that raises for everything that a comparison need not do."""
  if event == "compile":
    if not (_is_number_source(arguments[0]) or _is_library_code()):
      raise ForbiddenCallError("An answer must not be executed.")
  elif event == "open":
    mode, flags = arguments[1:]
    writes = set("wax+") & set(mode) if mode else flags & 0o3
    if writes and arguments[0] != "/dev/null":
      raise ForbiddenCallError("A grader must not write files.")
  elif event.startswith(_FORBIDDEN_EVENTS):
    raise ForbiddenCallError(f"A grader must not call {event}.")


def _is_number_source(source: Any) -> bool:
  """Tells whether this is Python source that sympy writes for a number."""
  if isinstance(source, bytes):
    source = source.decode(errors="replace")
  return isinstance(source, str) and bool(_NUMBER_SOURCE.fullmatch(source))


def _is_library_code() -> bool:
  """Tells whether an import or sympy itself compiles the code."""
  frame = sys._getframe(2)
  if frame.f_code.co_filename.endswith(_COMPILES_CODE):
    return True
  while frame is not None:
    if frame.f_code.co_filename.startswith("<frozen importlib"):
      return True
    frame = frame.f_back
  return False
