"""Measures a case, and says what its arms are to each other."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks import memory
from benchmarks.bounds import Phase, Rates, least_time
from benchmarks.cases import Case
from benchmarks.machine import product_probe, stream_probes
from benchmarks.programs import Compilation, Compiled, Options
from benchmarks.rival import Rival
from benchmarks.suites import SUITES
from benchmarks.timing import Times, in_turn
from pure_jax.models import policy
from pure_jax.models.params import count_params


@dataclasses.dataclass(frozen=True)
class Line:
  """An arm of a case.

  Attributes:
    name: of the arm.
    times: its repeats; the work is tokens.
    needed: what the method needs, () where it is not known.
    bound_seconds: the least time for that, None where it is not known.
    bound_by: "compute" or "memory", None likewise.
    compilation: what the compiler says, None for a peer and where there is
      more than one program.
    facts: of a peer, see `Rival.facts`; None for ours.
    instead_of: the arm of ours that does the same, for a peer and for another
      way of ours; None otherwise.
    peak_bytes: of ours, as `memory.Peak` has it; None for a peer.
    drift: of log-probs, as `Compiled` has it.
  """

  name: str
  times: Times
  needed: Sequence[Phase]
  bound_seconds: float | None
  bound_by: str | None
  compilation: Compilation | None
  facts: Mapping[str, Any] | None = None
  instead_of: str | None = None
  peak_bytes: int | None = None
  drift: tuple[float, float] | None = None

  @property
  def flops_per_second(self) -> float:
    """Of the products that the method needs, whatever was computed."""
    return sum(phase.flops for phase in self.needed) / self.times.median

  @property
  def bytes_per_second(self) -> float:
    """Of the traffic that the method needs."""
    return sum(phase.bytes for phase in self.needed) / self.times.median

  @property
  def reached(self) -> float | None:
    """The share of the bound's speed."""
    if self.bound_seconds is None:
      return None
    return self.bound_seconds / self.times.median


@dataclasses.dataclass(frozen=True)
class Result:
  """A case.

  Attributes:
    case: what was measured.
    rates: of the machine, from the same repeats.
    probes: what those rates were read from, by name.
    lines: the arms, ours before peers.
  """

  case: Case
  rates: Rates
  probes: Mapping[str, Times]
  lines: Sequence[Line]


def measure(
  case: Case,
  options: Options,
  repeats: int,
  side: int | None = None,
  rivals: Sequence[Rival] = (),
  seconds: float = math.inf,
) -> Result:
  """Measures the arms of a case and the machine in turn.

  Args:
    case: what to measure.
    options: how its models run.
    repeats: of each arm at most.
    side: of the matrices that are multiplied, None for what suits the device.
    rivals: peers, of which those that can take part do.
    seconds: that repeats of all arms may take, as `in_turn` has it.

  Returns:
    What was found.
  """
  ours = SUITES[case.suite](case, options)
  rivals = [rival for rival in rivals if rival.takes(case)]
  theirs = {
    rival.name: rival.arm(case, options, ours[rival.beside]) for rival in rivals
  }
  model = options.model(case.model)
  size = count_params(policy.declare_policy(model)) * options.itemsize
  streams = stream_probes(size)
  probes = streams | {"product": product_probe(options.dtype, side)}
  peaks = {name: memory.Peak() for name in ours}
  arms = {name: peaks[name].noting(made.arm) for name, made in ours.items()}
  times = in_turn(arms | theirs | probes, repeats, seconds=seconds)
  rates = Rates(
    flops_per_second=times["product"].rate,
    bytes_per_second=max(times[name].rate for name in streams),
  )
  found = {name: peak.bytes for name, peak in peaks.items()}
  return Result(
    case,
    rates,
    {name: times[name] for name in probes},
    [
      *our_lines(ours, times, rates, found),
      *(their_line(r, ours[r.beside], times, rates) for r in rivals),
    ],
  )


def attempt(case: Case, *how: Any) -> Result | str:
  """Measures a case, where it fits.

  Args:
    case: what to measure.
    *how: the other arguments of `measure`.

  Returns:
    What was found, or a sentence where memory did not suffice: other cases may
    fit.
  """
  try:
    return measure(case, *how)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return "not measured: the memory of the device did not suffice"


def our_lines(
  compiled: Mapping[str, Compiled],
  times: Mapping[str, Times],
  rates: Rates,
  peaks: Mapping[str, int | None],
) -> list[Line]:
  """Joins what was compiled with its times and its bounds.

  Args:
    compiled: arms by name.
    times: of the same arms.
    rates: of the machine.
    peaks: bytes, of the same arms.

  Returns:
    A line for each.
  """
  lines = []
  for name, made in compiled.items():
    bound = least_time(made.phases, rates) if made.phases else (None, None)
    lines.append(
      Line(
        name,
        times[name],
        made.phases,
        *bound,
        made.compilation,
        instead_of=made.instead_of,
        peak_bytes=peaks[name],
        drift=made.drift,
      )
    )
  return lines


def their_line(
  rival: Rival, ours: Compiled, times: Mapping[str, Times], rates: Rates
) -> Line:
  """Joins a peer with its times and the bound of the arm beside it.

  Args:
    rival: the peer, after its repeats.
    ours: the arm that does the same.
    times: by name of the arm.
    rates: of the machine.

  Returns:
    Its line.
  """
  bound = least_time(ours.phases, rates)
  return Line(
    rival.name,
    times[rival.name],
    ours.phases,
    *bound,
    None,
    rival.facts(),
    rival.beside,
  )


def beside(result: Result) -> dict[str, float]:
  """What the arms of a case are to each other.

  Args:
    result: of the case.

  Returns:
    ``PEER / ours``: seconds of a peer over those of the arm that it is held to.
    ``NAME / ARM``: of another way of ours over the first, and of each peer over
    another way.
    ``decode, of bandwidth`` and ``decode, of the bound`` of a rollout: what
    comes after the prefill, whose time is subtracted, against the rate at which
    memory was read and against the bound of those steps. In the credit suite
    shares of the update's time: of ``credit alone``, and of ``credit in the
    loss``, which is what the loss takes longer with it and, by chance, may be
    negative.
  """
  medians = {line.name: line.times.median for line in result.lines}
  peers = [line for line in result.lines if line.facts is not None]
  ways = [
    line for line in result.lines if line.facts is None and line.instead_of
  ]
  found = {
    f"{peer.name} / ours": peer.times.median / medians[peer.instead_of]
    for peer in peers
  }
  for way in ways:
    seconds, first = way.times.median, way.instead_of
    found[f"{way.name} / {first}"] = seconds / medians[first]
    found |= {
      f"{peer.name} / {way.name}": peer.times.median / seconds
      for peer in peers
      if peer.instead_of == first
    }
  if result.case.suite == "credit":
    whole, added = medians["update"], medians["credit and loss"]
    found |= {
      "credit alone / update": medians["credit"] / whole,
      "credit in the loss / update": (added - medians["loss"]) / whole,
    }
  if result.case.suite == "rollout":
    found |= _decoding(result.lines[0], medians["prefill"], result.rates)
  return found


def _decoding(rollout: Line, prefill: float, rates: Rates) -> dict[str, float]:
  """How near the steps after the prefill come to what memory allows."""
  seconds, steps = rollout.times.median - prefill, rollout.needed[1:]
  if seconds <= 0 or not steps:
    return {}
  moved = sum(step.bytes for step in steps)
  return {
    "decode, of bandwidth": moved / seconds / rates.bytes_per_second,
    "decode, of the bound": least_time(steps, rates)[0] / seconds,
  }
