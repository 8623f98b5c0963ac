"""What was measured, as a table."""

from collections.abc import Mapping
from typing import Any

from benchmarks.bounds import Rates
from benchmarks.cases import Case
from benchmarks.report import Line, Result, beside
from benchmarks.timing import LEAST_REPEATS

# Of the last minute, before anything was measured.
QUIET_LOAD = 0.5


def heading(machine: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
  """What stands above the table.

  Args:
    machine: as `machine.describe` gives it.
    settings: ``dtype`` of matrix products, ``repeats`` of each arm at most,
      and the ``seconds`` that those of a case may take.

  Returns:
    Lines.
  """
  devices = ", ".join(f"{n} x {kind}" for kind, n in machine["devices"].items())
  packages = machine["packages"]
  columns = (
    f"{'suite':10}{'model':18}{'P x G':8}{'L + C':13}{'stops':6}"
    f"{'arm':17}{'n':>2}{'median s':>9}{'from':>9}{'to':>9}{'tokens/s':>10}"
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
    f"jax {packages['jax']}, {settings['dtype']}, medians of n repeats in "
    f"turn:\n"
    f"n = {settings['repeats']}, or, if those take more than "
    f"{settings['seconds']:g} s, at least {LEAST_REPEATS}\n"
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
    f"{name} {x:.3%}" if name.endswith("/ update") else f"{name} {x:.2f}"
    for name, x in beside(result).items()
  ]
  rates = (
    f"machine: {result.rates.bytes_per_second / 1e9:.1f} GB/s, "
    f"{result.rates.flops_per_second / 1e9:.0f} GFLOP/s"
  )
  lines.append("    " + ", ".join([*shares, rates]))
  for line in result.lines:
    described = _compilation(line) if line.facts is None else _peer(line)
    shares = _reached(line, result.rates) + _drift(line)
    lines.append(f"    {line.name}: {described}{shares}")
  return "\n".join(lines)


def left_out(case: Case, why: str) -> str:
  """The line of a case that was not measured.

  Args:
    case: which.
    why: a sentence.

  Returns:
    The line.
  """
  return f"{case}{why}"


def _drift(line: Line) -> str:
  """How far log-probs are from the trainer's."""
  if line.drift is None:
    return ""
  mean, largest = line.drift
  return f", log-probs off by {mean:.2g} nats on average, {largest:.2g} at most"


def _columns(line: Line) -> str:
  """An arm's numbers."""
  seconds = line.times.seconds
  text = (
    f"{line.name:17}{len(seconds):2}{line.times.median:9.4f}{min(seconds):9.4f}"
    f"{max(seconds):9.4f}{line.times.rate:10,.0f}"
  )
  if line.bound_seconds is None:
    return text
  return text + f"{line.bound_seconds:9.4f}{line.reached:9.1%}  {line.bound_by}"


def _peer(line: Line) -> str:
  """What a peer says of itself."""
  versions = ", ".join(f"{k} {v}" for k, v in line.facts["versions"].items())
  peak = line.facts["peak_bytes"] / 1e6
  return f"process {peak:,.0f} MB at its peak, {versions}"


def _compilation(line: Line) -> str:
  """What the compiler and the system say of an arm of ours."""
  found, parts = line.compilation, []
  if found is not None:
    total, temporary = found.memory.total, found.memory.temporaries
    parts = [
      f"compiled in {found.seconds:.1f} s",
      f"memory {total / 1e6:,.0f} MB ({temporary / 1e6:,.0f} temporary)",
    ]
    if found.costs is not None:
      parts += [
        f"compiled {found.costs.flops / 1e9:,.2f} GFLOP and "
        f"{found.costs.hbm_bytes / 1e9:,.2f} GB"
      ]
  if line.peak_bytes is not None:
    parts.append(f"{line.peak_bytes / 1e6:,.0f} MB at its peak")
  return ", ".join(parts) or "several programs"


def _reached(line: Line, rates: Rates) -> str:
  """What of the machine's measured rates the method's own work makes use of."""
  if not line.needed:
    return ""
  flops, moved = line.flops_per_second, line.bytes_per_second
  return (
    f"; model FLOPs {flops / 1e9:,.1f} GFLOP/s, utilisation "
    f"{flops / rates.flops_per_second:.1%}, and {moved / 1e9:,.1f} GB/s, "
    f"{moved / rates.bytes_per_second:.1%} of bandwidth"
  )
