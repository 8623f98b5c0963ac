"""The results of a benchmark as a JSON file, which grows case by case."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.cases import BenchmarkError, Case
from benchmarks.results import Line, Result, compare
from pure_jax.host.atomic_files import write_json_atomic

# All results of one file have these in common.
_SAME_MACHINE = ("commit", "packages", "devices", "processor", "cores")
_FIELDS = tuple(field.name for field in dataclasses.fields(Case))


class Document:
  """The results of a run, saved after each case.

  However the run ends, its file has every case that was measured.
  """

  def __init__(
    self,
    path: pathlib.Path | None,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    resume: bool = False,
  ):
    """Starts a document, empty or with the cases of an earlier run.

    Args:
      path: path of the file, None to write none.
      machine: as `machine.describe` gives it.
      settings: how all cases are measured, JSON-like.
      resume: True keeps the cases of the file, if it exists.

    Raises:
      BenchmarkError: if the file is of another machine or other settings.
    """
    self._path = path
    self._content = {
      "machine": dict(machine),
      "options": dict(settings),
      "cases": [],
      "skipped": [],
    }
    if resume and path and path.exists():
      self._continue(json.loads(path.read_text(encoding="utf-8")))

  def _continue(self, earlier: dict[str, Any]) -> None:
    """Takes over the cases of an earlier run."""
    # In the form of the file, where tuples are lists.
    now = json.loads(json.dumps(self._content))
    differences = [
      name
      for name in _SAME_MACHINE
      if earlier["machine"].get(name) != now["machine"].get(name)
    ]
    differences += [
      name
      for name in now["options"]
      if earlier["options"].get(name) != now["options"][name]
    ]
    if differences:
      raise BenchmarkError(
        f"--resume: this run and the one of {self._path} differ in "
        f"{', '.join(differences)}: name another file, or set the same."
      )
    # Date and load of every run that the file has cases of.
    before = earlier["machine"]
    self._content["machine"]["resumed"] = [
      *before.pop("resumed", []),
      {name: before[name] for name in ("date", "load_average", "command")},
    ]
    self._content["cases"] = earlier["cases"]

  def has(self, case: Case) -> bool:
    """Tells whether a case was measured.

    Args:
      case: the case.

    Returns:
      False for a case that was skipped, since it may work now.
    """
    sizes = dataclasses.asdict(case)
    return any(
      {name: measured[name] for name in _FIELDS} == sizes
      for measured in self._content["cases"]
    )

  def add(self, result: Result) -> None:
    """Adds a case and saves the file.

    Args:
      result: result of the case.
    """
    self._content["cases"].append(case_as_json(result))
    self._write()

  def skip(self, case: Case, why: str) -> None:
    """Adds a case that was not measured and saves the file.

    Args:
      case: the case.
      why: a sentence.
    """
    self._content["skipped"].append({**dataclasses.asdict(case), "why": why})
    self._write()

  def _write(self) -> None:
    if self._path:
      write_json_atomic(self._path, self._content)


def case_as_json(result: Result) -> dict[str, Any]:
  """Converts a case and its arms for `json.dumps`.

  Args:
    result: result of the case.

  Returns:
    A dict of numbers: seconds, bytes, FLOPs and tokens.
  """
  return {
    **dataclasses.asdict(result.case),
    "rates": dataclasses.asdict(result.rates),
    "probes": {
      name: list(times.seconds) for name, times in result.probes.items()
    },
    "arms": {line.name: _line_as_json(line) for line in result.lines},
    "ratios": compare(result),
  }


def _line_as_json(line: Line) -> dict[str, Any]:
  bound_seconds, bound_by = line.bound or (None, None)
  fields = {
    "seconds": list(line.times.seconds),
    "median_seconds": line.times.median,
    "tokens": line.times.work,
    "tokens_per_second": line.times.rate,
    "bound_seconds": bound_seconds,
    "bound_by": bound_by,
    "bound_reached": line.bound_reached,
    "needed_flops": sum(phase.flops for phase in line.needed),
    "needed_bytes": sum(phase.bytes for phase in line.needed),
    "of_product_rate": line.flops_per_second / line.rates.flops_per_second,
    "of_bandwidth": line.bytes_per_second / line.rates.bytes_per_second,
  }
  if line.baseline is not None:
    return fields | dict(line.baseline)
  fields["peak_bytes"] = line.peak_bytes
  if line.compilation is None:
    return fields
  memory, costs = line.compilation.memory, line.compilation.costs
  return fields | {
    "compile_seconds": line.compilation.seconds,
    "memory_bytes": {**dataclasses.asdict(memory), "total": memory.total},
    "compiled_flops": costs and costs.flops,
    "compiled_bytes": costs and costs.hbm_bytes,
  }
