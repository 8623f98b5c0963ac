"""The results of a benchmark as a table of text."""

from collections.abc import Mapping
from typing import Any

from benchmarks.results import Line, Result, compare
from benchmarks.timing import LEAST_REPEATS

# Load average of the last minute above which the machine counts as busy.
QUIET_LOAD = 0.5


def heading(machine: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
  """Formats machine and settings of a `Document` and the names of columns."""
  devices = ", ".join(f"{n} x {kind}" for kind, n in machine["devices"].items())
  busy = ""
  if machine["load_average"] > QUIET_LOAD:
    busy = (
      "The machine is busy with something else. Programs whose threads wait "
      "for each\nother, such as torch, then slow down many times: do not "
      "compare.\n"
    )
  return (
    f"{machine['date']}, commit {machine['commit']}: {devices}, "
    f"{machine['processor']}, {machine['cores']} cores, "
    f"load {machine['load_average']:.1f}\n"
    f"jax {machine['packages']['jax']}, {settings['dtype']}, medians of n "
    f"interleaved repeats:\n"
    f"n = {settings['repeats']}, or fewer, at least {LEAST_REPEATS}, if those "
    f"take more than {settings['seconds']:g} s\n"
    f"{busy}"
    f"{'suite':10}{'model':18}{'P x G':8}{'L + C':13}{'stops':6}"
    f"{'arm':17}{'n':>2}{'median s':>9}{'from':>9}{'to':>9}{'tokens/s':>10}"
    f"{'bound s':>9}{'reached':>9}  bound by"
  )


def as_text(result: Result) -> str:
  """Formats a case.

  There is a line for each arm, a line of ratios and of the machine's rates,
  and a line of details for each arm.
  """
  lines = [f"{result.case}{_columns(line)}" for line in result.lines]
  ratios = [f"{name} {ratio:.2f}" for name, ratio in compare(result).items()]
  rates = (
    f"machine: {result.rates.bytes_per_second / 1e9:.1f} GB/s, "
    f"{result.rates.flops_per_second / 1e9:.0f} GFLOP/s"
  )
  lines.append("    " + ", ".join([*ratios, rates]))
  for line in result.lines:
    ours = line.arm.baseline is None
    details = _compilation(line) if ours else _versions(line)
    lines.append(f"    {line.name}: {details}{_utilisation(line)}")
  return "\n".join(lines)


def _columns(line: Line) -> str:
  """The numbers of an arm."""
  seconds = line.times.seconds
  text = (
    f"{line.name:17}{len(seconds):2}{line.times.median:9.4f}{min(seconds):9.4f}"
    f"{max(seconds):9.4f}{line.times.rate:10,.0f}"
  )
  if line.bound is None:
    return text
  seconds, limit = line.bound
  return text + f"{seconds:9.4f}{line.bound_reached:9.1%}  {limit}"


def _versions(line: Line) -> str:
  """The peak memory and the packages of a baseline."""
  versions = line.arm.baseline["versions"].items()
  versions = ", ".join(f"{name} {version}" for name, version in versions)
  peak = line.arm.baseline["peak_bytes"] / 1e6
  return f"process {peak:,.0f} MB at its peak, {versions}"


def _compilation(line: Line) -> str:
  """Time and memory of an arm of ours, from the compiler and the system."""
  compilation, parts = line.arm.compilation, []
  if compilation is not None:
    memory, costs = compilation.memory, compilation.costs
    parts = [f"compiled in {compilation.seconds:.1f} s"]
    if memory is not None:
      total, temporary = memory.total, memory.temporaries
      parts.append(
        f"memory {total / 1e6:,.0f} MB ({temporary / 1e6:,.0f} temporary)"
      )
    if costs is not None:
      parts.append(
        f"compiled {costs.flops / 1e9:,.2f} GFLOP and "
        f"{costs.hbm_bytes / 1e9:,.2f} GB"
      )
  if line.times.peak_bytes is not None:
    parts.append(f"{line.times.peak_bytes / 1e6:,.0f} MB at its peak")
  return ", ".join(parts) or "several programs"


def _utilisation(line: Line) -> str:
  """The needed work per second, and its share of the machine's rates."""
  if not line.arm.phases:
    return ""
  seconds = line.times.median
  return (
    f"; model FLOPs {line.flops / seconds / 1e9:,.1f} GFLOP/s, utilisation "
    f"{line.of_product_rate:.1%}, and {line.bytes / seconds / 1e9:,.1f} GB/s, "
    f"{line.of_bandwidth:.1%} of bandwidth"
  )
