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

from pure_jax.models import critic, policy, prm
from pure_jax.models import params as weights
from pure_jax.parallel.sharding import replicated, weight_shardings
from pure_jax.rollout.engine import Engine
from pure_jax.rollout.generation import empty_completions, to_rollout
from pure_jax.runs.planning import estimates
from pure_jax.runs.planning.estimates import Estimates
from pure_jax.runs.rl import weights as rl_weights
from pure_jax.runs.rl.functions import make_engine, make_functions
from pure_jax.runs.spec import RunSpec
from pure_jax.training import train, weight_copies
from pure_jax.training.optim import make_optimizer
from pure_jax.training.score import PRMTexts, ScoredBatch
from pure_jax.types import PRMInputs, Prompts

Array = jax.ShapeDtypeStruct

# Stages that depend on how rollouts are sampled, and stages that do not.
ROLLOUT_STAGES = ("reshard", "rollout")
TRAINING_STAGES = ("score", "values", "critic", "update")


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage of the step.

  Attributes:
    name: one of `ROLLOUT_STAGES` and `TRAINING_STAGES`.
    function: the jitted function; for a rollout with continuous batching the
      engine, which has several.
    arguments: abstract arguments; those of an engine have shardings.
    estimates: closed-form estimates.
  """

  name: str
  function: Callable[..., Any] | Engine
  arguments: tuple[Any, ...]
  estimates: Estimates


@dataclasses.dataclass(frozen=True)
class Resident:
  """Bytes of weights and optimizer state that a device holds.

  Attributes:
    parameters: the policy's weights in training.
    optimizer: the optimizer's moments.
    reference: the reference policy's weights.
    prm: the PRM's weights; 0 in a run without a PRM.
    sampler: the copy of the policy that samples, which exists only while it
      samples; 0 if the sampler reads the weights in training.
    critic: the critic's weights; 0 in a run without a critic.
    critic_optimizer: the moments of the critic's optimizer.
  """

  parameters: int
  optimizer: int
  reference: int
  prm: int
  sampler: int
  critic: int = 0
  critic_optimizer: int = 0

  @property
  def frozen(self) -> int:
    """Bytes of weights that are not trained."""
    return self.reference + self.prm

  @property
  def total(self) -> int:
    """Bytes that are in memory during the whole step: all but the sampler."""
    return self.parameters + self.waiting

  @property
  def waiting(self) -> int:
    """Bytes of all but the policy's weights and the sampler."""
    critic = self.critic + self.critic_optimizer
    return self.optimizer + self.frozen + critic


class Programs:
  """The programs of one RL step, made as a run makes them."""

  def __init__(self, spec: RunSpec):
    self._spec = spec
    self._policy = policy.declare_policy(spec.model)
    self._optimizer = make_optimizer(spec.settings.rl.optim, self._policy)
    self._functions = make_functions(spec, self._optimizer)
    self._copies_weights = rl_weights.needs_rollout_copy(spec, self._policy)
    self._params = weights.abstract_params(self._policy)
    self._critic = critic.declare_critic(spec.model)
    self._critic_optimizer = rl_weights.critic_optimizer(spec)

  def stages(self) -> list[Stage]:
    """Lists the stages of a step in their order.

    They are reshard if the sampler has its own weights, rollout, score, with a
    critic values and critic (its update), and update.
    """
    spec, functions = self._spec, self._functions
    rollout_flops, score_flops, update_flops = estimates.model_flops(spec)
    held = self.resident
    prompts = _prompts(spec.settings.rl.prompts, spec.prompt_tokens)
    rollout = jax.eval_shape(
      lambda prompts: to_rollout(
        prompts, empty_completions(spec.responses, spec.sampler)
      ),
      prompts,
    )
    score_arguments = (
      *(self._params, *self._frozen()),
      *(rollout, _prm_texts(spec)),
    )
    # Without packing there is one shape of rows, None.
    score, update = functions.scores[None], functions.updates[None]
    scores, _ = jax.eval_shape(score, *score_arguments)
    correct = Array((spec.responses,), jnp.float32)
    has_answer = Array((spec.responses,), bool)
    order = None
    if spec.mini_batch_order(1) is not None:
      order = Array((spec.responses, spec.step.epochs), jnp.int32)
    batch = ScoredBatch(rollout, scores, correct, has_answer, order)
    stages = [self._rollout_stage(prompts, rollout_flops)]
    of_score = Estimates(score_flops, held.waiting - held.frozen)
    stages.append(Stage("score", score, score_arguments, of_score))
    if spec.settings.rl.trains_critic:
      values, update_critic = self._critic_stages(batch)
      stages += [values, update_critic]
      batch = update_critic.arguments[1]
    of_update = Estimates(
      update_flops,
      held.waiting - held.optimizer,
      kept_bytes=estimates.kept_bytes(spec),
    )
    # No weights below adapters.
    arguments = (self._state(), batch, {})
    stages.append(Stage("update", update, arguments, of_update))
    if self._copies_weights:
      of_reshard = Estimates(0, held.waiting)
      arguments = (self._params,)
      stages.insert(
        0, Stage("reshard", functions.for_rollout, arguments, of_reshard)
      )
    return stages

  def _critic_stages(self, batch: ScoredBatch) -> tuple[Stage, Stage]:
    """The critic's values of the rollout, and its update."""
    spec, functions, held = self._spec, self._functions, self.resident
    values_flops, update_flops = estimates.critic_flops(spec)
    state = self._critic_state()
    values = functions.critic_values[None]
    arguments = (state.params, {}, batch.rollout)  # No weights below adapters.
    of_values = Estimates(values_flops, held.total - held.critic)
    of_update = Estimates(
      update_flops,
      held.total - held.critic - held.critic_optimizer,
      kept_bytes=estimates.kept_bytes(spec),
    )
    batch = batch.replace(values=jax.eval_shape(values, *arguments))
    update, kl_coef = functions.critic_updates[None], self._state().kl_coef
    return (
      Stage("values", values, arguments, of_values),
      Stage("critic", update, (state, batch, {}, kl_coef), of_update),
    )

  def _rollout_stage(self, prompts: Prompts, model_flops: int) -> Stage:
    """The rollout: one compiled loop, or an engine's programs."""
    spec, held, rl = self._spec, self.resident, self._spec.settings.rl
    engine = make_engine(spec, spec.sampler, rl.samples_per_prompt)
    waiting = held.waiting
    if self._copies_weights:
      waiting += held.parameters
    inputs = prompts, jax.eval_shape(lambda: jax.random.key(0))
    if engine is None:
      rows = spec.responses // rl.rollout.batches
    else:
      num_starting = engine.spec.num_starting_prompts(rl.prompts)
      rows = num_starting * rl.samples_per_prompt
      # An engine's functions take the shardings of their arguments.
      inputs = with_shardings(inputs, replicated(spec.layouts.rollout))
    return Stage(
      "rollout",
      engine or self._functions.generate,
      (self._sampler(), *inputs),
      Estimates(model_flops, waiting, estimates.cache_bytes(spec, rows)),
    )

  @functools.cached_property
  def resident(self) -> Resident:
    """Bytes of weights and optimizer state on a device, by their shardings."""
    state = with_shardings(
      self._state(),
      train.state_shardings(
        *(self._policy, self._optimizer, self._spec.layouts.training),
        has_kl_coef=self._spec.step.adaptive_kl is not None,
      ),
    )
    of_critic = None
    if self._spec.settings.rl.trains_critic:
      of_critic = with_shardings(
        self._critic_state(),
        train.state_shardings(
          self._critic, self._critic_optimizer, self._spec.layouts.training
        ),
      )
    reference, prm_params = self._frozen()
    return Resident(
      parameters=device_bytes(state.params),
      optimizer=device_bytes(state.opt_state),
      reference=device_bytes(reference),
      prm=device_bytes(prm_params),
      sampler=device_bytes(self._sampler()) if self._copies_weights else 0,
      critic=device_bytes(of_critic and of_critic.params),
      critic_optimizer=device_bytes(of_critic and of_critic.opt_state),
    )

  def _sampler(self) -> Any:
    """Abstract weights of the model that samples."""
    declared = policy.declare_policy(self._spec.rollout_model)
    return with_shardings(
      jax.eval_shape(self._functions.for_rollout, self._params),
      weight_shardings(declared, self._spec.layouts.rollout),
    )

  def _state(self) -> train.TrainState:
    """The abstract training state."""
    kl_coef = self._spec.settings.rl.first_kl_coef
    return jax.eval_shape(
      lambda params: train.new_state(params, self._optimizer, kl_coef),
      self._params,
    )

  def _critic_state(self) -> train.TrainState:
    """The abstract training state of the critic."""
    return jax.eval_shape(
      lambda params: train.new_state(params, self._critic_optimizer),
      weights.abstract_params(self._critic),
    )

  def _frozen(self) -> tuple[Any, Any | None]:
    """Abstract weights of the reference and of the PRM, if there is one."""
    spec, layouts = self._spec, self._spec.layouts

    def copy(declared, model, layout):
      make_copy = weight_copies.make_compute_copy
      cast = make_copy(declared, model, layouts.training, layout)
      return with_shardings(
        jax.eval_shape(cast, weights.abstract_params(declared)),
        weight_shardings(declared, layout),
      )

    reference = copy(self._policy, spec.model, layouts.reference)
    if spec.prm_model is None:
      return reference, None
    declared = prm.declare_prm(spec.prm_model)
    return reference, copy(declared, spec.prm_model, layouts.prm)


def _prm_texts(spec: RunSpec) -> PRMTexts:
  """Abstract prompts of the PRM, or its inputs, see `score.make_score`."""
  config, rows = spec.step.scoring, spec.responses
  if config.separator != "each":
    return _prompts(rows, spec.prm_prompt_tokens)
  tokens, steps = (rows, spec.prm_columns), (rows, config.max_steps)
  return PRMInputs(
    tokens=Array(tokens, jnp.int32),
    mask=Array(tokens, bool),
    score_position=Array(steps, jnp.int32),
    score_mask=Array(steps, bool),
    unread_mask=Array(steps, bool),
  )


def _prompts(rows: int, length: int) -> Prompts:
  """Abstract prompts."""
  return Prompts(Array((rows, length), jnp.int32), Array((rows, length), bool))


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
