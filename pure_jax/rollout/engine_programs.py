"""The compiled programs of the engine for continuous batching.

`engine.py` holds the loop on the host that calls them. The legend of axes is in
`pure_jax.types`; R is the number of slots, which lie in contiguous shards.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from pure_jax.models import kv_cache
from pure_jax.rollout import generation
from pure_jax.rollout.generation import GenerationSpec
from pure_jax.rollout.slots import start_prompts, write_completions


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """Size of the engine and its host sync interval.

  Attributes:
    slots: the most sequences in memory, at least 1. It is rounded to whole
      prompts on every row shard: down, but at least to one.
    sync_interval: tokens that are decoded between two host syncs, at least 1.
  """

  slots: int
  sync_interval: int

  def __post_init__(self):
    """Validates the sizes."""
    if self.slots < 1 or self.sync_interval < 1:
      raise ValueError(
        f"slots={self.slots} and sync_interval={self.sync_interval} must be "
        "at least 1."
      )


@dataclasses.dataclass(frozen=True)
class EngineSpec:
  """The specification of the engine's programs.

  Attributes:
    generation: the model and how to sample.
    group_size: G, samples of each prompt.
    config: slots and sync interval.
    shards: contiguous parts of the slots that lie on different devices.
    ring_multiple: the ring has a multiple of this many entries, at least 1. A
      TPU lays out other lengths with rows innermost, and the decode loop
      would then copy the whole cache before and after every chunk. The same
      holds for prompts of another length, which lie before the ring.
    out_shardings: sharding of the rollout; None leaves it to the compiler.
  """

  generation: GenerationSpec
  group_size: int
  config: EngineConfig
  shards: int = 1
  ring_multiple: int = 1
  out_shardings: jax.sharding.Sharding | None = None

  def num_starting_prompts(self, num_prompts: int) -> int:
    """Counts the prompts that a batch of P prompts starts with.

    They fill the slots. Their number is a multiple of the shards, and exceeds
    P if the shards do not divide P.
    """
    fitting = self.config.slots // (self.shards * self.group_size)
    per_shard = min(fitting, -(-num_prompts // self.shards))
    return max(per_shard, 1) * self.shards

  def ring_length(self, tokens: int) -> int:
    """Counts the entries of a ring that holds so many generated tokens.

    They suffice for the longest sequence if it needs fewer. The cache does not
    hold the token of a sequence that was sampled last.
    """
    longest = max(self.generation.sampler.max_new_tokens - 1, 1)
    multiple = self.ring_multiple
    return -(-min(tokens, longest) // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class EnginePrograms:
  """The jitted functions of an engine; each is compiled for few shapes.

  Attributes:
    to_decoding_params: params -> weights for the decode loop; None if the loop
      reads the weights of training.
    start: (params, prompts, key, prompt_ids, ring_length) -> (slots,
      completions); the ring length is static.
    refill: (params, prompts, key, prompt_ids, index, slots, completions) ->
      (slots, completions), see `FreeSlots`. The last two are donated.
    decode: (decoding params, slots, completions) -> (slots, completions)
      after a chunk of tokens. The last two are donated.
    unshare: slots -> slots, each with its own copy of its prompt.
    grow: (slots, ring_length) -> slots with a longer ring; the length is
      static.
    shrink: (slots, index) -> the selected slots.
    status: slots -> (num_generated [R], done [R]), on every device.
    finish: (prompts, completions) -> rollout.
  """

  to_decoding_params: Callable[..., Any] | None
  start: Callable[..., Any]
  refill: Callable[..., Any]
  decode: Callable[..., Any]
  unshare: Callable[..., Any]
  grow: Callable[..., Any]
  shrink: Callable[..., Any]
  status: Callable[..., Any]
  finish: Callable[..., Any]


def make_programs(spec: EngineSpec) -> EnginePrograms:
  """Makes the jitted functions of an engine.

  Args:
    spec: the specification they are compiled for.

  Returns:
    The functions. Each is compiled when it is called with a new shape.
  """

  def jit(function, **options):
    return jax.jit(functools.partial(function, spec), **options)

  converts = spec.generation.cpu_weights
  return EnginePrograms(
    to_decoding_params=(
      jax.jit(spec.generation.to_decoding_params) if converts else None
    ),
    start=jit(_start, static_argnums=4),
    refill=jit(_refill, donate_argnums=(5, 6)),
    decode=jit(_decode, donate_argnums=(1, 2)),
    unshare=jit(_unshare),
    grow=jit(_grow, static_argnums=1),
    shrink=jit(_shrink),
    status=jit(_status),
    finish=jax.jit(generation.to_rollout, out_shardings=spec.out_shardings),
  )


def _start(spec, params, prompts, key, prompt_ids, ring_length):
  """The first prompts of a batch, and buffers for all its completions."""
  slots, first = start_prompts(
    params,
    spec.generation,
    prompts,
    key,
    prompt_ids,
    spec.group_size,
    ring_length,
    share_prompts=spec.group_size > 1,
  )
  completions = generation.empty_completions(
    prompts.tokens.shape[0] * spec.group_size, spec.generation.sampler
  )
  num_before = 0 * slots.state.num_generated
  completions = write_completions(completions, slots, num_before, first)
  return _constrain(spec, slots, completions)


def _refill(spec, params, prompts, key, prompt_ids, index, slots, completions):
  """Waiting prompts in free slots; an index beyond the shard has no prompt."""
  new, first = start_prompts(
    params,
    spec.generation,
    prompts,
    key,
    prompt_ids,
    spec.group_size,
    ring_length=1,
    share_prompts=False,
  )
  num_before = 0 * new.state.num_generated
  completions = write_completions(completions, new, num_before, first)
  cache = kv_cache.put_rows(
    slots.state.cache, new.state.cache, index, spec.generation.act_sharding
  )
  others = jax.tree.map(
    lambda x, y: kv_cache.put_by_shard(x, y, index),
    slots.with_cache(None),
    new.with_cache(None),
  )
  return _constrain(spec, others.with_cache(cache), completions)


def _decode(spec, params, slots, completions):
  """A chunk of tokens for every slot."""
  num_before = slots.state.num_generated
  # No response is longer, and each token of the chunk has a buffer.
  limit = spec.generation.sampler.max_new_tokens
  chunk = min(spec.config.sync_interval, limit)
  state, sampled = generation.decode(
    params, spec.generation, slots.state, chunk
  )
  slots = slots.replace(state=state)
  completions = write_completions(completions, slots, num_before, sampled)
  return _constrain(spec, slots, completions)


def _unshare(spec, slots):
  """Slots with a prompt of their own, which may move."""
  return slots.with_cache(
    kv_cache.with_own_prompts(slots.state.cache, spec.generation.act_sharding)
  )


def _grow(spec, slots, ring_length):
  """Slots with a longer ring."""
  return slots.with_cache(
    kv_cache.grow_ring(
      slots.state.cache, ring_length, spec.generation.act_sharding
    )
  )


def _shrink(spec, slots, index):
  """The slots of every shard that an index selects."""
  act_sharding = spec.generation.act_sharding
  cache = kv_cache.take_rows(slots.state.cache, index, act_sharding)
  others = jax.tree.map(
    lambda x: kv_cache.take_by_shard(x, index), slots.with_cache(None)
  )
  return _split_slots(others.with_cache(cache), act_sharding)


def _status(spec, slots):
  """The numbers of tokens and which sequences have ended, everywhere."""
  status = slots.state.num_generated, slots.state.done
  return _replicate(status, spec.generation.act_sharding)


def _constrain(spec, slots, completions):
  """Slots split as rows are, completions on every device."""
  act_sharding = spec.generation.act_sharding
  return (
    _split_slots(slots, act_sharding),
    _replicate(completions, act_sharding),
  )


def _split_slots(slots, act_sharding):
  """Splits slots as rows are split; their cache is split already."""
  others = jax.tree.map(
    lambda x: act_sharding.constrain(x, ("rows",)), slots.with_cache(None)
  )
  return others.with_cache(slots.state.cache)


def _replicate(tree, act_sharding):
  """Copies arrays to every device."""
  return jax.tree.map(
    lambda x: act_sharding.constrain(x, (None,) * x.ndim), tree
  )
