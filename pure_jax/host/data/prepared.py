"""TFDS data sets made on first use, by one of several processes, in silence."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import tensorflow_datasets as tfds

_Builder = TypeVar("_Builder", bound=tfds.core.DatasetBuilder)


def prepare(make_builder: Callable[[], _Builder]) -> _Builder:
  """The prepared data set, by this process or by one that was faster.

  Args:
    make_builder: makes the builder; called again where another process was
      faster.

  Returns:
    The builder, its data set prepared.

  Raises:
    OSError: if no data set could be written.
  """
  builder = make_builder()
  try:
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
  except OSError:
    # Moving the finished folder into place fails where one already is.
    builder = make_builder()
    if not builder.is_prepared():
      raise
  return builder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps TFDS from drawing bars and announcing what it does."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
      yield
  finally:
    logger.setLevel(level)
    tfds.enable_progress_bar()
