"""A trained PRM with its tokenizer: from a folder, or from a run."""

import dataclasses
import pathlib
from typing import Any

import tiny_files
import workspace
from config_conversion import settings_from_config
from evaluate_prm_settings import EvaluatePRMSettings
from jax.sharding import Mesh
from run_settings import ConfigError, Settings

from pure_jax.host import huggingface
from pure_jax.host import workdir as workdirs
from pure_jax.host.contract import Tokenizer
from pure_jax.host.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.sentencepiece_tokenizer import SentencePieceTokenizer
from pure_jax.models import prm
from pure_jax.models.config import ModelConfig


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
  settings: EvaluatePRMSettings, folder: str, mesh: Mesh
) -> Judge:
  """A token classifier as transformers saves it."""
  params, model = huggingface.load_prm(
    folder,
    mesh,
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


def load_run(settings: EvaluatePRMSettings, folder: str, mesh: Mesh) -> Judge:
  """What train_prm.py left in its workdir, which is only read.

  Raises:
    ConfigError: if the folder has no PRM, or this config would ask it what it
      was not trained on.
  """
  record = workdirs.read_record(folder)
  if record is None:
    raise ConfigError(f"run={folder} is not the workdir of a run.")
  start = pathlib.Path(record["config"].pop("start") or folder)
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
    ("separator", settings.separator, trained.prm.separator),
  ):
    if mine != theirs:
      raise ConfigError(
        f"run={folder} was trained with {name}={theirs!r}, not {mine!r}: its "
        f"PRM would read what it has never seen. Set {name} to {theirs!r}."
      )
  if files is None:
    tokenizer = SentencePieceTokenizer(start / "tokenizer.model")
    model = trained.model.architecture(tokenizer.vocab_size)
  else:
    if files.random_model is not None:
      files = tiny_files.make_files(files, start / "tiny")
    model = huggingface.read_config(files.policy).model
    tokenizer = HuggingFaceTokenizer(
      files.policy, vocab_size=model.vocab_size, eos_token=files.eos_token
    )
    model = dataclasses.replace(model, param_dtype=files.param_dtype)
  model = prm.extend_config(model, trained.prm.extra_layers)
  params = workspace.load_weights(
    start / "prm" / "weights", prm.declare_prm(model), mesh
  )
  model = dataclasses.replace(model, compute_dtype=settings.compute_dtype)
  return Judge(str(folder), tokenizer, model, params)
