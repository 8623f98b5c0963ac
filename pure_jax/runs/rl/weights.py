"""The weights of RL: trained weights, frozen weights, and their copies."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax
from flax import struct

from pure_jax.models import critic, lora, policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel.sharding import Layout
from pure_jax.runs.spec import RandomStream, RunSpec
from pure_jax.training import train, weight_copies
from pure_jax.training.optim import make_optimizer


@struct.dataclass
class RLState:
  """The states that RL trains.

  Attributes:
    policy: state of the policy.
    critic: state of the critic; None without one.
    prm: state of a PRM that is updated on rollouts; None if it is not.
  """

  policy: train.TrainState
  critic: train.TrainState | None = None
  prm: train.TrainState | None = None

  def to_checkpoint(self) -> Any:
    """The state that a checkpoint holds: alone, that of the policy."""
    alone = self.critic is None and self.prm is None
    return self.policy if alone else self

  @classmethod
  def from_checkpoint(cls, state: Any) -> "RLState":
    """The states of a checkpoint, as `to_checkpoint` gave them."""
    return state if isinstance(state, cls) else cls(state)


@dataclasses.dataclass(frozen=True)
class FrozenWeights:
  """Weights that an iteration reads and does not change, in the compute dtype.

  Attributes:
    reference: the policy RL starts from; the KL is measured against it.
    prm: the process reward model; None for outcome rewards only.
    first_prm: the PRM that RL starts from, if the PRM is updated on rollouts;
      else None.
    base: the policy's weights below its adapters, in the training layout; {}
      if RL trains all weights.
    rollout_base: the same in the layout and the precision of rollouts.
  """

  reference: Any
  prm: Any
  first_prm: Any = None
  base: dict[str, Any] = dataclasses.field(default_factory=dict)
  rollout_base: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def critic_base(self) -> dict[str, Any]:
    """The frozen base of the critic: the policy's base without the head."""
    return {name: x for name, x in self.base.items() if name != "head"}

  def policy(self, trained: Any) -> Any:
    """All weights of the policy; nothing is copied."""
    return lora.join_params(self.base, trained)

  def sampler(self, rollout_copy: Any) -> Any:
    """All weights to sample with; nothing is copied.

    Adapters are not merged into the base: in bfloat16 the sum would round away
    entries that are small compared with W, and the samples would come from
    another policy. The base also stays in its layout, so only adapters move.
    """
    return lora.join_params(self.rollout_base, rollout_copy)


def make_rollout_copy(
  spec: RunSpec, declared: dict[str, Any]
) -> Callable[[Any], Any]:
  """Makes the function that copies weights into the rollout layout.

  Args:
    spec: the run's specification.
    declared: declarations of the trained weights: those of a model, or only
      adapters, which keep their precision.
  """
  make = weight_copies.make_compute_copy
  if _is_int8(spec, declared):
    make = weight_copies.make_int8_copy
  layouts = spec.layouts
  return make(declared, spec.rl_model, layouts.training, layouts.rollout)


def needs_rollout_copy(spec: RunSpec, declared: dict[str, Any]) -> bool:
  """Whether rollouts need a copy of the weights, or read them as they are.

  Args:
    spec: the run's specification.
    declared: the weights, as they are trained.
  """
  layouts = spec.layouts
  return _is_int8(spec, declared) or weight_copies.needs_compute_copy(
    declared, spec.rl_model, layouts.training, layouts.rollout
  )


def _is_int8(spec: RunSpec, declared: dict[str, Any]) -> bool:
  """Whether rollouts read these weights in int8; adapters stay as they are."""
  return spec.rollout_model.int8_matrices and "embedding" in declared


def trained_weights(spec: RunSpec) -> dict[str, Any]:
  """Declares the weights that RL trains: all of the policy's, or its adapters.

  Args:
    spec: the run's specification.
  """
  model = spec.rl_model
  return lora.trained_and_frozen(policy.declare_policy(model), model)[0]


def start_state(
  spec: RunSpec,
  policy_params: Any,
  optimizer: optax.GradientTransformation,
  prm_params: Any = None,
) -> RLState:
  """Makes the states at step 0.

  The policy starts as a copy of `policy_params`, or with new adapters. The
  critic starts from the same weights, with a head of zeros and an optimizer of
  its own.

  Args:
    spec: the run's specification.
    policy_params: weights of the policy RL starts from.
    optimizer: the policy's optax transformation.
    prm_params: weights of the PRM; read only if RL updates it.
  """
  layout, is_lora = spec.layouts.training, spec.rl_model.lora is not None
  declared, value_state = trained_weights(spec), None
  kl_coef = spec.settings.rl.first_kl_coef
  if is_lora:
    init = train.make_init(declared, optimizer, layout, kl_coef)
    state = init(spec.key(RandomStream.POLICY_ADAPTERS))
  else:
    state = train.start_state(
      policy_params, declared, optimizer, layout, kl_coef
    )
  if spec.settings.rl.trains_critic:
    optimizer, (declared, _) = critic_optimizer(spec), critic_weights(spec)
    if is_lora:
      init = train.make_init(declared, optimizer, layout)
      value_state = init(spec.key(RandomStream.CRITIC_ADAPTERS))
    else:
      params = critic.init_critic_from_policy(policy_params, spec.model)
      value_state = train.start_state(params, declared, optimizer, layout)
  prm_state = None
  if spec.settings.rl.trains_prm:
    declared = prm.declare_prm(spec.prm_model)
    optimizer = online_prm_optimizer(spec)
    prm_state = train.start_state(prm_params, declared, optimizer, layout)
  return RLState(state, value_state, prm_state)


def online_prm_optimizer(spec: RunSpec) -> optax.GradientTransformation:
  """Makes the optimizer of the PRM's updates on rollouts.

  Args:
    spec: the run's specification.
  """
  declared = prm.declare_prm(spec.prm_model)
  return make_optimizer(spec.settings.rl.online_prm.optim, declared)


def critic_optimizer(spec: RunSpec) -> optax.GradientTransformation:
  """Makes the critic's optimizer.

  Args:
    spec: the run's specification.
  """
  return make_optimizer(spec.settings.rl.critic.optim, critic_weights(spec)[0])


def critic_weights(spec: RunSpec) -> tuple[dict[str, Any], dict[str, Any]]:
  """Declares the critic's weights: (trained, frozen).

  Args:
    spec: the run's specification.
  """
  model = spec.rl_model
  return critic.trained_and_frozen(critic.declare_critic(model), model)


def freeze(
  spec: RunSpec, policy_params: Any, prm_params: Any | None
) -> FrozenWeights:
  """Copies the policy RL starts from and the PRM into their layouts.

  Layouts that are equal share one copy.

  Args:
    spec: the run's specification.
    policy_params: weights of the policy RL starts from.
    prm_params: weights of the PRM; None without one.
  """
  model, layouts = spec.model, spec.layouts

  def copy(
    params: Any, declared: Any, model: ModelConfig, layout: Layout
  ) -> Any:
    """Weights in the compute dtype and another layout."""
    make = weight_copies.make_compute_copy
    return make(declared, model, layouts.training, layout)(params)

  prm_copy = None
  if prm_params is not None:
    declared = prm.declare_prm(spec.prm_model)
    prm_copy = copy(prm_params, declared, spec.prm_model, layouts.prm)
  declared = policy.declare_policy(model)
  is_lora = spec.rl_model.lora is not None
  is_int8 = spec.rollout_model.int8_matrices
  needed = [layouts.reference]
  if is_lora:
    needed.append(layouts.training)
  if is_lora and not is_int8:
    needed.append(layouts.rollout)
  copies = {
    layout: copy(policy_params, declared, model, layout)
    for layout in dict.fromkeys(needed)
  }
  reference = copies[layouts.reference]
  first_prm = prm_copy if spec.settings.rl.trains_prm else None
  if not is_lora:
    return FrozenWeights(reference, prm_copy, first_prm)
  if is_int8:
    rollout_base = make_rollout_copy(spec, declared)(policy_params)
  else:
    rollout_base = copies[layouts.rollout]
  return FrozenWeights(
    reference, prm_copy, first_prm, copies[layouts.training], rollout_base
  )
