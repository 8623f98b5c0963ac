r"""Answers made to hang, crash, swell, fool or take over a grader.

Those that are code would create a file if anything ran them.
"""

import itertools
from collections.abc import Iterator

CODE = (
  "__import__('os').system('touch {file}')",
  "__import__('pathlib').Path('{file}').touch()",
  "open('{file}','w').close()",
  "exec(\"open('{file}','w')\")",
  "eval(compile('open(\"{file}\",\"w\")','x','exec'))",
  "(lambda: open('{file}','w'))()",
  "[open('{file}','w') for _ in [1]]",
  "Symbol('x'); open('{file}', 'w')",
  "Integer(1).__class__.__mro__[-1].__subclasses__()",
  "().__class__.__base__.__subclasses__()",
  "{{{{open('{file}','w')}}}}",
  "$(touch {file})",
  "`touch {file}`",
  "; touch {file} #",
  "\\input{{{file}}}",
  "\\write18{{touch {file}}}",
  "\\immediate\\write18{{touch {file}}}",
  'f\'{{open("{file}","w")}}\'',
  "lambda x: __import__('os').abort()",
  "import os\nos.kill(os.getppid(), 9)",
)
# Code may reach a parser bare, as a name, as an argument, or as a number.
CARRIERS = (
  "{}",
  "\\text{{{}}}",
  "\\operatorname{{{}}}(1)",
  "\\sin({})",
  "x_{{{}}}",
  "1 + {}",
  "\\frac{{{}}}{{2}}",
  "f({}) = 1",
)


def hostile_answers(file: str) -> Iterator[str]:
  """Over 200 answers; code among them would create `file`."""
  yield from towers()
  yield from nests()
  yield from long_ones()
  yield from heavy_mathematics()
  yield from quick_answers(file)


def some_answers(file: str) -> Iterator[str]:
  """A part of `hostile_answers`: every quick one, and some of each other kind.

  An answer that hangs costs its time limit and the start of a worker.
  """
  yield from itertools.islice(towers(), 0, None, 4)
  yield from itertools.islice(nests(), 0, None, 5)
  yield from itertools.islice(long_ones(), 0, None, 4)
  yield from itertools.islice(heavy_mathematics(), 0, None, 5)
  yield from quick_answers(file)


def quick_answers(file: str) -> Iterator[str]:
  """Answers that are rejected soon; code among them would create `file`."""
  yield from unbalanced()
  yield from no_numbers()
  yield from unicode_ones()
  for code, carrier in itertools.product(CODE, CARRIERS):
    yield carrier.format(code.format(file=file))


def towers() -> Iterator[str]:
  """Numbers with more digits than there is memory."""
  for base in (9, "0.5"):
    yield f"{base}^9^9^9"
    yield f"{base}^{{9^{{9^{{9}}}}}}"
  yield "9**9**9**9"
  yield "10^{10^{10}}"
  yield "((9!)!)!"
  yield "\\binom{10^9}{5 \\cdot 10^8}"
  yield "1e999999999"
  yield "0." + "0" * 900 + "1"
  yield "9" * 900


def nests() -> Iterator[str]:
  """Deep nesting, for recursive parsers."""
  for depth in (30, 5_000):
    yield "(" * depth + "1" + ")" * depth
    yield "{" * depth + "1" + "}" * depth
    yield "\\frac{1}{" * depth + "2" + "}" * depth
    yield "\\sqrt{" * depth + "2" + "}" * depth
    yield "|" * depth + "1" + "|" * depth
    yield "2^{" * depth + "1" + "}" * depth
    yield "-" * depth + "1"


def long_ones() -> Iterator[str]:
  """Megabytes, and repetitions that make regular expressions backtrack."""
  for part in ("7", "x+", "1,", "\\frac12", " ", "$", "\\", "a=", "{}"):
    yield part * (990 // len(part))
    yield part * (1_000_000 // len(part))


def unbalanced() -> Iterator[str]:
  """Braces and brackets that do not close, or close too soon."""
  yield from (
    "\\frac{1}{2", "1}", "}{", "\\{1,2", "(1,2", "[1,2}", "\\left(1",
    "\\right)", "\\begin{pmatrix}1&2", "\\end{pmatrix}", "$1", "\\(1", "\\[1",
    "\\\\", "^", "_", "1^", "_1", "\\frac", "\\sqrt[", "&", "#", "%", "~",
    "\\boxed{", "\\boxed{\\boxed{1}", "=",
  )  # fmt: skip


def no_numbers() -> Iterator[str]:
  """Words that float() or a parser may read as something else."""
  yield from (
    "NaN", "nan", "-nan", "inf", "-inf", "Infinity", "\\infty", "None", "True",
    "False", "null", "undefined", "\\frac{0}{0}", "\\frac{1}{0}", "0^0",
    "\\infty-\\infty", "\\log 0", "i", "zoo", "oo", "\\bot", "\\emptyset",
    "1/0", "1%0", "0x10", "0b1", "1j", "1_000", "١٢", "Ⅷ",
  )  # fmt: skip


def unicode_ones() -> Iterator[str]:
  """Text outside ASCII, and control characters."""
  yield from (
    "½", "5²", "∞", "π", "−1", "×", "５", "\ud800", "\x00", "\x1b[2J",
    "\u202e1", "e\u0301" * 100, "\U0001f600", "\ufeff1", "1\u00a0000",
    "\u200b1", "\r\n", "\x85", "ﷺ" * 50, "𝟝", "數字",
  )  # fmt: skip


def heavy_mathematics() -> Iterator[str]:
  """Expressions that a computer algebra system may never finish."""
  yield "(" + "+".join(f"x_{{{i}}}" for i in range(40)) + ")^{40}"
  yield "\\int e^{e^{e^{x}}} \\sin(x^{x}) dx"
  yield "\\sum_{n=1}^{10^{12}} \\frac{1}{n}"
  yield "\\lim_{x \\to 0} x^{x^{x^{x}}}"
  yield "x^{7} - x^{6} + 3x^{5} + x - 11 = 0"
  yield "\\sin(\\sin(\\sin(10^{100})))"
  yield "\\sqrt{2+\\sqrt{3+\\sqrt{5+\\sqrt{7+\\sqrt{11+\\sqrt{13}}}}}}"
  yield "\\begin{pmatrix}" + "&".join("x" * 30) + "\\end{pmatrix}"
  yield "\\gcd(10^{99999}, 6^{99999})"
