"""Decisions of the engine's host loop: which sequences get which slots.

The legend of axes is in `pure_jax.types`; R is the number of slots, which lie
in contiguous shards.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class FreeSlots:
  """Waiting prompts and the free slots that they are put into.

  Attributes:
    prompt_ids: [shards * n] int32, n a power of two; P for none.
    index: [shards, n G] int32, slots within each shard; R for none.
    next_prompt: the first prompt that still waits.
  """

  prompt_ids: np.ndarray
  index: np.ndarray
  next_prompt: int


def assign_free_slots(
  done: np.ndarray,
  shards: int,
  group_size: int,
  next_prompt: int,
  num_prompts: int,
) -> FreeSlots | None:
  """Assigns waiting prompts to free slots, G slots of one shard to each.

  Args:
    done: [R] bool, True for slots whose sequence has ended.
    shards: contiguous parts of the slots.
    group_size: G.
    next_prompt: the first prompt that waits.
    num_prompts: P.

  Returns:
    The assignment, or None if no shard has G free slots.
  """
  free = [np.flatnonzero(shard) for shard in done.reshape(shards, -1)]
  counts, waiting = [], num_prompts - next_prompt
  for slots in free:
    counts.append(min(len(slots) // group_size, waiting))
    waiting -= counts[-1]
  if max(counts) == 0:
    return None
  # A power of two, so that few sizes are compiled.
  width = 1 << (max(counts) - 1).bit_length()
  prompt_ids = np.full((shards, width), num_prompts, np.int32)
  index = np.full((shards, width * group_size), len(done), np.int32)
  for shard, (count, slots) in enumerate(zip(counts, free, strict=True)):
    prompt_ids[shard, :count] = np.arange(next_prompt, next_prompt + count)
    index[shard, : count * group_size] = slots[: count * group_size]
    next_prompt += count
  return FreeSlots(prompt_ids.reshape(-1), index, next_prompt)


def select_unfinished(done: np.ndarray, shards: int) -> np.ndarray | None:
  """Selects half of the slots, or a quarter, ..., with all unfinished ones.

  Args:
    done: [R] bool, True for slots whose sequence has ended.
    shards: contiguous parts of the slots.

  Returns:
    [shards, r] int32, slots within each shard, or None if the unfinished
    sequences need more than half of the slots.
  """
  by_shard = done.reshape(shards, -1)
  needed = int((~by_shard).sum(axis=1).max())
  width = by_shard.shape[1]
  while width // 2 >= needed:
    width //= 2
  if width == by_shard.shape[1]:
    return None
  # A stable sort puts the unfinished ones first.
  return np.argsort(by_shard, axis=1, kind="stable")[:, :width].astype(np.int32)
