"""Peers by name, each beside the arm of ours that does the same."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

from benchmarks.cases import BenchmarkError
from benchmarks.environments import SCRIPTS, Peer, check_python, python_of
from benchmarks.generating import Generating
from benchmarks.iterating import Iterating
from benchmarks.rival import Rival
from benchmarks.updating import (
  TorchCredit,
  TrainingPRM,
  Updating,
  UpdatingRLOO,
)

RIVALS: dict[str, dict[str, Callable[[Peer], Rival]]] = {
  "transformers": {"rollout": Generating},
  "tunix": {"rollout": Generating},
  "trl": {"update": Updating, "iteration": Iterating},
  "trl_rloo": {"update": UpdatingRLOO},
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
