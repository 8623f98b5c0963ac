r"""Reads the structure of an answer: lists, sets, relations, quantities.

The rules, in order, for a spelling by `spelling.normalize`:

1. Braces and styles around the whole vanish: ``{(3,5)}``, ``\mathbf{2340}``.
2. Text commands contain words; what is no word in them is read as if it stood
   outside: ``\text{5 or 7}`` is a list, ``\text{(A)}`` is A.
3. A text of words alone is an answer of words. Bare letters are words, not a
   product, if there are four or more, or one of them is an o.
4. Commas, semicolons, *and* and *or* outside brackets separate a list. A comma
   groups digits only as in 1,234: never after a leading zero, never in
   brackets, never in groups that are not of three.
5. ``\cup`` joins sets; ``=``, ``<``, ``\in`` ... make a relation. ``x=5`` is a
   named value, as is ``x\in A``. ``a=b=c`` is the last value, and must hold.
6. ``\{…\}`` is a set, brackets with commas are a tuple or an interval, a matrix
   with one column or one row is a tuple.
7. ``\pm`` gives two values.
8. ``3:4`` is a ratio or a time, ``1010_2`` a number in a base.
9. All else is a quantity: a formula with units behind it, if it is a number.
"""

import re

import sympy

from pure_jax.host.grading.answers import brackets, formula, quantities, units
from pure_jax.host.grading.answers.algebra import UnreadableError
from pure_jax.host.grading.answers.structure import (
  Collection,
  InBase,
  Named,
  Node,
  Quantity,
  Ratio,
  Relation,
  Unread,
  Words,
)
from pure_jax.host.grading.answers.words import (
  SEPARATOR,
  has_word,
  mark_words,
  meaning,
  without_lead,
  words_of,
)

ELLIPSIS = r"\ldots"


_THOUSANDS = re.compile(
  r"(?<![\w.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,\s*[0-9])"
)
_SIGNS = {
  "=": "=", "<": "<", ">": ">", r"\lt": "<", r"\gt": ">", r"\le": "<=",
  r"\leq": "<=", r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=",
  r"\geqslant": ">=", "<=": "<=", ">=": ">=", r"\ne": "!=", r"\neq": "!=",
  r"\in": "in", r"\approx": "~", r"\equiv": "?", r"\mid": "?", r"\to": "?",
  r"\sim": "?", r"\cong": "?", r"\perp": "?", r"\parallel": "?",
  r"\implies": "?", r"\Rightarrow": "?", r"\rightarrow": "?",
}  # fmt: skip
_SIGN = re.compile(r"\\[a-zA-Z]+|[<>]=|[=<>]")
_ELLIPSIS = re.compile(r"\\(?:dots[cb]?|cdots|ldots)(?![a-zA-Z])")
_SCIENTIFIC = re.compile(
  r"(?<![\w.\\])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE]([+-]?[0-9]{1,3})(?!\w)"
)
_DECIMAL = re.compile(
  r"[+-]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)?\.([0-9]+)"
  r"(?: *(?:\\times|\\cdot|\*) *10\^(?:\{([+-]?[0-9]+)\}|([0-9])))?"
)
_IN_BASE = re.compile(
  r"(-?[0-9A-Z.]*[0-9][0-9A-Z]*)_"
  r"(?:\{ ?(?:\\text\{ ?)?(\w+) ?\}? ?\}|([0-9]))"
)
_TIME = re.compile(r"([0-9]{1,2})((?: ?: ?[0-5][0-9]){1,2})")
_TO = re.compile(r"(?<=[0-9])\s*(?:\\text\{to\}|\bto\b)\s*(?=[0-9])")
_MATRIX = re.compile(
  r"\\begin\{([pbB]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}",
  re.DOTALL,
)
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])")
_TUPLE = re.compile(r"\([^(),]+(?:,[^(),]+)+\)")
# {x | x < 3}
_BUILDER = re.compile(
  r" *[a-zA-Z] *(?:\\in *\\mathbb\{R\})? *(?:\\mid|\\colon|[:|])(.*)"
)
_BASE_NAMES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
               "eight": 8, "nine": 9, "ten": 10, "sixteen": 16}  # fmt: skip


def read(text: str, unit_words: frozenset[str] = frozenset()) -> Node:
  r"""Reads an answer.

  Args:
    text: a spelling by `spelling.normalize`.
    unit_words: words that are units because the other answer has them as such.

  >>> read(r"\text{Saturday}"), read("52_8")
  (Words(text='Saturday'), InBase(digits='52', base=8))
  """
  text = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
  text = _ELLIPSIS.sub(r"\\ldots ", text)
  # A value without its name: = 5.
  text = re.sub(r"^(?:=|\\approx(?![a-zA-Z]))", "", text)
  return _read(mark_words(without_lead(text)), unit_words)


def _read(text: str, unit_words: frozenset[str]) -> Node:
  """Reads a text whose words are marked, by the rules above."""
  text = brackets.strip_groups(text)
  words = words_of(text)
  if words is not None and meaning(words) == words:
    return Words(words)
  text = text if words is None else meaning(words)
  text = _THOUSANDS.sub(
    lambda match: (
      match[0].replace(",", "")
      if brackets.depth(text[: match.start()]) == 0
      else match[0]
    ),
    text,
  )
  items = brackets.split(text, SEPARATOR)
  if len(items) > 1:
    if not all(item.strip() for item in items):
      return Unread(text)
    nodes = [_read(item, unit_words) for item in items]
    if "," not in text and ";" not in text:
      total = quantities.added(nodes)
      if total is not None:
        return total
    return Collection(_kind_of_list(text, nodes), _flat(nodes))
  for reader in (_read_union, _read_relation, _read_group, _read_plus_minus):
    node = reader(text, unit_words)
    if node is not None:
      return node
  return _read_value(text, unit_words)


def _kind_of_list(text: str, nodes: list[Node]) -> str:
  """Returns "both" for inequalities with *and* between them, else "list"."""
  joins = {separator.strip() for separator in SEPARATOR.findall(text)}
  inequalities = all(
    isinstance(node, Relation) and "=" not in node.signs for node in nodes
  )
  return "both" if inequalities and joins == {"and"} else "list"


def _flat(nodes: list[Node]) -> tuple[Node, ...]:
  """Puts the values of plus-minus and of lists in lists into the list."""
  flat: list[Node] = []
  for node in nodes:
    is_list = isinstance(node, Collection) and node.kind == "list"
    flat += node.items if is_list else [node]
  return tuple(flat)


def _read_union(text: str, unit_words: frozenset[str]) -> Node | None:
  """A union or a difference of sets; None if there is no sign of one."""
  parts = brackets.split(text, re.compile(r"\\cup(?![a-zA-Z])"))
  is_difference = len(parts) == 1
  if is_difference:
    parts = brackets.split(
      text, re.compile(r"\\(?:setminus|backslash)(?![a-zA-Z])")
    )
    if len(parts) != 2:
      return None
  name, sign, first = parts[0].rpartition("\\in ")
  nodes = tuple(_read(part, unit_words) for part in [first, *parts[1:]])
  sets = Collection("difference" if is_difference else "union", nodes)
  return Named(_name(name), sets, None) if sign else sets


def _read_relation(text: str, unit_words: frozenset[str]) -> Node | None:
  """A relation, or a value with its name; None if there is no sign of one."""
  signs, parts, start = [], [], 0
  for match in _SIGN.finditer(text):
    if match[0] in _SIGNS and brackets.depth(text[: match.start()]) == 0:
      signs.append(_SIGNS[match[0]])
      parts.append(text[start : match.start()].strip())
      start = match.end()
  if not signs:
    return None
  parts.append(text[start:].strip())
  if "?" in signs:
    return Unread(text)
  if signs[-1] == "~":
    return _approximate(text, signs, parts, unit_words)
  if signs == ["in"]:
    return Named(_name(parts[0]), _read(parts[1], unit_words), None)
  if "in" in signs or "~" in signs or not parts[-1]:
    return Unread(text)
  relation = None
  try:
    sides = tuple(formula.read_formula(part) for part in parts)
    relation = Relation(tuple(signs), sides)
  except UnreadableError:
    pass
  if set(signs) == {"="}:
    named = _named(parts, relation, unit_words)
    if named is not None:
      return named
  return relation or Unread(text)


def _named(
  parts: list[str], relation: Relation | None, unit_words: frozenset[str]
) -> Node | None:
  """A value with its name on the left; None if the left is no name."""
  try:
    name = _name(parts[0])
  except UnreadableError:
    name = ""
  if name:
    if len(parts) == 2:
      return Named(name, _read(parts[1], unit_words), relation)
    nodes = [_read(part, unit_words) for part in parts[1:]]
    return Named(name, nodes[-1], None) if _holds(nodes) else None
  # 2+3=5: the value, if it is true. 5=x is x=5.
  nodes = [_read(part, unit_words) for part in parts]
  *before, last = nodes
  if any(not isinstance(n, Quantity) or n.has_symbols for n in before):
    return None
  if relation and relation.sides[-1].is_Symbol and len(before) == 1:
    return Named(str(relation.sides[-1]), before[0], relation)
  return last if _holds(nodes) else None


def _holds(nodes: list[Node]) -> bool:
  """Tells whether all sides of a chain of equations are equal."""
  *before, last = nodes
  return all(isinstance(node, Quantity) for node in nodes) and all(
    quantities.same_quantity(last, node) for node in before
  )


def _name(text: str) -> str:
  """Returns the name on the left of a sign; raises if it is none."""
  if _TUPLE.fullmatch(text):  # (x, y) = (3, 5)
    names = [formula.symbol_name(part) for part in text[1:-1].split(",")]
    return f"({','.join(names)})"
  return formula.symbol_name(text)


def _approximate(
  text: str, signs: list[str], parts: list[str], unit_words: frozenset[str]
) -> Node:
  r"""``a \approx b`` is a, and b has to round it; ``\approx b`` is b."""
  value = _read(parts[-1], unit_words)
  exact = text.rpartition("\\approx")[0]
  node = _read(exact, unit_words)
  inner = node.value if isinstance(node, Named) else node
  if isinstance(inner, Quantity) and isinstance(value, Quantity):
    left, right = inner.parts[0][0], value.parts[0][0]
    decimals = 0 if value.decimals is None else value.decimals
    if left.is_number and right.is_number:
      error = abs(left - right).evalf(15)
      if error.is_comparable and 2 * error <= sympy.Integer(10) ** -decimals:
        return node
    elif isinstance(node, Quantity) and left.is_Symbol:
      return Named(str(left), value, None)
  return Unread(text)


def _read_group(text: str, unit_words: frozenset[str]) -> Node | None:
  """A set, a tuple, an interval or a matrix; None if it is none."""
  matrix = _MATRIX.fullmatch(text) or _MATRIX.fullmatch(text[1:-1])
  if matrix:
    return _read_matrix(matrix[2], unit_words)
  if text.startswith("\\{") and text.endswith("\\}"):
    if not brackets.closes_at_end(text[1:-2] + "}"):
      return None
    builder = _BUILDER.fullmatch(text[2:-2])
    if builder:
      node = _read(builder[1], unit_words)
      holds = isinstance(node, Relation | Named | Collection)
      return node if holds else Unread(text)
    items = brackets.split(text[2:-2], SEPARATOR)
    if items == [""]:
      return Unread(r"\emptyset")
    return Collection("set", _flat([_read(i, unit_words) for i in items]))
  if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
    if not brackets.closes_at_end(text):
      return None
    items = brackets.split(text[1:-1], re.compile("[,;]"))
    if len(items) == 1:
      return None
    nodes = tuple(_read(item, unit_words) for item in items)
    return Collection("tuple", nodes, text[0] + text[-1])
  return None


def _read_matrix(content: str, unit_words: frozenset[str]) -> Node:
  """The rows and columns of a matrix; a single row or column as one."""
  rows = [row for row in re.split(r"\\\\", content) if row.strip()]
  cells = [
    tuple(_read(cell.strip(), unit_words) for cell in row.split("&"))
    for row in rows
  ]
  if len(cells) == 1:
    return Collection("row", cells[0])
  if cells and all(len(row) == 1 for row in cells):
    return Collection("column", tuple(row[0] for row in cells))
  return Collection("matrix", tuple(Collection("row", row) for row in cells))


def _read_plus_minus(text: str, unit_words: frozenset[str]) -> Node | None:
  """The two values of a plus-minus sign; None if there is none."""
  if not _PLUS_MINUS.search(text):
    return None
  upper = text.replace("\\pm", "+").replace("\\mp", "-")
  lower = text.replace("\\pm", "-").replace("\\mp", "+")
  return Collection(
    "list", tuple(_read(sign, unit_words) for sign in (upper, lower))
  )


def _read_value(text: str, unit_words: frozenset[str]) -> Node:
  """A ratio, a number in a base, or a quantity."""
  base = _IN_BASE.fullmatch(re.sub(r"^\((.*)\)(?=_)", r"\1", text))
  if base:
    name = base[2] or base[3]
    value = _BASE_NAMES.get(name) or (int(name) if name.isdigit() else 0)
    if value > 1 and _are_digits(base[1], value):
      return InBase(base[1], value)
  if text in ("\\emptyset", "\\varnothing"):
    return Unread(r"\emptyset")
  text = _TO.sub(":", text)
  text = units.mark_bare_units(text, unit_words)
  pairs = units.split_quantity(text)
  try:
    if len(pairs) == 1 and ":" in pairs[0][0]:
      return _read_ratio(*pairs[0])
    return _read_quantity(text, pairs)
  except UnreadableError:
    return Unread(text)


def _are_digits(text: str, base: int) -> bool:
  """Tells whether all digits of a number are below its base."""
  return all(int(c, 36) < base for c in text if c not in "-.") and base <= 36


def _read_ratio(text: str, unit: str) -> Ratio:
  time = _TIME.fullmatch(text)
  items = tuple(formula.read_formula(part) for part in text.split(":"))
  return Ratio(items, time is not None, units.unit_of(unit))


def _read_quantity(text: str, pairs: list[tuple[str, str]]) -> Quantity:
  """A number with units, or a formula of which text is a part."""
  if any(unit for _, unit in pairs):
    parts = []
    for value, unit in pairs:
      expression = formula.read_formula(value)
      # In \cos 13^\circ the sign belongs to the argument.
      if expression.free_symbols or formula.ends_in_argument(value):
        parts = []
        break
      parts.append((expression, units.unit_of(unit)))
    if parts:
      return Quantity(tuple(parts), *_decimals(pairs[0][0]))
  value = formula.read_formula(text)
  if not value.free_symbols and has_word(text):
    raise UnreadableError(f"{text!r} has words")  # not 0, which is no product.
  letters = text if text.isalpha() and text.isascii() else None
  parts = ((value, units.NO_UNIT),)
  return Quantity(parts, *_decimals(text), letters=letters)


def _decimals(text: str) -> tuple[int | None, int]:
  """Returns (digits behind the point, significant digits) of a decimal."""
  match = _DECIMAL.fullmatch(text)
  if match is None:
    return None, 0
  mantissa = re.split(r"[\\* ]", text)[0]
  digits = re.sub(r"[^0-9]", "", mantissa).lstrip("0")
  exponent = int(match[2] or match[3] or 0)
  return len(match[1]) - exponent, len(digits)
