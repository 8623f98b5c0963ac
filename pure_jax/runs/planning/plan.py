"""A plan: memory and cost of one RL step under an execution plan."""

import dataclasses
import math

from pure_jax.runs.planning.compiler import CompiledStage
from pure_jax.runs.planning.devices import Target
from pure_jax.runs.planning.estimates import Estimates
from pure_jax.runs.planning.execution_plan import ExecutionPlan
from pure_jax.runs.planning.programs import Resident
from pure_jax.runs.planning.roofline import GIB, Bound


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """Memory and cost of one stage of a step.

  Attributes:
    compiled: the compiler's results.
    estimates: closed-form estimates.
    bound: least time; None if the stage did not compile or the chip's peak
      rates are unknown.
  """

  compiled: CompiledStage
  estimates: Estimates
  bound: Bound | None

  @property
  def total_bytes(self) -> float | None:
    """Memory in use while the stage runs; None if it is unknown."""
    total = self.compiled.total_bytes
    return None if total is None else total + self.estimates.waiting_bytes


@dataclasses.dataclass(frozen=True)
class Plan:
  """Memory and cost of one RL step.

  Attributes:
    target: the devices.
    execution_plan: how the step is run on them.
    rows: responses of a batch.
    iterations: RL iterations of the run.
    flags: flags of `train_pure.py` that run it so.
    notes: differences between the config and the plan.
    resident: weights and optimizer state on a device.
    stages: those of `programs.Programs.stages`.
  """

  target: Target
  execution_plan: ExecutionPlan
  rows: int
  iterations: int
  flags: tuple[str, ...]
  notes: tuple[str, ...]
  resident: Resident
  stages: tuple[StagePlan, ...]

  @property
  def fits(self) -> bool | None:
    """Whether every stage fits into memory; None if its size is unknown."""
    if any(stage.compiled.memory is None for stage in self.stages):
      return False
    limit = self.target.limit_bytes
    if limit is None:
      return None
    return all(stage.total_bytes <= limit for stage in self.stages)

  @property
  def peak_bytes(self) -> float:
    """Memory of the largest stage; infinite if it is unknown."""
    sizes = [stage.total_bytes for stage in self.stages]
    return math.inf if None in sizes else max(sizes)

  @property
  def step_seconds(self) -> float | None:
    """Least time of a step; None if the time of a stage is unknown."""
    bounds = [stage.bound for stage in self.stages]
    return None if None in bounds else sum(bound.seconds for bound in bounds)

  @property
  def chip_hours(self) -> float | None:
    """Least chip hours of all iterations; None if the time is unknown."""
    seconds = self.step_seconds
    return seconds and seconds * self.target.chips * self.iterations / 3600

  @property
  def bottleneck(self) -> StagePlan | None:
    """The stage that takes longest; None if the time is unknown."""
    if self.step_seconds is None:
      return None
    return max(self.stages, key=lambda stage: stage.bound.seconds)

  def summary(self) -> str:
    """Says in one line how the step is run and whether it fits."""
    plan = self.execution_plan
    peaks = ", ".join(
      f"{stage.compiled.name} "
      + ("?" if stage.total_bytes is None else f"{stage.total_bytes / GIB:.1f}")
      for stage in self.stages
    )
    rollout = f"rollouts in {plan.rollout_batches} batches"
    if plan.slots is not None:
      rollout = f"{plan.slots} slots"
    seconds = (
      "" if self.step_seconds is None else f", {self.step_seconds:.0f} s"
    )
    verdict = {True: "fits", False: "does not fit", None: "compiles"}[self.fits]
    return (
      f"{plan.layouts}, {plan.micro_batches} micro-batches, {rollout}: "
      f"{verdict} ({peaks} GiB{seconds})"
    )
