"""Common parts of all baselines: a process, our weights, a check of results."""

import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from benchmarks.baselines.process import Process
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import Options, init_policy, init_prm
from benchmarks.programs import Program
from benchmarks.timing import Arm
from pure_jax.host import huggingface

# Tokens of the longest text, as the config of an exported model states them.
MAX_POSITIONS = 2**15


class Baseline:
  """A running program that does the same as an arm of ours.

  Attributes:
    compared_with: name of that arm.
    name: name of the baseline.
    info: ``versions`` of its packages, ``peak_bytes`` of its process, and how
      well it agrees with ours; complete after the runs.
  """

  compared_with: ClassVar[str]

  def __init__(self, process: Process):
    """Takes a process that runs the baseline's script.

    Args:
      process: the running process.
    """
    self.name, self._process = process.name, process
    self.info: dict[str, Any] = {}

  def arm(self, case: Case, options: Options, ours: Program) -> Arm:
    """Prepares a case and checks that both programs compute the same.

    Args:
      case: the batch.
      options: how the models run.
      ours: the arm of ours, whose `reference` the baseline must match.

    Returns:
      The arm, timed by the baseline itself.

    Raises:
      BenchmarkError: if the results differ.
    """
    raise NotImplementedError

  def _load(
    self, case: Case, options: Options, kinds: Sequence[str] = ("policy",)
  ) -> None:
    """Exports our weights and has the process read them.

    `kinds` are some of "policy" and "prm".
    """
    model = options.model(case.model)
    writers = {
      "policy": (huggingface.export_policy, init_policy),
      "prm": (huggingface.export_prm, init_prm),
    }
    with tempfile.TemporaryDirectory() as folder:
      paths = {kind: str(pathlib.Path(folder) / kind) for kind in kinds}
      for kind, path in paths.items():
        export, init = writers[kind]
        params = init(case.model, options)
        export(path, params, model, max_positions=MAX_POSITIONS)
      self.info |= self._process.call("load", **paths, dtype=options.dtype)

  def _timed_run(
    self,
    work: float,
    check: Callable[[dict[str, Any]], None] = lambda answer: None,
    ran: bool = False,
  ) -> Arm:
    """The arm of the process's `run`.

    `check` gets each answer and raises if the run did other work; `ran` tells
    whether the process has run already.
    """

    def seconds() -> float:
      answer = self._process.call("run")
      self.info["peak_bytes"] = answer["peak_bytes"]
      check(answer)
      return answer["seconds"]

    return Arm(seconds, work, ran)

  def _timed_sampling(self, case: Case, ours: Program) -> Arm:
    """The arm of a `run` that must draw as many tokens as ours."""

    def check(answer: dict[str, Any]) -> None:
      if answer["tokens"] != ours.arm.work:
        raise BenchmarkError(
          f"{case}: {self.name} drew {answer['tokens']} tokens, not "
          f"{ours.arm.work}: the times cannot be compared."
        )

    return self._timed_run(ours.arm.work, check)
