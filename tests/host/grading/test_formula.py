"""The reader of formulas, against arithmetic and math-verify's grammar."""

import fractions
import random

import pytest
import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

from pure_jax.host.grading.answers import numeric
from pure_jax.host.grading.answers.algebra import UnreadableError
from pure_jax.host.grading.answers.formula import read_formula


def random_arithmetic(
  rng: random.Random, depth: int
) -> tuple[str, fractions.Fraction]:
  """Returns an expression in LaTeX, in brackets, and its exact value."""
  if depth == 0:
    whole, tenth = rng.randrange(1, 20), rng.randrange(10)
    if rng.random() < 0.5:
      return str(whole), fractions.Fraction(whole)
    return f"{whole}.{tenth}", fractions.Fraction(10 * whole + tenth, 10)
  left, x = random_arithmetic(rng, depth - 1)
  right, y = random_arithmetic(rng, depth - 1)
  options = [
    (f"({left}+{right})", x + y),
    (f"\\left({left} - {right}\\right)", x - y),
    (f"({left} \\cdot {right})", x * y),
    (f"({left})({right})", x * y),
    (f"(-{left})\\times {right}", -x * y),
    (f"{{{left}}}^2", x**2),
  ]
  if y:
    options += [(f"\\frac{{{left}}}{{{right}}}", x / y),
                (f"({left})/({right})", x / y)]  # fmt: skip
  text, value = rng.choice(options)
  return f"({text})", value


def test_arithmetic_has_its_exact_value():
  rng = random.Random(0)
  for _ in range(300):
    text, value = random_arithmetic(rng, rng.randrange(4))
    assert read_formula(text) == sympy.Rational(
      value.numerator, value.denominator
    ), text


# Formulas that math-verify's grammar reads as they are meant.
COMMON = r"""
x^2-3x+2
\frac{x+1}{x-1}
\frac{1}{2}x y
\sqrt{x^2+1}
\sqrt[3]{x}+1
2^{x+1}
e^{-2x}
\ln x+\ln y
\log_{2} x
\sin 2x
\sin^{2} x+\cos x
\cos(x+y)
\arctan x
\tan\frac{x}{2}
x\cos y\sin x
\sin(x)y
|x-y|
\binom{7}{3}
x!
\lfloor x\rfloor
\lceil x+y\rceil
\pi x^2
-x^2
(-x)^2
x^{-1}
\frac{\frac{x}{2}}{3}
3\cdot 4-2\times x
x/y
\frac{x^{2}}{y^{3}}
\sum_{n=1}^{5} n
\left(1+\frac{x}{3}\right)^{4}
\sinh x
\max(x,y)
\exp(x)
""".strip().split("\n")


@pytest.mark.parametrize("text", COMMON)
def test_common_formulas_agree_with_the_grammar_of_math_verify(text):
  expected = latex2sympy(
    text.replace("\\left", "").replace("\\right", ""),
    normalization_config=None,
    conversion_config=ConversionConfig(lowercase_symbols=False),
  )
  ours = read_formula(text)
  for x, y in ((0.7, 0.3), (2.25, 1.5), (3.5, 0.125)):
    values = {"x": sympy.Rational(x), "y": sympy.Rational(y)}
    left, right = (
      expression.subs({s: values[s.name] for s in expression.free_symbols})
      for expression in (ours, expected)
    )
    assert abs(left.doit().evalf(20) - right.doit().evalf(20)) < 1e-15


# What that grammar reads otherwise, which is why the reader is ours.
@pytest.mark.parametrize(
  "text, ours",
  [
    ("(2)(3)", "6"),
    ("I", "I"),
    (r"\gamma", "gamma"),
    ("y'", "y'"),
    ("A^T", "A**T"),
    ("E_1+E_1", "2*E_1"),
    (r"\tan 45^\circ", "1"),
    ("-1./3", "-1/3"),
    (r"\frac\pi 2", "pi/2"),
    (r"33\frac13", "100/3"),
    ("2 1/4", "9/4"),
    (r"0.1\overline{6}", "1/6"),
    ("x^10", "x**10"),
    ("1,234.5", "2469/2"),
    (r"\operatorname{lcm}(4,6)", "12"),
    (r"\frac{dy}{dx}", "text:dydx"),
    ("f'(2)", "f'(2)"),
  ],
)
def test_formulas_that_the_grammar_of_math_verify_reads_otherwise(text, ours):
  assert str(read_formula(text)) == ours


@pytest.mark.parametrize(
  "text",
  ["", "2 3", "1.5.2", "1..2", "5+", "*5", "6!!", "(1", "1)", "(1]", "x_", "x^",
   r"\frac{1}{0}", r"\frac{1}", r"\sqrt", r"\foo", "x=1", "1,2", "5%", "$5$",
   "x & y", r"\ldots", r"\int x dx", r"\log 0", "∞", "٤", "x?", "[1,2)",
   r"\gcd(10^{99999}, 6^{99999})", r"\gcd(x, 6)", "(" * 70 + "1" + ")" * 70],
)  # fmt: skip
def test_what_is_no_formula_is_unreadable(text):
  with pytest.raises(UnreadableError):
    read_formula(text)


def test_huge_numbers_stay_unevaluated():
  for text in ("9^{9^{9}}", "10^{10^{10}}", "(9!)!", r"\binom{10^9}{10^8}",
               "2^{100000}", "(1-10^{-9})^{10^{9}}"):  # fmt: skip
    value = read_formula(text)
    assert value.is_number and not value.is_Rational, text
  assert read_formula("2^{1000}") == 2**1000


def test_values_are_compared_to_many_digits():
  for left, right, equal in (
    (r"\sqrt{10^{60}+1}", "10^{30}", False),
    (r"e^{\pi\sqrt{163}}", "262537412640768744", False),
    (r"\sqrt{5+2\sqrt6}", r"\sqrt2+\sqrt3", True),
    (r"(1-10^{-9})^{10^{9}}", "e^{-1}", False),
    ("e^{-1000}", "e^{-1001}", False),
    ("0", "e^{-1000}", False),
    (r"\sin\pi", "0", True),
    (r"\arctan 2+\arctan 3", r"\frac{3\pi}{4}", True),
  ):
    values = read_formula(left), read_formula(right)
    assert numeric.equal(*values) is equal, (left, right)
    assert numeric.equal(*reversed(values)) is equal, (left, right)
