"""The suite of precision: what a shorter cache or int8 matrices do to rollouts.

Each way samples the same batch with the same keys. Beside its time stands its
drift, |sampled - trainer's log-prob| of its own tokens, which importance
weights (`rl.importance_cap`) have to make up for. Only the first has a bound.
"""

import dataclasses

import jax
import jax.numpy as jnp

from benchmarks import batches, bounds
from benchmarks.cases import Case
from benchmarks.programs import Compiled, Options, compile_once, init_policy
from benchmarks.timing import Arm, timed
from pure_jax.models import policy
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.training.rollouts import make_generate
from pure_jax.training.score import rollout_logp
from pure_jax.training.weight_copies import make_int8_copy
from pure_jax.types import Rollout

# Ways to sample by the name of the arm; the first is the policy itself.
WAYS = {
  "as computed": {},
  "cache bfloat16": {"cache_dtype": "bfloat16"},
  "cache int8": {"cache_dtype": "int8"},
  "matrices int8": {"int8_matrices": True},
}


def precision(case: Case, options: Options) -> dict[str, Compiled]:
  """Rollouts in each of `WAYS`.

  Args:
    case: sizes.
    options: how the model runs.

  Returns:
    An arm for each; its work is the tokens that were drawn.
  """
  layout, arms = sharding.make_layout(), {}
  stored = init_policy(case.model, options)
  copy = init_policy(case.model, options, copied=True)
  exact = options.model(case.model)
  sampler = batches.sampler(case, exact.vocab_size, options.weights is None)
  drift_of = jax.jit(_drift, static_argnums=(1, 2))
  for name, change in WAYS.items():
    model = dataclasses.replace(exact, **change)
    weights = copy
    if model.int8_matrices:
      declared = policy.declare_policy(exact)
      weights = make_int8_copy(declared, exact, layout, layout)(stored)
    arguments = (
      weights,
      batches.draw_prompts(case, exact.vocab_size),
      jax.random.key(1),
    )
    generate, compilation = compile_once(
      f"generate {name}",
      case,
      options,
      lambda model=model: make_generate(model, sampler, case.samples, layout),
      *arguments,
    )
    drawn = generate(*arguments)
    lengths = jax.device_get(drawn.completion_mask).sum(axis=1)
    arms[name] = Compiled(
      Arm(timed(generate, *arguments), int(lengths.sum()), ran=True),
      bounds.rollout_phases(
        exact, case.prompts, case.prompt_tokens, lengths, options.itemsize
      )
      if not change
      else (),
      compilation,
      instead_of=None if not change else next(iter(WAYS)),
      drift=tuple(jax.device_get(drift_of(stored, exact, sampler, drawn))),
    )
  return arms


def _drift(params, model: ModelConfig, sampler, drawn: Rollout):
  """Mean and largest difference of log-probs, nats."""
  logp, _ = rollout_logp(params, model, sampler, drawn)
  mask = drawn.completion_mask
  apart = jnp.where(mask, jnp.abs(logp - drawn.full_logp), 0.0)
  return jnp.sum(apart) / jnp.sum(mask), jnp.max(apart)
