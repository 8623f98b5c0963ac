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

from pure_jax.rollout.generation import Completions
from pure_jax.rollout.scheduling import assign_free_slots
from pure_jax.rollout.slots import Slots
from pure_jax.runs.planning.programs import EngineStage


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
  stage: EngineStage, call: Callable[[EngineCall], Any]
) -> None:
  """Calls every program of an engine that a rollout calls.

  Args:
    stage: the engine and its abstract arguments.
    call: compiles a program, or evaluates its shapes; returns its abstract
      outputs with shardings.
  """
  calls = _Calls(stage, call)
  calls.convert_weights()
  calls.start()
  calls.grow()
  calls.decode()
  calls.refill()
  calls.shrink()


class _Calls:
  """The calls of one rollout, each with the abstract outputs of those before.

  Attributes:
    decoding_params: weights that the decode loop reads.
    converted: the same if they are a copy, else empty.
    slots: the sequences in memory.
    completions: the buffers of the whole batch.
  """

  def __init__(self, stage: EngineStage, call: Callable[[EngineCall], Any]):
    self._call, self._arguments = call, stage.arguments
    self._spec, self._programs = stage.engine.spec, stage.engine.programs
    self._params, self._prompts, _ = stage.arguments
    self._num_prompts = self._prompts.tokens.shape[0]
    self._num_starting = self._spec.num_starting_prompts(self._num_prompts)
    self._rounds = -(-self._num_prompts // self._num_starting)
    self._max_tokens = self._spec.generation.sampler.max_new_tokens
    self._longest_ring = self._spec.ring_length(self._max_tokens)
    self.decoding_params, self.converted = self._params, ()
    self.slots: Slots | None = None
    self.completions: Completions | None = None

  @property
  def _prompts_wait(self) -> bool:
    """Whether some prompts wait at the start."""
    return self._num_starting < self._num_prompts

  def _run(self, name, function, arguments, held, times=1.0):
    """Calls one program."""
    return self._call(EngineCall(name, function, arguments, held, times))

  def _all_but_slots(self) -> tuple[Any, ...]:
    """The other arrays in memory while a program works on the slots."""
    return self._params, self._prompts, *self.converted, self.completions

  def convert_weights(self) -> None:
    """Converts the weights for the decode loop, if it reads others."""
    convert = self._programs.to_decoding_params
    if convert is None:
      return
    self.decoding_params = self._run(
      "to_decoding_params", convert, (self._params,), (self._prompts,)
    )
    self.converted = (self.decoding_params,)

  def start(self) -> None:
    """Prefills the first prompts, with a short ring."""
    ring = self._spec.ring_length(self._spec.config.sync_interval)
    prompt_ids = np.arange(self._num_starting, dtype=np.int32)
    self.slots, self.completions = self._run(
      "start",
      self._programs.start,
      (*self._arguments, prompt_ids, ring),
      self.converted,
    )

  def grow(self) -> None:
    """Copies shared prompts, and grows the ring for the last time."""
    ring, longest = self.slots.state.cache.ring_length, self._longest_ring
    while self._spec.ring_length(2 * ring) < longest:
      ring = self._spec.ring_length(2 * ring)
    if self.slots.state.cache.prompt_mask is not None:
      shared = _with_ring(self.slots, ring if self._prompts_wait else longest)
      self.slots = self._run(
        "unshare", self._programs.unshare, (shared,), self._all_but_slots()
      )
    if ring < longest:
      self._run(
        "grow",
        self._programs.grow,
        (_with_ring(self.slots, ring), longest),
        self._all_but_slots(),
        times=2,  # All growths before cost together about as much.
      )
    self.slots = _with_ring(self.slots, longest)

  def decode(self) -> None:
    """Decodes tokens for all slots."""
    chunks = (self._max_tokens - 1) / self._spec.config.sync_interval
    self._run(
      "decode",
      self._programs.decode,
      (self.decoding_params, self.slots, self.completions),
      (self._prompts, self._params) if self.converted else (self._prompts,),
      times=self._rounds * chunks,
    )

  def refill(self) -> None:
    """Prefills waiting prompts, as many as there are slots."""
    if not self._prompts_wait:
      return
    spec = self._spec
    free = assign_free_slots(
      np.ones(self._num_starting * spec.group_size, bool),
      spec.shards,
      spec.group_size,
      self._num_starting,
      self._num_prompts,
    )
    new = free.prompt_ids, free.index
    self._run(
      "refill",
      self._programs.refill,
      (*self._arguments, *new, self.slots, self.completions),
      self.converted,
      times=self._rounds - 1,
    )

  def shrink(self) -> None:
    """Keeps half of the slots. A rollout of full length never does that."""
    rows, shards = self._num_starting * self._spec.group_size, self._spec.shards
    half = rows // shards // 2
    if half:
      index = np.zeros((shards, half), np.int32)
      self._run(
        "shrink",
        self._programs.shrink,
        (self.slots, index),
        self._all_but_slots(),
        times=0,
      )


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
