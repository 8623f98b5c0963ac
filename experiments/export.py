"""Writes a training run's policy or PRM as a folder that transformers loads.

  python experiments/export.py --run=RUN --folder=FOLDER [--which=best]
  python experiments/export.py --run=RUN --folder=FOLDER --model=prm

RUN is the workdir of a run on models and data that the user named. FOLDER gets
the policy of its last checkpoint, or of the one with the best held-out
accuracy; or the PRM that the run trained, as a token classifier of two labels.
Beside it goes the tokenizer of the policy that the run began with. The folder
appears whole or not at all. `evaluate.py --config.policy=FOLDER` evaluates a
policy, `evaluate_prm.py --config.prm=FOLDER` a PRM, which other runs take with
`--config.files.prm=FOLDER`.
"""

import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import jax
from absl import app, flags

from pure_jax.host import huggingface
from pure_jax.host.checkpoints import integrity
from pure_jax.host.checkpoints.manager import (
  CheckpointError,
  Checkpoints,
  Restored,
)
from pure_jax.host.huggingface import HuggingFaceError
from pure_jax.models import lora, policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import init_params
from pure_jax.parallel import sharding
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.evaluation.data import MODEL_FILES
from pure_jax.runs.folder import load_weights
from pure_jax.runs.settings.conversion import settings_from_config
from pure_jax.runs.settings.run import ConfigError, Settings
from pure_jax.runs.tasks import tiny_files
from pure_jax.training import train
from pure_jax.training.optim import make_optimizer

# Of the first policy's folder, what belongs to its tokenizer.
TOKENIZER_FILES = (".json", ".jinja", ".txt", ".model")
NO_TOKENIZER = ("config.json", "model.safetensors.index.json")


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run was.

  Attributes:
    workdir: its folder.
    start: the folder whose stages it began with; often the same.
    settings: its config.
    first: the folder of the policy that it began with.
    contents: fingerprints of the files that it was given, by field.
  """

  workdir: pathlib.Path
  start: pathlib.Path
  settings: Settings
  first: pathlib.Path
  contents: Mapping[str, str]


def read_run(workdir: pathlib.Path) -> Run:
  """What a run was.

  Args:
    workdir: its folder.

  Returns:
    The run.

  Raises:
    ConfigError: if it is no run, or one on the embedded world.
    WorkdirError: if its record is damaged.
  """
  record = workdirs.read_record(workdir)
  if record is None or "start" not in record["config"]:
    raise ConfigError(f"--run={workdir} is not the workdir of a run.")
  config = dict(record["config"])
  start = pathlib.Path(config.pop("start") or workdir)
  contents = config.pop("contents", None) or {}
  settings = settings_from_config(config)
  if settings.files is None:
    raise ConfigError(
      f"--run={workdir} is a run on the embedded world, whose tokenizer "
      "transformers does not know."
    )
  files = settings.files
  if files.random_model is not None:
    files = tiny_files.make_files(files, start / "tiny")
  return Run(workdir, start, settings, pathlib.Path(files.policy), contents)


def layout_of(settings: Settings) -> sharding.Layout:
  """The layout of a run.

  Args:
    settings: the run's.

  Returns:
    Its mesh and rules.

  Raises:
    ConfigError: if the devices are too few.
  """
  try:
    return settings.mesh.layout()
  except ValueError as error:
    raise ConfigError(str(error)) from error


def restore(run: Run, model: ModelConfig, which: str) -> Restored:
  """A checkpoint of RL, on the layout of the run.

  Args:
    run: the run.
    model: the policy's architecture.
    which: "latest" or "best".

  Returns:
    The checkpoint; its state is a `TrainState`, of adapters alone where the
    run trained those.

  Raises:
    ConfigError: if there is none, or the devices are too few.
    CheckpointError: if all are damaged.
  """
  model = run.settings.rl.lora.of(model)
  declared = policy.declare_policy(model)
  declared, _ = lora.trained_and_frozen(declared, model)
  optimizer = make_optimizer(run.settings.rl.optim)
  layout = layout_of(run.settings)
  state = jax.eval_shape(
    lambda key: train.new_state(init_params(key, declared), optimizer),
    jax.random.key(0),
  )
  places = train.state_shardings(declared, optimizer, layout)
  state = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    state,
    places,
  )
  folder = run.workdir / "rl"
  restored = None
  if folder.is_dir():
    with Checkpoints(folder, best_metric="accuracy") as checkpoints:
      choose = {
        "latest": checkpoints.restore_latest,
        "best": checkpoints.restore_best,
      }
      restored = choose[which](state)
  if restored is None:
    raise ConfigError(f"{folder} has no checkpoint.")
  return restored


def whole_policy(run: Run, model: ModelConfig, trained: Any) -> Any:
  """The policy's weights, adapters merged into what they stand beside.

  Args:
    run: the run.
    model: the policy's architecture, without adapters.
    trained: what a checkpoint of the run holds.

  Returns:
    Weights that need no adapters.

  Raises:
    ConfigError: if the policy that the run began with is another by now.
    HuggingFaceError: if it cannot be read.
  """
  adapted = run.settings.rl.lora.of(model)
  if adapted.lora is None:
    return trained
  known = run.contents.get("policy")
  if known and known != integrity.fingerprint(run.first, MODEL_FILES):
    raise ConfigError(
      f"{run.first} has changed since --run={run.workdir} began with it: its "
      "adapters belong to the weights that were there."
    )
  layout = layout_of(run.settings)
  base, _ = huggingface.load_policy(
    run.first,
    layout,
    compute_dtype=model.compute_dtype,
    param_dtype=model.param_dtype,
  )
  declared = policy.declare_policy(model)
  return jax.jit(
    lambda *parts: lora.merge(lora.join_params(*parts), adapted),
    out_shardings=sharding.weight_shardings(declared, layout),
  )(base, trained)


def load_prm(run: Run, model: ModelConfig) -> tuple[Any, ModelConfig]:
  """The PRM that a run trained, on the layout of the run.

  Args:
    run: the run.
    model: the policy's architecture.

  Returns:
    (its weights, its architecture).

  Raises:
    ConfigError: if the run trained none, or the devices are too few.
    CheckpointError: if the weights are damaged.
  """
  files = run.settings.files
  if files.prm is not None:
    raise ConfigError(
      f"--run={run.workdir} took its PRM from {files.prm}: that is the folder."
    )
  stage = run.start / "prm"
  if not (stage / "done.json").exists():
    raise ConfigError(f"{stage} has no finished PRM: run train_prm.py.")
  model = prm.extend_config(model, run.settings.prm.extra_layers)
  params = load_weights(
    stage / "weights", prm.declare_prm(model), layout_of(run.settings)
  )
  return params, model


def export(
  workdir: pathlib.Path, output: pathlib.Path, which: str, kind: str = "policy"
) -> str:
  """Writes the folder.

  Args:
    workdir: of the run.
    output: the new folder.
    which: checkpoint of the policy, "latest" or "best"; of a PRM there is but
      the latest.
    kind: "policy" or "prm".

  Returns:
    What the weights are, in words.

  Raises:
    ConfigError, WorkdirError, CheckpointError: as above.
    HuggingFaceError: if the first policy's folder cannot be read, the output
      is there already, or it cannot be written.
  """
  if kind == "prm" and which != "latest":
    raise ConfigError(f"--which={which} is of a policy: a run has one PRM.")
  run = read_run(workdir)
  output = output.absolute()
  if output.exists():
    raise HuggingFaceError(
      f"{output} is there already: remove it, or choose another name."
    )
  config = huggingface.read_config(run.first)
  files = run.settings.files
  model = files.computed(config.model)
  hidden = output.with_name(f".{output.name}.partial")
  shutil.rmtree(hidden, ignore_errors=True)
  if kind == "prm":
    params, model = load_prm(run, model)
    huggingface.export_prm(
      hidden, params, model, max_positions=config.max_positions
    )
    told = (
      f"the PRM, trained with prompt_format={files.prm_prompt_format!r} and "
      f"separator={run.settings.prm.separator!r}"
    )
  else:
    restored = restore(run, model, which)
    params = whole_policy(run, model, restored.state.params)
    huggingface.export_policy(
      hidden, params, model, max_positions=config.max_positions
    )
    told = f"the policy after iteration {restored.step}"
  try:
    for file in sorted(run.first.iterdir()):
      if file.suffix in TOKENIZER_FILES and file.name not in NO_TOKENIZER:
        shutil.copy(file, hidden)
    hidden.rename(output)
  except OSError as error:
    raise HuggingFaceError(f"Cannot write {output}: {error}.") from error
  return told


_RUN = flags.DEFINE_string("run", None, "Workdir of a training run.")
_FOLDER = flags.DEFINE_string("folder", None, "The folder to write.")
_WHICH = flags.DEFINE_enum(
  "which", "latest", ["latest", "best"], "Which checkpoint of the policy."
)
_MODEL = flags.DEFINE_enum(
  "model", "policy", ["policy", "prm"], "Which model of the run."
)


def main(argv: list[str]) -> None:
  """Exports what the flags name."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  output = pathlib.Path(_FOLDER.value)
  try:
    told = export(pathlib.Path(_RUN.value), output, _WHICH.value, _MODEL.value)
  except (
    ConfigError,
    CheckpointError,
    HuggingFaceError,
    workdirs.WorkdirError,
  ) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
  print(f"{output} holds {told}.")


if __name__ == "__main__":
  flags.mark_flags_as_required(["run", "folder"])
  app.run(main)
