"""What Orbax says while it works, kept off the user's screen."""

import contextlib
import functools
import logging
import pathlib
import sys
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Hides what Orbax sends to absl's logger, from its threads too.

  Those are progress notes, and traces of errors that it raises as well.

  Yields:
    Nothing.
  """

  def is_other(record: logging.LogRecord) -> bool:
    return _is_other(record)  # Each its own: only its owner removes it.

  _hide_traces_of_threads()
  logger = logging.getLogger("absl")
  logger.addFilter(is_other)
  try:
    yield
  finally:
    logger.removeFilter(is_other)


def hide_abandoned_writes() -> None:
  """Hides, for good, what is said of failures that nobody waits for any more.

  After one write has failed, and that was raised, those beside it fail for
  the same reason; each would leave a page, however late.
  """
  logging.getLogger("absl").addFilter(_is_other)
  logging.getLogger("asyncio").addFilter(_was_awaited)


def _is_other(record: logging.LogRecord) -> bool:
  return "orbax" not in pathlib.Path(record.pathname).parts


def _was_awaited(record: logging.LogRecord) -> bool:
  return "exception was never retrieved" not in record.getMessage()


@functools.cache
def _hide_traces_of_threads() -> None:
  """Once, and for good: threads may be late.

  When a write fails, Orbax's threads print what they raise again where they
  are waited for, and TensorStore's, beside it, that an event loop is closed.
  """
  in_thread, in_callback = threading.excepthook, sys.unraisablehook

  def thread_hook(failed: Any) -> None:
    if not type(failed.thread).__module__.startswith("orbax."):
      in_thread(failed)

  def callback_hook(failed: Any) -> None:
    said = f"{failed.exc_type.__name__}: {failed.exc_value}"
    if said != "RuntimeError: Event loop is closed":
      in_callback(failed)

  threading.excepthook = thread_hook
  sys.unraisablehook = callback_hook
