"""Forbids a process to execute text, write files, start processes or connect.

`forbid` is called once a worker has loaded what it needs. From then on Python
itself reports what the process tries, by audit events, and the hook raises.
Grading needs none of it: answers are read by `formula`, which evaluates no
Python. sympy compiles source of its own in a few places, which are allowed.
"""

import re
import sys
from typing import Any

# Python source that sympy writes for a number or a fraction.
_NUMBER_SOURCE = re.compile(
  r"from sympy import \*"
  r"|(?:(?:Integer|Float) \('?[0-9.]+(?:[eE][+-]?[0-9]+)?'? \)|[ ()/+-])+"
)
_FORBIDDEN_EVENTS = (
  "ctypes.",
  "os.chmod",
  "os.chown",
  "os.exec",
  "os.fork",
  "os.link",
  "os.mkdir",
  "os.posix_spawn",
  "os.remove",
  "os.rename",
  "os.rmdir",
  "os.symlink",
  "os.system",
  "os.truncate",
  "shutil.",
  "socket.",
  "subprocess.",
)
# sympy code that compiles source made only of variable counts.
_COMPILES_CODE = ("sympy/polys/monomials.py",)


class ForbiddenCallError(BaseException):
  """An answer tried to execute code or to reach files, processes or network.

  Not an Exception, which a library would take for a failed computation.
  """


def forbid() -> None:
  """Makes forbidden calls of this process raise a `ForbiddenCallError`."""
  sys.dont_write_bytecode = True
  sys.addaudithook(_forbid)


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
  """Audit hook that raises for everything that a comparison need not do."""
  if event == "compile":
    if not (_is_number_source(arguments[0]) or _is_library_code()):
      raise ForbiddenCallError("An answer must not be executed.")
  elif event == "open":
    mode, flags = arguments[1:]
    writes = set("wax+") & set(mode) if mode else flags & 0o3
    if writes and arguments[0] != "/dev/null":
      raise ForbiddenCallError("A grader must not write files.")
  elif event.startswith(_FORBIDDEN_EVENTS):
    raise ForbiddenCallError(f"A grader must not call {event}.")


def _is_number_source(source: Any) -> bool:
  """Tells whether this is Python source that sympy writes for a number."""
  if isinstance(source, bytes):
    source = source.decode(errors="replace")
  return isinstance(source, str) and bool(_NUMBER_SOURCE.fullmatch(source))


def _is_library_code() -> bool:
  """Tells whether an import or sympy itself compiles the code."""
  frame = sys._getframe(2)
  if frame.f_code.co_filename.endswith(_COMPILES_CODE):
    return True
  while frame is not None:
    if frame.f_code.co_filename.startswith("<frozen importlib"):
      return True
    frame = frame.f_back
  return False
