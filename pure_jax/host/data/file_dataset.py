"""Files that the user names, as data sets with random access.

    rows = load_rows(GSM8K, {"train": "gsm8k/train.jsonl"}, "data")["train"]
    indices, cursor = next_batch(len(rows), 64, cursor)
    problems = rows.take(indices)

A data set is stored by TFDS as array_record files, without TensorFlow and
without network access. It is looked up by the contents of its files and the
version of their format: if a file changes, a new data set is made.
"""

import dataclasses
import hashlib
import operator
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from pure_jax.host.data import storage
from pure_jax.host.data.formats import Format
from pure_jax.host.data.records import DataError
from pure_jax.host.data.sources import read_rows
from pure_jax.host.data.storage import Record
from pure_jax.host.distributed import processes
from pure_jax.host.evaluation.intervals import Estimate
from pure_jax.host.evaluation.report import Table
from pure_jax.host.logs import console

NOT_READ_TABLE = "Rows not read"
MAX_FAULTS = 20  # How many faults of malformed rows are stored.

_PATH = str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Counts:
  """How many rows of a split's files were read, and how many became records.

  Attributes:
    read: rows in the files, including malformed ones.
    made: records made of them.
    left_out: rows that the format leaves out.
    skipped: malformed rows.
    faults: "file:line: reason" of the first `MAX_FAULTS` malformed rows.
  """

  read: int
  made: int
  left_out: int
  skipped: int
  faults: tuple[str, ...]

  def not_read(self) -> str:
    """Describes the rows that became no record.

    Returns:
      The two numbers and the first fault; "" if every row became a record.
    """
    reasons = []
    if self.skipped:
      reasons.append(f"{self.skipped} malformed (first: {self.faults[0]})")
    if self.left_out:
      reasons.append(f"{self.left_out} left out by the format")
    return ", ".join(reasons)


class Rows(Sequence[Record]):
  """The records of a split in the order of its files, read from disk on demand.

  Attributes:
    counts: how many rows of the files became records.
  """

  def __init__(self, source: Any, record: type[Record], counts: Counts):
    """Wraps a TFDS data source.

    Args:
      source: the stored examples, by index.
      record: the record they are decoded to.
      counts: how many rows of the files became records.
    """
    self._source, self._record, self.counts = source, record, counts

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return self.take(range(len(self))[index])
    return self.take([operator.index(index)])[0]

  def take(self, indices: Iterable[int]) -> list[Record]:
    """Reads several records at once.

    Args:
      indices: row numbers, for example from `batches.next_batch`. Negative ones
        count from the end.

    Returns:
      The records, in the order of the indices.

    Raises:
      IndexError: if an index is out of range.
      DataError: if the stored files are damaged.
    """
    rows = [int(index) for index in indices]
    for row in rows:
      if not -len(self) <= row < len(self):
        raise IndexError(f"There is no row {row} of {len(self)}.")
    if not rows:
      return []
    try:
      examples = self._source.__getitems__([row % len(self) for row in rows])
      return [storage.decode_record(self._record, row) for row in examples]
    # array_record and protobuf raise errors of many types for damaged files.
    except Exception as error:
      raise DataError(
        f"Cannot read rows of a prepared data set: {error}. Its files are "
        "damaged: remove its folder, and it will be made again."
      ) from error


class FileDataset(tfds.core.GeneratorBasedBuilder):
  """The TFDS builder of a data set of files."""

  # Raise it when the stored features change. Formats have their own versions.
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
    """Names the data set by the digest of its contents.

    Args:
      row_format: the format of the files.
      files: the files of each split, in order.
      data_dir: folder of the prepared data sets.
      skip_malformed: True counts malformed rows instead of raising.
      digest: hash of everything that affects the stored records.
    """
    self._format, self._files = row_format, files
    self._skip_malformed = skip_malformed
    super().__init__(
      data_dir=data_dir,
      config=tfds.core.BuilderConfig(name=f"{row_format.name}_{digest}"),
      file_format="array_record",
    )

  def _info(self) -> tfds.core.DatasetInfo:
    """The features of the record; `metadata` holds the counts of each split."""
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        storage.record_features(self._format.record)
      ),
      description=f"Files in the format {self._format.name}.",
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,  # Rows are in the order of the files.
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    """One generator per split."""
    del dl_manager
    return {split: self._generate_examples(split) for split in self._files}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
    """Yields (index, example), and counts the rows."""
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
            raise DataError(f"{raw.location}: {fault}")
          skipped += 1
          faults += [f"{raw.location}: {fault}"] * (len(faults) < MAX_FAULTS)
        left_out += fault is None and not records
        for record in records:
          yield made, storage.encode_record(record)
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
  """Opens a data set of files, and prepares it first if it does not exist.

  Args:
    row_format: the format of the files, such as `problems.GSM8K`.
    files: the file or files of each split. Their suffixes are
      `sources.SUFFIXES`.
    data_dir: folder of the prepared data sets. Every combination of file
      contents, format and version is a data set of its own.
    skip_malformed: True counts malformed rows in `Rows.counts` instead of
      raising.

  Returns:
    The rows of each split, in the order of its files.

  Raises:
    DataError: for a malformed row (the message has file, line and reason), for
      a file that cannot be read, if the data set cannot be written, and if a
      split has no record.
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
    with storage.quiet():
      builder = storage.prepare(make_builder)
      sources = {split: builder.as_data_source(split) for split in paths}
    counts = {split: builder.info.metadata[split] for split in paths}
    return {
      split: Rows(sources[split], row_format.record, _counts(counts[split]))
      for split in paths
    }
  except DataError:
    raise
  # TFDS, protobuf and array_record raise errors of many types.
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
  """A hash of everything that affects the stored records."""
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
  """The counts that the metadata of a data set holds."""
  return Counts(**{**stored, "faults": tuple(stored["faults"])})


def read_file(
  row_format: Format,
  file: str,
  data_dir: str | os.PathLike,
  *,
  skip_malformed: bool,
) -> Rows:
  """Opens a data set of one file, and tells how many of its rows are not read.

  Args:
    row_format: the format of the file.
    file: its path.
    data_dir: folder of the prepared data sets.
    skip_malformed: True counts malformed rows instead of raising.

  Returns:
    The rows. If some rows of the file became no record, process 0 writes one
    line about them to stderr.

  Raises:
    DataError: as `load_rows`.
  """
  rows = load_rows(
    row_format, {"rows": [file]}, data_dir, skip_malformed=skip_malformed
  )["rows"]
  reasons = rows.counts.not_read()
  if reasons and processes.is_process_zero():
    console.tell(f"{file}: of {rows.counts.read} rows, {reasons}.")
  return rows


def not_read_tables(counts: Mapping[str, Counts]) -> dict[str, Table]:
  """The table of a report that counts the rows that were not read.

  Args:
    counts: the counts of each file, by the name it has in the report.

  Returns:
    `NOT_READ_TABLE` with a column for each file that has such rows; empty if
    no file has.
  """
  columns = {}
  for name, count in counts.items():
    numbers = {
      "malformed": count.skipped,
      "left out by the format": count.left_out,
    }
    if any(numbers.values()):
      columns[name] = {
        metric: Estimate(value=number, count=count.read)
        for metric, number in numbers.items()
      }
  return {NOT_READ_TABLE: columns} if columns else {}
