"""The suite "rollout": sampling by one loop or by engines, and the prefill."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import batches, bounds
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import init_cast_policy
from benchmarks.timing import Arm, Compilation, compile_call, timed
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import rollouts
from pure_jax.types import Rollout

Generate = Callable[..., Rollout]

# Share of equal tokens in float32: products of another number of rows round
# differently, and after one other token the rest of a row differs.
LEAST_EQUAL = 0.9


def compile_one_loop(
  case: Case, sampler: SamplingConfig, *arguments: Any
) -> tuple[Generate, Compilation]:
  """Compiles a rollout as one function of weights, prompts and key."""
  generate = rollouts.make_generate(
    case.rollout_config, sampler, case.samples, case.layout
  )
  return compile_call(generate, *arguments)


def make_engine(case: Case, sampler: SamplingConfig, slots: int) -> Generate:
  """Makes a rollout with continuous batching.

  The function of weights, prompts and key compiles its programs when they are
  first needed.
  """
  engine = rollouts.make_engine(
    case.rollout_config,
    sampler,
    case.samples,
    case.layout,
    EngineConfig(slots, case.options.engine_chunk),
  )
  return engine.generate


def generate_arguments(case: Case) -> tuple[Any, ...]:
  """Makes weights as rollouts read them, prompts and a key."""
  return (
    init_cast_policy(case, rollout=True),
    batches.draw_prompts(case),
    jax.random.key(1),
  )


def rollout_arms(case: Case) -> dict[str, Arm]:
  """Prepares the samplers of a batch, which must draw the same tokens.

  "generate" is one compiled loop, "engine" continuous batching with a slot for
  every response. In "refilled", which needs more prompts than fit, prompts wait
  for `Options.engine_slots`. "prefill" draws the first tokens alone. The work
  is the tokens that are drawn.
  """
  arguments = generate_arguments(case)
  sampler = batches.sampler(case, case.options.weights is None)
  generate, compilation = compile_one_loop(case, sampler, *arguments)
  # The same key each time: the same tokens, so the same work.
  first = jax.device_get(generate(*arguments))
  lengths = first.completion_mask.sum(axis=1)
  loop = Arm(
    timed(generate, *arguments),
    int(lengths.sum()),
    bounds.rollout_phases(case, lengths),
    compilation,
    lengths,
    ran=True,
  )
  arms = {"generate": loop}
  slots = {"engine": case.rows}
  if prompts_wait(case):
    slots["refilled"] = case.options.engine_slots
  for name, count in slots.items():
    sample = make_engine(case, sampler, count)
    check_same_tokens(case, name, sample(*arguments), first)
    arms[name] = dataclasses.replace(
      loop,
      run=timed(sample, *arguments),
      compilation=None,
      compared_with="generate",
    )
  return arms | {"prefill": _prefill(case, *arguments)}


def prompts_wait(case: Case) -> bool:
  """Tells whether `Options.engine_slots` are too few for all prompts."""
  return max(1, case.options.engine_slots // case.samples) < case.prompts


def check_same_tokens(
  case: Case, name: str, rollout: Rollout, first: Rollout
) -> None:
  """Checks that a sampler draws the tokens of the first, up to rounding.

  In float32 without rounded weights, keys or values, 90 % of the tokens must
  be equal, else it raises `BenchmarkError`; otherwise nothing is checked.
  """
  equal = (jax.device_get(rollout.tokens) == first.tokens).mean()
  if (
    case.options.dtype == "float32"
    and not case.options.rounded
    and equal < LEAST_EQUAL
  ):
    raise BenchmarkError(
      f"{case}: {name} and generate draw different tokens: {equal:.0%} are "
      "the same."
    )


def _prefill(case: Case, *arguments: Any) -> Arm:
  """Reads the prompts and draws one token for each response."""
  sampler = batches.plain_sampler(1)
  prefill, compilation = compile_one_loop(case, sampler, *arguments)
  phases = bounds.rollout_phases(case, np.ones(case.rows, int))
  return Arm(timed(prefill, *arguments), case.rows, phases, compilation)
