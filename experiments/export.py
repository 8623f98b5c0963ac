"""Exports a training run's policy or PRM as a folder that transformers loads.

  python experiments/export.py --run=RUN --folder=FOLDER [--which=best]
  python experiments/export.py --run=RUN --folder=FOLDER --model=prm
  python experiments/export.py --run=RUN --folder=FOLDER --push=ORG/NAME

RUN is the workdir of a run on models and data that the user named. Export it
with the version that made it: the config of another may lack fields. FOLDER
gets the policy of its last checkpoint, or of the checkpoint that
`rl.best_metric` ranks first, the later of two equal ones; or the PRM that the
run trained, as a token classifier of two labels.
It also gets the tokenizer of the policy that the run started from, and the ids
that end a response. The folder appears when it is complete. Its README.md is
a model card, which has the metrics of the run. With `--push=ORG/NAME` the files
of the folder, and nothing else, are then uploaded to the Hugging Face hub.
`evaluate.py --config.policy=FOLDER` evaluates a policy,
`evaluate_prm.py --config.prm=FOLDER` a PRM, and other runs use a PRM with
`--config.files.prm=FOLDER`.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import dataclasses
import pathlib
import shutil
import sys

from absl import app, flags

from pure_jax.host import huggingface
from pure_jax.host.atomic_files import (
  create_folder_atomic,
  write_json_atomic,
  write_text_atomic,
)
from pure_jax.host.checkpoints.checkpointer import CheckpointError
from pure_jax.host.huggingface import HuggingFaceError, upload
from pure_jax.host.logs import console
from pure_jax.host.text.tokenization import TokenizerError
from pure_jax.runs.model_card import facts, text
from pure_jax.runs.saved_run import read_run
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.workdir import WorkdirError

# Files of the first policy's folder that belong to its weights, although they
# have the suffix of a tokenizer's file.
NOT_TOKENIZER = ("config.json", "model.safetensors.index.json")
_ERRORS = (
  *(ConfigError, CheckpointError, HuggingFaceError, WorkdirError),
  TokenizerError,
)

_RUN = flags.DEFINE_string("run", None, "Workdir of a training run.")
_FOLDER = flags.DEFINE_string("folder", None, "The folder to write.")
_WHICH = flags.DEFINE_enum(
  "which", "latest", ["latest", "best"], "Which checkpoint of the policy."
)
_MODEL = flags.DEFINE_enum(
  "model", "policy", ["policy", "prm"], "Which model of the run."
)
_PUSH = flags.DEFINE_string(
  "push",
  None,
  "ORG/NAME on the Hugging Face hub, to upload the folder to. It replaces the "
  "weights, configs and tokenizer files of an earlier model in the repository, "
  "and removes .safetensors, .json, .jinja and .model files that it lacks, in "
  "the same commit.",
)
_PRIVATE = flags.DEFINE_bool(
  "private", False, "Whether --push makes a private repository."
)


def export(
  workdir: pathlib.Path,
  output: pathlib.Path,
  which: str,
  model: str = "policy",
  repo: str | None = None,
) -> str:
  """Writes the folder of the policy or the PRM; describes the weights.

  `repo` is the model's id on the hub, for its card.
  """
  if model == "prm" and which != "latest":
    raise ConfigError("--which applies to the policy; a run has only one PRM.")
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
  layout = run.settings.mesh.layout()
  first = huggingface.read_config(run.files.policy)
  eos_ids = run.load_tokenizer().eos_ids
  shared = {"max_positions": first.max_positions, "token_ids": first.token_ids}
  if model == "prm":
    write = huggingface.export_prm
    params, architecture = run.load_prm(layout)
    iteration = None
    description = (
      f"the PRM, trained with prompt_format={run.files.prm_prompt_format!r} "
      f"and separator={run.settings.prm.score.separator!r}"
    )
  else:
    write = huggingface.export_policy
    restored = run.restore_policy(layout, which)
    params = run.merge_adapters(layout, restored.state.params)
    architecture = run.policy_architecture()
    iteration = restored.step
    description = f"the policy after iteration {restored.step}"
  known = facts.collect_facts(run, model, iteration)
  try:
    with create_folder_atomic(output) as partial:
      write(partial, params, architecture, **shared)
      for file in sorted(run.tokenizer_path.iterdir()):
        is_tokenizer = file.suffix in huggingface.TOKENIZER_FILES
        if is_tokenizer and file.name not in NOT_TOKENIZER:
          shutil.copy(file, partial)
      if model == "policy":
        keep_ends(partial, dataclasses.replace(first.token_ids, eos=eos_ids))
      kind = huggingface.read_config(partial).architecture
      name = repo or output.name
      card = text.write_card(known, name, kind, on_hub=repo is not None)
      write_text_atomic(partial / text.CARD_FILE, card)
  except OSError as error:
    raise HuggingFaceError(f"Cannot write {output}: {error}.") from error
  return description


def keep_ends(folder: pathlib.Path, token_ids: huggingface.TokenIds) -> None:
  """Lets transformers end responses where the run ended them.

  generation_config.json stays as it is if it has all end ids. Where there is
  none, transformers reads config.json. `files.eos_token` of the run, and the
  tokenizer, may name an id that neither has.
  """
  path = folder / "generation_config.json"
  fields = {}
  if path.exists():
    fields = huggingface.read_json_object(path)
    eos = fields.get("eos_token_id")
    known = eos if isinstance(eos, list) else [eos]
  else:
    known = huggingface.read_config(folder).token_ids.eos
  if not {*token_ids.eos} <= {*known}:
    fields = token_ids.fields() | fields
    write_json_atomic(path, fields | {"eos_token_id": list(token_ids.eos)})


def push(output: pathlib.Path, repo: str, description: str) -> None:
  """Uploads the folder, which stays if that fails."""
  message = f"Upload {description}"
  try:
    url = upload.upload_model(output, repo, message, private=_PRIVATE.value)
  except HuggingFaceError as error:
    raise HuggingFaceError(
      f"{error} The folder is whole, and stays: `hf upload {repo} {output}` "
      "uploads it later."
    ) from error
  console.show(f"Uploaded to {url}.")


def main(argv: list[str]) -> None:
  """Exports the model that the flags name."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  output, repo = pathlib.Path(_FOLDER.value), _PUSH.value
  try:
    if repo is not None:
      upload.check_upload(repo)
    elif _PRIVATE.value:
      raise ConfigError("--private needs --push=ORG/NAME.")
    description = export(
      pathlib.Path(_RUN.value), output, _WHICH.value, _MODEL.value, repo
    )
    console.show(f"{output} holds {description}.")
    if repo is not None:
      push(output, repo, description)
  except _ERRORS as error:
    console.tell(f"error: {error}")
    sys.exit(1)


if __name__ == "__main__":
  flags.mark_flags_as_required(["run", "folder"])
  interrupts.run(app.run, main)
