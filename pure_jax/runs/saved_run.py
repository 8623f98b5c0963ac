"""Opens the results of a training run: config, tokenizer, policy and PRM.

The run's folder is only read. `read_run` reads the config; the methods of
`SavedRun` load one thing each. They raise a HuggingFaceError, TokenizerError or
CheckpointError if that thing cannot be read.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax

from pure_jax.host import huggingface
from pure_jax.host.checkpoints import integrity
from pure_jax.host.checkpoints.checkpointer import Checkpoints, Restored
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.sentencepiece_tokenizer import SentencePieceTokenizer
from pure_jax.host.text.tokenization import Tokenizer
from pure_jax.models import critic, lora, policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import init_params
from pure_jax.parallel import sharding
from pure_jax.runs import locations
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.folder import load_weights
from pure_jax.runs.rl.weights import RLState
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config
from pure_jax.runs.settings.files import FilesSettings
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.tasks import tiny_files
from pure_jax.training import train
from pure_jax.training.optim import OptimConfig, make_optimizer


@dataclasses.dataclass(frozen=True)
class SavedRun:
  """The folder of a training run, with its config.

  Attributes:
    workdir: the folder.
    start: the folder of the stages that it started from; often the same.
    settings: its config.
    files: the models and data that it was given; None on the embedded world.
      Its policy is a folder, also if the config names one on the hub.
    contents: fingerprints of these files, by field.
  """

  workdir: pathlib.Path
  start: pathlib.Path
  settings: Settings
  files: FilesSettings | None
  contents: Mapping[str, str]

  @property
  def prm_weights_path(self) -> pathlib.Path:
    """The folder of the PRM's weights."""
    return self.start / "prm" / "weights"

  @property
  def tokenizer_path(self) -> pathlib.Path:
    """The file or the folder of the tokenizer."""
    if self.files is None:
      return self.start / "tokenizer.model"
    return pathlib.Path(self.files.policy)

  def load_tokenizer(self) -> Tokenizer:
    """Loads the tokenizer that policy and PRM share."""
    if self.files is None:
      return SentencePieceTokenizer(self.tokenizer_path)
    return HuggingFaceTokenizer(
      self.files.policy,
      vocab_size=huggingface.read_config(self.files.policy).model.vocab_size,
      eos_token=self.files.eos_token,
    )

  def policy_architecture(self) -> ModelConfig:
    """Reads the policy's architecture; the dtypes are the run's."""
    if self.files is None:
      vocab_size = SentencePieceTokenizer(self.tokenizer_path).vocab_size
      return self.settings.model.architecture(vocab_size)
    return dataclasses.replace(
      huggingface.read_config(self.files.policy).model,
      compute_dtype=self.files.model.compute_dtype,
      param_dtype=self.files.model.param_dtype,
    )

  def restore_policy(
    self, layout: sharding.Layout, which: Literal["latest", "best"]
  ) -> Restored:
    """Restores the policy from a checkpoint of RL: the latest, or the best one.

    Its state is a `TrainState` of the trained weights: only the adapters if the
    run trained adapters. The states of a critic and of a PRM that RL updates
    are read and left out. Raises a ConfigError if the run has no checkpoint.
    """
    rl = self.settings.rl
    model = rl.lora.of(self.policy_architecture())
    declared, _ = lora.trained_and_frozen(policy.declare_policy(model), model)
    of_policy = _abstract_state(declared, rl.optim, layout, rl.first_kl_coef)
    states = RLState(of_policy)
    if rl.trains_critic:
      declared, _ = critic.trained_and_frozen(
        critic.declare_critic(model), model
      )
      of_critic = _abstract_state(declared, rl.critic.optim, layout)
      states = states.replace(critic=of_critic)
    if rl.trains_prm:
      declared = prm.declare_prm(self._prm_architecture())
      of_prm = _abstract_state(declared, rl.online_prm.optim, layout)
      states = states.replace(prm=of_prm)
    state = states.to_checkpoint()
    folder, restored = self.workdir / "rl", None
    metric = self.settings.best_metric
    if folder.is_dir():
      with Checkpoints(folder, best_metric=metric) as checkpoints:
        if which == "best":
          restored = checkpoints.restore_best(state)
        else:
          restored = checkpoints.restore_latest(state)
    if restored is None:
      ranked = f" with a value of {metric}" if which == "best" else ""
      raise ConfigError(f"{folder} has no checkpoint{ranked}.")
    states = RLState.from_checkpoint(restored.state)
    return dataclasses.replace(restored, state=states.policy)

  def _prm_architecture(self) -> ModelConfig:
    """The architecture of the PRM: that of files.prm, or of the one trained."""
    model = self.policy_architecture()
    if self.files is None or self.files.prm is None:
      return prm.extend_config(model, self.settings.prm.extra_layers)
    locator = locations.Locator(locations.recorded_commits(self.workdir))
    path = locator.model("files.prm", self.files.prm)
    return self.files.computed(huggingface.read_config(path).model)

  def merge_adapters(self, layout: sharding.Layout, trained: Any) -> Any:
    """Merges weights of `restore_policy` into the policy the run began with.

    Returns them as they are if the run trained no adapters. Raises a
    ConfigError if the files of the first policy have changed since.
    """
    model = self.policy_architecture()
    adapted = self.settings.rl.lora.of(model)
    if adapted.lora is None:
      return trained
    first = self.files.policy
    known = self.contents.get("policy")
    if known and known != integrity.fingerprint(first, huggingface.MODEL_FILES):
      raise ConfigError(
        f"{first} has changed since --run={self.workdir} began with it: its "
        "adapters belong to the weights that it had then."
      )
    base, _ = huggingface.load_policy(
      first,
      layout,
      compute_dtype=model.compute_dtype,
      param_dtype=model.param_dtype,
    )
    declared = policy.declare_policy(model)
    merge = jax.jit(
      lambda params: lora.merge(params, adapted),
      out_shardings=sharding.weight_shardings(declared, layout),
    )
    return merge(lora.join_params(base, trained))

  def check_prm(self) -> None:
    """Raises ConfigError unless the run trained a PRM to the end."""
    if self.files is not None and self.files.prm is not None:
      raise ConfigError(
        f"--run={self.workdir} took its PRM from {self.files.prm}: use that "
        "folder."
      )
    if not (self.start / "prm" / "done.json").exists():
      raise ConfigError(
        f"--run={self.workdir} has no finished PRM: run train_prm.py."
      )

  def load_prm(self, layout: sharding.Layout) -> tuple[Any, ModelConfig]:
    """Loads the PRM that the run trained: (its weights, its architecture)."""
    self.check_prm()
    model = self._prm_architecture()
    params = load_weights(self.prm_weights_path, prm.declare_prm(model), layout)
    return params, model


def _abstract_state(
  declared: Any,
  config: OptimConfig,
  layout: sharding.Layout,
  kl_coef: float | None = None,
) -> train.TrainState:
  """The abstract state of declared weights, with its shardings."""
  optimizer = make_optimizer(config, declared)
  state = jax.eval_shape(
    lambda key: train.new_state(init_params(key, declared), optimizer, kl_coef),
    jax.random.key(0),
  )
  return jax.tree.map(
    lambda leaf, leaf_sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=leaf_sharding
    ),
    state,
    train.state_shardings(declared, optimizer, layout, kl_coef is not None),
  )


def read_run(workdir: str | os.PathLike) -> SavedRun:
  """Reads the config of a training run.

  With `files.random_model`, its `files` name the tiny models that the run made.

  Args:
    workdir: folder of the run.

  Raises:
    ConfigError: if the folder is not the workdir of a training run, or its
      policy is missing.
    WorkdirError: if its config.json is damaged.
  """
  workdir = pathlib.Path(workdir)
  record = workdirs.read_record(workdir)
  if record is None or "start" not in record["config"]:
    raise ConfigError(f"--run={workdir} is not the workdir of a run.")
  config = dict(record["config"])
  commits = locations.recorded_commits(workdir)
  config.pop(locations.COMMITS, None)
  start, contents = config.pop("start"), config.pop("contents", None) or {}
  if not isinstance(start, str | None) or not isinstance(contents, dict):
    raise workdirs.WorkdirError(
      f"{workdir / workdirs.CONFIG_FILE} is damaged: start must be a folder, "
      "contents a group."
    )
  start = pathlib.Path(start or workdir)
  settings = settings_from_config(config, Settings)
  files = settings.files
  if files is not None and files.random_model is not None:
    files = tiny_files.make_files(files, start / "tiny")
  elif files is not None:
    locator = locations.Locator(commits)
    policy = locator.model("files.policy", files.policy)
    files = dataclasses.replace(files, policy=policy)
  return SavedRun(workdir, start, settings, files, contents)
