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
from pure_jax.rollout import generation, sampling
from pure_jax.rollout.generation import (
  Completions,
  DecodeState,
  GenerationSpec,
  SampledTokens,
)
from pure_jax.types import Prompts


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

  def with_cache(self, cache: kv_cache.KVCache | None) -> "Slots":
    """Replaces keys and values; without a cache all arrays are [R]."""
    return self.replace(state=self.state.replace(cache=cache))


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
