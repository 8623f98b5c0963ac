"""Slots of the engine: the sequences in memory and where their tokens go.

A slot holds one sequence of the batch. When the sequence has ended, the slot
is free for another one. The legend of axes is in `pure_jax.types`; R is the
number of slots, which lie in contiguous shards, and B = P G is the number of
sequences in the whole batch.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pure_jax.models import kv_cache
from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.rollout import generation, sampling
from pure_jax.rollout.generation import (
  DecodeState,
  GenerationSpec,
  SampledTokens,
)
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.types import Prompts, Rollout


@struct.dataclass
class Slots:
  """The sequences that are in memory.

  Attributes:
    row_ids: [R] int32, row of the batch that each slot holds, 0..B-1; B for
      an empty slot.
    state: the sequences.
  """

  row_ids: Array
  state: DecodeState


@struct.dataclass
class Completions:
  """The completions of the whole batch so far.

  Attributes:
    sampled: [B, C] arrays, padding and zeros beyond the sampled tokens.
    lengths: [B] int32, 0..C.
    stopped: [B] bool, True if the row ended with a stop id or text.
  """

  sampled: SampledTokens
  lengths: Array
  stopped: Array


def empty_completions(rows: int, config: SamplingConfig) -> Completions:
  """Makes the buffers that completions are written to.

  Args:
    rows: B.
    config: the length limit and the padding id.

  Returns:
    B completions without tokens.
  """
  shape = (rows, config.max_new_tokens)
  return Completions(
    sampled=SampledTokens(
      tokens=jnp.full(shape, config.pad_id, jnp.int32),
      sampled_logp=jnp.zeros(shape, jnp.float32),
      full_logp=jnp.zeros(shape, jnp.float32),
    ),
    lengths=jnp.zeros(rows, jnp.int32),
    stopped=jnp.zeros(rows, bool),
  )


def write_completions(
  completions: Completions,
  slots: Slots,
  num_before: Array,
  sampled: SampledTokens,
) -> Completions:
  """Writes newly sampled tokens behind those of the same rows.

  Args:
    completions: completions of the batch.
    slots: the sequences after the tokens were sampled.
    num_before: [R] int32, tokens that each sequence had before.
    sampled: the new tokens, [n, R] arrays.

  Returns:
    The completions with the new tokens.
  """
  steps, limit = sampled.tokens.shape[0], completions.sampled.tokens.shape[1]
  state, row_ids = slots.state, slots.row_ids
  step = jnp.arange(steps)[:, None]
  is_new = step < (state.num_generated - num_before)[None]
  # A column beyond the buffer and a row id of B are dropped.
  column = jnp.where(is_new, num_before[None] + step, limit)

  def write(buffer, new):
    return buffer.at[row_ids[None], column].set(new, mode="drop")

  return Completions(
    sampled=jax.tree.map(write, completions.sampled, sampled),
    lengths=completions.lengths.at[row_ids].set(
      state.num_generated, mode="drop"
    ),
    stopped=completions.stopped.at[row_ids].set(state.stopped, mode="drop"),
  )


def start_prompts(
  params: Any,
  spec: GenerationSpec,
  prompts: Prompts,
  key: Array,
  prompt_ids: Array,
  group_size: int,
  ring_length: int,
  share_prompts: bool,
) -> tuple[Slots, SampledTokens]:
  """Prefills some prompts of a batch and samples their first tokens.

  Args:
    params: policy weights, layers stacked.
    spec: the model and how to sample.
    prompts: the whole batch, [P, L].
    key: typed key of the whole batch, or one for each row, [B].
    prompt_ids: [n] int32, which prompts; P for none.
    group_size: G.
    ring_length: cache entries for generated tokens, at least 1.
    share_prompts: True keeps one copy of each prompt's keys and values.

  Returns:
    (n G slots, first tokens [1, n G]). A slot without a prompt is done.
  """
  num_rows = prompts.tokens.shape[0] * group_size
  selected = jax.tree.map(
    lambda x: jnp.take(x, prompt_ids, axis=0, mode="clip"), prompts
  )
  row_ids = prompt_ids[:, None] * group_size + jnp.arange(group_size)[None]
  row_ids = jnp.minimum(row_ids.reshape(-1), num_rows)
  state, first = generation.prefill(
    params,
    spec,
    selected,
    sampling.row_keys(key, row_ids),
    ring_length,
    share_prompts,
  )
  state = state.replace(done=state.done | (row_ids == num_rows))
  return Slots(row_ids, state), first


def select_slots(
  slots: Slots, index: Array, act_sharding: ActivationSharding = LOCAL
) -> Slots:
  """Keeps some slots and drops the others.

  Args:
    slots: sequences in contiguous shards, each with its own copy of its
      prompt.
    index: [shards, r] int32, slots within each shard.
    act_sharding: sharding of slots and cache.

  Returns:
    shards * r slots.
  """
  cache = kv_cache.take_rows(slots.state.cache, index, act_sharding)
  others = jax.tree.map(
    lambda x: kv_cache.take_by_shard(x, index), _without_cache(slots)
  )
  return with_cache(others, cache)


def replace_slots(
  slots: Slots,
  new: Slots,
  index: Array,
  act_sharding: ActivationSharding = LOCAL,
) -> Slots:
  """Puts new sequences into free slots.

  Args:
    slots: sequences in contiguous shards, each with its own copy of its
      prompt.
    new: sequences after their prefill, each with its own copy of its prompt.
    index: [shards, r] int32, slots within each shard; an index beyond the
      shard drops the sequence.
    act_sharding: sharding of slots and cache.

  Returns:
    As many slots as before.
  """
  cache = kv_cache.put_rows(
    slots.state.cache, new.state.cache, index, act_sharding
  )
  others = jax.tree.map(
    lambda x, y: kv_cache.put_by_shard(x, y, index),
    _without_cache(slots),
    _without_cache(new),
  )
  return with_cache(others, cache)


def with_cache(slots: Slots, cache: kv_cache.KVCache) -> Slots:
  """Replaces the cache of the same sequences.

  Args:
    slots: the sequences.
    cache: their keys and values.

  Returns:
    The slots.
  """
  return slots.replace(state=slots.state.replace(cache=cache))


def _without_cache(slots):
  """Drops the cache and keeps the arrays of shape [R]."""
  return with_cache(slots, None)


def constrain_slots(slots: Slots, act_sharding: ActivationSharding) -> Slots:
  """Splits the slots over devices as rows are split.

  Args:
    slots: sequences whose cache is sharded already.
    act_sharding: sharding of rows.

  Returns:
    The same slots.
  """
  others = jax.tree.map(
    lambda x: act_sharding.constrain(x, ("rows",)), _without_cache(slots)
  )
  return with_cache(others, slots.state.cache)


def replicate(tree: Any, act_sharding: ActivationSharding) -> Any:
  """Copies arrays to every device.

  Args:
    tree: pytree of arrays.
    act_sharding: sharding that knows the devices.

  Returns:
    The same tree.
  """
  return jax.tree.map(
    lambda x: act_sharding.constrain(x, (None,) * x.ndim), tree
  )


def to_rollout(prompts: Prompts, completions: Completions) -> Rollout:
  """Joins prompts and their finished completions.

  Args:
    prompts: [P, L].
    completions: completions of B rows, a multiple of P.

  Returns:
    The rollout.
  """
  rows, limit = completions.sampled.tokens.shape
  group_size = rows // prompts.tokens.shape[0]
  return Rollout(
    prompt_tokens=jnp.repeat(prompts.tokens, group_size, axis=0),
    prompt_mask=jnp.repeat(prompts.mask, group_size, axis=0),
    tokens=completions.sampled.tokens,
    completion_mask=jnp.arange(limit)[None] < completions.lengths[:, None],
    sampled_logp=completions.sampled.sampled_logp,
    full_logp=completions.sampled.full_logp,
    truncated=~completions.stopped,
  )
