"""Peers by name, each beside the arm of ours that does the same."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from benchmarks.cases import BenchmarkError, Case
from benchmarks.environments import SCRIPTS, Peer, check_python, python_of
from benchmarks.generating import Generating
from benchmarks.iterating import Iterating
from benchmarks.programs import Compiled, Options
from benchmarks.timing import Arm
from benchmarks.updating import TorchCredit, TrainingPRM, Updating


class Rival(Protocol):
  """A peer that can stand beside an arm of ours.

  Attributes:
    name: of its arm.
    beside: the arm of ours that does the same.
  """

  name: str
  beside: str

  def takes(self, case: Case) -> bool:
    """Whether it can do what the case asks."""

  def arm(self, case: Case, options: Options, ours: Compiled) -> Arm:
    """Makes ready for a case, and checks that both do the same."""

  def facts(self) -> dict[str, Any]:
    """Versions and peak memory so far, and how the check came out."""


RIVALS: dict[str, dict[str, Callable[[Peer], Rival]]] = {
  "transformers": {"rollout": Generating},
  "tunix": {"rollout": Generating},
  "trl": {"update": Updating, "iteration": Iterating},
  "trl_prm": {"prm": TrainingPRM},
  "torch_credit": {"credit": TorchCredit},
}


def check_names(names: Sequence[str], folder: pathlib.Path | None) -> None:
  """Raises where peers cannot run.

  Args:
    names: keys of `RIVALS`.
    folder: where their environments are; None only without names.

  Raises:
    BenchmarkError: if a name is unknown or an environment is not there.
  """
  for name in names:
    if name not in RIVALS:
      raise BenchmarkError(
        f"--peer: {name!r} must be one of {', '.join(RIVALS)}."
      )
  if names and folder is None:
    raise BenchmarkError("--peer needs --peers, the folder of environments.")
  for name in names:
    check_python(python_of(folder, name))


@contextlib.contextmanager
def running(
  suite: str, names: Sequence[str], folder: pathlib.Path | None
) -> Iterator[list[Rival]]:
  """Starts the peers of a suite and ends them.

  Args:
    suite: in which they have something to do, or are left out.
    names: keys of `RIVALS`.
    folder: where their environments are; None only without names.

  Yields:
    The rivals.

  Raises:
    BenchmarkError: as `check_names`.
  """
  check_names(names, folder)
  with contextlib.ExitStack() as opened:
    yield [
      RIVALS[name][suite](
        opened.enter_context(
          Peer(name, python_of(folder, name), SCRIPTS[name][suite])
        )
      )
      for name in names
      if suite in RIVALS[name]
    ]
