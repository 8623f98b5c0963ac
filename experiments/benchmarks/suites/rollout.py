"""The suite "rollout": sampling by one loop or by engines, and the prefill."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import batches, bounds
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import Options, init_cast_policy
from benchmarks.programs import Compilation, Program, compile_once
from benchmarks.timing import Arm, timed
from pure_jax.parallel import sharding
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import rollouts
from pure_jax.types import Rollout

Generate = Callable[..., Rollout]

# Share of equal tokens in float32: products of another number of rows round
# differently, and after one other token the rest of a row differs.
LEAST_EQUAL = 0.9


def compile_one_loop(
  case: Case, options: Options, sampler: SamplingConfig, *arguments: Any
) -> tuple[Generate, Compilation]:
  """Compiles a rollout as one function.

  Args:
    case: sizes and stops.
    options: how the model runs.
    sampler: how tokens are drawn.
    *arguments: weights, prompts and key.

  Returns:
    The compiled function of these arguments, and its compilation.
  """
  return compile_once(
    "generate",
    case,
    options,
    lambda: rollouts.make_generate(
      options.rollout_model(case.model),
      sampler,
      case.samples,
      sharding.make_layout(),
    ),
    *arguments,
  )


def make_engine(
  case: Case, options: Options, sampler: SamplingConfig, slots: int
) -> Generate:
  """Makes a rollout with continuous batching.

  Args:
    case: sizes and stops.
    options: how the model runs, and how often the engine syncs.
    sampler: how tokens are drawn.
    slots: responses that the engine decodes at a time.

  Returns:
    A function of weights, prompts and key, which compiles its programs when
    they are first needed.
  """
  engine = rollouts.make_engine(
    options.rollout_model(case.model),
    sampler,
    case.samples,
    sharding.make_layout(),
    EngineConfig(slots, options.engine_chunk),
  )
  return engine.generate


def generate_arguments(case: Case, options: Options) -> tuple[Any, ...]:
  """Makes the arguments of a rollout.

  Args:
    case: sizes.
    options: how the model runs.

  Returns:
    (weights as rollouts read them, prompts, key).
  """
  vocab_size = options.model(case.model).vocab_size
  return (
    init_cast_policy(case.model, options, rollout=True),
    batches.draw_prompts(case, vocab_size),
    jax.random.key(1),
  )


def rollout_arms(case: Case, options: Options) -> dict[str, Program]:
  """Prepares the samplers of a batch.

  Args:
    case: sizes and stops.
    options: how the model runs.

  Returns:
    "generate", one compiled loop; "engine", continuous batching with a slot
    for every response; if there are fewer `Options.engine_slots` than
    responses, "refilled", in which prompts wait for them; and "prefill", which
    draws the first tokens alone. The work is the tokens that are drawn.

  Raises:
    BenchmarkError: if the samplers do not draw the same tokens.
  """
  vocab_size = options.model(case.model).vocab_size
  arguments = generate_arguments(case, options)
  sampler = batches.sampler(case, vocab_size, options.weights is None)
  generate, compilation = compile_one_loop(case, options, sampler, *arguments)
  # The same key each time: the same tokens, so the same work.
  first = jax.device_get(generate(*arguments))
  lengths = first.completion_mask.sum(axis=1)
  samplers = {"generate": generate}
  samplers["engine"] = make_engine(case, options, sampler, case.rows)
  if prompts_wait(case, options):
    samplers["refilled"] = make_engine(
      case, options, sampler, options.engine_slots
    )
  phases = bounds.rollout_phases(
    options.model(case.model),
    case.prompts,
    case.prompt_tokens,
    lengths,
    options.itemsize,
  )
  arms = {}
  for name, sample in samplers.items():
    arm = Arm(timed(sample, *arguments), int(lengths.sum()), ran=True)
    if sample is generate:
      arms[name] = Program(arm, phases, compilation, lengths)
      continue
    check_same_tokens(case, options, name, sample(*arguments), first)
    arms[name] = Program(arm, phases, None, lengths, variant_of="generate")
  return arms | {"prefill": _prefill(case, options, *arguments)}


def prompts_wait(case: Case, options: Options) -> bool:
  """Tells whether `Options.engine_slots` are too few for all prompts.

  Args:
    case: prompts and samples.
    options: how many slots there are.

  Returns:
    False if every prompt has slots for its samples from the start.
  """
  return max(1, options.engine_slots // case.samples) < case.prompts


def check_same_tokens(
  case: Case, options: Options, name: str, rollout: Rollout, first: Rollout
) -> None:
  """Checks that a sampler draws the tokens of the first, up to rounding.

  Args:
    case: the case, named in the message.
    options: how the models run. In float32 without rounded weights, keys or
      values, 90 % of the tokens must be equal; else nothing is checked.
    name: name of the sampler.
    rollout: the tokens that it drew.
    first: the tokens that the first sampler drew.

  Raises:
    BenchmarkError: if fewer are equal.
  """
  equal = (jax.device_get(rollout.tokens) == first.tokens).mean()
  if options.dtype == "float32" and not options.rounded and equal < LEAST_EQUAL:
    raise BenchmarkError(
      f"{case}: {name} and generate draw different tokens: {equal:.0%} are "
      "the same."
    )


def _prefill(case: Case, options: Options, *arguments: Any) -> Program:
  """Reads the prompts and draws one token for each response."""
  model = options.model(case.model)
  sampler = SamplingConfig(max_new_tokens=1, pad_id=batches.PAD_ID, stop_ids=())
  # The same program for any number of new tokens and any stops.
  short = dataclasses.replace(case, new_tokens=1, stops="never")
  prefill, compilation = compile_one_loop(short, options, sampler, *arguments)
  phases = bounds.rollout_phases(
    model,
    case.prompts,
    case.prompt_tokens,
    np.ones(case.rows, int),
    options.itemsize,
  )
  arm = Arm(timed(prefill, *arguments), case.rows)
  return Program(arm, phases, compilation)
