"""Measures the cases of a run one by one; each may fail by itself."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import jax

from benchmarks import table
from benchmarks.baselines import Baseline, run_baselines
from benchmarks.baselines.process import Process
from benchmarks.bounds import Rates, count_weights
from benchmarks.cases import BenchmarkError, Case, Suite
from benchmarks.machine import available_bytes, product_probe, stream_probes
from benchmarks.results import Document, Line, Result
from benchmarks.suites import SUITES
from benchmarks.timing import time_interleaved
from pure_jax.host.distributed import preemption
from pure_jax.host.logs import console
from pure_jax.runs.memory.needs import LARGEST_COUNT


@dataclasses.dataclass(frozen=True)
class Settings:
  """How every case is measured.

  Attributes:
    repeats: most repeats of each arm.
    seconds: time limit of a case's repeats, see `timing.time_interleaved`.
    probe_side: side of the matrices that the probe multiplies, None for a size
      that suits the device.
    baselines: names of baselines.
    environments: folder of the baselines' environments; None only without
      baselines.
  """

  repeats: int
  seconds: float = math.inf
  probe_side: int | None = None
  baselines: Sequence[str] = ()
  environments: pathlib.Path | None = None


def measure_all(
  cases: Iterable[Case], settings: Settings, document: Document
) -> list[Case]:
  """Measures, prints and saves those cases that a document does not have.

  The cases come suite by suite. Those are returned that failed: a baseline
  died, or an arm does not compute the same as another. After a failure the
  baselines start anew.
  """
  waiting = [case for case in cases if not document.has(case)]
  failed = []
  while waiting:
    suite = waiting[0].suite
    with run_baselines(
      suite, settings.baselines, settings.environments
    ) as baselines:
      while waiting and waiting[0].suite == suite:
        preemption.raise_received()
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
  baselines: Mapping[Baseline, Process],
  document: Document,
) -> None:
  why = why_not(case, SUITES[case.suite], available_bytes())
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
  console.show(table.as_text(result))


def _skip(case: Case, why: str, document: Document) -> None:
  """Reports a case without a result."""
  document.skip(case, why)
  console.show(f"{case}{why}")


def why_not(case: Case, suite: Suite, available: int) -> str | None:
  """Returns a sentence if a case does not fit into `available` bytes.

  The weights, gradients and moments that exist at the same time must fit;
  activations are not counted. The token ids of the batch must fit as well.
  """
  weights = count_weights(case.model_config)
  needed = weights * suite.bytes_per_weight(case.itemsize)
  ids = case.rows * (case.prompt_tokens + case.new_tokens)
  if ids > LARGEST_COUNT or 4 * ids > available:
    return (
      f"not measured: a batch of {ids:.3g} token ids exceeds the memory, or "
      "what 32 bits count"
    )
  if needed <= available:
    return None
  return (
    "not measured: weights, with gradients and moments where they are "
    f"trained, are {needed / 1e9:,.1f} GB, there are {available / 1e9:,.1f} GB"
  )


def measure(
  case: Case,
  settings: Settings,
  baselines: Mapping[Baseline, Process] | None = None,
) -> Result:
  """Times arms, running baselines and probes of the machine, interleaved."""
  arms = dict(SUITES[case.suite].compile_arms(case))
  for baseline, process in (baselines or {}).items():
    ours = arms[baseline.compared_with]
    arms[baseline.name] = dataclasses.replace(
      baseline.prepare(process, case, ours),
      phases=ours.phases,
      compared_with=baseline.compared_with,
    )
  streams = stream_probes(count_weights(case.model_config) * case.itemsize)
  probes = streams | {
    "product": product_probe(case.options.dtype, settings.probe_side)
  }
  times = time_interleaved(
    arms | probes, settings.repeats, seconds=settings.seconds
  )
  rates = Rates(
    flops_per_second=times["product"].rate,
    bytes_per_second=max(times[name].rate for name in streams),
  )
  lines = [Line(name, arm, times[name], rates) for name, arm in arms.items()]
  return Result(case, rates, {name: times[name] for name in probes}, lines)
