"""Plans a run: memory and cost on devices that need not be present.

  python experiments/plan.py --config=experiments/configs/qwen2p5_7b.py \\
    --topology=v5p:4x4x4

The script compiles the reshard of the sampler's weights, rollout, scores and
update for a TPU slice. It uses the real compiler (`pip install -e '.[plan]'`).
Without --topology it compiles for the devices of this machine. It neither
reads nor creates weights, and fetches nothing: `files.architecture` and
`files.prm_architecture` stand in place of models that are no folders here.

It prints whether each stage fits, the memory by use, the FLOPs, bytes and
collectives of a step, and a roofline estimate of time and cost. `--json` prints
the same as JSON. `--search` looks for layouts, micro-batches and rollout
batches that fit. `--stage=rollout` compiles only that stage. `--hlo=FOLDER`
writes the text of the compiled programs to a folder.

The meshes are the config's. A mesh of one device stands for `fsdp` over all
devices, with rollouts in a layout that gathers no weight for each token. The
plan prints the flags.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import pathlib
import sys

import cli
from absl import flags

from pure_jax.host import json_text
from pure_jax.host.logs import console
from pure_jax.runs.planning.devices import find_devices
from pure_jax.runs.planning.hlo.text import HLOError
from pure_jax.runs.planning.planner import Planner
from pure_jax.runs.planning.programs import ROLLOUT_STAGES, TRAINING_STAGES
from pure_jax.runs.planning.report import as_json, as_text
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config
from pure_jax.runs.settings.run import Settings

_TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "A TPU slice, such as v5e:4x4, v6e:4x4, v5p:4x4x4. Without it, the devices "
  "of this machine.",
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")
_SEARCH = flags.DEFINE_bool(
  "search", False, "Search for layouts and batch sizes that fit."
)
_STAGES = flags.DEFINE_multi_enum(
  "stage",
  None,
  [*ROLLOUT_STAGES, *TRAINING_STAGES],
  "Compile only this stage; may be repeated.",
)
_HLO = flags.DEFINE_string(
  "hlo", None, "Folder for the text of the compiled programs."
)
_PRICE = flags.DEFINE_float(
  "price", None, "Price of a chip hour, in any currency."
)
flags.register_validator(
  _PRICE,
  lambda price: price is None or 0 <= price <= 1e9,
  message="must be between 0 and 1e9",
)


def read_settings() -> Settings:
  """Reads the config; a named architecture replaces a missing folder."""
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


def main(argv: list[str]) -> None:
  """Compiles and prints."""
  del argv
  if _SEARCH.value and _STAGES.value:
    raise ConfigError(
      "--search chooses by all stages of a step: leave --stage out."
    )
  planner = Planner(
    read_settings(),
    find_devices(_TOPOLOGY.value),
    _TOPOLOGY.value,
    hlo_folder=None if _HLO.value is None else pathlib.Path(_HLO.value),
    config_flags=[
      word for word in sys.argv if word.startswith("--config.") and "=" in word
    ],
  )
  try:
    if _SEARCH.value:
      plan = planner.search()
    else:
      plan = planner.plan_config(_STAGES.value)
  except (HLOError, ValueError) as error:
    raise ConfigError(str(error)) from error
  if _JSON.value:
    console.show(json_text.dump(as_json(plan, _PRICE.value), indent=2))
  else:
    console.show(as_text(plan, _PRICE.value))


if __name__ == "__main__":
  # The plan reports how long compiling takes, so nothing is cached.
  cli.run(main, required=("config",), keeps_programs=False)
