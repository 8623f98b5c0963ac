"""The programs of one RL step as abstract arrays and jitted functions.

Nothing is allocated: weights, optimizer state, prompts and rollouts are
`jax.ShapeDtypeStruct`s, and a function is lowered for devices that need not be
there. `plan.py` compiles what this gives.
"""

import dataclasses
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
from run_settings import FilesSettings, Settings

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
  """
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
    model = _with_dtypes(tiny_files.architecture(tied, llama), files)
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
  return _with_dtypes(model, files)


def _with_dtypes(model: ModelConfig, files: FilesSettings) -> ModelConfig:
  """An architecture as the run computes it."""
  return dataclasses.replace(
    model,
    compute_dtype=files.compute_dtype,
    param_dtype=files.param_dtype,
    remat=files.remat,
    attention_chunk=files.attention_chunk,
  )


@dataclasses.dataclass(frozen=True)
class Stage:
  """A jitted function and what it is called with.

  Attributes:
    name: "rollout", "score" or "update".
    function: as `pure_jax.training` makes it.
    arguments: abstract.
  """

  name: str
  function: Callable[..., Any]
  arguments: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Resident:
  """Bytes that a device holds during the whole step, by part.

  Attributes:
    parameters: of the policy.
    optimizer: its moments.
    reference: weights of the reference policy.
    prm: weights of the PRM.
  """

  parameters: int
  optimizer: int
  reference: int
  prm: int

  @property
  def total(self) -> int:
    """All of them."""
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


def stages(
  settings: Settings, shapes: Shapes, layout: Layout, micro_batches: int
) -> list[Stage]:
  """The compiled functions of one RL step, ready to be lowered.

  Args:
    settings: the run's; its mesh and micro-batches are not read.
    shapes: its models and batches.
    layout: devices and rules.
    micro_batches: parts in which a batch is scored and differentiated.

  Returns:
    Rollout, score and update.
  """
  rl, model = settings.rl, shapes.model
  rows = rl.prompts * rl.samples_per_prompt
  table = _table(model.vocab_size)
  optimizer = make_optimizer(rl.optim)
  sampler = SamplingConfig(
    max_new_tokens=rl.max_new_tokens,
    pad_id=int(table.pad_id),
    stop_ids=(int(table.eos_id),),
    temperature=rl.temperature,
    top_p=rl.top_p,
    top_k=rl.top_k,
  )
  declared = policy.declare_policy(model)
  params = weights.abstract_params(declared)
  prm_params = None
  if shapes.prm_model is not None:
    prm_params = weights.abstract_params(prm.declare_prm(shapes.prm_model))

  rollout = train.make_generate(model, sampler, rl.samples_per_prompt, layout)
  key = jax.eval_shape(lambda: jax.random.key(0))
  asked = (params, _prompts(rl.prompts, shapes.prompt_tokens), key)
  sampled = jax.eval_shape(rollout, *asked)

  scoring = score.make_score(
    model,
    shapes.prm_model,
    sampler,
    rl.score_config(settings.prm.separator),
    table,
    layout,
    rows // micro_batches,
  )
  prm_prompts = _prompts(rows, shapes.prm_prompt_tokens)
  judged = (params, params, prm_params, sampled, prm_prompts)

  update = train.make_update(
    model,
    sampler,
    rl.credit_config(),
    rl.loss_config(),
    optimizer,
    table,
    layout,
    micro_batches,
  )
  state = jax.eval_shape(lambda p: train.new_state(p, optimizer), params)
  scores = jax.eval_shape(scoring, *judged)
  verdicts = (Array((rows,), jnp.float32), Array((rows,), bool))
  return [
    Stage("rollout", rollout, asked),
    Stage("score", scoring, judged),
    Stage("update", update, (state, sampled, scores, *verdicts)),
  ]


def _prompts(rows: int, length: int) -> Prompts:
  """Abstract prompts."""
  return Prompts(Array((rows, length), jnp.int32), Array((rows, length), bool))


def resident(settings: Settings, shapes: Shapes, layout: Layout) -> Resident:
  """What a device holds of weights and optimizer, from their shardings.

  Args:
    settings: the run's.
    shapes: its models.
    layout: devices and rules.

  Returns:
    Bytes of one device, without the padding of tiles.
  """
  optimizer = make_optimizer(settings.rl.optim)
  declared = policy.declare_policy(shapes.model)
  params = weights.abstract_params(declared)
  state = jax.eval_shape(lambda p: train.new_state(p, optimizer), params)
  places = train.state_shardings(declared, optimizer, layout)
  parameters = _bytes_held(params, places.params)
  judge = 0
  if shapes.prm_model is not None:
    declared = prm.declare_prm(shapes.prm_model)
    judge = _bytes_held(
      weights.abstract_params(declared), weight_shardings(declared, layout)
    )
  return Resident(
    parameters=parameters,
    optimizer=_bytes_held(state.opt_state, places.opt_state),
    reference=parameters,
    prm=judge,
  )


def _bytes_held(arrays: Any, places: Any) -> int:
  """Bytes of a tree that one device holds."""
  held = jax.tree.map(
    lambda array, place: int(
      np.prod(place.shard_shape(array.shape), dtype=np.int64)
      * array.dtype.itemsize
    ),
    arrays,
    places,
  )
  return sum(jax.tree.leaves(held))
