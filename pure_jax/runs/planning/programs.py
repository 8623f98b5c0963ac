"""The programs of one RL step as abstract arrays and jitted functions.

Nothing is allocated: weights, optimizer state, prompts and rollouts are
`jax.ShapeDtypeStruct`s, and a function is lowered for devices that need not be
there. `plan.py` compiles what this gives.
"""

import dataclasses
import math
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pure_jax.host import huggingface
from pure_jax.host.data.world import dataset
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel.sharding import Layout, replicated, weight_shardings
from pure_jax.rollout.slots import as_rollout, no_results
from pure_jax.runs import rl_functions, rl_weights
from pure_jax.runs.planning.execution_plan import Way
from pure_jax.runs.planning.stages import EngineStage, Stage
from pure_jax.runs.settings.architectures import ARCHITECTURES
from pure_jax.runs.settings.files import FilesSettings
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.runs.settings.run import ConfigError, Settings
from pure_jax.runs.spec import RunSpec, make_sampler
from pure_jax.runs.tasks import arithmetic, tiny_files
from pure_jax.training import train
from pure_jax.training.optim import make_optimizer
from pure_jax.training.score import ScoredBatch, make_score
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
      tokenizer = dataset.world_tokenizer(
        world, pathlib.Path(folder) / "tokenizer.model"
      )
    model = settings.model.architecture(tokenizer.vocab_size)
    length = arithmetic.prompt_tokens(world)
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
  if settings.rl.reward_mode == "vr" and files.labelled is None:
    return None
  return prm.extend_config(model, settings.prm.extra_layers)


def _named(name: str, files: FilesSettings) -> ModelConfig:
  """The architecture of a name in `ARCHITECTURES`, or of a folder."""
  model = ARCHITECTURES.get(name)
  if model is None:
    model = huggingface.read_config(name).model
  return files.computed(model)


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


def _planned_spec(settings: Settings, shapes: Shapes, way: Way) -> RunSpec:
  """A run whose texts are all at their longest: each has a row of its own."""
  rl = dataclasses.replace(
    settings.rl,
    micro_batches=way.micro_batches,
    rollout_parts=way.rollout_parts,
    rollout_rows=way.rollout_rows,
    rollout_mesh=None,
    reference_mesh=None,
    prm_mesh=None,
    length_buckets=1,
    packed_tokens=None,
  )
  table = _table(shapes.model.vocab_size)
  return RunSpec(
    settings=dataclasses.replace(settings, mesh=MeshSettings(), rl=rl),
    model=shapes.model,
    prm_model=shapes.prm_model,
    prompt_tokens=shapes.prompt_tokens,
    prm_prompt_tokens=shapes.prm_prompt_tokens,
    table=table,
    sampler=make_sampler(rl, int(table.pad_id), int(table.eos_id)),
    stops=None,
    layouts=way.layouts,
  )


class Programs:
  """The compiled functions of one RL step, ready to be lowered."""

  def __init__(self, settings: Settings, shapes: Shapes, way: Way):
    """Makes the functions of a run, as the run itself does.

    Args:
      settings: the run's; its meshes and parts are not read.
      shapes: its models and batches.
      way: layouts and parts.
    """
    self._shapes, self._layouts, self._way = shapes, way.layouts, way
    self._spec = _planned_spec(settings, shapes, way)
    self._optimizer = make_optimizer(settings.rl.optim)
    self._for_rollout = rl_weights.make_rollout_copy(
      self._spec, rl_weights.trained_weights(self._spec)
    )
    self._generate = rl_functions.make_generate(
      self._spec, self._spec.sampler, settings.rl.samples_per_prompt
    )
    self._score = make_score(self._spec.step)
    self._update = train.make_update(self._spec.step, self._optimizer)
    self._declared = policy.declare_policy(shapes.model)
    self._params = weights.abstract_params(self._declared)
    self._prm_declared = None
    if shapes.prm_model is not None:
      self._prm_declared = prm.declare_prm(shapes.prm_model)

  def _copy(self, declared: Any, model: ModelConfig, target: Layout) -> Any:
    """Weights of a copy in the compute dtype."""
    training = self._layouts.training
    function = train.make_compute_copy(declared, model, training, target)
    return jax.eval_shape(function, weights.abstract_params(declared))

  def _is_copied(self) -> bool:
    """Whether the sampler has weights of its own."""
    return hasattr(self._for_rollout, "lower")

  @property
  def rows_at_a_time(self) -> int:
    """Rows that are drawn together."""
    rl = self._spec.settings.rl
    return self._way.rows_at_a_time(rl.prompts, rl.samples_per_prompt)

  def stages(self) -> list[Stage | EngineStage]:
    """Rollout, score and update, and the reshard before them if there is one.

    Returns:
      The stages, in their order.
    """
    rl, shapes = self._spec.settings.rl, self._shapes
    rows = rl.prompts * rl.samples_per_prompt
    sampler = jax.eval_shape(self._for_rollout, self._params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    asked = (sampler, _prompts(rl.prompts, shapes.prompt_tokens), key)
    sampled = jax.eval_shape(
      lambda prompts: as_rollout(prompts, no_results(rows, self._spec.sampler)),
      asked[1],
    )
    prm_prompts = _prompts(rows, shapes.prm_prompt_tokens)
    labelled = (self._params, *self._frozen(), sampled, prm_prompts)
    scores, _ = jax.eval_shape(self._score, *labelled)
    verdicts = (Array((rows,), jnp.float32), Array((rows,), bool))
    batch = ScoredBatch(sampled, scores, *verdicts)
    differentiated = (self._state(), batch, {})
    found = [
      self._rollout(asked),
      Stage("score", self._score, labelled),
      Stage("update", self._update, differentiated),
    ]
    if self._is_copied():  # Else the weights themselves are read.
      found.insert(0, Stage("reshard", self._for_rollout, (self._params,)))
    return found

  def _rollout(self, asked: tuple[Any, Prompts, Any]) -> Stage | EngineStage:
    """One compiled loop, or the parts of rows that take turns."""
    generate, rl = self._generate, self._spec.settings.rl
    if rl.rollout_rows is None:
      return Stage("rollout", generate, asked)
    layout, samples = self._layouts.rollout, rl.samples_per_prompt
    declared = policy.declare_policy(self._spec.rollout_model)
    everywhere = replicated(layout)
    placed = (
      jax.tree.map(_in_place, asked[0], weight_shardings(declared, layout)),
      *jax.tree.map(lambda x: _in_place(x, everywhere), asked[1:]),
    )
    engine = generate.__self__
    return EngineStage(
      "rollout",
      engine.parts(),
      placed,
      prompts=self.rows_at_a_time // samples,
      samples=samples,
      shards=layout.row_shards,
      new_tokens=rl.max_new_tokens,
      chunk=rl.rollout_chunk,
      ring_slots=engine.ring_slots,
    )

  def _frozen(self) -> tuple[Any, Any]:
    """Reference and PRM, abstract."""
    shapes, layouts = self._shapes, self._layouts
    reference = self._copy(self._declared, shapes.model, layouts.reference)
    if self._prm_declared is None:
      return reference, None
    judge = self._copy(self._prm_declared, shapes.prm_model, layouts.prm)
    return reference, judge

  def _state(self) -> train.TrainState:
    """The state, abstract."""
    return jax.eval_shape(
      lambda p: train.new_state(p, self._optimizer), self._params
    )

  def resident(self) -> Resident:
    """What a device holds of weights and optimizer, from their shardings.

    Returns:
      Bytes of one device, without the padding of tiles.
    """
    layouts = self._layouts
    state = self._state()
    places = train.state_shardings(
      self._declared, self._optimizer, layouts.training
    )
    reference, judge = self._frozen()
    held = {
      "reference": _bytes_held(
        reference, weight_shardings(self._declared, layouts.reference)
      ),
      "prm": 0,
      "sampler": 0,
    }
    if judge is not None:
      where = weight_shardings(self._prm_declared, layouts.prm)
      held["prm"] = _bytes_held(judge, where)
    if self._is_copied():
      sampled = policy.declare_policy(self._spec.rollout_model)
      where = weight_shardings(sampled, layouts.rollout)
      copy = jax.eval_shape(self._for_rollout, self._params)
      held["sampler"] = _bytes_held(copy, where)
    return Resident(
      parameters=_bytes_held(state.params, places.params),
      optimizer=_bytes_held(state.opt_state, places.opt_state),
      **held,
    )


def _in_place(x: Array, place: Any) -> Array:
  """An abstract array that says where it is."""
  return Array(x.shape, x.dtype, sharding=place)


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
