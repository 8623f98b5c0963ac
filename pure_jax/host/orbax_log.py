"""What Orbax says while it works, kept off the user's screen."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import orbax.checkpoint as ocp


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Hides what Orbax sends to absl's logger, from its threads too.

  Those are progress notes, and traces of errors that it raises as well.

  Yields:
    Nothing.
  """

  def is_other(record: logging.LogRecord) -> bool:
    return "orbax" not in pathlib.Path(record.pathname).parts

  logger = logging.getLogger("absl")
  logger.addFilter(is_other)
  try:
    yield
  finally:
    logger.removeFilter(is_other)


def hide_abandoned_writes() -> None:
  """Hides what asyncio says of writes that nobody waits for any more.

  After one of them has failed, and the failure was raised, the others fail
  for the same reason; whenever they are collected, each would leave a page.
  """
  logging.getLogger("asyncio").addFilter(_is_no_abandoned_write)


def _is_no_abandoned_write(record: logging.LogRecord) -> bool:
  message = record.getMessage()
  retrieved = "exception was never retrieved" not in message
  return retrieved or ocp.utils.TMP_DIR_SUFFIX not in message
