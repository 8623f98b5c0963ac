r"""The tokens of a formula, and the names of its symbols."""

import re

from pure_jax.host.grading.answers import algebra
from pure_jax.host.grading.answers.algebra import UnreadableError

_TOKEN = re.compile(
  r"\\[a-zA-Z]+|\\.|[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9,])"
  r"|[0-9]+\.?[0-9]*|\.[0-9]+|\s+|.",
  re.DOTALL,
)
_LETTERS = (
  "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota "
  "kappa lambda mu nu xi omicron rho varrho sigma varsigma tau upsilon phi "
  "varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi "
  "Omega Pi ell hbar partial nabla angle triangle odot aleph Re Im mho"
)
_ACCENTS = (
  "vec hat bar overline dot ddot tilde widetilde widehat mathbf mathcal "
  "mathbb mathfrak mathrm mathit mathsf boldsymbol bm text underline "
  "overrightarrow overleftrightarrow"
)
GREEK = {f"\\{name}" for name in _LETTERS.split()}
ACCENTS = {f"\\{name}" for name in _ACCENTS.split()}
NAMED = {
  *algebra.FUNCTIONS,
  *algebra.LOGARITHMS,
  *algebra.SEVERAL,
  "gcd",
  "lcm",
  "operatorname",
}
NAMES = NAMED - {"operatorname"}
PLAIN_NAME = re.compile(
  r"(?<![\\a-zA-Z])(arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp|pi|"
  r"theta|alpha|beta|gamma|lambda|omega|infty)(?![a-zA-Z])"
)
_IGNORED = {"\\limits", "\\left", "\\right"}
_DERIVATIVE = re.compile(
  r"\\frac *\{ *(?P<d>(?:\\mathrm *\{ *d *\}|d|\\partial)) *"
  r"(?:\^ *\{? *[2-9] *\}?)?(?P<top>[^{}]*(?:\{[^{}]*\}[^{}]*)*?)\} *"
  r"\{ *(?P=d) *(?P<bottom>\\?[a-zA-Z]+ *(?:_ *(?:\{[^{}]*\}|\w))?"
  r" *(?:\^ *\{? *[2-9] *\}?)?(?: *(?P=d) *\\?[a-zA-Z]+)*) *\}"
)
_SLASHED_DERIVATIVE = re.compile(
  r"(?<![\\a-zA-Z])(d|\\partial) *\\?[a-zA-Z] */ *\1 *\\?[a-zA-Z]"
  r"(?![a-zA-Z])"
)
_MIXED = re.compile(
  r"([0-9]+) *(?:\\frac *(?:\{ *([0-9]+) *\}|([0-9]))"
  r" *(?:\{ *([0-9]+) *\}|([0-9]))| +([0-9]+) */ *([0-9]+))(?! *[!^0-9])"
)
# What may stand before the integer of a mixed number.
_BEFORE_MIXED = re.compile(r"(?:^|[^\w.^_})\]]|\\[a-zA-Z]+) *$")
_REPEATING = re.compile(
  r"([0-9]*)\.([0-9]*)\\(?:overline|bar|dot) *\{([0-9]+)\}"
)


def mark_names(text: str) -> str:
  r"""Writes derivatives as one symbol, and plain names as commands: ``\sin``.

  Args:
    text: a formula.
  """
  text = re.sub(r"\\mathrm +([a-zA-Z])", r"\1", text)
  text = _MIXED.sub(_mixed_number, text)
  text = _REPEATING.sub(_repeating_decimal, text)
  text = _DERIVATIVE.sub(_derivative_symbol, text)
  text = _SLASHED_DERIVATIVE.sub(_derivative_symbol, text)
  return PLAIN_NAME.sub(r"\\\1 ", text)


def _mixed_number(match: re.Match) -> str:
  r"""Returns ``2\frac{1}{4}`` or ``2 1/4`` as a fraction, if it is proper."""
  whole, top, bottom = (int(digits) for digits in match.groups() if digits)
  is_mixed = _BEFORE_MIXED.search(match.string[: match.start()])
  if not is_mixed or not 0 < top < bottom:
    return match[0]
  return f"{{\\frac{{{whole * bottom + top}}}{{{bottom}}}}}"


def _repeating_decimal(match: re.Match) -> str:
  r"""Returns ``0.1\overline{6}`` as a fraction."""
  whole, fixed, period = match.groups()
  top = int(whole + fixed + period) - int(whole + fixed or "0")
  bottom = (10 ** len(period) - 1) * 10 ** len(fixed)
  return f"{{\\frac{{{top}}}{{{bottom}}}}}"


def _derivative_symbol(match: re.Match) -> str:
  """Returns a derivative as one symbol, named by its text."""
  text = match[0].replace("\\frac", "", 1)
  text = re.sub(r"\\mathrm|[{} ]", "", text).replace("\\", ".")
  return f"\\text{{{text.replace('/', '')}}} "


class Tokens:
  """The tokens of a formula, taken one after the other."""

  def __init__(self, text: str):
    self.tokens = [
      token
      for token in _TOKEN.findall(text)
      if not token.isspace() and token not in _IGNORED
    ]
    self.at = 0
    self.depth = 0
    self.end_of_number = -1  # Where a number in braces ended last: {2}.
    self.bars = 0  # Open signs of an absolute value in this bracket.

  @property
  def token(self) -> str | None:
    """The next token; None at the end."""
    return self.tokens[self.at] if self.at < len(self.tokens) else None

  def take(self, *expected: str) -> str:
    """Returns the next token, which must be one of those expected, if any."""
    token = self.token
    if token is None or (expected and token not in expected):
      raise UnreadableError(f"{token!r}")
    self.at += 1
    return token

  def symbol_base(self) -> str:
    """The letter of a symbol, with its accent."""
    token = self.take()
    if token in ("\\imath", "\\jmath"):
      return token[1]
    if token in ACCENTS:
      content = self.script()
      if not content:
        raise UnreadableError(token)
      upright = token in ("\\text", "\\mathrm", "\\mathit")
      if upright and len(content) == 1:
        return content
      return f"{'text' if upright else token[1:]}:{content}"
    if token in GREEK:
      return token[1:]
    if token.isascii() and token.isalpha():
      return token
    raise UnreadableError(token)

  def primes_follow(self) -> bool:
    """Tells whether the superscript that follows consists of primes."""
    rest = self.tokens[self.at + 1 : self.at + 3]
    return rest[:1] == ["\\prime"] or rest == ["{", "\\prime"]

  def script(self) -> str:
    """The text of {…} or of one token, without braces, styles and spaces."""
    if self.token != "{":
      token = self.take()
      if not (token.isalnum() or token[1:].isalpha()):
        raise UnreadableError(token)
      return token.removeprefix("\\")
    depth, parts = 0, []
    while True:
      token = self.take()
      depth += (token == "{") - (token == "}")
      if token not in ("{", "}", "\\text", "\\mathrm", "\\rm"):
        parts.append(token.removeprefix("\\"))
      if not depth:
        return "".join(parts)


def is_number(token: str | None) -> bool:
  """Tells whether a token is a number.

  Args:
    token: None at the end of a formula.
  """
  return (
    token is not None
    and (token[0].isdigit() or token[:1] == ".")
    and (token.isascii() and len(token.strip(".")) > 0)
  )
