r"""Which parts of an answer are words: text commands, bare words, names."""

import re

from pure_jax.host.grading.answers import units
from pure_jax.host.grading.answers.tokens import NAMES, PLAIN_NAME

_TEXT = re.compile(
  r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mbox|hbox|mathrm|emph)"
  r"\s*\{([^{}]*)\}"
)
_ONE_WORD = r"[^\W\d_]+(?:['.-][^\W\d_]+)*\.?"
_PIECE = re.compile(rf"{_ONE_WORD}(?: +{_ONE_WORD})*")
_JOINING_WORD = re.compile(r"(?<![\\a-zA-Z])(?:and|or)(?![a-zA-Z])")
SEPARATOR = re.compile(r"[,;]?\s*(?<![\\a-zA-Z])(?:and|or)(?![a-zA-Z])|[,;]")
_BARE_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '-]+[^\W\d_]+)*")
_SHORT_WORDS = {"yes", "no", "true", "odd", "all", "any", "up", "she", "he"}
_ANSWERS = _SHORT_WORDS | {"false", "none", "even", "undefined"}


_NO_SOLUTION = re.compile(
  r"(?:there (?:is|are) )?no (?:real )?(?:solution|root)s?(?: exists?)?"
  r"|(?:the )?empty set|none"
)
_ALL_REALS = re.compile(r"(?:the set of )?(?:all )?(?:real numbers|reals)")
_LEAD = re.compile(
  r"\\text *\{ *(?:the )?(?:final )?answer(?: is)?:? *\} *:?(?! *[=<>])(?=.)"
  r"|(?:the )?(?:final )?answer(?: is:?|:) ",
  re.IGNORECASE,
)
_BASE = re.compile(
  r"((?:\\text *\{)?[0-9A-Z.-]+\}?)(?:_\{)? *(?:\\text *\{)? *"
  r"\(?(?:in )?base *\}? *(\w+) *\)?\}?"
)
# June 3
_WORD_AND_NUMBER = re.compile(
  r"(?:\\text *\{ *)?([a-zA-Z]{3,}) *(?:\}| ) *([0-9]{1,4})"
)


def without_lead(text: str) -> str:
  r"""Removes *the answer is* in front, and writes *66 base 8* as 66_8.

  Args:
    text: a spelling by `spelling.normalize`.

  >>> without_lead(r"\text{The answer is }5"), without_lead("66 base 8")
  ('5', '66_{8}')
  """
  text = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
  base = _BASE.fullmatch(text)
  return f"{base[1]}_{{{base[2]}}}" if base else text


def meaning(words: str) -> str:
  r"""Returns the sign that says the same as words, or the words.

  Args:
    words: from `words_of`.

  >>> meaning("No real solutions"), meaning("none of these")
  ('\\emptyset', 'none of these')
  """
  lower = words.casefold()
  if _NO_SOLUTION.fullmatch(lower):
    return r"\emptyset"
  if lower == "infinity":
    return r"\infty"
  return r"\mathbb{R}" if _ALL_REALS.fullmatch(lower) else words


def mark_words(text: str) -> str:
  r"""Leaves in ``\text{}`` only words: ``\text{5 or 7}`` becomes ``5 or 7``.

  Args:
    text: a spelling by `spelling.normalize`.
  """

  def mark(match: re.Match) -> str:
    content = match[1]
    if re.fullmatch(r"[0-9A-Z]*[0-9][0-9A-Z]*", content):
      return content
    if content.strip() in NAMES - {"min", "max"}:
      return f"\\{content.strip()} "
    parts, at = [], 0
    content = _JOINING_WORD.sub(lambda word: f" ,{word[0]}, ", content)
    for piece in _PIECE.finditer(content):
      parts.append(content[at : piece.start()])
      is_joint = piece[0] in ("and", "or")
      parts.append(f" {piece[0]} " if is_joint else _mark_word(piece[0]))
      at = piece.end()
    joined = "".join([*parts, content[at:]])
    return re.sub(r",( (?:and|or) ),", r"\1", joined)

  # Subscripts keep their text: m_{\text{max}} is one symbol.
  pieces = re.split(r"(_ *\{(?:[^{}]|\{[^{}]*\})*\})", text)
  pieces[::2] = [_TEXT.sub(mark, piece) for piece in pieces[::2]]
  return "".join(pieces)


def _mark_word(text: str) -> str:
  r"""Writes words in ``\text{}``; a letter that is no unit is a symbol."""
  is_symbol = len(text) == 1 and text not in units.LETTERS
  return text if is_symbol else f"\\text{{{text}}}"


def words_of(text: str) -> str | None:
  r"""Returns the words of a text of words alone, or June 3; None otherwise.

  Args:
    text: from `mark_words`.
  """
  dated = _WORD_AND_NUMBER.fullmatch(text)
  if dated and dated[1] not in NAMES and not PLAIN_NAME.fullmatch(dated[1]):
    return f"{dated[1]} {dated[2]}"
  has_text = "\\text" in text
  plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
  plain = " ".join(plain.split()).strip("().")
  if not _BARE_WORDS.fullmatch(plain):
    return None
  lower = plain.casefold()
  if SEPARATOR.search(lower):
    return None
  bare = re.sub(r"\\text\{[^{}]*\}", "", text)
  if has_text and not re.search("[a-zA-Z]{2}", bare):
    return plain
  lengths = [len(word) for word in lower.split()]
  is_word = max(lengths) > 3 or "o" in lower or lower in _SHORT_WORDS
  return plain if is_word or (len(lengths) > 1 and max(lengths) > 2) else None


def same_words(left: str, right: str) -> bool:
  """Compares words; several letters may be symbols, which keep their case.

  Only the first letter of a word of three letters or more may be a capital, or
  all letters of a text of several words or of a usual answer.

  Args:
    left: from `words_of`.
    right: from `words_of`.

  >>> same_words("Yes", "YES"), same_words("ABCD", "abcd")
  (True, False)
  """
  folded = left.casefold()
  if left == right or folded != right.casefold():
    return left == right
  if " " in left or folded in _ANSWERS:
    return True
  return len(left) > 2 and left[1:] == right[1:]


def has_word(text: str) -> bool:
  """Tells whether a formula has words, or letters side by side.

  Args:
    text: a formula, in which names of functions do not count.
  """
  plain = re.sub(r"\\operatorname *\{[^{}]*\}", "", PLAIN_NAME.sub("", text))
  return "\\text" in plain or bool(
    re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{2}", plain)
  )
