"""Files that the user names, as a TFDS data set with random access.

    rows = load_rows(GSM8K, {"train": "gsm8k/train.jsonl"}, "data")["train"]
    indices, cursor = next_batch(len(rows), 64, cursor)
    problems = rows.take(indices)

The builder writes array_record files, without TensorFlow and without asking a
network for anything. A data set is found by the contents of its files and the
version of their format, so a changed file is another data set.
"""

import dataclasses
import hashlib
import operator
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pure_jax.host.data.formats.fields import Format
from pure_jax.host.data.prepared import prepare, quiet
from pure_jax.host.data.records import DataError, LabelledSolution, Problem
from pure_jax.host.data.sources import read_rows

Record = Problem | LabelledSolution

_PATH = str | os.PathLike
FAULTS_KEPT = 20  # Of the rows skipped, so many are remembered with reasons.
# Types of a record's fields: in TFDS, and back to Python.
_SCALARS = {
  bool: (np.bool_, bool),
  bool | None: (np.bool_, bool),
  int | None: (np.int32, int),
  float | None: (np.float64, float),
}
_OPTIONAL = (str | None, bool | None, int | None, float | None)


@dataclasses.dataclass(frozen=True)
class Counts:
  """What became of the rows of the files of a split.

  Attributes:
    read: rows in the files, malformed ones included.
    made: records made of them.
    left_out: rows the format leaves out.
    skipped: malformed rows.
    faults: "file:line: reason" of the first `FAULTS_KEPT` skipped.
  """

  read: int
  made: int
  left_out: int
  skipped: int
  faults: tuple[str, ...]

  def not_read(self) -> str:
    """What became no record, in words.

    Returns:
      The numbers, with the first malformed row's place and fault; "" where
      every row became a record.
    """
    told = []
    if self.skipped:
      told.append(f"{self.skipped} malformed (first: {self.faults[0]})")
    if self.left_out:
      told.append(f"{self.left_out} left out by the format")
    return ", ".join(told)


class Rows(Sequence[Record]):
  """The records of a split, in the order of its files, read when asked for.

  Attributes:
    counts: what became of the rows of the files.
  """

  def __init__(self, source: Any, record: type[Record], counts: Counts):
    """Wraps a random-access source.

    Args:
      source: of stored examples, by index.
      record: what they become.
      counts: what became of the rows of the files.
    """
    self._source, self._record, self.counts = source, record, counts

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return self.take(range(len(self))[index])
    return self.take([operator.index(index)])[0]

  def take(self, indices: Iterable[int]) -> list[Record]:
    """Several records at once.

    Args:
      indices: such as `batches.next_batch` gives; negative ones count from
        the end.

    Returns:
      The records, in the order of the indices.

    Raises:
      IndexError: if there is no such record.
      DataError: if the stored files are damaged.
    """
    wanted = [int(index) for index in indices]
    for index in wanted:
      if not -len(self) <= index < len(self):
        raise IndexError(f"There is no row {index} of {len(self)}.")
    if not wanted:
      return []
    try:
      found = self._source.__getitems__([i % len(self) for i in wanted])
      return [_decode(self._record, row) for row in found]
    # array_record and protobuf raise what they like for damaged files.
    except Exception as error:
      raise DataError(
        f"Cannot read rows of a prepared data set: {error}. Its files are "
        "damaged: remove its folder, and it will be made again."
      ) from error


class FileDataset(tfds.core.GeneratorBasedBuilder):
  """Records of files, in their order."""

  # Raised where the stored features change; formats have their own versions.
  VERSION = tfds.core.Version("1.0.0")

  def __init__(
    self,
    row_format: Format,
    files: Mapping[str, Sequence[pathlib.Path]],
    data_dir: str,
    *,
    skip_malformed: bool,
    digest: str,
  ):
    """Names the data set after its contents.

    Args:
      row_format: how the files are read.
      files: the files of each split, in order.
      data_dir: where prepared data sets are kept.
      skip_malformed: go on after a malformed row, and count it.
      digest: of everything that decides what is stored.
    """
    self._format, self._files = row_format, files
    self._skip_malformed = skip_malformed
    super().__init__(
      data_dir=data_dir,
      config=tfds.core.BuilderConfig(name=f"{row_format.name}_{digest}"),
      file_format="array_record",
    )

  def _info(self) -> tfds.core.DatasetInfo:
    """Features of the record; `metadata` holds what was counted."""
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(_features(self._format.record)),
      description=f"Files in the format {self._format.name}.",
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,  # Rows are in the order of the files.
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    """One generator per split."""
    del dl_manager
    return {split: self._generate_examples(split) for split in self._files}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
    """(index, example), counting what becomes of the rows."""
    read = made = left_out = skipped = 0
    faults: list[str] = []
    for path in self._files[split]:
      for raw in read_rows(path):
        records, fault = [], raw.fault
        if raw.row is not None:
          try:
            records = self._format.parse(raw.row, read)
          except ValueError as error:
            fault = str(error)
        read += 1
        if fault is not None:
          if not self._skip_malformed:
            raise DataError(f"{raw.place}: {fault}")
          skipped += 1
          faults += [f"{raw.place}: {fault}"] * (len(faults) < FAULTS_KEPT)
        left_out += fault is None and not records
        for record in records:
          yield made, _encode(record)
          made += 1
    counts = Counts(read, made, left_out, skipped, tuple(faults))
    if not made:
      raise DataError(
        f"Split {split!r} has no row: of {counts.read} in "
        f"{', '.join(map(str, self._files[split]))}, "
        f"{counts.not_read() or 'none is there'}."
      )
    self.info.metadata[split] = dataclasses.asdict(counts)


def load_rows(
  row_format: Format,
  files: Mapping[str, str | os.PathLike | Sequence[str | os.PathLike]],
  data_dir: str | os.PathLike,
  *,
  skip_malformed: bool = False,
) -> dict[str, Rows]:
  """Prepares the data set if need be, and opens it.

  Args:
    row_format: how the files are read, such as `problem_formats.GSM8K`.
    files: for each split, named by the user, its file or its files in order:
      those of `sources.SUFFIXES`.
    data_dir: where prepared data sets are kept; other contents, another format
      or version of it, are another data set beside it.
    skip_malformed: go on after a malformed row, and count it in `Rows.counts`.

  Returns:
    By split, its rows in the order of the files.

  Raises:
    DataError: for a malformed row, with file, line and reason; for files that
      cannot be read; if nothing can be written; if a split has no row.
  """
  paths = {
    split: [
      pathlib.Path(path).absolute()
      for path in ([listed] if isinstance(listed, _PATH) else listed)
    ]
    for split, listed in files.items()
  }
  for split in paths or [""]:
    if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII) or split == "all":
      raise DataError(
        f"A split is named by letters, digits and _, and not 'all': {split!r}. "
        "There must be one."
      )
  digest = _digest(row_format, paths, skip_malformed)
  folder = pathlib.Path(data_dir).absolute()

  def make_builder() -> FileDataset:
    return FileDataset(
      row_format,
      paths,
      str(folder),
      skip_malformed=skip_malformed,
      digest=digest,
    )

  try:
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
      builder = prepare(make_builder)
      sources = {split: builder.as_data_source(split) for split in paths}
    counts = {split: builder.info.metadata[split] for split in paths}
    return {
      split: Rows(sources[split], row_format.record, _counts(counts[split]))
      for split in paths
    }
  except DataError:
    raise
  # TFDS, protobuf and array_record raise what they like for damaged files.
  except Exception as error:
    raise DataError(
      f"Cannot prepare or read the data set in {folder}: {error}. If its files "
      "are damaged, remove that folder, and it will be made again."
    ) from error


def _digest(
  row_format: Format,
  files: Mapping[str, Sequence[pathlib.Path]],
  skip_malformed: bool,
) -> str:
  """A short name that differs for every other data set."""
  parts = [row_format.name, row_format.version, row_format.options]
  parts.append(skip_malformed)
  for split, paths in files.items():
    parts.append(split)
    for path in paths:
      if not path.is_file():
        raise DataError(f"There is no file {path}.")
      with path.open("rb") as file:
        parts.append(hashlib.file_digest(file, "sha256").hexdigest())
  return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _counts(stored: Mapping[str, Any]) -> Counts:
  """Counts from the metadata of a data set."""
  return Counts(**{**stored, "faults": tuple(stored["faults"])})


def _features(record: type[Record]) -> dict[str, Any]:
  """TFDS features: an optional field has a `has_` beside it, labels a mask."""
  found: dict[str, Any] = {}
  for field in dataclasses.fields(record):
    if field.type in (str, str | None):
      found[field.name] = tfds.features.Text()
    elif field.type == tuple[str, ...]:
      found[field.name] = tfds.features.Sequence(tfds.features.Text())
    elif field.type == tuple[int | None, ...]:
      found[field.name] = tfds.features.Sequence(np.int32)
      found["labelled"] = tfds.features.Sequence(np.bool_)
    else:
      found[field.name] = tfds.features.Scalar(_SCALARS[field.type][0])
    if field.type in _OPTIONAL:
      found[f"has_{field.name}"] = tfds.features.Scalar(np.bool_)
  return found


def _encode(record: Record) -> dict[str, Any]:
  """A record as a TFDS example; an absent value is stored as zero or ""."""
  found: dict[str, Any] = {}
  for field in dataclasses.fields(record):
    value = getattr(record, field.name)
    if field.type == tuple[int | None, ...]:
      found["labelled"] = [label is not None for label in value]
      value = [label or 0 for label in value]
    elif field.type == tuple[str, ...]:
      value = list(value)
    elif field.type in _OPTIONAL:
      found[f"has_{field.name}"] = value is not None
      if value is None:
        value = "" if field.type == str | None else 0
    found[field.name] = value
  return found


def _decode(record: type[Record], row: Mapping[str, Any]) -> Record:
  """A TFDS example as the record it was."""
  values: dict[str, Any] = {}
  for field in dataclasses.fields(record):
    value = row[field.name]
    if field.type == tuple[int | None, ...]:
      pairs = zip(value, row["labelled"], strict=True)
      value = tuple(int(label) if known else None for label, known in pairs)
    elif field.type == tuple[str, ...]:
      value = tuple(text.decode() for text in value)
    elif f"has_{field.name}" in row and not row[f"has_{field.name}"]:
      value = None
    elif field.type in (str, str | None):
      value = value.decode()
    else:
      value = _SCALARS[field.type][1](value)
    values[field.name] = value
  return record(**values)
