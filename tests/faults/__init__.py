"""Faults of the library, for `tests/mutations.py`.

`plant` compiles the changed source of a function and gives its code to the
function that is already there, so every module that imported the function runs
it.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import io
import textwrap
import tokenize
import types
from typing import Any

_LAYOUT = {
  *(tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
  *(tokenize.COMMENT, tokenize.ENDMARKER),
}


class FaultError(Exception):
  """A fault cannot be planted, or its tests do not catch it."""


@dataclasses.dataclass(frozen=True)
class Fault:
  """One fault.

  Attributes:
    name: what is wrong, in words.
    function: ``module:name`` below ``pure_jax``, or ``module:Class.name``.
    old: a piece of the function's source that occurs in it exactly once. Line
      breaks, indentation and comments are ignored.
    new: the text that replaces it, on one line.
    tests: ``test_file.py::test_name`` of the tests that should fail.
  """

  name: str
  function: str
  old: str
  new: str
  tests: tuple[str, ...]

  @property
  def module(self) -> str:
    """The full name of the function's module."""
    return f"pure_jax.{self.function.partition(':')[0]}"


def plant(fault: Fault) -> None:
  """Plants a fault in the library of this process.

  Args:
    fault: the fault.

  Raises:
    FaultError: if the function or the piece of its source does not exist.
  """
  function = _find_function(fault)
  source = faulty_source(fault, textwrap.dedent(inspect.getsource(function)))
  codes = [
    code
    for code in _codes(compile(source, fault.module, "exec"))
    if code.co_name == function.__name__
  ]
  if not codes or codes[0].co_freevars != function.__code__.co_freevars:
    raise FaultError(f"{fault.name!r}: {fault.function} cannot be replaced.")
  function.__code__ = codes[0]


def faulty_source(fault: Fault, source: str) -> str:
  """Returns the source of a function with the fault in it.

  Args:
    fault: the fault.
    source: source of the function, without indentation.

  Returns:
    The changed source, which still parses.

  Raises:
    FaultError: if the piece does not occur exactly once.
  """
  tokens, piece = _tokens(source), _tokens(fault.old)
  texts = [token.string for token in tokens]
  length = len(piece)
  starts = [
    start
    for start in range(len(tokens) - length + 1)
    if texts[start : start + length] == [token.string for token in piece]
  ]
  if len(starts) != 1:
    raise FaultError(
      f"{fault.name!r}: its piece occurs {len(starts)} times in "
      f"{fault.function}: {fault.old!r}"
    )
  lines = source.splitlines(keepends=True)
  first, last = tokens[starts[0]], tokens[starts[0] + length - 1]
  begin = sum(map(len, lines[: first.start[0] - 1])) + first.start[1]
  end = sum(map(len, lines[: last.end[0] - 1])) + last.end[1]
  changed = source[:begin] + fault.new + source[end:]
  ast.parse(changed)
  return changed


def _find_function(fault: Fault) -> types.FunctionType:
  """Returns the Python function below jit, properties and decorators."""
  module, name = importlib.import_module(fault.module), fault.function
  try:
    member: Any = functools.reduce(
      inspect.getattr_static, name.partition(":")[2].split("."), module
    )
  except AttributeError as error:
    raise FaultError(f"{fault.name!r}: there is no {name}.") from error
  if isinstance(member, property):
    member = member.fget
  function = inspect.unwrap(getattr(member, "__func__", member))
  if not isinstance(function, types.FunctionType):
    raise FaultError(f"{fault.name!r}: {name} is not a function.")
  return function


def _codes(code: types.CodeType) -> list[types.CodeType]:
  """Lists the code objects of a compiled source, outer ones first."""
  inner = [x for x in code.co_consts if isinstance(x, types.CodeType)]
  return inner + [deeper for each in inner for deeper in _codes(each)]


def _tokens(text: str) -> list[tokenize.TokenInfo]:
  """Splits a source, or a piece of one, into tokens without layout."""
  tokens = []
  try:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
      if token.type not in _LAYOUT:
        tokens.append(token)
  except tokenize.TokenError:
    pass  # A piece may leave brackets open.
  return tokens
