"""The compiled functions of RL, and the weights it reads and never changes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from pure_jax.host.text.stop_texts import boxed_stops
from pure_jax.models import lora, policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.runs import row_lengths, workspace
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
  space: workspace.Workspace, optimizer: optax.GradientTransformation
) -> Functions:
  """Builds the jit boundary from the run's settings."""
  rl = space.settings.rl
  greedy = dataclasses.replace(
    space.sampler, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0
  )
  plain = dataclasses.replace(greedy, temperature=1.0)
  layouts = space.rl_layouts
  stops = None
  if rl.rollout.stop_on_boxed:
    stops = boxed_stops(space.task.tokenizer.pieces)

  def generate(sampler, group_size):
    return rollouts.make_generate(
      rollout_model(space),
      sampler,
      group_size,
      layouts.rollout,
      space.layout,
      rl.prompts * rl.samples_per_prompt // rl.rollout.batches,
      stops=stops,
      continuous=rl.engine.config(),
    )

  score = row_lengths.make_score(space)
  return Functions(
    for_rollout=_rollout_copy(space, _trained(space)),
    generate=generate(space.sampler, rl.samples_per_prompt),
    generate_greedy=generate(greedy, 1),
    generate_held_out=generate(plain, 1),
    score=score,
    score_at=_iteration_scores(space, score),
    update=row_lengths.make_update(space, optimizer),
  )


def _iteration_scores(space: workspace.Workspace, score: Any):
  """Iteration -> its stage 2, which reads the policy where that is due."""
  rl = space.settings.rl
  if rl.old_logp.source == "score":
    return lambda step: score
  sampled, checked = (
    row_lengths.make_score(space, kind) for kind in ("sampled", "checked")
  )
  every = rl.old_logp.check_every
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


def rollout_model(space: workspace.Workspace) -> ModelConfig:
  """The policy's architecture as it is sampled with."""
  rl = space.settings.rl
  return dataclasses.replace(
    space.rl_model,
    cache_dtype=rl.rollout.cache_dtype,
    int8_matrices=rl.rollout.weights == "int8",
  )


def _rollout_copy(space, declared):
  """Weights -> what rollouts read of them; of adapters, as they are."""
  make = train.make_compute_copy
  if rollout_model(space).int8_matrices and "embedding" in declared:
    make = int8_weights.make_int8_copy
  return make(declared, space.rl_model, space.layout, space.rl_layouts.rollout)


def _trained(space: workspace.Workspace) -> Any:
  """Declarations of what RL trains."""
  model = space.rl_model
  return lora.trained_and_frozen(policy.declare_policy(model), model)[0]


def start_state(
  space: workspace.Workspace,
  policy_params: Any,
  optimizer: optax.GradientTransformation,
) -> train.TrainState:
  """The state at step 0: a copy of the policy, or new adapters."""
  declared = _trained(space)
  if space.rl_model.lora is None:
    return train.start_state(policy_params, declared, optimizer, space.layout)
  return train.make_init(declared, optimizer, space.layout)(space.key(6))


def freeze(
  space: workspace.Workspace, policy_params: Any, prm_params: Any | None
) -> Frozen:
  """Copies of the policy RL starts from and of the PRM, in their layouts."""

  def copy(params, declared, model, layout):
    return train.make_compute_copy(declared, model, space.layout, layout)(
      params
    )

  layouts, model, prm_model = space.rl_layouts, space.model, space.prm_model
  declared = policy.declare_policy(model)
  places = {"reference": layouts.reference}
  in_int8 = rollout_model(space).int8_matrices
  if space.rl_model.lora is not None:
    places["base"] = space.layout
    if not in_int8:
      places["rollout_base"] = layouts.rollout
  copies = {
    place: copy(policy_params, declared, model, place)
    for place in dict.fromkeys(places.values())
  }
  found = {name: copies[place] for name, place in places.items()}
  if space.rl_model.lora is not None and in_int8:
    found["rollout_base"] = _rollout_copy(space, declared)(policy_params)
  reference = found.pop("reference")
  found = {name: (weights,) for name, weights in found.items()}
  if prm_params is None:
    return Frozen(reference, None, **found)
  declared = prm.declare_prm(prm_model)
  judge = copy(prm_params, declared, prm_model, layouts.prm)
  return Frozen(reference, judge, **found)
