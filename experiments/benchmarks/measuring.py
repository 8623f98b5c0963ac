"""Goes through the cases of a run, of which none takes others with it."""

import dataclasses
import pathlib
from collections.abc import Sequence

from benchmarks import memory, report, table
from benchmarks.cases import BenchmarkError, Case
from benchmarks.document import Document
from benchmarks.programs import Options
from benchmarks.rival import Rival
from benchmarks.rivals import running


@dataclasses.dataclass(frozen=True)
class How:
  """How every case is measured.

  Attributes:
    options: how its models run.
    repeats: of each arm at most.
    seconds: that repeats of a case may take, as `timing.in_turn` has it.
    side: of the matrices that a probe multiplies, None for what suits the
      device.
    peers: keys of `rivals.RIVALS`.
    folder: of the peers' environments; None only without peers.
  """

  options: Options
  repeats: int
  seconds: float
  side: int | None
  peers: Sequence[str]
  folder: pathlib.Path | None


def measure_all(
  cases: Sequence[Case], how: How, document: Document
) -> list[Case]:
  """Measures, prints and writes one case after the other.

  Args:
    cases: suite by suite; those that the document has are not measured again.
    how: of all.
    document: gets what is found.

  Returns:
    Cases with a fault: of a peer that died, or that does something else than
    we do. The peers of the next one are new processes.
  """
  waiting = [case for case in cases if not document.has(case)]
  failed = []
  while waiting:
    suite = waiting[0].suite
    with running(suite, how.peers, how.folder) as rivals:
      while waiting and waiting[0].suite == suite:
        case = waiting.pop(0)
        try:
          _measure(case, how, rivals, document)
        except BenchmarkError as error:
          failed.append(case)
          _leave_out(case, f"failed: {error}", document)
          break
  return failed


def _measure(
  case: Case, how: How, rivals: Sequence[Rival], document: Document
) -> None:
  """Measures one case, where it fits."""
  found = memory.why_not(case, how.options, memory.available_bytes())
  if found is None:
    found = report.attempt(
      *(case, how.options, how.repeats, how.side, rivals, how.seconds)
    )
  if isinstance(found, str):
    _leave_out(case, found, document)
    return
  document.add(found)
  print(table.as_text(found), flush=True)


def _leave_out(case: Case, why: str, document: Document) -> None:
  """Says why there is no result."""
  document.leave_out(case, why)
  print(table.left_out(case, why), flush=True)
