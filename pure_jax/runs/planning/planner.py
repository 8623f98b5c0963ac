"""Makes plans of one run, and compiles no stage twice."""

import dataclasses
import pathlib
from collections.abc import Hashable, Sequence

import jax

from pure_jax.host.logs import console
from pure_jax.parallel.kernel_calls import XLA
from pure_jax.runs.planning import search
from pure_jax.runs.planning.compiler import CompiledStage, compile_stage
from pure_jax.runs.planning.devices import describe_target
from pure_jax.runs.planning.execution_plan import (
  ExecutionPlan,
  fitting_flags,
  nearest_micro_batches,
)
from pure_jax.runs.planning.plan import Plan, plan_stage
from pure_jax.runs.planning.planned_spec import read_spec, with_plan
from pure_jax.runs.planning.programs import (
  ROLLOUT_STAGES,
  EngineStage,
  Programs,
  Stage,
)
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.run import Settings


class Planner:
  """Makes plans of one run on given devices.

  Attributes:
    devices: the devices.
    target: their description.
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
        kernels.
    """
    if settings.kernels != XLA:
      raise ConfigError(
        "a plan counts what XLA's operations take, and nothing within a "
        "kernel: plan without --config.kernels."
      )
    self._hlo_folder = hlo_folder
    self._config_flags = dict(flag.split("=", 1) for flag in config_flags)
    try:
      if hlo_folder is not None:
        hlo_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise ConfigError(
        f"--hlo={hlo_folder} must be a folder that can be created: {error}."
      ) from error
    self.devices = tuple(devices)
    self.target = describe_target(topology, self.devices)
    settings = settings.for_platform(self.devices[0].platform)
    self.spec = read_spec(settings, self.devices)
    self._compiled: dict[Hashable, CompiledStage] = {}

  def plan_config(self, stages: Sequence[str] | None = None) -> Plan:
    """Compiles the config's execution plan.

    Args:
      stages: names of the stages to compile; None for all.

    Returns:
      The plan.
    """
    return self.plan(search.config_plan(self.spec, self.devices), stages)

  def search(self) -> Plan:
    """Searches for a fast execution plan that fits.

    Returns:
      The plan. If nothing fits, one of the smallest.
    """
    return search.search(self.spec, self.devices, self.plan)

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
    micro_batches, notes = nearest_micro_batches(
      self.spec, execution_plan.layouts, execution_plan.micro_batches
    )
    if stages is not None:
      notes += (f"planned of a step: {', '.join(stages)}, no more.",)
    execution_plan = dataclasses.replace(
      execution_plan, micro_batches=micro_batches
    )
    programs = Programs(with_plan(self.spec, execution_plan))
    return Plan(
      target=self.target,
      execution_plan=execution_plan,
      rows=self.spec.responses,
      iterations=self.spec.settings.rl.iterations,
      flags=self._flags(execution_plan),
      notes=notes,
      resident=programs.resident,
      stages=tuple(
        plan_stage(
          self._compile(stage, execution_plan), stage.estimates, self.target
        )
        for stage in programs.stages()
        if stages is None or stage.name in stages
      ),
    )

  def _flags(self, execution_plan: ExecutionPlan) -> tuple[str, ...]:
    """The flags that were given, and those of the execution plan."""
    flags = [
      *execution_plan.flags(),
      *fitting_flags(self.spec, execution_plan.layouts),
    ]
    planned = dict(flag.split("=", 1) for flag in flags)
    merged = self._config_flags | planned
    return tuple(f"{name}={value}" for name, value in merged.items())

  def _compile(
    self, stage: Stage | EngineStage, execution_plan: ExecutionPlan
  ) -> CompiledStage:
    """Compiles a stage, unless an earlier plan has the same stage."""
    if stage.name in ROLLOUT_STAGES:
      key = stage.name, execution_plan.of_rollout()
    else:
      key = stage.name, execution_plan.of_training()
    if key not in self._compiled:
      console.tell(f"compiling {stage.name} ({execution_plan.layouts})")
      path = None
      if self._hlo_folder is not None:
        name = f"{len(self._compiled)}_{stage.name}.txt.gz"
        path = self._hlo_folder / name
      self._compiled[key] = compile_stage(stage, self.target.devices, path)
    return self._compiled[key]
