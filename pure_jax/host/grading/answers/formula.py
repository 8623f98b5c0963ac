r"""Reads one formula in LaTeX or plain text as a sympy expression.

The reader is strict: what it does not know makes the formula unreadable, and
nothing is dropped. The rules, with what math-verify reads in brackets where
that is the reason for a reader of our own:

* A symbol is a letter with its accent, style, subscript and primes. Letters
  keep their case, ``E_1`` and ``m_{\max}`` are symbols, ``y'`` is not ``y``.
  (math-verify: symbols are lower case, ``I`` is the imaginary unit, ``\gamma``
  a number, ``E_1`` an error, and subscripts of numbers and primes are dropped.)
* ``e`` and ``\pi`` are numbers; `numeric` decides what ``i`` is.
* Factors side by side are multiplied, but two numbers are not: ``2 3`` is an
  error. (math-verify: ``(2)(3)`` is the mixed number 5.) An integer before a
  proper fraction is a mixed number.
* ``/`` divides by all factors that follow without a sign: ``1/2x`` is 1/(2x).
* A derivative, ``\frac{dy}{dx}``, is a symbol, named by its text. (math-verify:
  the derivative of a constant, 0.)
* ``f(2)`` is a call if f is a usual name of functions, or if the bracket has
  one symbol or number; ``x(x+1)`` is a product.
* A decimal is the exact number that was written, ``^\circ`` is pi/180.
"""

import re

import sympy

from pure_jax.host.grading.answers import algebra
from pure_jax.host.grading.answers.algebra import UnreadableError
from pure_jax.host.grading.answers.tokens import (
  ACCENTS,
  GREEK,
  NAMED,
  NAMES,
  PLAIN_NAME,
  Tokens,
  is_number,
  mark_names,
)

# Deeper formulas are unreadable; Python's own limit is 1,000 calls.
MAX_DEPTH = 60

# Letters of which f(x+1) is a call.
_CALLED = set("fghFGHPQ")
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "\\lfloor": "\\rfloor",
            "\\lceil": "\\rceil", "\\lvert": "\\rvert"}  # fmt: skip
_TIMES = {"\\cdot", "\\times", "*", "\\ast"}
_DIVIDED = {"/", "\\div"}


def read_formula(text: str) -> sympy.Expr:
  r"""Reads a formula.

  Args:
    text: a spelling by `spelling.normalize`: one value, without relation signs
      or a list.

  Returns:
    The expression. Sums and products of numbers are evaluated, except for
    numbers of more than `MAX_BITS` bits.

  Raises:
    UnreadableError: if any part is unknown or misplaced.

  >>> read_formula(r"\frac{m}{M}"), read_formula("2 1/4"), read_formula("2E_1")
  (m/M, 9/4, 2*E_1)
  """
  reader = _Reader(mark_names(text))
  try:
    value = reader.sum()
  except UnreadableError:
    raise
  # sympy raises many kinds: 1/0 in a logarithm, unordered arguments of Max ...
  except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
    raise UnreadableError(text) from error
  if reader.token is not None:
    raise UnreadableError(f"{reader.token!r} in {text!r}")
  if value.has(sympy.nan, sympy.zoo):
    raise UnreadableError(f"{text!r} is undefined")
  return value


def symbol_name(text: str) -> str:
  r"""Returns the name of a symbol or a call such as ``f(x)``.

  Args:
    text: the left side of an equation.

  Raises:
    UnreadableError: if the text is anything else.

  >>> symbol_name("x_{1}"), symbol_name("f(x)")
  ('x_1', 'f(x)')
  """
  value = read_formula(text)
  called = isinstance(value, sympy.core.function.AppliedUndef)
  if value.is_Symbol or called:
    return str(value)
  raise UnreadableError(f"{text!r} is not a name")


def ends_in_argument(text: str) -> bool:
  r"""Tells whether a formula ends in a bare argument: ``\cos 13``.

  Args:
    text: a formula.
  """
  last = re.split(r"[+\-]", PLAIN_NAME.sub(r"\\\1 ", text))[-1]
  return any(name[1:] in NAMES for name in re.findall(r"\\[a-zA-Z]+", last))


class _Reader(Tokens):
  """Recursive descent over the tokens of a formula."""

  def sum(self) -> sympy.Expr:
    """Terms with signs."""
    self.depth += 1
    if self.depth > MAX_DEPTH:
      raise UnreadableError("too deep")
    value, sign = None, 1
    while True:
      signs = 0
      while self.token in ("+", "-"):
        sign, signs = -sign if self.take() == "-" else sign, signs + 1
      if value is not None and not signs:
        break
      term = sign * self.product()
      value = term if value is None else value + term
      sign = 1
    self.depth -= 1
    return value

  def product(self) -> sympy.Expr:
    """Factors with signs of multiplication and division."""
    value = self.factors()
    while self.token in _TIMES or self.token in _DIVIDED:
      sign = 1
      divided = self.take() in _DIVIDED
      while self.token in ("+", "-"):
        sign = -sign if self.take() == "-" else sign
      factor = sign * self.factors()
      value = algebra.quotient(value, factor) if divided else value * factor
    return value

  def factors(self) -> sympy.Expr:
    """Factors side by side."""
    value = self.power()
    while self.starts_factor():
      # 2 3 is no product, and {2}{3} is printed as 23.
      follows = self.tokens[self.at : self.at + 2]
      if follows[0] == "{":
        del follows[0]
      after_number = self.at == self.end_of_number or is_number(
        self.tokens[self.at - 1]
      )
      if follows and is_number(follows[0]) and after_number:
        raise UnreadableError("two numbers side by side")
      value = value * self.power()
    return value

  def starts_factor(self) -> bool:
    """Tells whether the next token begins a factor."""
    token = self.token
    if token is None or token in _TIMES or token in _DIVIDED:
      return False
    if token in ("|", "\\rvert"):
      return token == "|" and not self.bars
    return (
      token in ("(", "[", "{", "\\lfloor", "\\lceil", "\\lvert", "\\frac",
                "\\sqrt", "\\binom", "\\pi", "\\infty", "\\sum", "\\prod",
                "\\imath", "\\jmath")
      or is_number(token)
      or (token.isascii() and token.isalpha())
      or token in GREEK
      or token in ACCENTS
      or token[1:] in NAMED
    )  # fmt: skip

  def power(self) -> sympy.Expr:
    """A factor with its powers, factorials and degree signs."""
    start = self.at
    value = self.atom()
    if self.at == start + 3 and self.tokens[start] == "{":
      self.end_of_number = self.at if value.is_Rational else -1
    while True:
      if self.token == "!":
        self.take()
        if self.token == "!":
          raise UnreadableError("a double factorial")
        value = algebra.factorial(value)
      elif self.token == "^":
        self.take()
        value = self.raised(value)
      else:
        return value

  def raised(self, value: sympy.Expr) -> sympy.Expr:
    """A value with the exponent that follows."""
    degree = self.tokens[self.at : self.at + 3] == ["{", "\\circ", "}"]
    if degree or self.token == "\\circ":
      self.at += 3 if degree else 1
      return value * sympy.pi / 180
    sign = 1
    while self.token in ("-", "+"):
      sign = -sign if self.take() == "-" else sign
    exponent = sign * self.atom()
    while self.token == "^":  # 2^3^2, as written in plain text.
      self.take()
      exponent = self.raised(exponent)
    return algebra.power(value, exponent)

  def argument(self) -> sympy.Expr:
    r"""The argument of a command: {…}, or one digit, letter or command."""
    if self.token == "{":
      return self.group()
    token = self.token
    if token is not None and token.isdigit() and len(token) > 1:
      self.tokens[self.at : self.at + 1] = list(token)  # \frac12 is 1/2.
    return self.atom()

  def group(self) -> sympy.Expr:
    """A bracket and what it contains."""
    closing = _CLOSING[self.take()]
    bars, self.bars = self.bars, 0
    value = self.sum()
    self.bars = bars
    self.take(closing)
    return value

  def atom(self) -> sympy.Expr:
    """A number, a symbol, a bracket or a command with its arguments."""
    token = self.token
    if token is None:
      raise UnreadableError("the end")
    if token in ("(", "[", "{"):
      return self.group()
    if token in ("\\lfloor", "\\lceil"):
      rounding = sympy.floor if token == "\\lfloor" else sympy.ceiling
      return rounding(self.group())
    if token == "\\lvert":
      return sympy.Abs(self.group())
    if token == "|":
      return self.absolute()
    if is_number(token):
      return algebra.number(self.take())
    if token in ("\\frac", "\\binom"):
      self.take()
      top, bottom = self.argument(), self.argument()
      if token == "\\frac":
        return algebra.quotient(top, bottom)
      return algebra.binomial(top, bottom)
    if token == "\\sqrt":
      return self.root()
    if token in ("\\sum", "\\prod"):
      return self.series()
    if token == "\\pi":
      self.take()
      return sympy.pi
    if token == "\\infty":
      self.take()
      return sympy.oo
    if token[1:] in NAMED:
      return self.function()
    return self.symbol()

  def absolute(self) -> sympy.Expr:
    """|…|."""
    self.take("|")
    self.bars += 1
    value = self.sum()
    self.bars -= 1
    self.take("|")
    return sympy.Abs(value)

  def root(self) -> sympy.Expr:
    r"""\sqrt{…} or \sqrt[n]{…}."""
    self.take()
    index = sympy.Integer(2)
    if self.token == "[":
      index = self.group()
    value = self.argument()
    if index.is_Integer and index % 2 and not value.is_nonnegative:
      # The real root, of a negative number too.
      return sympy.sign(value) * algebra.power(sympy.Abs(value), 1 / index)
    return algebra.power(value, 1 / index)

  def series(self) -> sympy.Expr:
    r"""\sum_{n=1}^{N} or \prod_{n=1}^{N}, of the factors that follow."""
    kind = sympy.Sum if self.take() == "\\sum" else sympy.Product
    self.take("_")
    self.take("{")
    index = self.symbol()
    self.take("=")
    first = self.sum()
    self.take("}")
    self.take("^")
    last = self.argument()
    return kind(self.product(), (index, first, last))

  def function(self) -> sympy.Expr:
    r"""A named function: \sin^2 x, \log_2 8, \max(1, 2)."""
    name = self.take()[1:]
    if name == "operatorname":
      self.take("{")
      name = ""
      while self.token != "}":
        name += self.take().removeprefix("\\")
      self.take("}")
      if name not in NAMED:
        raise UnreadableError(name)
    if name in algebra.SEVERAL or name in ("gcd", "lcm"):
      return algebra.of_several(name, self.call_arguments())
    base = None
    if self.token == "_" and name in algebra.LOGARITHMS:
      self.take()
      base = self.argument()
    exponent = None
    if self.token == "^":
      self.take()
      exponent = self.argument()
    value = self.function_argument()
    if name in algebra.LOGARITHMS:
      result = sympy.log(value) / sympy.log(10 if base is None else base)
    elif exponent == -1 and f"arc{name}" in algebra.FUNCTIONS:
      return algebra.FUNCTIONS[f"arc{name}"](value)
    else:
      result = algebra.FUNCTIONS[name](value)
    return result if exponent is None else algebra.power(result, exponent)

  def function_argument(self) -> sympy.Expr:
    """A bracket, or the factors up to the next function or bracket."""
    if self.token in ("(", "[", "{", "|", "\\lvert"):
      return self.atom()
    value = None
    while value is None or (
      self.starts_factor()
      and self.token[1:] not in NAMED
      and self.token not in ("(", "[")
    ):
      if value is not None and is_number(self.token):
        raise UnreadableError("a number after an argument")
      if value is None and self.token == "-":
        self.take()
        value = -self.power()
      else:
        factor = self.power()
        value = factor if value is None else value * factor
    return value

  def call_arguments(self) -> list[sympy.Expr]:
    """Arguments in brackets, separated by commas."""
    closing = _CLOSING[self.take("(", "{", "\\{", "[")]
    values = [self.sum()]
    while self.token == ",":
      self.take()
      values.append(self.sum())
    self.take(closing)
    return values

  def symbol(self) -> sympy.Expr:
    """A symbol with accent, subscript and primes, or the call of one."""
    name = self.symbol_base()
    if name == "e" and self.token not in ("_", "'"):
      return sympy.E
    subscript, primes = "", ""
    while True:
      if self.token == "_" and not subscript:
        self.take()
        subscript = "_" + self.script()
      elif self.token == "'":
        primes += self.take()
      elif self.token == "^" and self.primes_follow():
        self.take()
        primes += "'" * self.script().count("prime")
      else:
        break
    name += subscript + primes
    if self.token == "(" and self.is_call(name):
      return sympy.Function(name)(*self.call_arguments())
    return sympy.Symbol(name)

  def is_call(self, name: str) -> bool:
    """Tells whether a bracket after a symbol has its arguments."""
    rest = self.tokens[self.at + 1 : self.at + 3]
    return name[0] in _CALLED or (len(rest) == 2 and rest[1] in (")", ","))
