r"""Units behind numbers: which text is a unit, and when two agree.

A unit is a unit only behind a number. It is text in ``\text{}``, a degree sign,
a per cent sign, a sign of currency, or a bare word of at least two letters of
the table below: the last variable of ``2s`` is none. A bare letter is a unit if
the other answer has that letter as one.

* Two units of the table agree if they measure the same: their factors count, so
  50 cents are $0.50, and 5 km are not 5 m. Other units agree by their words.
* A unit that one side lacks is forgiven if it is the reference that has it, or
  if it is in the table. Words that count (``million``) are factors, and words
  that change the meaning (increase, profit, a.m.) are never forgiven in an
  answer.
* A per cent sign that one side lacks is forgiven: 25% is 25 and 0.25. But an
  answer of at most 1%, for a reference without the sign, is only a hundredth:
  0.5% is 0.005 and not 0.5.
"""

import dataclasses
import fractions
import re

_LENGTH = {
  "mm": "1/1000", "millimeter": "1/1000", "cm": "1/100", "centimeter": "1/100",
  "dm": "1/10", "m": 1, "meter": 1, "km": 1000, "kilometer": 1000,
  "in": "254/10000", "inch": "254/10000", "inche": "254/10000",
  "ft": "3048/10000", "foot": "3048/10000", "feet": "3048/10000",
  "yd": "9144/10000", "yard": "9144/10000", "mi": "1609344/1000",
  "mile": "1609344/1000", "nm": "1/1000000000", "metre": 1,
  "centimetre": "1/100", "kilometre": 1000, "millimetre": "1/1000",
}  # fmt: skip
_TIME = {
  "s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hr": 3600,
  "hour": 3600, "day": 86400, "week": 604800, "ms": "1/1000", "hrs": 3600,
}  # fmt: skip
_MASS = {
  "g": "1/1000", "gm": "1/1000", "gram": "1/1000", "kg": 1, "kilogram": 1,
  "mg": "1/1000000", "lb": "45359237/100000000", "pound": "45359237/100000000",
  "lbs": "45359237/100000000",
  "oz": "45359237/1600000000", "ounce": "45359237/1600000000",
}  # fmt: skip
_VOLUME = {
  "l": "1/1000", "liter": "1/1000", "litre": "1/1000", "ml": "1/1000000",
  "milliliter": "1/1000000",
}  # fmt: skip
_DOLLARS = {
  "$": 1, "dollar": 1, "usd": 1, "buck": 1, "cent": "1/100",
}  # fmt: skip
_PLAIN_UNITS = {
  "month": "month", "year": "year", "yr": "year", "gallon": "gallon",
  "gal": "gallon", "quart": "quart", "acre": "acre", "euro": "euro",
  "€": "euro", "£": "pound sterling", "¥": "yen", "yen": "yen", "unit": "unit",
  "j": "joule", "joule": "joule", "n": "newton", "newton": "newton",
  "w": "watt", "watt": "watt", "v": "volt", "volt": "volt", "hz": "hertz",
  "hertz": "hertz", "k": "kelvin", "kelvin": "kelvin", "pa": "pascal",
  "ev": "electronvolt", "mol": "mole", "mole": "mole", "rad": "radian",
  "radian": "radian", "person": "person", "people": "person", "way": "way",
  "student": "student", "point": "point", "apple": "apple", "ohm": "ohm",
  "liters": "liter", "book": "book", "ticket": "ticket", "page": "page",
  "coin": "coin", "integer": "integer", "number": "number", "clip": "clip",
}  # fmt: skip
_ANGLE = {"°": "1", "degree": "1", "deg": "1", "'": "1/60", "''": "1/3600"}
_COUNT = {
  "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6,
  "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
# Letters that are units in \\text{}; other letters there are symbols.
LETTERS = set("mshglLJNWVK")
_SPEED = {"mph": ("mile", "hour"), "kph": ("km", "hour"), "kmh": ("km", "hour")}
_TABLE: dict[str, tuple[str, int, fractions.Fraction]] = {
  word: (dimension, power, fractions.Fraction(factor))
  for dimension, power, words in (
    ("length", 1, _LENGTH), ("time", 1, _TIME), ("mass", 1, _MASS),
    ("length", 3, _VOLUME), ("dollar", 1, _DOLLARS), ("angle", 1, _ANGLE),
  )
  for word, factor in words.items()
} | {
  word: (name, 1, fractions.Fraction(1)) for word, name in _PLAIN_UNITS.items()
}  # fmt: skip
_MEASURED = {dimension for dimension, _, _ in _TABLE.values()}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_PER = {"per", "/"}
_SKIPPED = {"of", "a", "the"}
# Bare words of two letters that are products more often than units.
_NOT_BARE = {"mg", "ms", "in", "mi", "pa", "nm", "yd", "cu"}
_WORD = re.compile(r"[^\W\d_]+|[$€£¥°/%]|'{1,2}|\^\{?(-?[0-9])\}?")
# One block of a unit: text, a degree sign, a sign of currency, primes.
BLOCK = re.compile(
  r"\\text\{[^{}]*\}(?:\^(?:\{-?[0-9]\}|[0-9]))?|\^(?:\{\\circ\}|\\circ)"
  r"(?:\s*[CF](?![a-zA-Z]))?|\\?%|\\\$|[€£¥]|(?<=[0-9.])'{1,2}"
)
_JOINT = re.compile(r"\s*(?:/|\\cdot(?![a-zA-Z])|\*)?\s*")
_BARE = re.compile(
  r"(.*[0-9)}\]%])\s*((?:(?<![\\a-zA-Z])[a-zA-Z]+\.?(?:\^\{?[23]\}?)?\s*/?\s*)+)",
  re.DOTALL,
)
# A number without operators between terms.
_NUMBER = re.compile(
  r"\s*[+-]?(?:[0-9.,]+|\\frac\s*(?:\{[0-9]+\}|[0-9]) *(?:\{[0-9]+\}|[0-9]))\s*"
)


@dataclasses.dataclass(frozen=True)
class Unit:
  """A unit, or several in a row.

  Attributes:
    dimensions: (name, power) of what it measures, without powers of 0. A word
      that is not in the table is its own dimension.
    factor: of the units of the table, in the units of its first entries.
    scale: of words that count, such as million.
    percent: whether it has a per cent sign.
    in_table: whether every word is in the table.
  """

  dimensions: frozenset[tuple[str, int]]
  factor: fractions.Fraction
  scale: fractions.Fraction
  percent: bool
  in_table: bool


def unit_of(text: str) -> Unit:
  r"""Reads the blocks of a unit.

  Args:
    text: blocks such as ``\text{ km}/\text{h}`` or ``\%``, joined.

  >>> unit_of(r"\text{km}").factor, unit_of(r"\%").percent
  (Fraction(1000, 1), True)
  """
  text = text.replace("\\text", " ").replace("\\circ", "°").replace("\\$", "$")
  text = re.sub(r"\^\{?°\}?\s*\{?([CF])(?![a-zA-Z])\}?", r" degrees\1 ", text)
  text = re.sub(r"\^\{?°\}?", " ° ", text)
  text = re.sub(r"(?<=\w)\.(?=\w)", "", text)  # p.m. is one word.
  reader = _UnitReader()
  for match in _WORD.finditer(text):
    reader.read(match[0], match[1])
  if reader.coming != 1:
    reader.add("of nothing", reader.coming)  # "cubic" without a word.
  return Unit(
    dimensions=frozenset((n, p) for n, p in reader.dimensions.items() if p),
    factor=reader.factor,
    scale=reader.scale,
    percent=reader.percent,
    in_table=reader.in_table and reader.coming == 1,
  )


class _UnitReader:
  """Collects the words of a unit."""

  def __init__(self):
    self.dimensions: dict[str, int] = {}
    self.factor = self.scale = fractions.Fraction(1)
    self.percent, self.in_table = False, True
    self.sign = 1  # -1 behind "per" and "/".
    self.coming = 1  # Power of the next word: 2 behind "square".
    self.last: tuple[str, int] | None = None  # The last word and its power.

  def read(self, word: str, exponent: str | None) -> None:
    """Reads a word, or the exponent of the last one."""
    lower = _singular(word.casefold())
    if exponent is not None or lower in ("squared", "cubed"):
      power = _POWERS[lower] if exponent is None else int(exponent)
      if self.last is None or not power:
        self.add("of nothing", 1)
      else:
        self.add(self.last[0], self.last[1] * (power - 1))
    elif word == "%":
      self.percent = True
    elif lower in _PER:
      self.sign = -1
    elif lower in _POWERS:
      self.coming = _POWERS[lower]
    elif lower in _COUNT:
      self.scale *= _COUNT[lower]
    elif lower in _SPEED:
      top, bottom = _SPEED[lower]
      self.add(top, 1)
      self.add(bottom, -1)
    elif lower not in _SKIPPED:
      if len(word) == 1 and word.isalpha() and word not in LETTERS:
        lower = word
      self.last = lower, self.sign * self.coming
      self.add(*self.last)
      self.coming = 1

  def add(self, word: str, power: int) -> None:
    """Multiplies by a power of a word."""
    name, exponent, factor = _TABLE.get(word, (word, 1, fractions.Fraction(1)))
    # A prime is a foot or a minute, which the reference has to tell.
    self.in_table = self.in_table and word in _TABLE and word[0] != "'"
    self.factor *= factor**power
    self.dimensions[name] = self.dimensions.get(name, 0) + exponent * power


NO_UNIT = unit_of("")


def split_quantity(text: str) -> list[tuple[str, str]]:
  r"""Splits a text into values with the units behind them.

  Args:
    text: one value, without lists and relations.

  Returns:
    (value, unit) pairs. ``2\text{ hours }30\text{ minutes}`` has two. A sign of
    currency before the first value is part of its unit. One pair with an empty
    unit if there is none.
  """
  pairs: list[tuple[str, str]] = []
  value, before, behind, at, depth = "", "", "", 0, 0
  while at < len(text):
    block = BLOCK.match(text, at) if depth == 0 else None
    if block:
      at = block.end()
      if value.strip() in ("", "+", "-"):
        # Only a sign of currency stands before a number.
        if block[0] in ("\\$", "€", "£", "¥"):
          before += block[0]
        else:
          value += block[0]
        continue
      behind += block[0]
      # What joins two blocks is part of the unit.
      joint = _JOINT.match(text, at)
      if BLOCK.match(text, joint.end()):
        behind += joint[0]
        at = joint.end()
      continue
    character = text[at]
    depth += (character in "([{") - (character in ")]}")
    if behind and not character.isspace():
      pairs.append((value.strip(), before + behind))
      value, before, behind = "", "", ""
    value += character
    at += 1
  pairs.append((value.strip(), before + behind))
  return pairs


def mark_bare_units(text: str, others: frozenset[str]) -> str:
  r"""Writes bare words at the end as ``\text{}`` if they are units.

  Args:
    text: one value.
    others: words of the units of the other answer.

  >>> print(mark_bare_units("15 cm", frozenset()))
  15\text{cm}
  """
  match = _BARE.fullmatch(text)
  if match is None:
    return text
  for word in re.findall("[a-zA-Z]+", match[2]):
    lower = _singular(word.casefold())
    known = (
      len(word) > 1
      and word not in _NOT_BARE
      and any(
        lower in words for words in (_TABLE, _POWERS, _SPEED, _PER, _COUNT)
      )
    )
    # The last letter of 12-5s belongs to its term.
    if not known and not (lower in others and _NUMBER.fullmatch(match[1])):
      return text
  unit = re.sub(r"\^\{([23])\}", r"^\1", match[2].strip())
  return f"{match[1]}\\text{{{unit}}}"


def agree(reference: Unit, answer: Unit) -> fractions.Fraction | None:
  """Returns the factor from an answer's unit to that of the reference.

  Args:
    reference: the unit of the reference, `NO_UNIT` if it has none.
    answer: the unit of the answer, `NO_UNIT` if it has none.

  Returns:
    The factor, without the scales of both; None if the units do not agree.
  """
  if reference.dimensions == answer.dimensions:
    return answer.factor / reference.factor
  if not answer.dimensions:
    # 5% are not 5 dollars.
    differs = answer.percent and not reference.percent
    return None if differs else fractions.Fraction(1)
  if not reference.dimensions:
    differs = reference.percent or not answer.in_table
    return None if differs else fractions.Fraction(1)
  missing = {name for name, _ in reference.dimensions - answer.dimensions}
  if answer.dimensions < reference.dimensions and not missing & _MEASURED:
    return answer.factor / reference.factor  # 7 integers, 7 distinct integers.
  return None


def is_angle(unit: Unit, radians: bool = False) -> bool:
  """Tells whether a unit is degrees, or parts of them, or radians.

  Args:
    unit: any unit.
    radians: whether to test for radians in place of degrees.
  """
  return unit.dimensions == {("radian" if radians else "angle", 1)}


def _singular(word: str) -> str:
  if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
    return word[:-1]
  return word
