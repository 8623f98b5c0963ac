"""Continuous batching: finished sequences free their slots for waiting prompts.

The engine holds R sequences in slots. A compiled loop decodes a chunk of
tokens for all slots. Then the host reads which sequences have ended, and

* refills free slots with the G samples of prompts that wait; a prompt is
  prefilled once for all of its samples;
* or, if no prompt waits and at least half of the slots are free, shrinks to
  half as many slots;
* and doubles the ring of the cache when the longest sequence has filled it,
  so that attention reads little more than the tokens that exist.

The samples of a prompt share its keys and values until slots have to move.
While prompts wait, the copies are made before the ring grows for the last
time, when they are still small.

Row i samples token t with the same key as in `generation.generate`, from its
own logits. The tokens are therefore the same, up to the rounding of products
with another number of rows. The numbers of slots, ring entries and starting
prompts are halved and doubled, so that a program is compiled for few shapes.

The legend of axes is in `pure_jax.types`; R is the number of slots, which lie
in contiguous shards.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array

from pure_jax.rollout.engine_programs import EngineSpec, make_programs
from pure_jax.rollout.scheduling import assign_free_slots, select_unfinished
from pure_jax.types import Prompts, Rollout

# (tokens of each row so far [B] int32, whether it has ended [B] bool) -> None
OnProgress = Callable[[np.ndarray, np.ndarray], None]


class Engine:
  """Samples whole batches with continuous batching.

  Attributes:
    spec: the model, how to sample, and the slots.
    programs: the jitted functions.
  """

  def __init__(self, spec: EngineSpec):
    """Makes the programs; each is compiled when it is first called."""
    self.spec = spec
    self.programs = make_programs(spec)

  def generate(
    self,
    params: Any,
    prompts: Prompts,
    key: Array,
    on_progress: OnProgress | None = None,
  ) -> Rollout:
    """Samples G completions of each prompt.

    Args:
      params: policy weights, as `policy.declare_policy` declares them.
      prompts: P left-padded prompts, [P, L], replicated over devices.
      key: typed key, or one for each row, [P G]; consumed.
      on_progress: called at every host sync; None calls nothing.

    Returns:
      The rollout [P G, C], samples of one prompt contiguous.
    """
    spec, programs = self.spec, self.programs
    num_prompts = prompts.tokens.shape[0]
    decoding_params = self._decoding_params(params)
    count = spec.num_starting_prompts(num_prompts)
    prompt_ids = np.minimum(np.arange(count), num_prompts).astype(np.int32)
    next_prompt = min(count, num_prompts)
    length = spec.ring_length(spec.config.sync_interval)
    slots, completions = programs.start(
      params, prompts, key, prompt_ids, length
    )
    while True:
      num_generated, done = map(np.asarray, programs.status(slots))
      self._report(completions, on_progress)
      prompts_wait = next_prompt < num_prompts
      if prompts_wait:
        free = assign_free_slots(
          done, spec.shards, spec.group_size, next_prompt, num_prompts
        )
        if free is not None:
          next_prompt = free.next_prompt
          slots = self._unshare(slots)
          slots, completions = programs.refill(
            *(params, prompts, key, free.prompt_ids, free.index),
            *(slots, completions),
          )
          continue  # The first token may already have ended a sequence.
      elif done.all():
        return programs.finish(prompts, completions)
      else:
        index = select_unfinished(done, spec.shards)
        if index is not None:
          slots = self._unshare(slots)
          slots = programs.shrink(slots, index)
      needed = self._needed_ring_length(length, num_generated[~done].max())
      if needed > length:
        length = needed
        if prompts_wait and length == spec.ring_length(2 * length):
          # Copying prompts later would hold the longest cache twice.
          slots = self._unshare(slots)
        slots = programs.grow(slots, length)
      slots, completions = programs.decode(decoding_params, slots, completions)

  def generate_together(
    self,
    params: Any,
    prompts: Prompts,
    keys: Array,
    on_progress: OnProgress | None = None,
  ) -> Rollout:
    """Samples all completions at the same time, whatever the number of slots.

    No prompt waits, and the cache has its full length from the start. So no
    slot moves and the cache is never copied, as in `generation.generate`, but
    the host syncs and can report.

    Args:
      params: policy weights, as `policy.declare_policy` declares them.
      prompts: P left-padded prompts, [P, L], replicated over devices; the row
        shards divide P.
      keys: typed keys, one for each row, [P G]; consumed.
      on_progress: called at every host sync; None calls nothing.

    Returns:
      The rollout [P G, C], samples of one prompt contiguous.
    """
    programs = self.programs
    limit = self.spec.generation.sampler.max_new_tokens
    prompt_ids = np.arange(prompts.tokens.shape[0], dtype=np.int32)
    slots, completions = programs.start(
      params, prompts, keys, prompt_ids, self.spec.ring_length(limit)
    )
    decoding_params = self._decoding_params(params)
    while True:
      _, done = map(np.asarray, programs.status(slots))
      self._report(completions, on_progress)
      if done.all():
        return programs.finish(prompts, completions)
      slots, completions = programs.decode(decoding_params, slots, completions)

  def _decoding_params(self, params):
    """The weights as the decode loop reads them."""
    if self.programs.to_decoding_params is None:
      return params
    return self.programs.to_decoding_params(params)

  def _report(self, completions, on_progress):
    """Reports the tokens of each row and which rows have ended."""
    if on_progress is None:
      return
    lengths, stopped = map(
      np.asarray, (completions.lengths, completions.stopped)
    )
    limit = self.spec.generation.sampler.max_new_tokens
    on_progress(lengths, stopped | (lengths == limit))

  def _unshare(self, slots):
    """Gives every slot its own copy of its prompt, so that it can move."""
    if slots.state.cache.prompt_mask is None:
      return slots
    return self.programs.unshare(slots)

  def _needed_ring_length(self, length, longest):
    """Doubles the length until there is room for another chunk of tokens."""
    spec = self.spec
    # The cache does not hold the token that was sampled last.
    needed = spec.ring_length(longest - 1 + spec.config.sync_interval)
    while length < needed:
      length = spec.ring_length(2 * length)
    return length
