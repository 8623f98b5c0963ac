"""What the peers of all suites have: a process, a suite, and what it says."""

from typing import Any, ClassVar

from benchmarks.cases import BenchmarkError, Case
from benchmarks.environments import Peer
from benchmarks.programs import Compiled, Options
from benchmarks.timing import Arm


class Rival:
  """A peer that can stand beside an arm of ours.

  Attributes:
    suite: whose cases it can do.
    beside: the arm of ours that does the same.
    name: of its own arm.
  """

  suite: ClassVar[str]
  beside: ClassVar[str]

  def __init__(self, peer: Peer):
    """Takes a running peer.

    Args:
      peer: of the script that `environments.SCRIPTS` has for the suite.
    """
    self.name, self._peer = peer.name, peer
    self._facts: dict[str, Any] = {}

  def takes(self, case: Case) -> bool:
    """Whether it can do what the case asks.

    Args:
      case: of any suite.

    Returns:
      False for another suite.
    """
    return case.suite == self.suite

  def arm(self, case: Case, options: Options, ours: Compiled) -> Arm:
    """Makes ready for a case, and checks that both do the same.

    Args:
      case: what to do.
      options: how the models run.
      ours: the arm beside it, whose answer it is held to.

    Returns:
      The arm.

    Raises:
      BenchmarkError: if it does something else.
    """
    raise NotImplementedError

  def facts(self) -> dict[str, Any]:
    """What a line tells of it.

    Returns:
      ``versions``, ``peak_bytes`` of its process, and how the check came out.
    """
    return dict(self._facts)

  def _drawing(self, case: Case, ours: Compiled) -> Arm:
    """Its arm, if a run of it draws tokens: as many as ours, or it raises."""

    def check(found: dict[str, Any]) -> None:
      if found["tokens"] != ours.arm.work:
        raise BenchmarkError(
          f"{case}: {self.name} drew {found['tokens']} tokens, not "
          f"{ours.arm.work}: the times cannot be compared."
        )

    return self._peer.arm(self._facts, ours.arm.work, check)
