"""The PRM of an evaluation, from a Hugging Face folder or a training run."""

import dataclasses
import pathlib
from typing import Any

from pure_jax.host import huggingface
from pure_jax.host.checkpoints import integrity
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import Tokenizer
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.runs.saved_run import SavedRun, read_run
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.evaluation import EvaluatePRMSettings


@dataclasses.dataclass(frozen=True)
class LoadedPRM:
  """A PRM on the devices, with its tokenizer.

  Attributes:
    tokenizer: the tokenizer of its ids.
    model: its architecture.
    params: its weights.
  """

  tokenizer: Tokenizer
  model: ModelConfig
  params: Any


def open_prm(
  settings: EvaluatePRMSettings, layout: sharding.Layout
) -> LoadedPRM:
  """Loads the PRM that the settings name.

  Args:
    settings: settings with `prm` or `run`.
    layout: devices and sharding rules.

  Raises:
    ConfigError: if the run has no PRM, or trained it on other inputs than the
      settings give it.
    HuggingFaceError, TokenizerError, CheckpointError: if it cannot be read.
  """
  if settings.run is not None:
    run = _checked_run(settings)
    params, model = run.load_prm(layout)
    model = dataclasses.replace(model, compute_dtype=settings.compute_dtype)
    return LoadedPRM(run.load_tokenizer(), model, params)
  params, model = huggingface.load_prm(
    settings.prm,
    layout,
    compute_dtype=settings.compute_dtype,
    param_dtype=settings.param_dtype,
    good_class=settings.good_class,
  )
  tokenizer = HuggingFaceTokenizer(
    settings.tokenizer or settings.prm,
    vocab_size=model.vocab_size,
    eos_token=settings.eos_token,
  )
  return LoadedPRM(tokenizer, model, params)


def _checked_run(settings: EvaluatePRMSettings) -> SavedRun:
  """Reads the run; raises a ConfigError if its PRM does not fit the settings.

  The PRM must read problems and steps in the format that it was trained on.
  """
  run = read_run(settings.run)
  run.check_prm()
  trained_format = "plain" if run.files is None else run.files.prm_prompt_format
  for name, value, trained_value in (
    ("prompt_format", settings.prompt_format, trained_format),
    ("separator", settings.score.separator, run.settings.prm.score.separator),
    ("read_end", settings.score.read_end, run.settings.prm.score.read_end),
  ):
    if value != trained_value:
      raise ConfigError(
        f"run={settings.run} was trained with {name}={trained_value!r}, not "
        f"{value!r}: its PRM would read inputs of another form. Set {name} to "
        f"{trained_value!r}."
      )
  return run


def fingerprints(settings: EvaluatePRMSettings) -> dict[str, str]:
  """Fingerprints the PRM and its tokenizer, to compare when a run is resumed.

  Args:
    settings: settings with `prm` or `run`.

  Raises:
    ConfigError: if weights of the run or the tokenizer are missing, or the run
      has no PRM for these settings.
    HuggingFaceError: if the folder of the PRM has no model.
  """
  if settings.run is not None:
    run = _checked_run(settings)
    for path in (run.prm_weights_path, run.tokenizer_path):
      if not path.exists():
        raise ConfigError(f"run={settings.run} lacks {path}.")
    return {
      "run": integrity.fingerprint(run.prm_weights_path, deep=True),
      "tokenizer": integrity.fingerprint(
        run.tokenizer_path, huggingface.TOKENIZER_FILES
      ),
    }
  huggingface.read_config(settings.prm)  # Raises if there is no model.
  digests = {
    "prm": integrity.fingerprint(settings.prm, huggingface.MODEL_FILES)
  }
  if settings.tokenizer is not None:
    if not pathlib.Path(settings.tokenizer).is_dir():
      raise ConfigError(f"tokenizer={settings.tokenizer} is no folder.")
    digests["tokenizer"] = integrity.fingerprint(
      settings.tokenizer, huggingface.TOKENIZER_FILES
    )
  return digests
