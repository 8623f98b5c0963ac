"""A trained PRM with its tokenizer: from a folder, or from a run."""

import dataclasses
import pathlib
from typing import Any

from pure_jax.host import huggingface
from pure_jax.host.checkpoints import integrity
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.sentencepiece_tokenizer import SentencePieceTokenizer
from pure_jax.host.text.tokenization import Tokenizer
from pure_jax.models import prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.runs import workdir as workdirs
from pure_jax.runs import workspace
from pure_jax.runs.evaluation.data import MODEL_FILES
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config
from pure_jax.runs.settings.files import FilesSettings
from pure_jax.runs.settings.prm_evaluation import EvaluatePRMSettings
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.tasks import tiny_files


@dataclasses.dataclass(frozen=True)
class Judge:
  """A PRM, ready to score.

  Attributes:
    name: where it is from.
    tokenizer: whose ids it reads.
    model: its architecture.
    params: its weights, on the mesh.
  """

  name: str
  tokenizer: Tokenizer
  model: ModelConfig
  params: Any


def load_folder(
  settings: EvaluatePRMSettings, folder: str, layout: sharding.Layout
) -> Judge:
  """A token classifier as transformers saves it."""
  params, model = huggingface.load_prm(
    folder,
    layout,
    compute_dtype=settings.compute_dtype,
    param_dtype=settings.param_dtype,
    good_class=settings.good_class,
  )
  tokenizer = HuggingFaceTokenizer(
    settings.tokenizer or folder,
    vocab_size=model.vocab_size,
    eos_token=settings.eos_token,
  )
  return Judge(str(folder), tokenizer, model, params)


@dataclasses.dataclass(frozen=True)
class TrainedPRM:
  """What train_prm.py left, found and not loaded.

  Attributes:
    start: the folder of its stages.
    trained: the run's config.
    files: the files it read; None where it made everything itself.
  """

  start: pathlib.Path
  trained: Settings
  files: FilesSettings | None

  @property
  def weights(self) -> pathlib.Path:
    """The folder of the weights."""
    return self.start / "prm" / "weights"

  @property
  def tokenizer(self) -> pathlib.Path:
    """The file or the folder of the tokenizer."""
    if self.files is None:
      return self.start / "tokenizer.model"
    return pathlib.Path(self.files.policy)


def find_run(settings: EvaluatePRMSettings, folder: str) -> TrainedPRM:
  """What train_prm.py left in its workdir, which is only read.

  Raises:
    ConfigError: if the folder has no PRM, or this config would ask it what it
      was not trained on.
  """
  record = workdirs.read_record(folder)
  if record is None:
    raise ConfigError(f"run={folder} is not the workdir of a run.")
  start = pathlib.Path(record["config"].pop("start") or folder)
  record["config"].pop("contents", None)  # Of its files, where it has any.
  trained = settings_from_config(record["config"], Settings)
  files = trained.files
  if files is not None and files.prm is not None:
    raise ConfigError(
      f"run={folder} took its PRM from {files.prm}: name that with prm."
    )
  if not (start / "prm" / "done.json").exists():
    raise ConfigError(f"run={folder} has no finished PRM: run train_prm.py.")
  asked = "plain" if files is None else files.prm_prompt_format
  for name, mine, theirs in (
    ("prompt_format", settings.prompt_format, asked),
    ("separator", settings.score.separator, trained.prm.score.separator),
  ):
    if mine != theirs:
      raise ConfigError(
        f"run={folder} was trained with {name}={theirs!r}, not {mine!r}: its "
        f"PRM would read what it has never seen. Set {name} to {theirs!r}."
      )
  if files is not None and files.random_model is not None:
    files = tiny_files.make_files(files, start / "tiny")
  return TrainedPRM(start, trained, files)


def load_run(
  settings: EvaluatePRMSettings, folder: str, layout: sharding.Layout
) -> Judge:
  """The PRM of a run.

  Raises:
    ConfigError: as `find_run`.
  """
  found = find_run(settings, folder)
  trained, files = found.trained, found.files
  if files is None:
    tokenizer = SentencePieceTokenizer(found.tokenizer)
    model = trained.model.architecture(tokenizer.vocab_size)
  else:
    model = huggingface.read_config(files.policy).model
    tokenizer = HuggingFaceTokenizer(
      files.policy, vocab_size=model.vocab_size, eos_token=files.eos_token
    )
    model = dataclasses.replace(model, param_dtype=files.model.param_dtype)
  model = prm.extend_config(model, trained.prm.extra_layers)
  params = workspace.load_weights(found.weights, prm.declare_prm(model), layout)
  model = dataclasses.replace(model, compute_dtype=settings.compute_dtype)
  return Judge(str(folder), tokenizer, model, params)


# Of a tokenizer's folder, what is read, with the shape of the model.
_TOKENIZER_FILES = tuple(n for n in MODEL_FILES if n != ".safetensors")


def contents(settings: EvaluatePRMSettings) -> dict[str, str]:
  """What the PRM and its tokenizer are, so that a resumed run has the same.

  Args:
    settings: of an evaluation of a folder or of a run.

  Returns:
    Fingerprints by name.

  Raises:
    ConfigError: if weights of the run or the tokenizer are missing, or as
      `find_run`.
    HuggingFaceError: if the folder of the PRM holds no model.
  """
  if settings.run is not None:
    run = find_run(settings, settings.run)
    for path in (run.weights, run.tokenizer):
      if not path.exists():
        raise ConfigError(f"run={settings.run} lacks {path}.")
    return {
      "run": integrity.fingerprint(run.weights, deep=True),
      "tokenizer": integrity.fingerprint(run.tokenizer, _TOKENIZER_FILES),
    }
  huggingface.read_config(settings.prm)  # There is such a folder.
  found = {"prm": integrity.fingerprint(settings.prm, MODEL_FILES)}
  if settings.tokenizer is not None:
    if not pathlib.Path(settings.tokenizer).is_dir():
      raise ConfigError(f"tokenizer={settings.tokenizer} is no folder.")
    found["tokenizer"] = integrity.fingerprint(
      settings.tokenizer, _TOKENIZER_FILES
    )
  return found
