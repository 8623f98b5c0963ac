"""The programs of one RL step and their abstract arguments.

Nothing is allocated. Weights, optimizer state, prompts and rollouts are
`jax.ShapeDtypeStruct`s, and programs are lowered for devices that need not be
there. `compiler.py` compiles what this module makes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel.sharding import Layout, replicated, weight_shardings
from pure_jax.rollout.engine import Engine
from pure_jax.rollout.generation import empty_completions, to_rollout
from pure_jax.runs import rl_functions, rl_weights
from pure_jax.runs.planning import estimates
from pure_jax.runs.planning.estimates import Estimates
from pure_jax.runs.spec import RunSpec
from pure_jax.training import train, weight_copies
from pure_jax.training.optim import make_optimizer
from pure_jax.training.score import ScoredBatch
from pure_jax.types import Prompts, Rollout

Array = jax.ShapeDtypeStruct

# Stages that depend on how rollouts are sampled, and stages that do not.
ROLLOUT_STAGES = ("reshard", "rollout")
TRAINING_STAGES = ("score", "update")


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage of the step that is one jitted function.

  Attributes:
    name: "reshard", "rollout", "score" or "update".
    function: the jitted function.
    arguments: its abstract arguments.
    estimates: closed-form estimates.
  """

  name: str
  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  estimates: Estimates


@dataclasses.dataclass(frozen=True)
class EngineStage:
  """A rollout with continuous batching, which is several jitted functions.

  Attributes:
    name: "rollout".
    engine: the engine with its jitted functions.
    arguments: params, prompts and key, abstract and with shardings.
    estimates: closed-form estimates.
  """

  name: str
  engine: Engine
  arguments: tuple[Any, Prompts, Any]
  estimates: Estimates


@dataclasses.dataclass(frozen=True)
class Resident:
  """Bytes of weights and optimizer state that a device holds.

  Attributes:
    parameters: bytes of the policy's weights in training.
    optimizer: bytes of the optimizer's moments.
    reference: bytes of the reference policy's weights.
    prm: bytes of the PRM's weights; 0 in a run without a PRM.
    sampler: bytes of the copy of the policy that samples. It exists only
      while it samples; 0 if the sampler reads the weights in training.
  """

  parameters: int
  optimizer: int
  reference: int
  prm: int
  sampler: int

  @property
  def frozen(self) -> int:
    """Bytes of weights that are not trained."""
    return self.reference + self.prm

  @property
  def total(self) -> int:
    """Bytes that are in memory during the whole step: all but the sampler."""
    return self.parameters + self.optimizer + self.frozen


class Programs:
  """The programs of one RL step, ready to be lowered."""

  def __init__(self, spec: RunSpec):
    """Makes the programs as a run makes them.

    Args:
      spec: the run's specification.
    """
    self._spec = spec
    self._optimizer = make_optimizer(spec.settings.rl.optim)
    self._functions = rl_functions.compile_functions(spec, self._optimizer)
    self._policy = policy.declare_policy(spec.model)
    self._copies_weights = rl_weights.needs_rollout_copy(spec, self._policy)
    self._params = weights.abstract_params(self._policy)

  def stages(self) -> list[Stage | EngineStage]:
    """Lists the stages of the step.

    Returns:
      Reshard if the sampler has its own weights, rollout, score and update.
    """
    spec, functions = self._spec, self._functions
    flops, held = estimates.model_flops(spec), self.resident
    prompts = _prompts(spec.settings.rl.prompts, spec.prompt_tokens)
    rollout = _rollout(spec, prompts)
    prm_prompts = _prompts(spec.responses, spec.prm_prompt_tokens)
    score_arguments = (self._params, *self._frozen(), rollout, prm_prompts)
    # Without packing there is one shape of rows, None.
    score, update = functions.scores[None], functions.updates[None]
    scores, _ = jax.eval_shape(score, *score_arguments)
    correct = Array((spec.responses,), jnp.float32)
    has_answer = Array((spec.responses,), bool)
    batch = ScoredBatch(rollout, scores, correct, has_answer)
    stages = [
      self._rollout_stage(prompts, flops.rollout),
      Stage(
        "score",
        score,
        score_arguments,
        Estimates(flops.score, held.optimizer),
      ),
      Stage(
        "update",
        update,
        (self._state(), batch, {}),  # No weights below adapters.
        Estimates(
          flops.update,
          held.frozen,
          kept_bytes=estimates.kept_bytes(spec),
        ),
      ),
    ]
    if self._copies_weights:
      reshard = Stage(
        "reshard",
        functions.for_rollout,
        (self._params,),
        Estimates(0, held.optimizer + held.frozen),
      )
      stages.insert(0, reshard)
    return stages

  def _rollout_stage(
    self, prompts: Prompts, model_flops: int
  ) -> Stage | EngineStage:
    """The rollout: one compiled loop, or an engine's programs."""
    spec, functions, held = self._spec, self._functions, self.resident
    rl = spec.settings.rl
    engine = rl_functions.make_engine(spec, spec.sampler, rl.samples_per_prompt)
    waiting = held.optimizer + held.frozen
    if self._copies_weights:
      waiting += held.parameters
    if engine is None:
      rows = spec.responses // rl.rollout.batches
    else:
      num_starting = engine.spec.num_starting_prompts(rl.prompts)
      rows = num_starting * rl.samples_per_prompt
    known = Estimates(model_flops, waiting, estimates.cache_bytes(spec, rows))
    params = jax.eval_shape(functions.for_rollout, self._params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    if engine is None:
      return Stage("rollout", functions.generate, (params, prompts, key), known)
    # An engine's functions take the shardings of their arguments.
    arguments = (
      with_shardings(
        params, weight_shardings(self._sampled(), spec.layouts.rollout)
      ),
      *with_shardings((prompts, key), replicated(spec.layouts.rollout)),
    )
    return EngineStage("rollout", engine, arguments, known)

  @functools.cached_property
  def resident(self) -> Resident:
    """Bytes of weights and optimizer state on a device, by their shardings."""
    layouts, functions = self._spec.layouts, self._functions
    state = with_shardings(
      self._state(),
      train.state_shardings(self._policy, self._optimizer, layouts.training),
    )
    reference, prm_params = self._frozen()
    sampler = ()
    if self._copies_weights:
      sampler = with_shardings(
        jax.eval_shape(functions.for_rollout, self._params),
        weight_shardings(self._sampled(), layouts.rollout),
      )
    return Resident(
      parameters=device_bytes(state.params),
      optimizer=device_bytes(state.opt_state),
      reference=device_bytes(reference),
      prm=device_bytes(prm_params),
      sampler=device_bytes(sampler),
    )

  def _sampled(self) -> Any:
    """Declared weights of the model that samples."""
    return policy.declare_policy(self._spec.rollout_model)

  def _state(self) -> train.TrainState:
    """The abstract training state."""
    return jax.eval_shape(
      lambda params: train.new_state(params, self._optimizer), self._params
    )

  def _frozen(self) -> tuple[Any, Any | None]:
    """Abstract weights of the reference and of the PRM, if there is one."""
    spec, layouts = self._spec, self._spec.layouts
    reference = _compute_copy(
      self._policy, spec.model, layouts.training, layouts.reference
    )
    if spec.prm_model is None:
      return reference, None
    declared = prm.declare_prm(spec.prm_model)
    return reference, _compute_copy(
      declared, spec.prm_model, layouts.training, layouts.prm
    )


def _compute_copy(
  declared: Any, model: ModelConfig, source: Layout, target: Layout
) -> Any:
  """Abstract weights in the compute dtype, in the target's layout."""
  copy = weight_copies.make_compute_copy(declared, model, source, target)
  return with_shardings(
    jax.eval_shape(copy, weights.abstract_params(declared)),
    weight_shardings(declared, target),
  )


def _prompts(rows: int, length: int) -> Prompts:
  """Abstract prompts."""
  return Prompts(Array((rows, length), jnp.int32), Array((rows, length), bool))


def _rollout(spec: RunSpec, prompts: Prompts) -> Rollout:
  """The abstract rollout of a batch."""
  return jax.eval_shape(
    lambda prompts: to_rollout(
      prompts, empty_completions(spec.responses, spec.sampler)
    ),
    prompts,
  )


def with_shardings(arrays: Any, shardings: Any) -> Any:
  """Gives abstract arrays their shardings.

  Args:
    arrays: tree of abstract arrays.
    shardings: the same tree of shardings, or one sharding for all.

  Returns:
    The tree of abstract arrays with shardings.
  """
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, arrays)
  return jax.tree.map(
    lambda x, sharding: Array(x.shape, x.dtype, sharding=sharding),
    arrays,
    shardings,
  )


def device_bytes(arrays: Any) -> int:
  """Counts the bytes of abstract arrays that one device holds.

  Args:
    arrays: tree of abstract arrays with shardings.

  Returns:
    The bytes, without the padding of tiles.
  """
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(arrays)
  )
