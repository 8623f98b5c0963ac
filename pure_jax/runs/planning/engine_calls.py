"""Calls of an engine's programs, each with shapes that need the most memory.

These shapes have all slots in use and the longest ring of the cache, with two
exceptions: the first prompts start with a short ring, and the programs that
run before the ring grows for the last time have the ring before that growth.

Keys and values need memory for about one and a half copies while the ring
grows or the slots shrink to half. They need memory for two copies while shared
prompts are copied for each slot. If prompts wait, that happens before the
ring's last growth.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pure_jax.rollout.engine import Engine
from pure_jax.rollout.scheduling import assign_free_slots
from pure_jax.rollout.slots import Slots


@dataclasses.dataclass(frozen=True)
class EngineCall:
  """A call of one of an engine's programs.

  Attributes:
    name: name of the program in `EnginePrograms`.
    function: the jitted function.
    arguments: its abstract arguments.
    held: abstract arrays that stay in memory meanwhile though they are not
      among the arguments.
    times: how often a rollout calls the program at most.
  """

  name: str
  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  held: tuple[Any, ...]
  times: float


def call_programs(
  engine: Engine,
  arguments: tuple[Any, ...],
  call: Callable[[EngineCall], Any],
) -> None:
  """Calls every program of an engine that a rollout calls.

  Args:
    engine: the engine.
    arguments: params, prompts and key of a rollout, abstract with shardings.
    call: compiles a program, or evaluates its shapes; returns its abstract
      outputs with shardings.
  """

  def run(name, function, *arguments, held, times=1.0):
    return call(EngineCall(name, function, arguments, held, times))

  spec, programs = engine.spec, engine.programs
  params, prompts, _ = arguments
  num_prompts = prompts.tokens.shape[0]
  num_starting = spec.num_starting_prompts(num_prompts)
  rounds = -(-num_prompts // num_starting)
  decoding_params, converted = params, ()
  convert = programs.to_decoding_params
  if convert is not None:
    decoding_params = run(
      "to_decoding_params", convert, params, held=(prompts,)
    )
    converted = (decoding_params,)
  prompt_ids = np.arange(num_starting, dtype=np.int32)
  ring = spec.ring_length(spec.config.sync_interval)
  inputs = (*arguments, prompt_ids, ring)
  slots, completions = run("start", programs.start, *inputs, held=converted)
  others = (params, prompts, *converted, completions)
  slots = _grow(engine, slots, rounds > 1, others, run)

  chunks = (spec.generation.sampler.max_new_tokens - 1) / (
    spec.config.sync_interval
  )
  inputs = (decoding_params, slots, completions)
  held = (prompts, params) if converted else (prompts,)
  run("decode", programs.decode, *inputs, held=held, times=rounds * chunks)
  rows = num_starting * spec.group_size
  if rounds > 1:
    # As many waiting prompts as there are slots are prefilled.
    free = assign_free_slots(
      np.ones(rows, bool),
      spec.shards,
      spec.group_size,
      num_starting,
      num_prompts,
    )
    inputs = (*arguments, free.prompt_ids, free.index, slots, completions)
    times = rounds - 1
    run("refill", programs.refill, *inputs, held=converted, times=times)
  half = rows // spec.shards // 2
  if half:
    # A rollout of full length never shrinks to half of its slots.
    index = np.zeros((spec.shards, half), np.int32)
    run("shrink", programs.shrink, slots, index, held=others, times=0)


def _grow(
  engine: Engine,
  slots: Slots,
  prompts_wait: bool,
  others: tuple[Any, ...],
  run: Callable[..., Any],
) -> Slots:
  """Copies shared prompts, and grows the ring for the last time."""
  spec, programs = engine.spec, engine.programs
  longest = spec.ring_length(spec.generation.sampler.max_new_tokens)
  ring = slots.state.cache.ring_length
  while spec.ring_length(2 * ring) < longest:
    ring = spec.ring_length(2 * ring)
  if slots.state.cache.prompt_mask is not None:
    shared = _with_ring(slots, ring if prompts_wait else longest)
    slots = run("unshare", programs.unshare, shared, held=others)
  if ring < longest:
    inputs = (_with_ring(slots, ring), longest)
    # All growths before cost together about as much.
    run("grow", programs.grow, *inputs, held=others, times=2)
  return _with_ring(slots, longest)


def _with_ring(slots: Slots, ring_length: int) -> Slots:
  """The same abstract slots with a ring of another length."""
  cache = slots.state.cache
  length = cache.ring_start + ring_length

  def resize(x):
    # Keys and values are [R, K, M, H]: the cache's entries are the third axis.
    return x.update(shape=(*x.shape[:2], length, *x.shape[3:]))

  keys, values = jax.tree.map(resize, (cache.keys, cache.values))
  mask = cache.mask.update(shape=(cache.mask.shape[0], length))
  cache = cache.replace(keys=keys, values=values, mask=mask)
  return slots.replace(state=slots.state.replace(cache=cache))
