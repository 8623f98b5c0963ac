"""The results of a case: its timed arms, their bounds and ratios."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.bounds import Phase, Rates, least_time
from benchmarks.cases import Case
from benchmarks.programs import Compilation
from benchmarks.timing import Times


@dataclasses.dataclass(frozen=True)
class Line:
  """The result of one arm: a program of ours or a baseline.

  Attributes:
    name: name of the arm.
    times: its repeats; the work is tokens.
    needed: the work that the method needs at least, () if it is not known.
    rates: rates of the machine, from the same repeats.
    compilation: compilation of one program of ours; None for a baseline and
      for an arm of several programs.
    baseline: for a baseline, its versions, its peak memory and how well it
      agrees with ours; None for an arm of ours.
    compared_with: the arm of ours that does the same, for a baseline and for a
      variant of ours; else None.
    peak_bytes: of an arm of ours, see `memory.Peak`; None for a baseline.
  """

  name: str
  times: Times
  needed: Sequence[Phase]
  rates: Rates
  compilation: Compilation | None = None
  baseline: Mapping[str, Any] | None = None
  compared_with: str | None = None
  peak_bytes: int | None = None

  @property
  def bound(self) -> tuple[float, str] | None:
    """Least seconds, and "compute" or "memory"; None if it is not known."""
    return least_time(self.needed, self.rates) if self.needed else None

  @property
  def bound_reached(self) -> float | None:
    """The bound over the median time; None if there is no bound."""
    return self.bound and self.bound[0] / self.times.median

  @property
  def flops_per_second(self) -> float:
    """Rate of the products that the method needs, not of those computed."""
    return sum(phase.flops for phase in self.needed) / self.times.median

  @property
  def bytes_per_second(self) -> float:
    """Rate of the memory traffic that the method needs."""
    return sum(phase.bytes for phase in self.needed) / self.times.median


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

  Args:
    result: result of the case.

  Returns:
    ``BASELINE / ours``: seconds of a baseline over those of the arm that does
    the same. ``NAME / ARM``: seconds of a variant of ours over the first, and
    of each baseline over a variant. For a rollout also the decoding after the
    prefill, whose time is subtracted: ``decode, of bandwidth`` is its traffic
    over the measured bandwidth, ``decode, of the bound`` its bound over its
    time.
  """
  medians = {line.name: line.times.median for line in result.lines}
  baselines = [line for line in result.lines if line.baseline is not None]
  variants = [
    line
    for line in result.lines
    if line.baseline is None and line.compared_with
  ]
  ratios = {
    f"{baseline.name} / ours": medians[baseline.name]
    / medians[baseline.compared_with]
    for baseline in baselines
  }
  for variant in variants:
    first = variant.compared_with
    same = [line for line in baselines if line.compared_with == first]
    ratios[f"{variant.name} / {first}"] = medians[variant.name] / medians[first]
    for line in same:
      ratios[f"{line.name} / {variant.name}"] = (
        medians[line.name] / medians[variant.name]
      )
  if result.case.suite == "rollout":
    ratios |= _decoding(result.lines[0], medians["prefill"])
  return ratios


def _decoding(rollout: Line, prefill_seconds: float) -> dict[str, float]:
  """How close the steps after the prefill come to the machine's limits."""
  seconds = rollout.times.median - prefill_seconds
  steps, rates = rollout.needed[1:], rollout.rates
  if seconds <= 0 or not steps:
    return {}
  moved = sum(step.bytes for step in steps)
  return {
    "decode, of bandwidth": moved / seconds / rates.bytes_per_second,
    "decode, of the bound": least_time(steps, rates)[0] / seconds,
  }
