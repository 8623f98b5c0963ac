"""The compiled functions of RL, and the weights it reads and never changes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from pure_jax.models import lora, policy, prm
from pure_jax.runs import row_lengths
from pure_jax.runs.spec import RandomStream, RunSpec
from pure_jax.training import int8_weights, rollouts, train


@dataclasses.dataclass(frozen=True)
class Functions:
  """The compiled functions of a run, as `pure_jax.training` makes them.

  `for_rollout` gives what is trained as the three `generate` functions take
  it: all weights, or the adapters, see `Frozen.sampler`. `score` is that of
  evaluations, `score_at` gives that of an iteration, by its number from 1.
  """

  for_rollout: Callable[..., Any]
  generate: Callable[..., Any]
  generate_greedy: Callable[..., Any]
  generate_held_out: Callable[..., Any]
  score: Callable[..., Any]
  score_at: Callable[[int], Callable[..., Any]]
  update: Callable[..., Any]


def compile_functions(
  spec: RunSpec, optimizer: optax.GradientTransformation
) -> Functions:
  """Builds the jit boundary from the run's settings."""
  rl = spec.settings.rl
  greedy = dataclasses.replace(
    spec.sampler, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0
  )
  plain = dataclasses.replace(greedy, temperature=1.0)
  layouts = spec.layouts

  def generate(sampler, group_size):
    return rollouts.make_generate(
      spec.rollout_model,
      sampler,
      group_size,
      layouts.rollout,
      spec.layouts.training,
      rl.prompts * rl.samples_per_prompt // rl.rollout_parts,
      stops=spec.stops,
      continuous=rl.continuous(),
    )

  score = row_lengths.make_score(spec)
  return Functions(
    for_rollout=_rollout_copy(spec, _trained(spec)),
    generate=generate(spec.sampler, rl.samples_per_prompt),
    generate_greedy=generate(greedy, 1),
    generate_held_out=generate(plain, 1),
    score=score,
    score_at=_iteration_scores(spec, score),
    update=row_lengths.make_update(spec, optimizer),
  )


def _iteration_scores(spec, score):
  """Iteration -> its stage 2, which reads the policy where that is due."""
  rl = spec.settings.rl
  if rl.old_logp == "score":
    return lambda step: score
  sampled, checked = (
    row_lengths.make_score(spec, kind) for kind in ("sampled", "checked")
  )
  every = rl.old_logp_check_every
  return lambda step: sampled if (step - 1) % every else checked


@dataclasses.dataclass(frozen=True)
class Frozen:
  """Weights that RL reads and never changes, as their products read them.

  Attributes:
    reference: the policy RL starts from, which the KL is measured to.
    prm: the process reward model, None in a run on verdicts alone.
    base: (the weights that adapters stand beside,), () where all weights are
      trained; the reference's own arrays in the same layout.
    rollout_base: the same in the layout of rollouts, as they read it.
  """

  reference: Any
  prm: Any
  base: tuple[Any, ...] = ()
  rollout_base: tuple[Any, ...] = ()

  def policy(self, params: Any) -> Any:
    """The policy's weights, of those that are trained; nothing is copied."""
    return lora.join_params(*self.base, params)

  def sampler(self, copy: Any) -> Any:
    """The weights to sample with, of what `Functions.for_rollout` gave.

    Adapters are not merged. In bfloat16 a sum would round away what is small
    beside W: the samples would be those of another policy. And the base is in
    its place once and for all, with adapters alone to move.
    """
    return lora.join_params(*self.rollout_base, copy)


def _rollout_copy(spec, declared):
  """Weights -> what rollouts read of them; of adapters, as they are."""
  make = train.make_compute_copy
  if spec.rollout_model.int8_matrices and "embedding" in declared:
    make = int8_weights.make_int8_copy
  return make(
    declared, spec.rl_model, spec.layouts.training, spec.layouts.rollout
  )


def _trained(spec: RunSpec) -> Any:
  """Declarations of what RL trains."""
  model = spec.rl_model
  return lora.trained_and_frozen(policy.declare_policy(model), model)[0]


def start_state(
  spec: RunSpec,
  policy_params: Any,
  optimizer: optax.GradientTransformation,
) -> train.TrainState:
  """The state at step 0: a copy of the policy, or new adapters."""
  declared = _trained(spec)
  if spec.rl_model.lora is None:
    return train.start_state(
      policy_params, declared, optimizer, spec.layouts.training
    )
  return train.make_init(declared, optimizer, spec.layouts.training)(
    spec.key(RandomStream.POLICY_ADAPTERS)
  )


def freeze(spec: RunSpec, policy_params: Any, prm_params: Any | None) -> Frozen:
  """Copies of the policy RL starts from and of the PRM, in their layouts."""

  def copy(params, declared, model, layout):
    return train.make_compute_copy(
      declared, model, spec.layouts.training, layout
    )(params)

  layouts, model, prm_model = spec.layouts, spec.model, spec.prm_model
  declared = policy.declare_policy(model)
  places = {"reference": layouts.reference}
  in_int8 = spec.rollout_model.int8_matrices
  if spec.rl_model.lora is not None:
    places["base"] = spec.layouts.training
    if not in_int8:
      places["rollout_base"] = layouts.rollout
  copies = {
    place: copy(policy_params, declared, model, place)
    for place in dict.fromkeys(places.values())
  }
  found = {name: copies[place] for name, place in places.items()}
  if spec.rl_model.lora is not None and in_int8:
    found["rollout_base"] = _rollout_copy(spec, declared)(policy_params)
  reference = found.pop("reference")
  found = {name: (weights,) for name, weights in found.items()}
  if prm_params is None:
    return Frozen(reference, None, **found)
  declared = prm.declare_prm(prm_model)
  judge = copy(prm_params, declared, prm_model, layouts.prm)
  return Frozen(reference, judge, **found)
