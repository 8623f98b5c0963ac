"""The programs of one RL step as abstract arrays and jitted functions.

Nothing is allocated: weights, optimizer state, prompts and rollouts are
`jax.ShapeDtypeStruct`s, and a function is lowered for devices that need not be
there. `plan.py` compiles what this gives.
"""

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import arithmetic_task
import jax
import jax.numpy as jnp
import numpy as np
import tiny_files
from architectures import ARCHITECTURES
from files_settings import FilesSettings
from run_settings import ConfigError, Settings

from pure_jax.host import huggingface
from pure_jax.host.data import arithmetic_dataset
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel.sharding import Layout, weight_shardings
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import score, train
from pure_jax.training.optim import make_optimizer
from pure_jax.types import Prompts, SeparatorTable

Array = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Shapes:
  """What a run's models and batches are, apart from values.

  Attributes:
    model: the policy's architecture, and the reference policy's.
    prm_model: the PRM's; None in a run on verdicts alone.
    prompt_tokens: columns of a prompt (L).
    prm_prompt_tokens: columns of what the PRM reads before a response.
  """

  model: ModelConfig
  prm_model: ModelConfig | None
  prompt_tokens: int
  prm_prompt_tokens: int


def shapes_of(settings: Settings) -> Shapes:
  """Shapes of a run, from names, folders with a config.json, or the config.

  Args:
    settings: the run's.

  Returns:
    Its shapes. Weights are not looked for.

  Raises:
    ConfigError: for a policy with adapters.
  """
  if settings.rl.lora.rank:
    raise ConfigError(
      "Plans know no adapters: plan with rl.lora.rank=0, which takes more "
      "memory."
    )
  files = settings.files
  if files is None:
    world = settings.world
    with tempfile.TemporaryDirectory() as folder:
      tokenizer = arithmetic_dataset.world_tokenizer(
        world, pathlib.Path(folder) / "tokenizer.model"
      )
    model = settings.model.architecture(tokenizer.vocab_size)
    length = arithmetic_task.prompt_tokens(world)
    extended = prm.extend_config(model, settings.prm.extra_layers)
    return Shapes(model, extended, length, length)
  if files.random_model is None:
    model = _named(files.policy, files)
  else:
    tied, llama = files.random_model == "tied", files.random_model == "llama"
    model = files.computed(tiny_files.architecture(tied, llama))
  return Shapes(
    model,
    _prm_model(settings, files, model),
    files.prompt_tokens,
    files.prm_prompt_tokens,
  )


def _prm_model(
  settings: Settings, files: FilesSettings, model: ModelConfig
) -> ModelConfig | None:
  """The PRM's architecture: a named one, or what is trained of the policy."""
  named = files.prm or files.prm_architecture
  if named is not None and files.random_model is None:
    return _named(named, files)
  if settings.rl.reward_mode == "vr" and files.judged is None:
    return None
  return prm.extend_config(model, settings.prm.extra_layers)


def _named(name: str, files: FilesSettings) -> ModelConfig:
  """The architecture of a name in `ARCHITECTURES`, or of a folder."""
  model = ARCHITECTURES.get(name)
  if model is None:
    model = huggingface.read_config(name).model
  return files.computed(model)


@dataclasses.dataclass(frozen=True)
class Layouts:
  """Where the models of a step live, on the same devices.

  Attributes:
    training: of the policy and its optimizer, and of the rows.
    rollout: of the policy's copy that samples.
    reference: of the reference policy.
    prm: of the PRM.
  """

  training: Layout
  rollout: Layout
  reference: Layout
  prm: Layout

  @property
  def row_shards(self) -> int:
    """Parts that must divide the rows of a micro-batch."""
    others = (self.training, self.reference, self.prm)
    return math.lcm(*(layout.row_shards for layout in others))

  def __str__(self) -> str:
    words = f"training: {self.training}"
    for name in ("rollout", "reference", "prm"):
      if getattr(self, name) != self.training:
        words += f"; {name}: {getattr(self, name)}"
    return words


@dataclasses.dataclass(frozen=True)
class Stage:
  """A jitted function and what it is called with.

  Attributes:
    name: "reshard", "rollout", "score" or "update".
    function: as `pure_jax.training` makes it.
    arguments: abstract.
  """

  name: str
  function: Callable[..., Any]
  arguments: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Resident:
  """Bytes that a device holds of weights and optimizer, by part.

  Attributes:
    parameters: of the policy in training.
    optimizer: its moments.
    reference: weights of the reference policy.
    prm: weights of the PRM.
    sampler: weights of the copy that samples, there while it does; 0 where
      it is no copy.
  """

  parameters: int
  optimizer: int
  reference: int
  prm: int
  sampler: int

  @property
  def total(self) -> int:
    """What is there during the whole step: all but the sampler."""
    return self.parameters + self.optimizer + self.reference + self.prm


def _table(vocab_size: int) -> SeparatorTable:
  """A table of the right size: which ids end steps changes no cost."""
  none = np.zeros(vocab_size, bool)
  return SeparatorTable(
    ends_step=none,
    half=none,
    stem=np.zeros(vocab_size, np.int32),
    has_stem=none,
    score_id=np.int32(2),
    eos_id=np.int32(1),
    pad_id=np.int32(0),
  )


class Programs:
  """The compiled functions of one RL step, ready to be lowered."""

  def __init__(
    self,
    settings: Settings,
    shapes: Shapes,
    layouts: Layouts,
    micro_batches: int,
  ):
    """Builds nothing yet.

    Args:
      settings: the run's; its meshes and micro-batches are not read.
      shapes: its models and batches.
      layouts: devices and rules.
      micro_batches: parts in which a batch is scored and differentiated.
    """
    self._settings, self._shapes, self._layouts = settings, shapes, layouts
    self._parts = micro_batches
    self._rows = settings.rl.prompts * settings.rl.samples_per_prompt
    self._table = _table(shapes.model.vocab_size)
    self._optimizer = make_optimizer(settings.rl.optim)
    rl = settings.rl
    self._sampler = SamplingConfig(
      max_new_tokens=rl.max_new_tokens,
      pad_id=int(self._table.pad_id),
      stop_ids=(int(self._table.eos_id),),
      temperature=rl.temperature,
      top_p=rl.top_p,
      top_k=rl.top_k,
    )
    self._declared = policy.declare_policy(shapes.model)
    self._params = weights.abstract_params(self._declared)
    self._prm_declared = None
    if shapes.prm_model is not None:
      self._prm_declared = prm.declare_prm(shapes.prm_model)

  def _copy(self, declared: Any, model: ModelConfig, target: Layout) -> Any:
    """(function, weights) of a copy in the compute dtype."""
    training = self._layouts.training
    function = train.make_compute_copy(declared, model, training, target)
    params = weights.abstract_params(declared)
    return function, jax.eval_shape(function, params)

  def stages(self) -> list[Stage]:
    """Rollout, score and update, and the reshard before them if there is one.

    Returns:
      The stages, in their order.
    """
    rl, model, layouts = self._settings.rl, self._shapes.model, self._layouts
    reshard, sampler = self._copy(self._declared, model, layouts.rollout)
    rollout = train.make_generate(
      model,
      self._sampler,
      rl.samples_per_prompt,
      layouts.rollout,
      layouts.training,
      self._rows // rl.rollout_parts,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    asked = (sampler, _prompts(rl.prompts, self._shapes.prompt_tokens), key)
    sampled = jax.eval_shape(rollout, *asked)
    scoring = self._score(sampled)
    scores = jax.eval_shape(scoring.function, *scoring.arguments)
    found = [Stage("rollout", rollout, asked), scoring]
    if hasattr(reshard, "lower"):  # Else the weights themselves are read.
      found.insert(0, Stage("reshard", reshard, (self._params,)))
    return [*found, self._update(sampled, scores)]

  def _score(self, sampled: Any) -> Stage:
    """The second stage."""
    rl, shapes, layouts = self._settings.rl, self._shapes, self._layouts
    function = score.make_score(
      shapes.model,
      shapes.prm_model,
      self._sampler,
      rl.score_config(self._settings.prm.separator),
      self._table,
      layouts.training,
      self._rows // self._parts,
      reference_layout=layouts.reference,
      prm_layout=layouts.prm,
    )
    _, reference = self._copy(self._declared, shapes.model, layouts.reference)
    judge = None
    if self._prm_declared is not None:
      _, judge = self._copy(self._prm_declared, shapes.prm_model, layouts.prm)
    prompts = _prompts(self._rows, shapes.prm_prompt_tokens)
    arguments = (self._params, reference, judge, sampled, prompts)
    return Stage("score", function, arguments)

  def _update(self, sampled: Any, scores: Any) -> Stage:
    """The third stage."""
    rl = self._settings.rl
    function = train.make_update(
      self._shapes.model,
      self._sampler,
      rl.credit_config(),
      rl.loss_config(),
      self._optimizer,
      self._table,
      self._layouts.training,
      self._parts,
    )
    state = jax.eval_shape(
      lambda p: train.new_state(p, self._optimizer), self._params
    )
    verdicts = (Array((self._rows,), jnp.float32), Array((self._rows,), bool))
    return Stage("update", function, (state, sampled, scores, *verdicts))

  def resident(self) -> Resident:
    """What a device holds of weights and optimizer, from their shardings.

    Returns:
      Bytes of one device, without the padding of tiles.
    """
    layouts, model = self._layouts, self._shapes.model
    state = jax.eval_shape(
      lambda p: train.new_state(p, self._optimizer), self._params
    )
    places = train.state_shardings(
      self._declared, self._optimizer, layouts.training
    )

    def held_copy(declared, model, layout):
      _, params = self._copy(declared, model, layout)
      return _bytes_held(params, weight_shardings(declared, layout))

    reshard, _ = self._copy(self._declared, model, layouts.rollout)
    judge = 0
    if self._prm_declared is not None:
      judge = held_copy(self._prm_declared, self._shapes.prm_model, layouts.prm)
    return Resident(
      parameters=_bytes_held(state.params, places.params),
      optimizer=_bytes_held(state.opt_state, places.opt_state),
      reference=held_copy(self._declared, model, layouts.reference),
      prm=judge,
      sampler=(
        held_copy(self._declared, model, layouts.rollout)
        if hasattr(reshard, "lower")
        else 0
      ),
    )


def _prompts(rows: int, length: int) -> Prompts:
  """Abstract prompts."""
  return Prompts(Array((rows, length), jnp.int32), Array((rows, length), bool))


def _bytes_held(arrays: Any, places: Any) -> int:
  """Bytes of a tree that one device holds."""
  held = jax.tree.map(
    lambda array, place: (
      math.prod(place.shard_shape(array.shape)) * array.dtype.itemsize
    ),
    arrays,
    places,
  )
  return sum(jax.tree.leaves(held))
