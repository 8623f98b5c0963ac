"""The results of a benchmark: timed arms with bounds and ratios, as JSON."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.bounds import Rates, least_time
from benchmarks.cases import BenchmarkError, Case
from benchmarks.timing import Arm, Times
from pure_jax.host import json_text
from pure_jax.host.atomic_files import write_json_atomic

# All results of one file have these in common.
_SAME_MACHINE = ("commit", "packages", "devices", "processor", "cores")


@dataclasses.dataclass(frozen=True)
class Line:
  """The result of one arm.

  Attributes:
    name: name of the arm.
    arm: a program of ours or a baseline.
    times: seconds of each repeat, and its tokens.
    rates: rates of the machine, from the same repeats.
  """

  name: str
  arm: Arm
  times: Times
  rates: Rates

  @property
  def bound(self) -> tuple[float, str] | None:
    """Least seconds, and "compute" or "memory"; None if it is not known."""
    phases = self.arm.phases
    return least_time(phases, self.rates) if phases else None

  @property
  def bound_reached(self) -> float | None:
    """The bound over the median time; None if there is no bound."""
    return self.bound and self.bound[0] / self.times.median

  @property
  def flops(self) -> float:
    """FLOPs that the method needs, not those that the program computes."""
    return sum(phase.flops for phase in self.arm.phases)

  @property
  def bytes(self) -> float:
    """Memory traffic that the method needs."""
    return sum(phase.bytes for phase in self.arm.phases)

  @property
  def of_product_rate(self) -> float:
    """Model FLOPs utilisation: needed FLOPs/s over the measured matmul rate."""
    return self.flops / self.times.median / self.rates.flops_per_second

  @property
  def of_bandwidth(self) -> float:
    """Needed bytes/s over the measured memory bandwidth."""
    return self.bytes / self.times.median / self.rates.bytes_per_second


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a case.

  Attributes:
    case: the measured case.
    rates: rates of the machine, from the same repeats.
    probes: the timings that the rates come from, by name.
    lines: the arms, ours before baselines.
  """

  case: Case
  rates: Rates
  probes: Mapping[str, Times]
  lines: Sequence[Line]


def compare(result: Result) -> dict[str, float]:
  """Compares the arms of a case with each other and with the machine.

  ``BASELINE / ours`` is the seconds of a baseline over those of the arm that
  does the same, ``NAME / ARM`` those of a variant of ours over the first, and
  of each baseline over a variant. A rollout also has the decoding after the
  prefill, whose time is subtracted: ``decode, of bandwidth`` is its traffic
  over the measured bandwidth, ``decode, of the bound`` its bound over its time.
  """
  medians = {line.name: line.times.median for line in result.lines}
  compared = {
    line.name: line.arm.compared_with
    for line in result.lines
    if line.arm.compared_with
  }
  baselines = [
    line.name for line in result.lines if line.arm.baseline is not None
  ]
  ratios = {
    f"{name} / ours": medians[name] / medians[compared[name]]
    for name in baselines
  }
  for variant, first in compared.items():
    if variant in baselines:
      continue
    ratios[f"{variant} / {first}"] = medians[variant] / medians[first]
    for name in baselines:
      if compared[name] == first:
        ratios[f"{name} / {variant}"] = medians[name] / medians[variant]
  if result.case.suite == "rollout":
    ratios |= _decoding(result.lines[0], medians["prefill"])
  return ratios


def _decoding(rollout: Line, prefill_seconds: float) -> dict[str, float]:
  """How close the steps after the prefill come to the machine's limits."""
  seconds = rollout.times.median - prefill_seconds
  steps, rates = rollout.arm.phases[1:], rollout.rates
  if seconds <= 0 or not steps:
    return {}
  moved = sum(step.bytes for step in steps)
  return {
    "decode, of bandwidth": moved / seconds / rates.bytes_per_second,
    "decode, of the bound": least_time(steps, rates)[0] / seconds,
  }


class Document:
  """The results of a run as a JSON file, saved after each case.

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
      resume: True keeps the cases of the file, if it exists. It must be of the
        same machine and settings, else a `BenchmarkError` names the difference.
    """
    self._path = path
    self._content = {
      "machine": dict(machine),
      "options": dict(settings),
      "cases": [],
      "skipped": [],
    }
    if resume and path and path.exists():
      try:
        self._continue(json_text.parse(path.read_bytes()))
      except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError),
      ) as error:
        raise BenchmarkError(
          f"--resume: {path} holds no results of a benchmark ({error!r}): name "
          "another file."
        ) from error

  def _continue(self, earlier: dict[str, Any]) -> None:
    """Takes over the cases of an earlier run."""
    # In the form of the file, where tuples are lists.
    now = json.loads(json.dumps(self._content))
    differences = [
      name
      for part, names in (
        ("machine", _SAME_MACHINE),
        ("options", now["options"]),
      )
      for name in names
      if earlier[part].get(name) != now[part].get(name)
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
    """Tells whether a case was measured; one that was skipped may work now."""
    sizes = case.sizes.items()
    return any(sizes <= saved.items() for saved in self._content["cases"])

  def add(self, result: Result) -> None:
    """Adds a case and saves the file."""
    self._content["cases"].append(as_json(result))
    self._write()

  def skip(self, case: Case, why: str) -> None:
    """Adds a case that was not measured and why, and saves the file."""
    self._content["skipped"].append({**case.sizes, "why": why})
    self._write()

  def _write(self) -> None:
    if self._path:
      write_json_atomic(self._path, self._content)


def as_json(result: Result) -> dict[str, Any]:
  """Converts a case to seconds, bytes, FLOPs and tokens for `json.dumps`."""
  return {
    **result.case.sizes,
    "rates": dataclasses.asdict(result.rates),
    "probes": {
      name: list(times.seconds) for name, times in result.probes.items()
    },
    "arms": {line.name: line_as_json(line) for line in result.lines},
    "ratios": compare(result),
  }


def line_as_json(line: Line) -> dict[str, Any]:
  """Converts an arm to seconds, bytes, FLOPs and tokens for `json.dumps`."""
  bound_seconds, bound_by = line.bound or (None, None)
  fields = {
    "seconds": list(line.times.seconds),
    "median_seconds": line.times.median,
    "tokens": line.times.work,
    "tokens_per_second": line.times.rate,
    "bound_seconds": bound_seconds,
    "bound_by": bound_by,
    "bound_reached": line.bound_reached,
    "needed_flops": line.flops,
    "needed_bytes": line.bytes,
    "of_product_rate": line.of_product_rate,
    "of_bandwidth": line.of_bandwidth,
  }
  if line.arm.baseline is not None:
    return fields | dict(line.arm.baseline)
  fields["peak_bytes"] = line.times.peak_bytes
  compilation = line.arm.compilation
  if compilation is None:
    return fields
  memory, costs = compilation.memory, compilation.costs
  return fields | {
    "compile_seconds": compilation.seconds,
    "memory_bytes": memory
    and {**dataclasses.asdict(memory), "total": memory.total},
    "compiled_flops": costs and costs.flops,
    "compiled_bytes": costs and costs.hbm_bytes,
  }
