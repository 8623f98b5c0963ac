"""Plans a run: what it needs and costs on devices that need not be here.

  python experiments/plan.py --config=experiments/configs/qwen2p5_7b.py \\
    --topology=v5p:4x4x4

compiles rollout, scoring and update ahead of time for a TPU slice, with the
real compiler (`pip install 'pure_jax[plan]'`), and for the devices of this
machine without --topology. No weight is read or made. It prints whether each
stage fits, memory by part, FLOPs, bytes and collectives of a step, and a
roofline estimate of time and cost. `--json` prints the same as JSON;
`--search` tries rule sets and numbers of micro-batches.

The mesh is the config's; one of a single device stands for `fsdp` over all.
"""

import json
import sys

import launch
import plan_compiler
import plan_estimates
import plan_programs
import plan_search
from absl import flags
from config_conversion import settings_from_config
from plan_report import Plan, as_json, as_text, plan_stage
from run_settings import ConfigError, Settings

from pure_jax.host.hlo_text import HLOError
from pure_jax.host.roofline import CHIPS
from pure_jax.parallel.sharding import Layout

_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "A TPU slice, such as v5p:4x4x4; the devices here without."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")
_SEARCH = flags.DEFINE_bool(
  "search", False, "Try rule sets and micro-batches for one that fits."
)
_PRICE = flags.DEFINE_float(
  "price", None, "Of a chip hour, in any money.", lower_bound=0.0
)


def read_settings() -> Settings:
  """The config's settings, a named shape in place of a missing folder."""
  config = flags.FLAGS.config.copy_and_resolve_references()
  files = config.files
  if files is not None and files.policy is None and files.random_model is None:
    if files.architecture is None:
      raise ConfigError(
        "nothing says what the policy is: name a folder with a config.json by "
        "--config.files.policy, or a shape of experiments/architectures.py by "
        "--config.files.architecture."
      )
    files.policy = files.architecture
  return settings_from_config(config)


def make_plan(
  settings: Settings,
  shapes: plan_programs.Shapes,
  topology: str | None,
  layout: Layout,
  micro_batches: int,
) -> Plan:
  """Compiles a step in one layout.

  Args:
    settings: the run's.
    shapes: its models and batches.
    topology: name of the slice, None for the devices here.
    layout: devices and rules.
    micro_batches: asked for; as many as the rows of the layout allow.

  Returns:
    The plan.
  """
  devices = list(layout.mesh.devices.flat)
  kind = devices[0].device_kind
  on_chip = plan_compiler.devices_per_chip(devices)
  parts, notes = plan_search.possible_micro_batches(
    settings, layout, micro_batches
  )
  resident = plan_programs.resident(settings, shapes, layout)
  needed = plan_estimates.model_flops(settings, shapes)
  stages = []
  for stage in plan_programs.stages(settings, shapes, layout, parts):
    print(f"compiling {stage.name} for {layout} ...", file=sys.stderr)
    stages.append(
      plan_stage(
        plan_compiler.compile_stage(stage, len(devices)),
        resident,
        CHIPS.get(kind),
        on_chip,
        needed[stage.name],
        plan_estimates.cache_bytes(settings, shapes, layout),
        plan_estimates.kept_bytes(settings, shapes, layout, parts),
      )
    )
  return Plan(
    topology=topology or "local",
    device_kind=kind,
    devices=len(devices),
    devices_per_chip=on_chip,
    layout=str(layout),
    rows=settings.rl.prompts * settings.rl.samples_per_prompt,
    micro_batches=parts,
    notes=notes,
    iterations=settings.rl.iterations,
    resident=resident,
    chip=CHIPS.get(kind),
    stages=tuple(stages),
    versions=plan_compiler.compiler_version(devices),
  )


def main(argv: list[str]) -> None:
  """Compiles and prints."""
  del argv
  topology, price = _TOPOLOGY.value, _PRICE.value
  settings = read_settings()
  devices = plan_compiler.find_devices(topology)
  shapes = plan_programs.shapes_of(settings)
  plans = []
  try:
    if _SEARCH.value:
      for layout, parts in plan_search.candidates(settings, shapes, devices):
        found = make_plan(settings, shapes, topology, layout, parts)
        print(plan_search.summary(found), file=sys.stderr)
        plans.append(found)
      best = plan_search.choose(plans)
    else:
      layout = plan_search.config_layout(settings, devices)
      best = make_plan(
        settings, shapes, topology, layout, settings.rl.micro_batches
      )
  except (HLOError, ValueError) as error:
    raise ConfigError(str(error)) from error
  if _JSON.value:
    print(json.dumps(as_json(best, price), indent=2))
  else:
    print(as_text(best, price))


if __name__ == "__main__":
  launch.run(main, required=("config",))
