"""TFDS data sets on disk: how they are prepared, and how a record is stored."""

import contextlib
import dataclasses
import fcntl
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from pure_jax.host.atomic_files import remove
from pure_jax.host.data.records import (
  OPTIONAL,
  DataError,
  LabelledSolution,
  Problem,
)

Record = Problem | LabelledSolution

_Builder = TypeVar("_Builder", bound=tfds.core.DatasetBuilder)

_TEXTS = tuple[str, ...]
_LABELS = tuple[int | None, ...]
# TFDS's names of unfinished folders of data sets, and of its files about them.
_INCOMPLETE = re.compile(r"incomplete\.([0-9A-Z]{6}_.+|[0-9a-f]{32}\..+)")
_DTYPES = {bool: np.bool_, int: np.int32, float: np.float64}


@contextlib.contextmanager
def prepared(
  make_builder: Callable[[], _Builder], folder: pathlib.Path
) -> Iterator[_Builder]:
  """Prepares a data set unless it exists; it is read from the builder inside.

  Processes prepare the data sets of a folder one after another, and remove what
  a killed one left unfinished. TFDS shows no progress bars or log messages.

  Args:
    make_builder: makes the builder of the data set. It is called a second time
      to prepare the data set.
    folder: the folder of prepared data sets, created if missing.

  Raises:
    DataError: for any error, with the advice to remove the folder.
  """
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
      builder = make_builder()
      if not builder.is_prepared():
        with _only_process(folder):
          builder = make_builder()  # Another process may have prepared it.
          builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
          )
      yield builder
  except DataError:
    raise
  except ImportError as error:
    raise DataError(
      f"Cannot prepare the data set in {folder}: its texts have more than "
      "1,000 MiB, which TFDS shuffles only where tensorflow is installed. "
      "Use fewer or shorter rows."
    ) from error
  # TFDS, protobuf and array_record raise errors of many types.
  except Exception as error:
    raise DataError(
      f"Cannot prepare or read the data set in {folder}: {error}. If its files "
      "are damaged, remove that folder, and it will be made again."
    ) from error
  finally:
    logger.setLevel(level)
    tfds.enable_progress_bar()


@contextlib.contextmanager
def _only_process(folder: pathlib.Path) -> Iterator[None]:
  """Waits for others that prepare data, and removes what killed ones left."""
  with (folder / ".lock").open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    for path in list(folder.rglob("incomplete.*")):
      if _INCOMPLETE.fullmatch(path.name):
        remove(path)
    yield


def record_features(record: type[Record]) -> dict[str, Any]:
  """The TFDS features that store a record, by name.

  A field `x` that may be None is stored with a bool `has_x`. Labels are stored
  with a list of bools `labelled`.

  Args:
    record: `Problem` or `LabelledSolution`.
  """
  features: dict[str, Any] = {}
  for field in dataclasses.fields(record):
    kind = OPTIONAL.get(field.type, field.type)
    if kind == _TEXTS:
      features[field.name] = tfds.features.Sequence(tfds.features.Text())
    elif kind == _LABELS:
      features[field.name] = tfds.features.Sequence(np.int32)
      features["labelled"] = tfds.features.Sequence(np.bool_)
    elif kind is str:
      features[field.name] = tfds.features.Text()
    else:
      features[field.name] = tfds.features.Scalar(_DTYPES[kind])
    if field.type in OPTIONAL:
      features[f"has_{field.name}"] = tfds.features.Scalar(np.bool_)
  return features


def encode_record(record: Record) -> dict[str, Any]:
  """Converts a record to the TFDS example of `record_features`.

  None is stored as 0 or "".

  Args:
    record: the record.
  """
  example: dict[str, Any] = {}
  for field in dataclasses.fields(record):
    value = getattr(record, field.name)
    if field.type == _LABELS:
      example["labelled"] = [label is not None for label in value]
      value = [label or 0 for label in value]
    elif field.type == _TEXTS:
      value = list(value)
    elif field.type in OPTIONAL:
      example[f"has_{field.name}"] = value is not None
      value = OPTIONAL[field.type]() if value is None else value
    example[field.name] = value
  return example


def decode_record(record: type[Record], example: Mapping[str, Any]) -> Record:
  """Converts a TFDS example back to the record it was made of.

  Args:
    record: `Problem` or `LabelledSolution`.
    example: the result of TFDS for an example of `encode_record`.
  """
  values: dict[str, Any] = {}
  for field in dataclasses.fields(record):
    value = example[field.name]
    kind = OPTIONAL.get(field.type, field.type)
    if kind == _LABELS:
      pairs = zip(value, example["labelled"], strict=True)
      value = tuple(int(label) if known else None for label, known in pairs)
    elif kind == _TEXTS:
      value = tuple(text.decode() for text in value)
    elif field.type in OPTIONAL and not example[f"has_{field.name}"]:
      value = None
    else:
      value = value.decode() if kind is str else kind(value)
    values[field.name] = value
  return record(**values)
