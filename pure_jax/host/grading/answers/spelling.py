r"""Spellings: rewrites a text in a common spelling of LaTeX.

Nothing here changes the meaning of an answer, and what is rewritten here is
what is compared later. The rules, in order:

1. Signs outside ASCII become LaTeX: ``×``, ``π``, ``√2``, ``5²``, ``72°``.
2. Sizes, styles and colours vanish: ``\left``, ``\big``, ``\displaystyle``,
   ``\dfrac``. ``{a\over b}``, ``\vert``, ``\lbrace``, ``x**2``, ``abs(x)`` get
   the usual spelling. Other ``**`` vanish.
3. *percent* becomes ``\%``, ``\langle`` a bracket. ``\!`` vanishes; ``\,``,
   ``~`` and ``\quad`` become a space.
4. Digits in groups of three after ``{,}``, ``\,`` or a space are one number;
   any other ``{,}`` between digits is a decimal comma.
5. Dollars in pairs, ``\(``, ``\)``, ``\[`` and ``\]`` become spaces: the text
   around a formula is read with it. A single dollar is an amount of money.
6. Full stops, commas and semicolons at the end vanish, and needless spaces.
"""

import fractions
import re

MAX_ANSWER_CHARS = 1_000

_LATEX = str.maketrans(
  {
    "\u2212": "-", "\u2013": "-", "×": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ", "÷": r"\div ", "∞": r"\infty ", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "°": r"^\circ ",
    "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ", "…": r"\ldots ",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "′": "'", "\u2019": "'",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ",
    "ε": r"\epsilon ", "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ",
    "π": r"\pi ", "ρ": r"\rho ", "σ": r"\sigma ", "τ": r"\tau ",
    "φ": r"\phi ", "ω": r"\omega ", "Δ": r"\Delta ", "Ω": r"\Omega ",
    "¢": r"\text{cents}", "\u00a0": " ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}",
  }
)  # fmt: skip
_SUPERSCRIPT_DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_FROM_SUPERSCRIPT = str.maketrans(_SUPERSCRIPT_DIGITS, "0123456789-")
_SUPERSCRIPT = re.compile(f"[{_SUPERSCRIPT_DIGITS}]+")
_ROOT = re.compile(
  r"(?:√|(?<![\\a-zA-Z])sqrt)\s*(?:\(([^()]*)\)|\{([^{}]*)\}"
  r"|([0-9]+(?:\.[0-9]+)?|[a-zA-Z]))"
)
_SIZE = re.compile(
  r"(?<!\\)\\(?:(?:left|right)(?![a-zA-Z.])"
  r"|(?:[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|bf|rm|large"
  r"|Large|small)"
  r"(?![a-zA-Z])) *"
)
_COLOR = re.compile(r"\\(?:text)?color *\{ *[a-zA-Z]+ *\}")
_OTHER_NAMES = {
  r"\langle": "(", r"\rangle": ")", r"\degree": r"^\circ ", r"\vert": "|",
  r"\lbrace": r"\{", r"\rbrace": r"\}",
}  # fmt: skip
_OTHER_NAME = re.compile(r"\\(?:[lr]angle|degree|vert|[lr]brace)(?![a-zA-Z]) ?")
_GROUP = r"((?:[^{}]|\{[^{}]*\})*)"
# {5\choose 2}, {1\over 2}
_INFIX = re.compile(rf"\{{{_GROUP}\\(choose|over)(?![a-zA-Z]){_GROUP}\}}")
_INFIX_ALONE = re.compile(
  r" *([\w+-]+) *\\(choose|over)(?![a-zA-Z]) *([\w+-]+) *"
)
_STARS = re.compile(r"(?<=[\w)}])\*\*(?=[\w({-])|(?<=[\w)}]) \*\* (?=[\w(])")
_ABSOLUTE = re.compile(r"(?<![\\a-zA-Z])abs *\(([^()]*)\)")
_PHANTOM = re.compile(r"\\[hv]?phantom *(?:\{[^{}]*\}|.)")
_PERCENT = re.compile(
  r"\\(?:text|mathrm|mbox) *\{ *(?:percent|per cent|pct) *\}"
  r"|(?<![a-zA-Z\\{])(?:percent|per cent|pct)(?![a-zA-Z])"
)
_SPACE = re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z]))|(?<!\\)~")
_GROUPS_OF_THREE = re.compile(
  r"(?<![\w.,}^])([1-9][0-9]{0,2})((?:(?:\{,\}|\\,|\\ |~| )[0-9]{3})+)"
  r"(?![0-9]|\{,\})"
)
_DECIMAL_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=[0-9])")
_DOLLAR = re.compile(r"(?<!\\)\$")
_MATH_SWITCH = re.compile(r"(?<!\\)\\[()\[\]]")
_DECIMAL = re.compile(r"[+-]?([1-9][0-9]{0,2}(,[0-9]{3})+|[0-9]+)?(\.[0-9]*)?")
_FRACTION = re.compile(
  r"([+-]?)(?:\\frac\{([0-9]+)\}\{([0-9]+)\}|([0-9]+)/([0-9]+))"
)


def normalize(answer: str) -> str:
  r"""Rewrites an answer in a common spelling of LaTeX, by the rules above.

  Equal spellings mean the same; the reverse does not hold.

  Args:
    answer: any text.

  >>> print(normalize(r"$ \left( \dfrac{1}{2}, 10{,}000 \right) $."))
  (\frac{1}{2}, 10000)
  """
  text = answer.translate(_LATEX).replace("...", r"\ldots ")
  text = _SUPERSCRIPT.sub(
    lambda match: f"^{{{match[0].translate(_FROM_SUPERSCRIPT)}}}", text
  )
  text = _ROOT.sub(
    lambda match: f"\\sqrt{{{match[1] or match[2] or match[3] or ''}}}", text
  )
  text = _PHANTOM.sub("", _SIZE.sub("", text))
  text = _PERCENT.sub(r"\\%", text)
  text = _OTHER_NAME.sub(
    lambda match: _OTHER_NAMES[match[0].rstrip()], _COLOR.sub("", text)
  )
  text = _usual_forms(text)
  text = re.sub(r"\\[dtc](frac|binom)(?![a-zA-Z])", r"\\\1", text)
  text = re.sub(r"(?<!\\)\\! *|(?<![\\\w^}\]])\{\}", "", text)
  text = _GROUPS_OF_THREE.sub(
    lambda match: match[1] + re.sub("[^0-9]", "", match[2]), text
  )
  text = _DECIMAL_COMMA.sub(".", text).replace("{,}", ",")
  text = _SPACE.sub(" ", text)
  dollars = len(_DOLLAR.findall(text))
  text = _DOLLAR.sub(" " if dollars % 2 == 0 else r"\\$", text)
  text = _MATH_SWITCH.sub(" ", text)
  text = " ".join(text.replace("**", " ").split())
  text = text.rstrip(".,;\\ ")
  return re.sub(r"(?<=[(\[]) | (?=[)\]])", "", text)


def _usual_forms(text: str) -> str:
  """Rewrites what plain TeX or a program writes in another way."""

  def command(match: re.Match) -> str:
    name = "binom" if match[2] == "choose" else "frac"
    return f"\\{name}{{{match[1]}}}{{{match[3]}}}"

  alone = _INFIX_ALONE.fullmatch(text)
  text = command(alone) if alone else _INFIX.sub(command, text)
  text = re.sub(r"(?<=[0-9])\^\{ *o *\}", r"^\\circ ", text)
  return _ABSOLUTE.sub(r"|\1|", _STARS.sub("^", text))


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
  value = rational(re.sub(r"\\?%$", "", text).strip())
  if value is not None:
    return str(value)
  return re.sub(r"(?<!\w) | (?!\w)", "", text)


def rational(text: str) -> fractions.Fraction | None:
  r"""Returns the value of a decimal number or a fraction of integers.

  A comma groups digits: "1,234" is a number, "0,125" and "12,34" are not. None
  for all other texts.

  Args:
    text: a spelling by `normalize`.

  >>> rational("-1,234.5"), rational(r"\frac{1}{2}"), rational("0,125")
  (Fraction(-2469, 2), Fraction(1, 2), None)
  """
  if len(text) > MAX_ANSWER_CHARS:
    return None
  if any(c.isdigit() for c in text) and _DECIMAL.fullmatch(text):
    digits = text.replace(",", "")
    return fractions.Fraction(digits + "0" if digits[-1] == "." else digits)
  match = _FRACTION.fullmatch(text)
  if match is None:
    return None
  top, bottom = (int(digits) for digits in match.groups()[1:] if digits)
  if not bottom:
    return None
  return fractions.Fraction(-top if match[1] == "-" else top, bottom)
