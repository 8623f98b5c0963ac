"""The specification of a planned run, made only from its config.

An open run has the same record. Here it is made without opening the run: no
weight is read, and the separator table is an empty one of the right size,
because the ids that end a step do not change the costs.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from pure_jax.host import huggingface
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.runs.memory.needs import check_bytes
from pure_jax.runs.memory.of_run import stage_needs
from pure_jax.runs.memory.run_sizes import RunSizes, check_counts, read_sizes
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.models import ARCHITECTURES
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.spec import Layouts, RunSpec
from pure_jax.types import SeparatorTable

_PAD_ID, _EOS_ID, _SCORE_ID = 0, 1, 2


def read_spec(settings: Settings, devices: Sequence[jax.Device]) -> RunSpec:
  """Builds the specification of a run from its config.

  Architectures come from the config, from names in `ARCHITECTURES`, or from
  folders with a config.json.

  Args:
    settings: the run's settings.
    devices: the devices to plan for.

  Returns:
    The specification, with all models in layout "fsdp" over all devices.

  Raises:
    ConfigError: if RL trains adapters, which cannot be planned, or a model is
      neither a folder nor has a named architecture.
  """
  if settings.rl.lora.rank:
    raise ConfigError(
      "Plans know no adapters: plan with rl.lora.rank=0, which takes more "
      "memory."
    )
  files, named = settings.files, settings
  if files is not None and files.random_model is None:
    policy_shape = _shape("policy", files.policy, files.architecture)
    prm_shape = _shape("prm", files.prm, files.prm_architecture)
    files = dataclasses.replace(files, policy=policy_shape, prm=prm_shape)
    named = dataclasses.replace(settings, files=files)
  one_device = Layouts.same(sharding.make_layout(devices=devices[:1]))
  run = read_sizes(named, one_device, _read_model)
  _check_sizes(run)
  model = run.model
  layout = sharding.make_layout(fsdp=len(devices), devices=devices)
  no_ids = np.zeros(model.vocab_size, bool)
  return RunSpec(
    settings=settings,
    model=model,
    prm_model=run.prm_model,
    prompt_tokens=run.prompt_tokens,
    prm_prompt_tokens=run.prm_prompt_tokens,
    table=SeparatorTable(
      ends_step=no_ids,
      half=no_ids,
      stem=np.zeros(model.vocab_size, np.int32),
      has_stem=no_ids,
      score_id=np.int32(_SCORE_ID),
      eos_ids=np.array([_EOS_ID], np.int32),
      pad_id=np.int32(_PAD_ID),
    ),
    sampler=settings.rl.sampler.config(pad_id=_PAD_ID, stop_ids=(_EOS_ID,)),
    stops=None,
    layouts=Layouts.same(layout),
  )


def _check_sizes(run: RunSizes) -> None:
  """Rejects sizes for which the compiler would end the process.

  The plan itself says whether the devices have the memory.
  """
  check_counts(run, ["rl"])
  for stage, needs in stage_needs(run, ["rl"]).items():
    check_bytes(run.settings, stage, needs, None, "")


def _shape(field: str, text: str | None, named: str | None) -> str | None:
  """The folder or the name in `ARCHITECTURES` that says how large a model is.

  The named architecture stands in place of a model that is not here. Nothing is
  fetched for a plan.
  """
  if text in ARCHITECTURES or (text and pathlib.Path(text).is_dir()):
    return text
  if text is not None and named is None:
    option = {"policy": "architecture", "prm": "prm_architecture"}[field]
    raise ConfigError(
      f"files.{field}={text} is no folder here, and nothing is fetched for a "
      "plan: name a folder with a config.json, or a shape of "
      f"pure_jax/runs/settings/models.py by --config.files.{option}."
    )
  return named


def _read_model(name: str) -> ModelConfig:
  """The architecture of a name in `ARCHITECTURES`, or of a folder."""
  model = ARCHITECTURES.get(name)
  return huggingface.read_config(name).model if model is None else model
