"""Baselines: other programs that do the same as an arm of ours.

Each runs as a process in an environment of its own (`process.py`), which
executes a file of `scripts/`. It gets the same weights and the same batch, and
its results are compared with ours before it is timed (`preparation.py`).
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

from benchmarks.baselines.preparation import (
  prepare_grpo,
  prepare_iteration,
  prepare_prm,
  prepare_sampler,
)
from benchmarks.baselines.process import Process, python_path
from benchmarks.cases import BenchmarkError, Case
from benchmarks.timing import Arm


@dataclasses.dataclass(frozen=True)
class Baseline:
  """A program that is not ours, in one suite.

  Attributes:
    name: name of the program and of its environment, whose requirements are in
      `scripts/NAME.txt`; it may take part in several suites.
    suite: name of the suite.
    compared_with: the arm of ours that does the same.
    script: in `scripts/`, run by its process.
    prepare: (process, case, our arm) -> arm; prepares the program for
      a case and checks its results.
  """

  name: str
  suite: str
  compared_with: str
  script: str
  prepare: Callable[[Process, Case, Arm], Arm]


BASELINES = (
  Baseline(
    "transformers",
    "rollout",
    "generate",
    "transformers_sampler.py",
    prepare_sampler,
  ),
  Baseline("tunix", "rollout", "generate", "tunix_sampler.py", prepare_sampler),
  Baseline("trl", "update", "update", "trl_step.py", prepare_grpo),
  Baseline(
    "trl", "iteration", "iteration", "trl_iteration.py", prepare_iteration
  ),
  Baseline("trl_prm", "prm", "prm", "trl_prm.py", prepare_prm),
)


def read_names(words: Sequence[str]) -> list[str]:
  """Returns the baselines that are named, each once, or ["all"] of them.

  Raises:
    BenchmarkError: naming one that does not exist.
  """
  names = list(dict.fromkeys(baseline.name for baseline in BASELINES))
  for word in words:
    if word not in (*names, "all"):
      raise BenchmarkError(
        f"--baselines: {word!r} must be one of {', '.join(names)}."
      )
  return names if "all" in words else list(words)


def check_environments(
  names: Sequence[str], environments: pathlib.Path | None
) -> None:
  """Checks that the environments of baselines have been made in a folder.

  Raises:
    BenchmarkError: if they have not, or baselines are named without a folder.
  """
  if names and environments is None:
    raise BenchmarkError(
      "--baselines needs --environments, the folder of their environments."
    )
  for name in names:
    if not python_path(environments, name).exists():
      raise BenchmarkError(
        f"{python_path(environments, name)} does not exist: make the "
        "environments of baselines by python experiments/benchmark.py "
        "--make_environments=FOLDER."
      )


@contextlib.contextmanager
def run_baselines(
  suite: str, names: Sequence[str], environments: pathlib.Path | None
) -> Iterator[dict[Baseline, Process]]:
  """Starts the named baselines of a suite; they end with the block."""
  with contextlib.ExitStack() as stack:
    yield {
      baseline: stack.enter_context(
        Process(
          baseline.name,
          python_path(environments, baseline.name),
          baseline.script,
        )
      )
      for name in names
      for baseline in BASELINES
      if (baseline.name, baseline.suite) == (name, suite)
    }
