"""The compiled functions of RL, and the weights it reads and never changes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax
import row_lengths
import workspace

from pure_jax.models import policy, prm
from pure_jax.training import train


@dataclasses.dataclass(frozen=True)
class Functions:
  """The compiled functions of a run, as `pure_jax.training` makes them.

  `for_rollout` gives the weights that the three `generate` functions take.
  """

  for_rollout: Callable[..., Any]
  generate: Callable[..., Any]
  generate_greedy: Callable[..., Any]
  generate_held_out: Callable[..., Any]
  score: Callable[..., Any]
  update: Callable[..., Any]


def compile_functions(
  space: workspace.Workspace, optimizer: optax.GradientTransformation
) -> Functions:
  """Builds the jit boundary from the run's settings."""
  rl = space.settings.rl
  greedy = dataclasses.replace(
    space.sampler, temperature=0.0, top_p=1.0, top_k=0
  )
  plain = dataclasses.replace(greedy, temperature=1.0)
  layouts = space.rl_layouts

  def generate(sampler, group_size):
    return train.make_generate(
      space.model,
      sampler,
      group_size,
      layouts.rollout,
      space.layout,
      rl.prompts * rl.samples_per_prompt // rl.rollout_parts,
    )

  return Functions(
    for_rollout=train.make_compute_copy(
      policy.declare_policy(space.model),
      space.model,
      space.layout,
      layouts.rollout,
    ),
    generate=generate(space.sampler, rl.samples_per_prompt),
    generate_greedy=generate(greedy, 1),
    generate_held_out=generate(plain, 1),
    score=row_lengths.make_score(space),
    update=row_lengths.make_update(space, optimizer),
  )


@dataclasses.dataclass(frozen=True)
class Frozen:
  """Weights that RL reads and never changes, as their products read them.

  Attributes:
    reference: the policy RL starts from, which the KL is measured to.
    prm: the process reward model, None in a run on verdicts alone.
  """

  reference: Any
  prm: Any


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
  reference = copy(policy_params, declared, model, layouts.reference)
  if prm_params is None:
    return Frozen(reference, None)
  declared = prm.declare_prm(prm_model)
  return Frozen(reference, copy(prm_params, declared, prm_model, layouts.prm))
