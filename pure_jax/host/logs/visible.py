r"""Escapes of characters that a terminal obeys, for untrusted texts.

A terminal obeys some characters in place of showing them: a response could
clear the screen, change the title of the window, or go back in its line and
write over an error. `visible` writes these characters as escapes:

* C0 (U+0000 to U+001F) except line break and tab, DEL, and C1 (U+0080 to
  U+009F): commands. They begin all sequences of escapes, and a lone carriage
  return overwrites the line;
* marks, embeddings, overrides and isolates of text direction (U+061C, U+200E,
  U+200F, U+202A to U+202E, U+2066 to U+2069): they change the order in which
  later characters are shown;
* separators of lines and paragraphs (U+2028, U+2029): line breaks to some
  programs, but not to those that split logs at "\n";
* halves of surrogate pairs (U+D800 to U+DFFF): no encoding can write them, so
  printing them raises. File names that are not UTF-8 have them.

A C0 character is written as \x1b, any other as \u009b. Strict JSON has no raw
C0 character, and reads \u009b as the same character: a JSON text that is
printed stays JSON with the same values.
"""

import re

_COMMANDS = re.compile(
  "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
  "\ud800-\udfff]"
)


def visible(text: str) -> str:
  r"""Writes characters that a terminal obeys as escapes; all others stay.

  >>> print(visible("a\x1b[2Jb\r\u202e\tc"))
  a\x1b[2Jb\x0d\u202e	c

  Args:
    text: any text.
  """
  return _COMMANDS.sub(_escape, text)


def markdown(text: str) -> str:
  r"""Writes a text on one line of Markdown, none of which is markup.

  >>> print(markdown("a_b | <b>\n\x1b"))
  a\_b \| \<b\> \\x1b

  Args:
    text: any text. White space becomes one space.
  """
  line = " ".join(visible(text).split())
  return re.sub(r"([\\`*_{}\[\]<>|#$&~])", r"\\\1", line)


def _escape(match: re.Match[str]) -> str:
  """The escape of a character."""
  code = ord(match[0])
  return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}"
