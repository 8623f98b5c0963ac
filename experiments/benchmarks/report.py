"""Measures a case, and says what was found as a table and as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.bounds import Phase, Rates, least_time
from benchmarks.cases import Case
from benchmarks.machine import product_probe, stream_probes
from benchmarks.programs import Compilation, Compiled, Options
from benchmarks.rivals import Rival
from benchmarks.suites import SUITES
from benchmarks.timing import Times, in_turn
from pure_jax.models import policy
from pure_jax.models.params import count_params

# Of the last minute, before anything was measured.
QUIET_LOAD = 0.5


@dataclasses.dataclass(frozen=True)
class Line:
  """An arm of a case.

  Attributes:
    name: of the arm.
    times: its repeats; the work is tokens.
    needed: what the method needs, () where it is not known.
    bound_seconds: the least time for that, None where it is not known.
    bound_by: "compute" or "memory", None likewise.
    compilation: what the compiler says, None for a peer.
    facts: of a peer, see `Rival.facts`; None for ours.
  """

  name: str
  times: Times
  needed: Sequence[Phase]
  bound_seconds: float | None
  bound_by: str | None
  compilation: Compilation | None
  facts: Mapping[str, Any] | None = None

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
) -> Result:
  """Measures the arms of a case and the machine in turn.

  Args:
    case: what to measure.
    options: how its models run.
    repeats: of each arm.
    side: of the matrices that are multiplied, None for what suits the device.
    rivals: peers, of which those that can take part do.

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
  arms = {name: made.arm for name, made in ours.items()}
  times = in_turn(arms | theirs | probes, repeats)
  rates = Rates(
    flops_per_second=times["product"].rate,
    bytes_per_second=max(times[name].rate for name in streams),
  )
  return Result(
    case,
    rates,
    {name: times[name] for name in probes},
    [
      *our_lines(ours, times, rates),
      *(their_line(r, ours[r.beside], times, rates) for r in rivals),
    ],
  )


def our_lines(
  compiled: Mapping[str, Compiled], times: Mapping[str, Times], rates: Rates
) -> list[Line]:
  """Joins what was compiled with its times and its bounds.

  Args:
    compiled: arms by name.
    times: of the same arms.
    rates: of the machine.

  Returns:
    A line for each.
  """
  lines = []
  for name, made in compiled.items():
    bound = least_time(made.phases, rates) if made.phases else (None, None)
    lines.append(Line(name, times[name], made.phases, *bound, made.compilation))
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
    rival.name, times[rival.name], ours.phases, *bound, None, rival.facts()
  )


def beside(result: Result) -> dict[str, float]:
  """What the arms of a case are to each other.

  Args:
    result: of the case.

  Returns:
    ``NAME / ours`` for each peer: its seconds over those of the arm that does
    the same, the first. In the credit suite also shares of the update's time:
    of ``credit alone``, and of ``credit in the loss``, which is what the loss
    takes longer with it and, by chance, may be negative.
  """
  ours = result.lines[0].times.median
  found = {
    f"{line.name} / ours": line.times.median / ours
    for line in result.lines
    if line.facts is not None
  }
  medians = {line.name: line.times.median for line in result.lines}
  if result.case.suite == "credit":
    whole, added = medians["update"], medians["credit and loss"]
    found |= {
      "credit alone / update": medians["credit"] / whole,
      "credit in the loss / update": (added - medians["loss"]) / whole,
    }
  return found


def as_json(
  results: Sequence[Result],
  machine: Mapping[str, Any],
  options: Mapping[str, Any],
) -> dict[str, Any]:
  """Everything that was measured.

  Args:
    results: by case.
    machine: as `machine.describe` gives it.
    options: how the models ran.

  Returns:
    A dict for `json.dumps`: seconds, bytes, FLOPs and tokens.
  """
  return {
    "machine": dict(machine),
    "options": dict(options),
    "cases": [_case_as_json(result) for result in results],
  }


def _case_as_json(result: Result) -> dict[str, Any]:
  """A case with its arms."""
  return {
    **dataclasses.asdict(result.case),
    "rates": dataclasses.asdict(result.rates),
    "probes": {
      name: list(times.seconds) for name, times in result.probes.items()
    },
    "arms": {line.name: _line_as_json(line) for line in result.lines},
    "beside": beside(result),
  }


def _line_as_json(line: Line) -> dict[str, Any]:
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
  }
  if line.compilation is None:
    return found | dict(line.facts)
  memory, costs = line.compilation.memory, line.compilation.costs
  return found | {
    "compile_seconds": line.compilation.seconds,
    "memory_bytes": {**dataclasses.asdict(memory), "total": memory.total},
    "compiled_flops": costs and costs.flops,
    "compiled_bytes": costs and costs.hbm_bytes,
  }


def heading(machine: Mapping[str, Any], repeats: int, dtype: str) -> str:
  """What stands above the table.

  Args:
    machine: as `machine.describe` gives it.
    repeats: of each arm.
    dtype: of matrix products.

  Returns:
    Lines.
  """
  devices = ", ".join(f"{n} x {kind}" for kind, n in machine["devices"].items())
  packages = machine["packages"]
  columns = (
    f"{'suite':8}{'model':18}{'P x G':8}{'L + C':13}{'stops':6}"
    f"{'arm':17}{'median s':>9}{'from':>9}{'to':>9}{'tokens/s':>10}"
    f"{'bound s':>9}{'reached':>9}  bound by"
  )
  busy = ""
  if machine["load_average"] > QUIET_LOAD:
    busy = (
      "The machine is busy with something else: threads that wait for each "
      "other,\nas torch's do, then wait many times longer. Do not compare.\n"
    )
  return (
    f"{machine['date']}, commit {machine['commit']}: {devices}, "
    f"{machine['processor']}, {machine['cores']} cores, "
    f"load {machine['load_average']:.1f}\n"
    f"jax {packages['jax']}, {dtype}, medians of {repeats} repeats in turn\n"
    f"{busy}"
    f"{columns}"
  )


def as_text(result: Result) -> str:
  """The lines of a case in the table.

  Args:
    result: of the case.

  Returns:
    A line for each arm, what they are to each other, and the machine's rates.
  """
  lines = [f"{result.case}{_columns(line)}" for line in result.lines]
  shares = [
    f"{name} {x:.2f}" if name.endswith("ours") else f"{name} {x:.3%}"
    for name, x in beside(result).items()
  ]
  rates = (
    f"machine: {result.rates.bytes_per_second / 1e9:.1f} GB/s, "
    f"{result.rates.flops_per_second / 1e9:.0f} GFLOP/s"
  )
  lines.append("    " + ", ".join([*shares, rates]))
  for line in result.lines:
    described = _peer(line) if line.compilation is None else _compilation(line)
    lines.append(f"    {described}")
  return "\n".join(lines)


def _columns(line: Line) -> str:
  """An arm's numbers."""
  seconds = line.times.seconds
  text = (
    f"{line.name:17}{line.times.median:9.4f}{min(seconds):9.4f}"
    f"{max(seconds):9.4f}{line.times.rate:10,.0f}"
  )
  if line.bound_seconds is None:
    return text
  return text + f"{line.bound_seconds:9.4f}{line.reached:9.1%}  {line.bound_by}"


def _peer(line: Line) -> str:
  """What a peer says of itself."""
  versions = ", ".join(f"{k} {v}" for k, v in line.facts["versions"].items())
  peak = line.facts["peak_bytes"] / 1e6
  return f"{line.name}: process {peak:,.0f} MB at its peak, {versions}"


def _compilation(line: Line) -> str:
  """What the compiler says of an arm."""
  found, memory = line.compilation, line.compilation.memory
  text = (
    f"{line.name}: compiled in {found.seconds:.1f} s, memory "
    f"{memory.total / 1e6:,.0f} MB ({memory.temporaries / 1e6:,.0f} temporary)"
  )
  if found.costs is None:
    return text
  return text + (
    f", compiled {found.costs.flops / 1e9:,.2f} GFLOP and "
    f"{found.costs.hbm_bytes / 1e9:,.2f} GB"
  )
