"""What was measured, as JSON that grows by a case at a time."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.bounds import Rates
from benchmarks.cases import BenchmarkError, Case
from benchmarks.report import Line, Result, beside
from pure_jax.host.atomic_files import write_json_atomic

# What results that stand in one file have in common.
_SAME_MACHINE = ("commit", "packages", "devices", "processor", "cores")
_FIELDS = tuple(field.name for field in dataclasses.fields(Case))


class Document:
  """The file of a run. It is written anew after each case.

  So what was measured is there, however the run ends.
  """

  def __init__(
    self,
    path: pathlib.Path | None,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    resume: bool = False,
  ):
    """Begins it, or goes on with what is there.

    Args:
      path: of the file, None to write none.
      machine: as `machine.describe` gives it.
      settings: how all cases are measured, JSON-like.
      resume: True keeps the cases of the file, if there is one.

    Raises:
      BenchmarkError: if they were measured elsewhere or otherwise.
    """
    self._path = path
    self._content = {
      "machine": dict(machine),
      "options": dict(settings),
      "cases": [],
      "left_out": [],
    }
    if resume and path and path.exists():
      self._go_on(json.loads(path.read_text(encoding="utf-8")))

  def _go_on(self, earlier: dict[str, Any]) -> None:
    """Takes the cases of an earlier run over."""
    # As the file has them: tuples are lists there.
    now = json.loads(json.dumps(self._content))
    differ = [
      name
      for name in _SAME_MACHINE
      if earlier["machine"].get(name) != now["machine"].get(name)
    ]
    differ += [
      name
      for name in now["options"]
      if earlier["options"].get(name) != now["options"][name]
    ]
    if differ:
      raise BenchmarkError(
        f"--resume: the cases in {self._path} differ in {', '.join(differ)} "
        "from what is asked for: take another file, or measure as they were."
      )
    # Dates and loads of all that are in the file.
    before = earlier["machine"]
    self._content["machine"]["resumed"] = [
      *before.pop("resumed", []),
      {name: before[name] for name in ("date", "load_average", "command")},
    ]
    self._content["cases"] = earlier["cases"]

  def has(self, case: Case) -> bool:
    """Whether a case was measured.

    Args:
      case: which.

    Returns:
      False for one that was left out: it may fit by now.
    """
    sizes = dataclasses.asdict(case)
    return any(
      {name: found[name] for name in _FIELDS} == sizes
      for found in self._content["cases"]
    )

  def add(self, result: Result) -> None:
    """Notes a case, and writes the file.

    Args:
      result: of the case.
    """
    self._content["cases"].append(case_as_json(result))
    self._write()

  def leave_out(self, case: Case, why: str) -> None:
    """Notes a case that was not measured, and writes the file.

    Args:
      case: which.
      why: a sentence.
    """
    self._content["left_out"].append({**dataclasses.asdict(case), "why": why})
    self._write()

  def _write(self) -> None:
    """All that is known so far."""
    if self._path:
      write_json_atomic(self._path, self._content)


def case_as_json(result: Result) -> dict[str, Any]:
  """A case with its arms.

  Args:
    result: of the case.

  Returns:
    A dict for `json.dumps`: seconds, bytes, FLOPs and tokens.
  """
  return {
    **dataclasses.asdict(result.case),
    "rates": dataclasses.asdict(result.rates),
    "probes": {
      name: list(times.seconds) for name, times in result.probes.items()
    },
    "arms": {
      line.name: _line_as_json(line, result.rates) for line in result.lines
    },
    "beside": beside(result),
  }


def _line_as_json(line: Line, rates: Rates) -> dict[str, Any]:
  """An arm."""
  found = {
    "seconds": list(line.times.seconds),
    "median_seconds": line.times.median,
    "tokens": line.times.work,
    "tokens_per_second": line.times.rate,
    "bound_seconds": line.bound_seconds,
    "bound_by": line.bound_by,
    "bound_reached": line.reached,
    "needed_flops": sum(phase.flops for phase in line.needed),
    "needed_bytes": sum(phase.bytes for phase in line.needed),
    "of_product_rate": line.flops_per_second / rates.flops_per_second,
    "of_bandwidth": line.bytes_per_second / rates.bytes_per_second,
  }
  if line.facts is not None:
    return found | dict(line.facts)
  found["peak_bytes"] = line.peak_bytes
  if line.drift is not None:
    found["drift_mean"], found["drift_max"] = map(float, line.drift)
  if line.compilation is None:
    return found
  laid_out, costs = line.compilation.memory, line.compilation.costs
  return found | {
    "compile_seconds": line.compilation.seconds,
    "memory_bytes": {**dataclasses.asdict(laid_out), "total": laid_out.total},
    "compiled_flops": costs and costs.flops,
    "compiled_bytes": costs and costs.hbm_bytes,
  }
