"""Peers by name, each beside the arm of ours that does the same."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from benchmarks.cases import BenchmarkError, Case
from benchmarks.environments import Peer, python_of
from benchmarks.generating import Generating
from benchmarks.programs import Compiled, Options
from benchmarks.timing import Arm
from benchmarks.updating import TorchCredit, Updating


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


RIVALS = {
  "transformers": Generating,
  "tunix": Generating,
  "trl": Updating,
  "torch_credit": TorchCredit,
}


@contextlib.contextmanager
def running(
  names: Sequence[str], folder: pathlib.Path | None
) -> Iterator[list[Rival]]:
  """Starts peers and ends them.

  Args:
    names: keys of `RIVALS`.
    folder: where their environments are; None only without names.

  Yields:
    The rivals.

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
  with contextlib.ExitStack() as opened:
    yield [
      RIVALS[name](opened.enter_context(Peer(name, python_of(folder, name))))
      for name in names
    ]
