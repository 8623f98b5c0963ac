"""Baselines: other programs that do the same as an arm of ours.

Each runs as a process in an environment of its own (`process.py`), which
executes a file of `scripts/`. It gets the same weights and the same batch, and
its results are compared with ours before it is timed.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from benchmarks.baselines.baseline import Baseline
from benchmarks.baselines.iteration import IterationBaseline
from benchmarks.baselines.process import Process, check_python, python_path
from benchmarks.baselines.rollout import RolloutBaseline
from benchmarks.baselines.update import GRPOUpdate, PRMUpdate
from benchmarks.cases import BenchmarkError


@dataclasses.dataclass(frozen=True)
class Script:
  """How a program takes part in a suite.

  Attributes:
    kind: prepares the program for a case and checks its results.
    file: in `scripts/`, run by its process.
  """

  kind: type[Baseline]
  file: str


@dataclasses.dataclass(frozen=True)
class External:
  """A program that is not ours.

  Attributes:
    environment: name of its environment, and of the file of requirements
      `scripts/ENVIRONMENT.txt`.
    scripts: by suite.
  """

  environment: str
  scripts: Mapping[str, Script]


BASELINES = {
  "transformers": External(
    "transformers",
    {"rollout": Script(RolloutBaseline, "transformers_sampler.py")},
  ),
  "tunix": External(
    "tunix", {"rollout": Script(RolloutBaseline, "tunix_sampler.py")}
  ),
  "trl": External(
    "trl",
    {
      "update": Script(GRPOUpdate, "trl_step.py"),
      "iteration": Script(IterationBaseline, "trl_iteration.py"),
    },
  ),
  "trl_prm": External("trl_prm", {"prm": Script(PRMUpdate, "trl_prm.py")}),
}


def check_names(names: Iterable[str]) -> None:
  """Checks that baselines exist.

  Args:
    names: names of baselines.

  Raises:
    BenchmarkError: naming one that is not in `BASELINES`.
  """
  for name in names:
    if name not in BASELINES:
      raise BenchmarkError(
        f"--baselines: {name!r} must be one of {', '.join(BASELINES)}."
      )


def check_baselines(
  names: Sequence[str], environments: pathlib.Path | None
) -> None:
  """Checks that baselines can run.

  Args:
    names: names in `BASELINES`.
    environments: folder of their environments; None only without names.

  Raises:
    BenchmarkError: if a name is unknown or an environment does not exist.
  """
  check_names(names)
  if names and environments is None:
    raise BenchmarkError(
      "--baselines needs --environments, the folder of their environments."
    )
  for name in names:
    check_python(python_path(environments, BASELINES[name].environment))


@contextlib.contextmanager
def run_baselines(
  suite: str, names: Sequence[str], environments: pathlib.Path | None
) -> Iterator[list[Baseline]]:
  """Starts the baselines of a suite, and ends them with the block.

  Args:
    suite: name; baselines without a script for it are left out.
    names: names in `BASELINES`.
    environments: folder of their environments; None only without names.

  Yields:
    The running baselines.

  Raises:
    BenchmarkError: as `check_baselines`.
  """
  check_baselines(names, environments)
  with contextlib.ExitStack() as stack:
    baselines = []
    for name in names:
      external = BASELINES[name]
      if suite not in external.scripts:
        continue
      script = external.scripts[suite]
      python = python_path(environments, external.environment)
      process = stack.enter_context(Process(name, python, script.file))
      baselines.append(script.kind(process))
    yield baselines
