"""Plans a run: what it needs and costs on devices that need not be here.

  python experiments/plan.py --config=experiments/configs/qwen2p5_7b.py \\
    --topology=v5p:4x4x4

compiles reshard, rollout, scores and update ahead of time for a TPU slice, with
the real compiler (`pip install -e '.[plan]'`), and for the devices of this
machine without --topology. No weight is read or made. It prints whether each
stage fits, memory by part, FLOPs, bytes and collectives of a step, and a
roofline estimate of time and cost. `--json` prints the same as JSON;
`--search` looks for layouts, micro-batches and parts of rollouts that fit,
`--stage=rollout` compiles that one alone, `--hlo=FOLDER` keeps the compiled
programs.

Meshes are the config's. One of a single device stands for `fsdp` over all, with
rollouts where no weight is gathered for each token: the plan prints the flags.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import cli
from absl import flags

from pure_jax.parallel.kernel_calls import XLA
from pure_jax.runs.planning import compiler, engine, estimates, stages
from pure_jax.runs.planning import programs as plan_programs
from pure_jax.runs.planning import search as plan_search
from pure_jax.runs.planning.execution_plan import Way
from pure_jax.runs.planning.hlo.text import HLOError
from pure_jax.runs.planning.report import Plan, as_json, as_text, plan_stage
from pure_jax.runs.planning.roofline import CHIPS
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config
from pure_jax.runs.settings.run import Settings

_TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "A TPU slice, such as v5e:4x4, v6e:4x4, v5p:4x4x4; without it, this machine.",
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")
_SEARCH = flags.DEFINE_bool(
  "search", False, "Look for rule sets and parts that fit."
)
_STAGES = flags.DEFINE_multi_enum(
  "stage",
  None,
  ["reshard", "rollout", "score", "update"],
  "Compiles this stage only; may be repeated.",
)
_HLO = flags.DEFINE_string(
  "hlo", None, "Folder for the text of the compiled programs."
)
_PRICE = flags.DEFINE_float(
  "price", None, "Of a chip hour, in any money.", lower_bound=0.0
)


def read_settings() -> Settings:
  """The config's settings, a named shape in place of a missing folder."""
  config = flags.FLAGS.config.copy_and_resolve_references()
  files = config.get("files")
  if files is not None and files.policy is None and files.random_model is None:
    if files.architecture is None:
      raise ConfigError(
        "nothing says what the policy is: name a folder with a config.json by "
        "--config.files.policy, or a shape of "
        "pure_jax/runs/settings/models.py by "
        "--config.files.architecture."
      )
    files.policy = files.architecture
  return settings_from_config(config)


class Planner:
  """Makes plans of one run, and compiles nothing twice."""

  def __init__(
    self,
    settings: Settings,
    topology: str | None,
    hlo: str | None = None,
    given: Sequence[str] = (),
  ):
    """Finds devices and shapes.

    Args:
      settings: the run's.
      topology: name of a slice, None for the devices here.
      hlo: folder for the text of the compiled programs, None to keep none.
      given: overrides of the config, `--config.NAME=VALUE`, to be told with
        those of a plan.

    Raises:
      ConfigError: if the topology cannot be compiled for, the folder not be
        made, or the config asks for kernels.
    """
    if settings.kernels != XLA:
      raise ConfigError(
        "a plan counts what XLA's operations take, and nothing within a "
        "kernel: plan without --config.kernels."
      )
    self._topology, self._hlo = topology, hlo and pathlib.Path(hlo)
    self._given = dict(word.split("=", 1) for word in given)
    try:
      if self._hlo:
        self._hlo.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise ConfigError(
        f"--hlo={hlo} must be a folder that can be created: {error}."
      ) from error
    self.devices = compiler.find_devices(topology)
    self.settings = settings.for_platform(self.devices[0].platform)
    self.shapes = plan_programs.shapes_of(self.settings)
    self._compiled: dict[tuple, compiler.CompiledStage] = {}

  def plan(self, way: Way, only: Sequence[str] | None = None) -> Plan:
    """Compiles a step.

    Args:
      way: how it is run; of the micro-batches, as many as its rows allow.
      only: names of the stages to compile, None for all.

    Returns:
      The plan.
    """
    settings, shapes, layouts = self.settings, self.shapes, way.layouts
    kind = self.devices[0].device_kind
    on_chip = compiler.devices_per_chip(self.devices)
    parts, notes = plan_search.possible_micro_batches(
      settings, layouts, way.micro_batches
    )
    if only is not None:
      notes += (f"planned of a step: {', '.join(only)}, no more.",)
    way = dataclasses.replace(way, micro_batches=parts)
    programs = plan_programs.Programs(settings, shapes, way)
    resident = programs.resident()
    needed = estimates.model_flops(settings, shapes)
    cache = estimates.cache_bytes(
      settings, shapes, layouts.rollout, programs.rows_at_a_time
    )
    kept = estimates.kept_bytes(settings, shapes, layouts.training, parts)
    return Plan(
      topology=self._topology or "local",
      device_kind=kind,
      devices=len(self.devices),
      devices_per_chip=on_chip,
      layout=str(layouts),
      rows=settings.rl.prompts * settings.rl.samples_per_prompt,
      micro_batches=parts,
      rollout_parts=way.rollout_parts,
      rollout_rows=way.rollout_rows,
      flags=self._flags(way),
      notes=notes,
      iterations=settings.rl.iterations,
      resident=resident,
      chip=CHIPS.get(kind),
      stages=tuple(
        plan_stage(
          self._compile(stage, way),
          resident,
          CHIPS.get(kind),
          on_chip,
          needed[stage.name],
          cache,
          kept,
        )
        for stage in programs.stages()
        if only is None or stage.name in only
      ),
      versions=compiler.compiler_version(self.devices),
    )

  def _flags(self, way: Way) -> tuple[str, ...]:
    """What was given, and what the way and its layouts ask for."""
    more = plan_search.fitting_flags(self.settings, way.layouts)
    asked = dict(word.split("=", 1) for word in (*way.flags(), *more))
    return tuple(f"{k}={v}" for k, v in (self._given | asked).items())

  def _compile(
    self, stage: stages.Stage | stages.EngineStage, way: Way
  ) -> compiler.CompiledStage:
    """A compiled stage, from memory where only other stages differ."""
    layouts = way.layouts
    if stage.name in ("reshard", "rollout"):
      key = (stage.name, layouts, way.rollout_parts, way.rollout_rows)
    else:
      where = dataclasses.replace(layouts, rollout=layouts.training)
      key = (stage.name, where, way.micro_batches)
    if key not in self._compiled:
      print(f"compiling {stage.name} ({layouts})", file=sys.stderr, flush=True)
      name = f"{len(self._compiled)}_{stage.name}.txt.gz"
      self._compiled[key] = engine.compile_stage(
        stage, len(self.devices), self._hlo and self._hlo / name
      )
    return self._compiled[key]

  def search(self) -> Plan:
    """Tries what `plan_search.search` tries.

    Returns:
      A fast plan that fits, or a small one that does not.
    """
    return plan_search.search(
      self.settings, self.shapes, self.devices, self.plan
    )


def main(argv: list[str]) -> None:
  """Compiles and prints."""
  del argv
  price = _PRICE.value
  given = [w for w in sys.argv if w.startswith("--config.") and "=" in w]
  planner = Planner(read_settings(), _TOPOLOGY.value, _HLO.value, given)
  settings = planner.settings
  if _SEARCH.value and _STAGES.value:
    raise ConfigError(
      "--search chooses by all stages of a step: leave --stage out."
    )
  try:
    if _SEARCH.value:
      best = planner.search()
    else:
      way = plan_search.config_way(settings, planner.shapes, planner.devices)
      best = planner.plan(way, _STAGES.value)
  except (HLOError, ValueError) as error:
    raise ConfigError(str(error)) from error
  if _JSON.value:
    print(json.dumps(as_json(best, price), indent=2))
  else:
    print(as_text(best, price))


if __name__ == "__main__":
  # To compile is what it is for, and its seconds are in the table.
  cli.run(main, required=("config",), keeps_programs=False)
