"""What Orbax says while it works, kept off the user's screen."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator


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
