"""Measures the cases of a run one by one; each may fail by itself."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Sequence

import jax

from benchmarks import memory, table
from benchmarks.baselines import run_baselines
from benchmarks.baselines.baseline import Baseline
from benchmarks.bounds import Rates
from benchmarks.cases import BenchmarkError, Case
from benchmarks.document import Document
from benchmarks.machine import product_probe, stream_probes
from benchmarks.models import Options
from benchmarks.results import Line, Result
from benchmarks.suites import SUITES
from benchmarks.timing import time_interleaved
from pure_jax.models import policy
from pure_jax.models.params import count_params


@dataclasses.dataclass(frozen=True)
class Settings:
  """How every case is measured.

  Attributes:
    options: how the models run.
    repeats: most repeats of each arm.
    seconds: time limit of a case's repeats, see `timing.time_interleaved`.
    probe_side: side of the matrices that the probe multiplies, None for a size
      that suits the device.
    baselines: names in `baselines.BASELINES`.
    environments: folder of the baselines' environments; None only without
      baselines.
  """

  options: Options
  repeats: int
  seconds: float = math.inf
  probe_side: int | None = None
  baselines: Sequence[str] = ()
  environments: pathlib.Path | None = None


def measure_all(
  cases: Iterable[Case], settings: Settings, document: Document
) -> list[Case]:
  """Measures, prints and saves one case after the other.

  Args:
    cases: suite by suite; those that the document has are not measured again.
    settings: settings of all cases.
    document: gets the results.

  Returns:
    The cases that failed: a baseline died, or an arm does not compute the same
    as another. After a failure the baselines start anew.
  """
  waiting = [case for case in cases if not document.has(case)]
  failed = []
  while waiting:
    suite = waiting[0].suite
    with run_baselines(
      suite, settings.baselines, settings.environments
    ) as baselines:
      while waiting and waiting[0].suite == suite:
        case = waiting.pop(0)
        try:
          _measure_and_save(case, settings, baselines, document)
        except BenchmarkError as error:
          failed.append(case)
          _skip(case, f"failed: {error}", document)
          break
  return failed


def _measure_and_save(
  case: Case,
  settings: Settings,
  baselines: Sequence[Baseline],
  document: Document,
) -> None:
  suite, options = SUITES[case.suite], settings.options
  why = memory.why_not(case, suite, options, memory.available_bytes())
  if why is not None:
    _skip(case, why, document)
    return
  try:
    result = measure(case, settings, baselines)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    # Other cases may fit.
    why = "not measured: the memory of the device did not suffice"
    _skip(case, why, document)
    return
  document.add(result)
  print(table.as_text(result), flush=True)


def _skip(case: Case, why: str, document: Document) -> None:
  """Reports a case without a result."""
  document.skip(case, why)
  print(table.skipped(case, why), flush=True)


def measure(
  case: Case, settings: Settings, baselines: Sequence[Baseline] = ()
) -> Result:
  """Times the arms of a case and the probes of the machine, interleaved.

  Args:
    case: the case.
    settings: how it is measured.
    baselines: running baselines of the case's suite.

  Returns:
    The result.
  """
  options = settings.options
  programs = SUITES[case.suite].compile_arms(case, options)
  baseline_arms = {
    baseline.name: baseline.arm(case, options, programs[baseline.compared_with])
    for baseline in baselines
  }
  declared = policy.declare_policy(options.model(case.model))
  streams = stream_probes(count_params(declared) * options.itemsize)
  product = product_probe(options.dtype, settings.probe_side)
  probes = streams | {"product": product}
  peaks = {name: memory.Peak() for name in programs}
  arms = {
    name: peaks[name].record(program.arm) for name, program in programs.items()
  }
  times = time_interleaved(
    arms | baseline_arms | probes, settings.repeats, seconds=settings.seconds
  )
  rates = Rates(
    flops_per_second=times["product"].rate,
    bytes_per_second=max(times[name].rate for name in streams),
  )
  ours = [
    Line(
      name,
      times[name],
      program.phases,
      rates,
      program.compilation,
      compared_with=program.variant_of,
      peak_bytes=peaks[name].bytes,
    )
    for name, program in programs.items()
  ]
  theirs = [
    Line(
      baseline.name,
      times[baseline.name],
      programs[baseline.compared_with].phases,
      rates,
      baseline=dict(baseline.info),
      compared_with=baseline.compared_with,
    )
    for baseline in baselines
  ]
  return Result(
    case, rates, {name: times[name] for name in probes}, [*ours, *theirs]
  )
