"""The specification of a planned run, made only from its config.

An open run has the same record. Here it is made without opening the run: no
weight is read, and the separator table is an empty one of the right size,
because the ids that end a step do not change the costs.
"""

import pathlib
import tempfile
from collections.abc import Sequence

import jax
import numpy as np

from pure_jax.host import huggingface
from pure_jax.host.data.world import dataset
from pure_jax.models import prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.runs.memory.needs import check_bytes
from pure_jax.runs.memory.of_run import stage_needs
from pure_jax.runs.memory.run_sizes import RunSizes, check_counts
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.files import FilesSettings
from pure_jax.runs.settings.models import ARCHITECTURES
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.spec import Layouts, RunSpec
from pure_jax.runs.tasks import arithmetic, tiny_files
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
    ConfigError: if RL trains adapters, which cannot be planned.
  """
  if settings.rl.lora.rank:
    raise ConfigError(
      "Plans know no adapters: plan with rl.lora.rank=0, which takes more "
      "memory."
    )
  files = settings.files
  if files is None:
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / "tokenizer.model"
      vocab_size = dataset.world_tokenizer(settings.world, path).vocab_size
    model = settings.model.architecture(vocab_size)
    prm_model = prm.extend_config(model, settings.prm.extra_layers)
    prompt_tokens = arithmetic.prompt_tokens(settings.world)
    prm_prompt_tokens = prompt_tokens
  else:
    model = _policy_model(files)
    prm_model = _prm_model(settings, files, model)
    prompt_tokens = files.prompt_tokens
    prm_prompt_tokens = files.prm_prompt_tokens
  lengths = prompt_tokens, prm_prompt_tokens
  _check_sizes(settings, devices, model, prm_model, *lengths)
  layout = sharding.make_layout(fsdp=len(devices), devices=devices)
  no_ids = np.zeros(model.vocab_size, bool)
  return RunSpec(
    settings=settings,
    model=model,
    prm_model=prm_model,
    prompt_tokens=prompt_tokens,
    prm_prompt_tokens=prm_prompt_tokens,
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


def _check_sizes(settings, devices, *shapes) -> None:
  """Checks that numbers are none that the compiler would end the process for.

  Whether the devices have the memory is what the plan says.
  """
  layout = sharding.make_layout(devices=devices[:1])
  run = RunSizes(settings, Layouts.same(layout), *shapes)
  check_counts(run, ["rl"])
  for stage, needs in stage_needs(run, ["rl"]).items():
    check_bytes(settings, stage, needs, None, "")


def _policy_model(files: FilesSettings) -> ModelConfig:
  """The policy's architecture in a run on files."""
  if files.random_model is None:
    return _named_model(files.policy, files)
  is_tied = files.random_model == "tied"
  is_llama = files.random_model == "llama"
  return files.computed(tiny_files.architecture(is_tied, is_llama))


def _prm_model(
  settings: Settings, files: FilesSettings, model: ModelConfig
) -> ModelConfig | None:
  """The PRM's architecture: a named one, or a PRM trained from the policy."""
  name = files.prm or files.prm_architecture
  if name is not None and files.random_model is None:
    return _named_model(name, files)
  if settings.rl.reward_mode == "vr" and files.labelled is None:
    return None
  return prm.extend_config(model, settings.prm.extra_layers)


def _named_model(name: str, files: FilesSettings) -> ModelConfig:
  """The architecture of a name in `ARCHITECTURES`, or of a folder."""
  model = ARCHITECTURES.get(name)
  if model is None:
    model = huggingface.read_config(name).model
  return files.computed(model)
