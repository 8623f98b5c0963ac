r"""Brackets of a text: how deep they are, and what stands outside of them."""

import re

_OPEN, _CLOSE = "([{", ")]}"
_STYLE = re.compile(r"\\(?:mathbf|boldsymbol|bm|boxed|fbox|underline) *(?=\{)")


def depth(text: str) -> int:
  """Returns how many brackets are open at the end of a text.

  Args:
    text: any text.
  """
  return sum((c in _OPEN) - (c in _CLOSE) for c in text)


def closes_at_end(text: str) -> bool:
  """Tells whether the bracket at the start closes at the end.

  Args:
    text: a text that starts with a bracket.
  """
  level = 0
  for at, character in enumerate(text):
    level += (character in _OPEN) - (character in _CLOSE)
    if level == 0:
      return at == len(text) - 1
  return False


def strip_groups(text: str) -> str:
  r"""Removes braces and styles around the whole, and a full stop at the end.

  Args:
    text: any text.

  >>> strip_groups(r"{\mathbf{(3,5)}}")
  '(3,5)'
  """
  while True:
    text = _STYLE.sub("", text, count=1) if _STYLE.match(text) else text
    text = text.strip().rstrip(".").strip()
    if not (text.startswith("{") and closes_at_end(text)):
      return text
    text = text[1:-1]


def split(text: str, separator: re.Pattern) -> list[str]:
  r"""Splits a text at separators outside brackets and environments.

  Args:
    text: any text.
    separator: what stands between two parts.

  Returns:
    The parts, one or more.

  >>> split("1,(2,3),4", re.compile(","))
  ['1', '(2,3)', '4']
  """
  parts, start, level, at = [], 0, 0, 0
  for match in separator.finditer(text):
    level += depth(text[at : match.start()])
    at = match.start()
    if level == 0 and "\\begin" not in text[:at]:
      parts.append(text[start:at])
      start = match.end()
  return [*parts, text[start:]]
