"""Makes plans of one run, and compiles no stage twice."""

import dataclasses
import pathlib
from collections.abc import Hashable, Sequence

import jax

from pure_jax.host.distributed import preemption
from pure_jax.host.logs import console
from pure_jax.parallel.kernel_calls import XLA
from pure_jax.runs.planning import search
from pure_jax.runs.planning.compiler import CompiledStage, compile_stage
from pure_jax.runs.planning.devices import describe_target
from pure_jax.runs.planning.execution_plan import (
  ExecutionPlan,
  fitting_flags,
  nearest_micro_batches,
  with_plan,
)
from pure_jax.runs.planning.plan import Plan, StagePlan
from pure_jax.runs.planning.planned_spec import read_spec
from pure_jax.runs.planning.programs import ROLLOUT_STAGES, Programs, Stage
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.run import Settings


class Planner:
  """Makes plans of one run on given devices.

  Attributes:
    target: the devices and the compiler.
    spec: the run's specification.
  """

  def __init__(
    self,
    settings: Settings,
    devices: Sequence[jax.Device],
    topology: str | None = None,
    hlo_folder: pathlib.Path | None = None,
    config_flags: Sequence[str] = (),
  ):
    """Reads the run's specification.

    Args:
      settings: the run's settings.
      devices: the devices to plan for, see `find_devices`.
      topology: name of their TPU slice; None for this machine.
      hlo_folder: folder for the text of the compiled programs; None to write
        none.
      config_flags: flags `--config.NAME=VALUE` that changed the config. The
        flags of a plan include them.

    Raises:
      ConfigError: if the folder cannot be created, or the config asks for
        kernels or an online PRM.
    """
    if settings.kernels != XLA:
      raise ConfigError(
        "a plan counts what XLA's operations take, and nothing within a "
        "kernel: plan without --config.kernels."
      )
    if settings.rl.trains_prm:
      raise ConfigError(
        "a plan does not count the state and the updates of an online PRM: "
        "plan without --config.rl.online_prm.every, and leave room for four "
        "times the PRM's weights and for a backward pass of it."
      )
    self._hlo_folder = hlo_folder
    self._config_flags = config_flags
    try:
      if hlo_folder is not None:
        hlo_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise ConfigError(
        f"--hlo={hlo_folder} must be a folder that can be created: {error}."
      ) from error
    self.target = describe_target(topology, devices)
    settings = settings.for_platform(devices[0].platform)
    self.spec = read_spec(settings, devices)
    self._compiled: dict[Hashable, CompiledStage] = {}

  def plan_config(self, stages: Sequence[str] | None = None) -> Plan:
    """Compiles the named stages of the config's execution plan, or all."""
    return self.plan(search.config_plan(self.spec), stages)

  def search(self) -> Plan:
    """Finds a fast execution plan that fits, else one of the smallest."""
    return search.search(self.spec, self.plan)

  def plan(
    self, execution_plan: ExecutionPlan, stages: Sequence[str] | None = None
  ) -> Plan:
    """Compiles an execution plan.

    Args:
      execution_plan: how the step is run. If the rows do not allow its number
        of micro-batches, the next smaller number is taken.
      stages: names of the stages to compile; None for all.

    Returns:
      The plan.
    """
    layouts = execution_plan.layouts
    micro_batches, notes = nearest_micro_batches(
      self.spec, layouts, execution_plan.micro_batches
    )
    if stages is not None:
      notes += (f"planned of a step: {', '.join(stages)}, no more.",)
    execution_plan = dataclasses.replace(
      execution_plan, micro_batches=micro_batches
    )
    programs = Programs(with_plan(self.spec, execution_plan))
    flags = dict(
      flag.split("=", 1)
      for flag in (
        *self._config_flags,
        *execution_plan.flags(),
        *fitting_flags(self.spec, layouts),
      )
    )
    plans = []
    for stage in programs.stages():
      preemption.raise_received()
      if stages is None or stage.name in stages:
        compiled = self._compile(stage, execution_plan)
        bound = self.target.bound(compiled.costs)
        plans.append(StagePlan(compiled, stage.estimates, bound))
    return Plan(
      target=self.target,
      execution_plan=execution_plan,
      rows=self.spec.responses,
      iterations=self.spec.settings.rl.iterations,
      flags=tuple(f"{name}={value}" for name, value in flags.items()),
      notes=notes,
      resident=programs.resident,
      stages=tuple(plans),
    )

  def _compile(
    self, stage: Stage, execution_plan: ExecutionPlan
  ) -> CompiledStage:
    """Compiles a stage, unless an earlier plan has the same stage."""
    layouts = execution_plan.layouts
    if stage.name in ROLLOUT_STAGES:
      same = dataclasses.replace(execution_plan, micro_batches=1)
    else:
      shared = dataclasses.replace(layouts, rollout=layouts.training)
      same = ExecutionPlan(shared, execution_plan.micro_batches, 1)
    if (stage.name, same) not in self._compiled:
      console.tell(f"compiling {stage.name} ({layouts})")
      path = None
      if self._hlo_folder is not None:
        name = f"{len(self._compiled)}_{stage.name}.txt.gz"
        path = self._hlo_folder / name
      self._compiled[stage.name, same] = compile_stage(
        stage, self.target.devices, path
      )
    return self._compiled[stage.name, same]
