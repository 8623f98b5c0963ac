"""Files that the user names, as data sets with random access.

    rows = read_file(GSM8K, "gsm8k/train.jsonl", "data")
    indices, cursor = next_batch(len(rows), 64, cursor)
    problems = rows.take(indices)

A data set is stored by TFDS as array_record files, without TensorFlow and
without network access. It is looked up by the contents of its file and the
version of its format: if the file changes, a new data set is made.
"""

import dataclasses
import functools
import hashlib
import operator
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from pure_jax.host.checkpoints import integrity
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
_FAULT_CHARS = 300  # A fault may quote a value of the row, of any length.
_SPLIT = "rows"


@dataclasses.dataclass(frozen=True)
class Counts:
  """How many rows of a file were read, and how many became records.

  Attributes:
    read: rows in the file, including malformed ones.
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
    """Describes the rows that became no record; "" if there are none."""
    reasons = []
    if self.skipped:
      reasons.append(f"{self.skipped} malformed (first: {self.faults[0]})")
    if self.left_out:
      reasons.append(f"{self.left_out} left out by the format")
    return ", ".join(reasons)


class Records(Sequence[Record]):
  """The records of a file in its order, read from disk on demand.

  Attributes:
    counts: how many rows of the file became records.
  """

  def __init__(self, source: Any, record: type[Record], counts: Counts):
    """Wraps a TFDS data source, which holds the encoded examples by index."""
    self._source, self._record, self.counts = source, record, counts

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return self.take(range(len(self))[index])
    return self.take([operator.index(index)])[0]

  def take(self, indices: Iterable[int]) -> list[Record]:
    """Reads several records at once, in the order of the indices.

    Args:
      indices: numbers of records, for example from `batches.next_batch`.
        Negative ones count from the end.

    Raises:
      IndexError: if an index is out of range.
      DataError: if the stored files are damaged.
    """
    rows = [int(index) for index in indices]
    for row in rows:
      if not -len(self) <= row < len(self):
        raise IndexError(f"There is no record {row} of {len(self)}.")
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
  """The TFDS builder of a file's data set, named by a hash of its contents."""

  # Raise it when the stored features change. Formats have their own versions.
  VERSION = tfds.core.Version("1.0.0")

  def __init__(
    self,
    row_format: Format,
    path: pathlib.Path,
    data_dir: str,
    *,
    skip_malformed: bool,
    digest: str,
  ):
    self._format, self._path = row_format, path
    self._skip_malformed = skip_malformed
    super().__init__(
      data_dir=data_dir,
      config=tfds.core.BuilderConfig(name=f"{row_format.name}_{digest}"),
      file_format="array_record",
    )

  def _info(self) -> tfds.core.DatasetInfo:
    """The features of the record; `metadata` holds the counts."""
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        storage.record_features(self._format.record)
      ),
      description=f"Files in the format {self._format.name}.",
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,  # Rows are in the order of the file.
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {_SPLIT: self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, Any]]:
    """Yields (index, example), and counts the rows."""
    read = made = left_out = skipped = 0
    faults: list[str] = []
    for raw in read_rows(self._path):
      records, fault = [], raw.fault
      if raw.row is not None:
        try:
          records = self._format.parse(raw.row, read)
        except ValueError as error:
          fault = str(error)
      read += 1
      if fault is not None:
        if len(fault) > _FAULT_CHARS:
          fault = f"{fault[:_FAULT_CHARS]}..."
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
        f"The data set has no row: of {counts.read} in {self._path}, "
        f"{counts.not_read() or 'none is there'}."
      )
    self.info.metadata[_SPLIT] = dataclasses.asdict(counts)


def read_file(
  row_format: Format,
  file: str | os.PathLike,
  data_dir: str | os.PathLike,
  *,
  skip_malformed: bool = False,
) -> Records:
  """Opens the data set of a file, and prepares it first if it does not exist.

  If some rows of the file became no record, process 0 writes one line about
  them to stderr.

  Args:
    row_format: the format of the file, such as `problems.GSM8K`.
    file: its path, with one of `sources.SUFFIXES`.
    data_dir: folder of the prepared data sets. Every combination of contents,
      format and version is a data set of its own.
    skip_malformed: True counts malformed rows instead of raising.

  Returns:
    The records in file order, with their counts; read from disk on demand.

  Raises:
    DataError: for a malformed row (the message has file, line and reason), for
      a file that cannot be read or has no record, and if the data set cannot
      be written.
  """
  path = pathlib.Path(file).absolute()
  if not path.is_file():
    raise DataError(f"There is no file {path}.")
  # Everything that affects the stored records.
  identity = [row_format.name, row_format.version, row_format.options]
  identity += [skip_malformed, _SPLIT, integrity.fingerprint(path)]
  digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).hexdigest()
  folder = pathlib.Path(data_dir).absolute()
  make_builder = functools.partial(
    FileDataset,
    row_format,
    path,
    str(folder),
    skip_malformed=skip_malformed,
    digest=digest,
  )
  with storage.prepared(make_builder, folder) as builder:
    source = builder.as_data_source(_SPLIT)
    stored = builder.info.metadata[_SPLIT]
    counts = Counts(**{**stored, "faults": tuple(stored["faults"])})
  reasons = counts.not_read()
  if reasons and processes.is_process_zero():
    console.tell(f"{file}: of {counts.read} rows, {reasons}.")
  return Records(source, row_format.record, counts)


def not_read_tables(counts: Mapping[str, Counts]) -> dict[str, Table]:
  """The table of a report that counts the rows that were not read.

  Args:
    counts: the counts of each file, by the name it has in the report. Only
      files that have such rows get a column; if none has, there is no table.
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
