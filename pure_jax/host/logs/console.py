"""All that scripts print: results, messages, and progress of a loop.

Results go to standard output, all else to standard error. Both may contain
untrusted texts (problems, responses, names of files), so their control
characters are escaped here (`visible`), and nothing is printed in another way.
"""

import logging
import os
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Mapping
from typing import Any, TextIO

import tqdm

from pure_jax.host.logs.visible import visible

# Between two lines of progress if standard error is not a terminal.
LOG_SECONDS = 20.0


class _VisibleRecord(logging.LogRecord):
  """A message of the log, which may contain untrusted text."""

  def __init__(self, *args: Any, **kwargs: Any):
    """Formats the stack trace, which else the handler would."""
    super().__init__(*args, **kwargs)
    if self.exc_info and self.exc_info[0] is not None:
      self.exc_text = visible(_format(*self.exc_info))

  def getMessage(self) -> str:  # noqa: N802, the name of the library.
    """The message."""
    return visible(super().getMessage())


def guard_terminal() -> None:
  """Escapes control characters in log messages, warnings and stack traces, too.

  It also hides the lines that jax logs about backends that it does not find,
  the client of the Hugging Face hub about each request, and transformers about
  torch, which nothing here needs. For scripts: a library must not change these
  of the program that imports it.
  """
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  # Versions of the hub's client differ.
  for chatty in ("jax", "httpx", "httpx2"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
  logging.setLogRecordFactory(_VisibleRecord)
  sys.excepthook = tell_traceback
  sys.unraisablehook = _tell_ignored
  threading.excepthook = _tell_failed_thread
  warnings.showwarning = _tell_warning


def show(result: object) -> None:
  """Writes a result to standard output, on lines of its own.

  Args:
    result: its text.

  Raises:
    SystemExit: if the reader of the output has closed it.
  """
  try:
    _write(sys.stdout, str(result))
  except BrokenPipeError:
    # The interpreter flushes stdout once more at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def tell(message: object) -> None:
  """Writes a message to standard error, on lines of its own.

  Args:
    message: its text.
  """
  _write(sys.stderr, str(message))


def tell_traceback(
  kind: type[BaseException],
  error: BaseException,
  trace: types.TracebackType | None,
) -> None:
  """Writes an error with its stack trace, as `sys.excepthook` does.

  The message of an error may contain untrusted text.

  Args:
    kind: its type.
    error: the error.
    trace: where it was raised.
  """
  tell(_format(kind, error, trace))


def _format(*error: Any) -> str:
  """An error with its stack trace, as Python prints it."""
  return "".join(traceback.format_exception(*error)).removesuffix("\n")


def _tell_ignored(ignored: Any) -> None:
  """Tells of an error that Python cannot raise: `sys.unraisablehook`."""
  where = f"{ignored.err_msg or 'Exception ignored in'}: {ignored.object!r}"
  trace = ignored.exc_traceback
  tell(f"{where}\n{_format(ignored.exc_type, ignored.exc_value, trace)}")


def _tell_failed_thread(failed: Any) -> None:
  """Tells of an error that ends a thread: `threading.excepthook`."""
  if failed.exc_type is not SystemExit:
    name = "" if failed.thread is None else f" {failed.thread.name}"
    trace = _format(failed.exc_type, failed.exc_value, failed.exc_traceback)
    tell(f"Exception in thread{name}:\n{trace}")


def _tell_warning(
  message: Warning | str,
  category: type[Warning],
  filename: str,
  lineno: int,
  file: TextIO | None = None,
  line: str | None = None,
) -> None:
  """Tells of a warning: `warnings.showwarning`."""
  del file  # Nobody names one.
  text = warnings.formatwarning(message, category, filename, lineno, line)
  tell(text.removesuffix("\n"))


def _write(stream: TextIO | None, text: str) -> None:
  """Writes whole lines, whatever the encoding of the stream."""
  if stream is None:  # The process was started without it.
    return
  stream.write(f"{_writable(stream, text)}\n")
  stream.flush()


def _writable(stream: TextIO, text: str) -> str:
  """A text that a terminal shows and that the stream can encode."""
  encoding = stream.encoding or "utf-8"  # A stream in memory has none.
  return visible(text).encode(encoding, "backslashreplace").decode(encoding)


class Progress:
  """Shows how far a stage is: a bar on a terminal, sparse lines in a log."""

  def __init__(
    self, name: str, total: int, first: int = 0, *, enabled: bool = True
  ):
    """Starts showing progress.

    Args:
      name: name of the stage.
      total: its number of steps.
      first: steps that a resumed run did before.
      enabled: False shows nothing.
    """
    is_terminal = sys.stderr.isatty()
    interval = 0.1 if is_terminal else LOG_SECONDS
    self._name, self._is_terminal = name, is_terminal
    self._bar = tqdm.tqdm(
      total=total,
      initial=first,
      desc=_writable(sys.stderr, name),
      disable=not enabled,
      dynamic_ncols=is_terminal,
      mininterval=interval,
      maxinterval=interval,
      miniters=0,  # Time alone decides when the bar is drawn again.
      ascii=None if is_terminal else True,  # None: if it must be.
    )

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *unused: object) -> None:
    self._bar.close()

  def advance(self, steps: int = 1) -> None:
    """Counts steps; with 0 the bar is only drawn again, if it is time."""
    self._bar.update(steps)

  def doing(self, part: str) -> None:
    """Shows the part of a step that begins; in a log only if it is time."""
    text = _writable(sys.stderr, f"{self._name}, {part}")
    self._bar.set_description(text, refresh=self._is_terminal)
    self._bar.update(0)

  def show(self, metrics: Mapping[str, float]) -> None:
    """Shows metrics next to the bar: few numbers, with short names."""
    text = {name: f"{value:.3g}" for name, value in metrics.items()}
    self._bar.set_postfix(text, refresh=False)

  def say(self, text: str) -> None:
    """Writes lines above the bar."""
    if not self._bar.disable:
      tqdm.tqdm.write(_writable(sys.stderr, text), file=sys.stderr)
