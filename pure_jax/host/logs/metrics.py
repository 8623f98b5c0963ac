"""Numbers and samples of a run, as JSON lines and TensorBoard events.

A row is one line of strict JSON: ``{"stage": "rl", "step": 3, ...}``. A number
that is not finite is written as null, because strict JSON has no NaN. Rows are
rewound on resume: a run that was killed and continued leaves the file of one
that was not, but for fields that measure time, whose names end in ``seconds``
or ``_per_second``.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pure_jax.host.atomic_files import write_text_atomic

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


class MetricsError(RuntimeError):
  """A file of rows that cannot be read; the message says where."""


class _JsonLines:
  """An append-only file of rows that have a stage and a step."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
      with path.open("rb+") as file:  # The last write may have been cut short.
        file.truncate(file.read().rfind(b"\n") + 1)
    self._file = path.open("a", encoding="utf-8")

  def append(self, row: Mapping[str, Any]) -> None:
    """Writes a row, and out of this process at once."""
    self._file.write(json.dumps(row, allow_nan=False) + "\n")
    self._file.flush()

  def rewind(self, stage: str, step: int) -> None:
    """Drops the stage's rows at `step` and later."""
    rows = read_metrics(self.path)
    kept = [r for r in rows if r["stage"] != stage or r["step"] < step]
    if len(kept) == len(rows):
      return
    self._file.close()
    lines = [json.dumps(row, allow_nan=False) + "\n" for row in kept]
    write_text_atomic(self.path, "".join(lines))
    self._file = self.path.open("a", encoding="utf-8")

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


class MetricsWriter:
  """Appends metrics to ``metrics.jsonl`` and to TensorBoard events.

  TensorBoard shows each stage as a run of its own, below ``tensorboard/``.
  """

  def __init__(self, workdir: str | os.PathLike):
    """Opens the files of a run.

    Args:
      workdir: its folder, created if missing.
    """
    workdir = pathlib.Path(workdir)
    self._lines = _JsonLines(workdir / METRICS_FILE)
    self._events_folder = workdir / "tensorboard"
    self._events: dict[str, Any] = {}  # EventFile by stage.

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def rewind(self, stage: str, step: int) -> None:
    """Forgets a stage from a step on; call it when resuming there.

    Args:
      stage: name of the stage.
      step: the step that will be written next.
    """
    self._lines.rewind(stage, step)
    if stage in self._events:
      self._events.pop(stage).close()
    # TensorBoard hides earlier events at or after the step it is told here.
    if (self._events_folder / stage).exists():
      self._open_events(stage, purge_step=step)

  def write(self, stage: str, step: int, numbers: Mapping[str, Any]) -> None:
    """Writes a row.

    Args:
      stage: name of the stage, such as "rl" or "rl_eval".
      step: step within the stage, >= 0.
      numbers: scalars by name: Python, numpy or jax.

    Raises:
      ValueError: for an array, or a metric called "stage" or "step".
    """
    values = {name: _number(value) for name, value in numbers.items()}
    row = {"stage": stage, "step": int(step)}
    for name, value in values.items():
      if name in row:
        raise ValueError(f"A metric must not be called {name!r}.")
      row[name] = value if math.isfinite(value) else None
    self._lines.append(row)
    if stage not in self._events:
      self._open_events(stage)
    self._events[stage].write(int(step), values)

  def has(self, stage: str, step: int) -> bool:
    """Whether a row is there.

    Args:
      stage: name of the stage.
      step: step within the stage.
    """
    rows = read_metrics(self._lines.path)
    return any((row["stage"], row["step"]) == (stage, step) for row in rows)

  def close(self) -> None:
    """Flushes and closes the files."""
    self._lines.close()
    for events in self._events.values():
      events.close()

  def _open_events(self, stage: str, purge_step: int | None = None) -> None:
    """Starts an event file."""
    # Not above: tensorboardX imports torch where it is installed, for seconds,
    # and a script that is refused writes nothing.
    from pure_jax.host.logs.event_file import EventFile

    folder = self._events_folder / stage
    self._events[stage] = EventFile(folder, purge_step)


class NoWriter:
  """Writes nothing: metrics and samples where another process writes them."""

  def __enter__(self) -> "NoWriter":
    return self

  def __exit__(self, *unused: object) -> None:
    return

  def rewind(self, stage: str, step: int) -> None:
    """Forgets nothing.

    Args:
      stage: not used.
      step: not used.
    """

  def write(self, stage: str, step: int, what: Any) -> None:
    """Writes nothing.

    Args:
      stage: not used.
      step: not used.
      what: not used.
    """


class SamplesWriter:
  """Appends problems and responses to ``samples.jsonl``."""

  def __init__(self, workdir: str | os.PathLike):
    """Opens the file of a run.

    Args:
      workdir: its folder, created if missing.
    """
    self._lines = _JsonLines(pathlib.Path(workdir) / SAMPLES_FILE)

  def __enter__(self) -> "SamplesWriter":
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def rewind(self, stage: str, step: int) -> None:
    """Forgets a stage from a step on; call it when resuming there.

    Args:
      stage: name of the stage.
      step: the step that will be written next.
    """
    self._lines.rewind(stage, step)

  def write(
    self, stage: str, step: int, samples: Sequence[Mapping[str, Any]]
  ) -> None:
    """Writes one row for each sample.

    Args:
      stage: name of the stage.
      step: step within the stage, >= 0.
      samples: dicts of text, numbers (numpy and jax too) and lists of them.
    """
    for sample in samples:
      row = {"stage": stage, "step": int(step)} | {
        name: _plain(value) for name, value in sample.items()
      }
      self._lines.append(row)

  def close(self) -> None:
    """Closes the file."""
    self._lines.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads ``metrics.jsonl`` or ``samples.jsonl``.

  Args:
    path: the file, or the folder of a run for its metrics.

  Returns:
    Rows in the order written; null becomes None. A last line that is not
    whole, as a killed run leaves it, is left out.

  Raises:
    MetricsError: naming the line that is not a row.
  """
  path = pathlib.Path(path)
  path = path / METRICS_FILE if path.is_dir() else path
  rows = []
  for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
    try:
      row = json.loads(line)
    except ValueError as error:
      raise MetricsError(f"{path}:{number} is not JSON: {error}.") from error
    if (
      not isinstance(row, dict)
      or "stage" not in row
      or not isinstance(row.get("step"), int)
    ):
      raise MetricsError(
        f"{path}:{number} is not a row with a stage and a step: {line[:60]!r}."
      )
    rows.append(row)
  return rows


def _number(value: Any) -> int | float:
  """A scalar of any array library as a Python number."""
  scalar = np.asarray(value)
  if scalar.ndim or scalar.dtype.kind == "c":
    raise ValueError(f"A metric must be one real number, got {value!r}.")
  number = scalar.item()
  if isinstance(number, bool):
    return int(number)
  return number if isinstance(number, int) else float(number)


def _plain(value: Any) -> Any:
  """Numbers and arrays as JSON has them, NaN and infinity as null."""
  if value is None or isinstance(value, str | bool):
    return value
  if isinstance(value, Mapping):
    return {name: _plain(item) for name, item in value.items()}
  if isinstance(value, Sequence):
    return [_plain(item) for item in value]
  array = np.asarray(value)
  if array.ndim:
    return [_plain(item) for item in array]
  if array.dtype == bool:
    return bool(array)
  number = _number(array)
  return number if math.isfinite(number) else None


def repetition_score(tokens: Sequence[int] | np.ndarray) -> float:
  """How much of a text says again what it said: near 0 no, near 1 all of it.

  Sort the n suffixes of the text; add up the lengths of the common prefixes of
  neighbours in that order; divide by n(n+1)/2. One token repeated n times
  gives (n−1)/(n+1), n different tokens give 0. The paper calls a response
  highly repetitive above 0.2. O(n log² n) time, O(n log n) memory.

  Args:
    tokens: [n] int, token ids without padding.

  Returns:
    The score in [0, 1); 0 for fewer than two tokens.

  >>> round(repetition_score([5, 5, 5, 5]), 3)
  0.6
  >>> repetition_score([1, 2, 3, 4])
  0.0
  """
  tokens = np.asarray(tokens)
  n = tokens.shape[0]
  if n < 2:
    return 0.0
  # rank[k][i] orders the 2^k tokens from i on; -1 stands past the end, which
  # makes a text that ends early differ from every longer one.
  rank = np.unique(tokens, return_inverse=True)[1].astype(np.int64)
  ranks, width = [np.append(rank, -1)], 1
  while rank.max() < n - 1:
    later = np.full(n, -1, np.int64)
    later[: max(n - width, 0)] = rank[width:]
    rank = np.unique(rank * (n + 1) + later + 1, return_inverse=True)[1]
    ranks.append(np.append(rank, -1))
    width *= 2
  order = np.argsort(rank)
  first, second = order[:-1], order[1:]
  common = np.zeros(n - 1, np.int64)
  for k in reversed(range(len(ranks))):
    same = ranks[k][first + common] == ranks[k][second + common]
    common += same.astype(np.int64) << k
  return float(common.sum() * 2 / (n * (n + 1)))
