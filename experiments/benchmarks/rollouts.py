"""The suite of rollouts: each way to sample a batch, and its prefill alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import batches, bounds
from benchmarks.cases import BenchmarkError, Case
from benchmarks.programs import (
  Compilation,
  Compiled,
  Options,
  compile_once,
  init_policy,
)
from benchmarks.timing import Arm, timed
from pure_jax.parallel import sharding
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training.rollouts import make_engine, make_generate
from pure_jax.types import Rollout

Generate = Callable[..., Rollout]


def one_loop(
  case: Case, options: Options, sampler: SamplingConfig, *arguments: Any
) -> tuple[Generate, Compilation | None]:
  """A rollout as one compiled function.

  Args:
    case: sizes and stops.
    options: how the model runs.
    sampler: how tokens are drawn.
    *arguments: weights, prompts and key.

  Returns:
    The function of these arguments, and what the compiler says of it.
  """
  return compile_once(
    "generate",
    case,
    options,
    lambda: make_generate(
      options.model(case.model), sampler, case.samples, sharding.make_layout()
    ),
    *arguments,
  )


def continuous(
  case: Case,
  options: Options,
  sampler: SamplingConfig,
  *arguments: Any,
  rows: int | None = None,
) -> tuple[Generate, Compilation | None]:
  """A rollout by the engine, which compiles its parts when it is called.

  Args:
    case: sizes and stops.
    options: how the model runs, and the engine.
    sampler: how tokens are drawn.
    *arguments: weights, prompts and key, not used.
    rows: that it samples at a time, None for all of the batch.

  Returns:
    The function of these arguments, and None.
  """
  del arguments
  config = EngineConfig(rows or case.rows, options.engine_chunk)
  model, layout = options.model(case.model), sharding.make_layout()
  engine = make_engine(model, sampler, case.samples, layout, config)
  return engine.generate, None


def refilled(
  case: Case, options: Options, *arguments: Any
) -> tuple[Generate, Compilation | None]:
  """A rollout by an engine in which prompts wait for rows that have ended.

  Args:
    case: sizes and stops.
    options: how the model runs, and how many rows the engine has.
    *arguments: as of `continuous`.

  Returns:
    As `continuous`.
  """
  return continuous(case, options, *arguments, rows=options.engine_rows)


# Ways to sample, by the name of the arm. All have to draw the tokens of the
# first.
GENERATORS = {
  "generate": one_loop,
  "engine": continuous,
  "refilled": refilled,
}

# Of tokens, in float32: products of another number of rows are rounded in
# another way, and after one other token the rest of a row differs.
LEAST_EQUAL = 0.9


def generate_arguments(case: Case, options: Options) -> tuple[Any, ...]:
  """What every way to sample is called with.

  Args:
    case: sizes.
    options: how the model runs.

  Returns:
    (weights as products read them, prompts, key).
  """
  vocab_size = options.model(case.model).vocab_size
  return (
    init_policy(case.model, options, copied=True),
    batches.draw_prompts(case, vocab_size),
    jax.random.key(1),
  )


def rollout(case: Case, options: Options) -> dict[str, Compiled]:
  """Sampling the responses of a batch.

  Args:
    case: sizes and stops.
    options: how the model runs.

  Returns:
    An arm for each of `GENERATORS`, whose work is the tokens that were drawn,
    and "prefill", which draws the first tokens alone.

  Raises:
    BenchmarkError: if they do not draw the same tokens.
  """
  model, arms = options.model(case.model), {}
  arguments = generate_arguments(case, options)
  sampler = batches.sampler(case, model.vocab_size, options.weights is None)
  tokens = None
  for name, make in GENERATORS.items():
    if make is refilled and not _waits(case, options):
      continue
    generate, compilation = make(case, options, sampler, *arguments)
    # The same key each time: the same tokens, so the same work.
    drawn = jax.device_get(generate(*arguments))
    if tokens is None:
      first, tokens = name, drawn.tokens
    equal = (tokens == drawn.tokens).mean()
    if options.dtype == "float32" and equal < LEAST_EQUAL:
      raise BenchmarkError(
        f"{case}: {name} draws other tokens than {first}: {equal:.0%} are the "
        "same."
      )
    lengths = drawn.completion_mask.sum(axis=1)
    arms[name] = Compiled(
      Arm(timed(generate, *arguments), int(lengths.sum()), ran=True),
      bounds.rollout_phases(
        model, case.prompts, case.prompt_tokens, lengths, options.itemsize
      ),
      compilation,
      lengths,
      None if name == first else first,
    )
  return arms | {"prefill": _prefill(case, options, *arguments)}


def _waits(case: Case, options: Options) -> bool:
  """Whether an engine of so many rows has no place for all prompts."""
  return max(1, options.engine_rows // case.samples) < case.prompts


def _prefill(case: Case, options: Options, *arguments: Any) -> Compiled:
  """Reading the prompts and drawing one token for each response."""
  model = options.model(case.model)
  sampler = SamplingConfig(max_new_tokens=1, pad_id=batches.PAD_ID, stop_ids=())
  # The same program for all that is drawn afterwards.
  short = dataclasses.replace(case, new_tokens=1, stops="never")
  prefill, compilation = one_loop(short, options, sampler, *arguments)
  ones = np.ones(case.rows, int)
  phases = bounds.rollout_phases(
    model, case.prompts, case.prompt_tokens, ones, options.itemsize
  )
  arm = Arm(timed(prefill, *arguments), case.rows)
  return Compiled(arm, phases, compilation)
