"""Writes the policy of a training run as a folder that transformers loads.

  python experiments/export.py --run=RUN --folder=FOLDER [--which=best]

RUN is the workdir of `train_pure.py` on models and data that the user named;
FOLDER gets the weights of its last checkpoint, or of the one with the best
held-out accuracy, with the tokenizer of the policy that the run began with. It
appears whole or not at all. `evaluate.py --config.policy=FOLDER` evaluates it.
"""

import dataclasses
import pathlib
import shutil
import sys

import jax
import tiny_files
from absl import app, flags
from config_conversion import settings_from_config
from run_settings import ConfigError, Settings

from pure_jax.host import huggingface
from pure_jax.host import workdir as workdirs
from pure_jax.host.checkpoint import CheckpointError, Checkpoints, Restored
from pure_jax.host.huggingface import HuggingFaceError
from pure_jax.models import policy
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import init_params
from pure_jax.parallel import sharding
from pure_jax.training import train
from pure_jax.training.optim import make_optimizer

# Of the first policy's folder, what belongs to its tokenizer.
TOKENIZER_FILES = (".json", ".jinja", ".txt", ".model")
NO_TOKENIZER = ("config.json", "model.safetensors.index.json")


def read_run(workdir: pathlib.Path) -> tuple[Settings, pathlib.Path]:
  """What a run was.

  Args:
    workdir: its folder.

  Returns:
    (its settings, the folder of the policy that it began with).

  Raises:
    ConfigError: if it is no run, or one on the embedded world.
    WorkdirError: if its record is damaged.
  """
  record = workdirs.read_record(workdir)
  if record is None or "start" not in record["config"]:
    raise ConfigError(f"--run={workdir} is not the workdir of a run.")
  config = dict(record["config"])
  start = pathlib.Path(config.pop("start") or workdir)
  settings = settings_from_config(config)
  if settings.files is None:
    raise ConfigError(
      f"--run={workdir} is a run on the embedded world, whose tokenizer "
      "transformers does not know."
    )
  files = settings.files
  if files.random_model is not None:
    files = tiny_files.make_files(files, start / "tiny")
  return settings, pathlib.Path(files.policy)


def restore(
  settings: Settings, model: ModelConfig, workdir: pathlib.Path, which: str
) -> Restored:
  """A checkpoint of RL, on the mesh of the run.

  Args:
    settings: the run's.
    model: the policy's architecture.
    workdir: the run's folder.
    which: "latest" or "best".

  Returns:
    The checkpoint; its state is a `TrainState`.

  Raises:
    ConfigError: if there is none, or the devices are too few.
    CheckpointError: if all are damaged.
  """
  declared = policy.declare_policy(model)
  optimizer = make_optimizer(settings.rl.optim)
  try:
    mesh = sharding.make_mesh(settings.mesh.data, settings.mesh.fsdp)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  state = jax.eval_shape(
    lambda key: train.new_state(init_params(key, declared), optimizer),
    jax.random.key(0),
  )
  places = train.state_shardings(declared, optimizer, mesh)
  state = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    state,
    places,
  )
  folder = workdir / "rl"
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


def export(workdir: pathlib.Path, output: pathlib.Path, which: str) -> int:
  """Writes the folder.

  Args:
    workdir: of the run.
    output: the new folder.
    which: "latest" or "best".

  Returns:
    The iteration that the weights are of.

  Raises:
    ConfigError, WorkdirError, CheckpointError: as above.
    HuggingFaceError: if the first policy's folder cannot be read, the output
      is there already, or it cannot be written.
  """
  settings, first = read_run(workdir)
  output = output.absolute()
  if output.exists():
    raise HuggingFaceError(
      f"{output} is there already: remove it, or choose another name."
    )
  config = huggingface.read_config(first)
  model = dataclasses.replace(
    config.model,
    compute_dtype=settings.files.compute_dtype,
    param_dtype=settings.files.param_dtype,
  )
  restored = restore(settings, model, workdir, which)
  hidden = output.with_name(f".{output.name}.partial")
  shutil.rmtree(hidden, ignore_errors=True)
  huggingface.export_policy(
    hidden, restored.state.params, model, max_positions=config.max_positions
  )
  try:
    for file in sorted(first.iterdir()):
      if file.suffix in TOKENIZER_FILES and file.name not in NO_TOKENIZER:
        shutil.copy(file, hidden)
    hidden.rename(output)
  except OSError as error:
    raise HuggingFaceError(f"Cannot write {output}: {error}.") from error
  return restored.step


_RUN = flags.DEFINE_string("run", None, "Workdir of a training run.")
_FOLDER = flags.DEFINE_string("folder", None, "The folder to write.")
_WHICH = flags.DEFINE_enum(
  "which", "latest", ["latest", "best"], "Which checkpoint."
)


def main(argv: list[str]) -> None:
  """Exports what the flags name."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  output = pathlib.Path(_FOLDER.value)
  try:
    step = export(pathlib.Path(_RUN.value), output, _WHICH.value)
  except (
    ConfigError,
    CheckpointError,
    HuggingFaceError,
    workdirs.WorkdirError,
  ) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
  print(f"{output} holds the policy after iteration {step}.")


if __name__ == "__main__":
  flags.mark_flags_as_required(["run", "folder"])
  app.run(main)
