"""Exports a training run's policy or PRM as a folder that transformers loads.

  python experiments/export.py --run=RUN --folder=FOLDER [--which=best]
  python experiments/export.py --run=RUN --folder=FOLDER --model=prm

RUN is the workdir of a run on models and data that the user named. FOLDER gets
the policy of its last checkpoint, or of the checkpoint with the best held-out
accuracy; or the PRM that the run trained, as a token classifier of two labels.
It also gets the tokenizer of the policy that the run started from. The folder
appears when it is complete. `evaluate.py --config.policy=FOLDER` evaluates a
policy, `evaluate_prm.py --config.prm=FOLDER` a PRM, and other runs use a PRM
with `--config.files.prm=FOLDER`.
"""

import pathlib
import shutil
import sys

from absl import app, flags

from pure_jax.host import huggingface
from pure_jax.host.checkpoints.checkpointer import CheckpointError
from pure_jax.host.huggingface import HuggingFaceError
from pure_jax.runs.saved_run import read_run
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.workdir import WorkdirError

# Files of the first policy's folder that belong to its weights, although they
# have the suffix of a tokenizer's file.
NOT_TOKENIZER = ("config.json", "model.safetensors.index.json")
_ERRORS = (ConfigError, CheckpointError, HuggingFaceError, WorkdirError)

_RUN = flags.DEFINE_string("run", None, "Workdir of a training run.")
_FOLDER = flags.DEFINE_string("folder", None, "The folder to write.")
_WHICH = flags.DEFINE_enum(
  "which", "latest", ["latest", "best"], "Which checkpoint of the policy."
)
_MODEL = flags.DEFINE_enum(
  "model", "policy", ["policy", "prm"], "Which model of the run."
)


def export(
  workdir: pathlib.Path, output: pathlib.Path, which: str, model: str = "policy"
) -> str:
  """Writes the folder of the policy or the PRM; describes the weights."""
  if model == "prm" and which != "latest":
    raise ConfigError(f"--which={which} is of a policy: a run has one PRM.")
  run = read_run(workdir)
  if run.files is None:
    raise ConfigError(
      f"--run={workdir} is a run on the embedded world, whose tokenizer "
      "transformers does not know."
    )
  output = output.absolute()
  if output.exists():
    raise HuggingFaceError(
      f"{output} exists already: remove it, or choose another name."
    )
  partial = output.with_name(f".{output.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  layout = run.settings.mesh.layout()
  positions = huggingface.read_config(run.files.policy).max_positions
  if model == "prm":
    params, architecture = run.load_prm(layout)
    huggingface.export_prm(
      partial, params, architecture, max_positions=positions
    )
    description = (
      f"the PRM, trained with prompt_format={run.files.prm_prompt_format!r} "
      f"and separator={run.settings.prm.score.separator!r}"
    )
  else:
    restored = run.restore_policy(layout, which)
    params = run.merge_adapters(layout, restored.state.params)
    huggingface.export_policy(
      partial, params, run.policy_architecture(), max_positions=positions
    )
    description = f"the policy after iteration {restored.step}"
  try:
    for file in sorted(run.tokenizer_path.iterdir()):
      is_tokenizer = file.suffix in huggingface.TOKENIZER_FILES
      if is_tokenizer and file.name not in NOT_TOKENIZER:
        shutil.copy(file, partial)
    partial.rename(output)
  except OSError as error:
    raise HuggingFaceError(f"Cannot write {output}: {error}.") from error
  return description


def main(argv: list[str]) -> None:
  """Exports the model that the flags name."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  output = pathlib.Path(_FOLDER.value)
  try:
    description = export(
      pathlib.Path(_RUN.value), output, _WHICH.value, _MODEL.value
    )
  except _ERRORS as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
  print(f"{output} holds {description}.")


if __name__ == "__main__":
  flags.mark_flags_as_required(["run", "folder"])
  app.run(main)
