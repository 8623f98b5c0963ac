"""Baselines: other programs that do the same as an arm of ours.

Each runs as a process in an environment of its own (`process.py`), which
executes a file of `scripts/`. It gets the same weights and the same batch, and
its results are compared with ours before it is timed (`preparation.py`).
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from benchmarks.baselines import preparation
from benchmarks.baselines.process import Process, check_python, python_path
from benchmarks.cases import BenchmarkError, Case, Options
from benchmarks.timing import Arm


@dataclasses.dataclass(frozen=True)
class Baseline:
  """A program that is not ours, in one suite.

  Attributes:
    name: name of the program; it may take part in several suites.
    suite: name of the suite.
    compared_with: the arm of ours that does the same.
    environment: name of its environment, and of the file of requirements
      `scripts/ENVIRONMENT.txt`.
    script: in `scripts/`, run by its process.
    prepare: (process, case, options, our arm) -> arm; prepares the program for
      a case and checks its results.
  """

  name: str
  suite: str
  compared_with: str
  environment: str
  script: str
  prepare: Callable[[Process, Case, Options, Arm], Arm]


BASELINES = (
  Baseline(
    "transformers",
    "rollout",
    "generate",
    "transformers",
    "transformers_sampler.py",
    preparation.prepare_sampler,
  ),
  Baseline(
    "tunix",
    "rollout",
    "generate",
    "tunix",
    "tunix_sampler.py",
    preparation.prepare_sampler,
  ),
  Baseline(
    "trl", "update", "update", "trl", "trl_step.py", preparation.prepare_grpo
  ),
  Baseline(
    "trl",
    "iteration",
    "iteration",
    "trl",
    "trl_iteration.py",
    preparation.prepare_iteration,
  ),
  Baseline(
    "trl_prm", "prm", "prm", "trl_prm", "trl_prm.py", preparation.prepare_prm
  ),
)
# By name, in the order of "all"; two may share an environment.
ENVIRONMENTS = {each.name: each.environment for each in BASELINES}


def check_names(names: Iterable[str]) -> None:
  """Raises `BenchmarkError`, naming it, if a baseline does not exist."""
  for name in names:
    if name not in ENVIRONMENTS:
      raise BenchmarkError(
        f"--baselines: {name!r} must be one of {', '.join(ENVIRONMENTS)}."
      )


def check_baselines(
  names: Sequence[str], environments: pathlib.Path | None
) -> None:
  """Checks that baselines can run from the folder of their environments.

  Raises:
    BenchmarkError: if a name is unknown or an environment does not exist.
  """
  check_names(names)
  if names and environments is None:
    raise BenchmarkError(
      "--baselines needs --environments, the folder of their environments."
    )
  for name in names:
    check_python(python_path(environments, ENVIRONMENTS[name]))


@contextlib.contextmanager
def run_baselines(
  suite: str, names: Sequence[str], environments: pathlib.Path | None
) -> Iterator[dict[Baseline, Process]]:
  """Starts the named baselines that have a script for a suite.

  Args:
    suite: name of the suite.
    names: names of baselines.
    environments: folder of their environments; None only without names.

  Yields:
    The baselines with their processes, which end with the block.

  Raises:
    BenchmarkError: as `check_baselines`.
  """
  check_baselines(names, environments)
  with contextlib.ExitStack() as stack:
    processes = {}
    for name in names:
      for baseline in BASELINES:
        if (baseline.name, baseline.suite) == (name, suite):
          python = python_path(environments, baseline.environment)
          process = Process(name, python, baseline.script)
          processes[baseline] = stack.enter_context(process)
    yield processes
