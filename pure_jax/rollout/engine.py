"""Continuous batching: rows that have ended cost no time.

A compiled loop draws a chunk of tokens for all rows. Then the host looks which
rows have ended and, for the next chunk,

* gives the places of rows that have ended to the samples of prompts that wait,
  a whole prompt at a time, which is read once;
* or, where none waits and half of the rows have ended, goes on with half as
  many, those that have not;
* and doubles the ring of the cache when the longest row has filled it, so that
  a token reads little more than what there is.

Samples share their prompt's keys and values until rows move; where prompts wait
they stop before the ring grows for the last time, while copies are small.

Row i draws token t with the same key as everywhere else, from its own logits:
its tokens are those of `generation.generate`, up to the rounding of products
that another number of rows may change. Nothing is compiled twice for the same
numbers of rows, slots and prompts that begin, which are halved and doubled, so
they are few.

Letters: P prompts, G samples of each, B = P G rows of the batch; R rows at a
time, in contiguous shards; C tokens at most, L of a prompt.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from pure_jax.models import kv_cache
from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.config import ModelConfig
from pure_jax.rollout import generation
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.rollout.slots import (
  as_rollout,
  begin_prompts,
  copied,
  no_results,
  place,
  put_places,
  record,
  take_places,
  with_cache,
)
from pure_jax.rollout.stopping import StopTable
from pure_jax.types import Prompts, Rollout


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """How a batch goes through the engine.

  Attributes:
    rows: R, the most rows at a time, at least 1. It is rounded down to whole
      prompts on every row shard, and up to one.
    chunk: tokens between two looks of the host, at least 1.
  """

  rows: int
  chunk: int

  def __post_init__(self):
    """Refuses an engine that would not move."""
    if self.rows < 1 or self.chunk < 1:
      raise ValueError(
        f"rows={self.rows} and chunk={self.chunk} must be at least 1."
      )


class Engine:
  """Samples of batches, for one model and one way to sample."""

  def __init__(
    self,
    model: ModelConfig,
    sampler: SamplingConfig,
    group_size: int,
    config: EngineConfig,
    *,
    shards: int = 1,
    act_sharding: ActivationSharding = LOCAL,
    stops: StopTable | None = None,
    prepare: generation.Prepare = generation.unprepared,
    slot_multiple: int = 1,
    out_shardings: Any = None,
  ):
    """Declares the compiled parts; each is compiled when it is first needed.

    Args:
      model: the policy's architecture.
      sampler: temperature, filters, stop ids and lengths.
      group_size: G, samples of each prompt.
      config: rows and chunk.
      shards: contiguous parts into which rows are split over devices.
      act_sharding: of activations and cache, without split tokens.
      stops: texts that end a row, or None.
      prepare: see `generation.generate`.
      slot_multiple: the ring has a multiple of so many slots, at least 1. A
        TPU keeps arrays of other lengths with rows innermost, and the loop
        would copy the whole cache before and after every chunk; so it does
        where prompts, which lie before the ring, are of other lengths.
      out_shardings: of the rollout that comes out, None for the compiler's.
    """
    self._model, self._sampler, self._group = model, sampler, group_size
    self._config, self._shards = config, shards
    self._placement, self._stops = act_sharding, stops
    self._slot_multiple = slot_multiple

    def take(places, index):
      return place(take_places(places, index, act_sharding), act_sharding)

    def grow(places, ring):
      return with_cache(
        places, kv_cache.grow_ring(places.rows.cache, ring, act_sharding)
      )

    def unshare(places):
      return with_cache(
        places,
        kv_cache.with_own_prompts(places.rows.cache, act_sharding),
      )

    def look(places):
      found = places.rows.ages, places.rows.done
      return copied(found, act_sharding)

    self._copies_weights = prepare is not generation.unprepared
    self._prepare = jax.jit(lambda params: prepare(params, model))
    self._start = jax.jit(self._first_tokens, static_argnums=4)
    self._refill = jax.jit(self._first_tokens_beside, donate_argnums=(5, 6))
    self._decode = jax.jit(self._more_tokens, donate_argnums=(1, 2))
    self._take = jax.jit(take)
    self._grow = jax.jit(grow, static_argnums=1)
    self._unshare = jax.jit(unshare)
    self._look = jax.jit(look)
    self._finish = jax.jit(as_rollout, out_shardings=out_shardings)

  def ring_slots(self, tokens: int) -> int:
    """How long the ring must be.

    Args:
      tokens: of a row that are read; all but those of the prompt and the one
        drawn last, which no cache holds.

    Returns:
      Slots, enough for as many, or for the longest row where that has fewer.
    """
    longest = max(self._sampler.max_new_tokens - 1, 1)
    multiple = self._slot_multiple
    return -(-min(tokens, longest) // multiple) * multiple

  def generate(self, params: Any, prompts: Prompts, key: Array) -> Rollout:
    """G samples of each prompt.

    Args:
      params: policy weights, as `policy.declare_policy` declares them.
      prompts: P left-padded prompts, [P, L], the same on every device.
      key: typed key, or one for each row, [P G]; consumed.

    Returns:
      The rollout [P G, C], samples of one prompt contiguous.
    """
    total, chunk = prompts.tokens.shape[0], self._config.chunk
    decoding = self._prepare(params)
    chosen, waiting = self._first_prompts(total)
    ring = self.ring_slots(chunk)
    places, results = self._start(params, prompts, key, chosen, ring)
    while True:
      ages, done = map(np.asarray, self._look(places))
      if waiting < total:
        found = free_places(done, self._shards, self._group, waiting, total)
        if found is not None:
          chosen, index, waiting = found
          places = self._with_own_prompts(places)
          places, results = self._refill(
            params, prompts, key, chosen, index, places, results
          )
          continue  # The first token may have ended a row.
      elif done.all():
        return self._finish(prompts, results)
      else:
        index = unfinished_places(done, self._shards)
        if index is not None:
          places = self._with_own_prompts(places)
          places = self._take(places, index)
      # Of all but the token drawn last.
      needed = self.ring_slots(ages[~done].max() - 1 + chunk)
      if needed > ring:
        while ring < needed:
          ring = self.ring_slots(2 * ring)
        if waiting < total and ring == self.ring_slots(2 * ring):
          # Later the copy would take the longest cache twice.
          places = self._with_own_prompts(places)
        places = self._grow(places, ring)
      places, results = self._decode(decoding, places, results)

  def parts(self) -> dict[str, Callable[..., Any]]:
    """The jitted parts that hold memory, for a plan of it.

    Returns:
      By name: "start", "unshare", "grow", "decode", "refill", "take", called
      as `generate` calls them, and "prepare" where weights are copied.
    """
    found = {
      "start": self._start,
      "unshare": self._unshare,
      "grow": self._grow,
      "decode": self._decode,
      "refill": self._refill,
      "take": self._take,
    }
    return found | ({"prepare": self._prepare} if self._copies_weights else {})

  def _begin(self, params, prompts, key, chosen, slots, shared):
    """Prompts are read, and their samples' first tokens drawn."""
    return begin_prompts(
      params,
      self._model,
      self._sampler,
      prompts,
      key,
      chosen,
      self._group,
      slots,
      shared,
      self._stops,
      self._placement,
    )

  def _first_tokens(self, params, prompts, key, chosen, slots):
    """The places and results that a batch begins with."""
    shared = self._group > 1
    places, drawn = self._begin(params, prompts, key, chosen, slots, shared)
    rows = prompts.tokens.shape[0] * self._group
    results = no_results(rows, self._sampler)
    results = record(results, places, 0 * places.rows.ages, drawn)
    return self._placed(places, results)

  def _first_tokens_beside(
    self, params, prompts, key, chosen, index, places, results
  ):
    """Prompts that begin where others have ended."""
    new, drawn = self._begin(params, prompts, key, chosen, 1, False)
    results = record(results, new, 0 * new.rows.ages, drawn)
    places = put_places(places, new, index, self._placement)
    return self._placed(places, results)

  def _more_tokens(self, params, places, results):
    """A chunk of tokens for every row."""
    ages = places.rows.ages
    rows, drawn = generation.decode(
      params,
      self._model,
      self._sampler,
      places.rows,
      self._config.chunk,
      self._stops,
      self._placement,
    )
    places = places.replace(rows=rows)
    return self._placed(places, record(results, places, ages, drawn))

  def _placed(self, places, results):
    """Both where the layout wants them."""
    act_sharding = self._placement
    return place(places, act_sharding), copied(results, act_sharding)

  def _with_own_prompts(self, places):
    """Rows that may move; those of shared prompts are copied once."""
    if places.rows.cache.prompt_mask is None:
      return places
    return self._unshare(places)

  def _first_prompts(self, total):
    """Numbers of the prompts that begin, and the first that waits."""
    shards = self._shards
    each = min(self._config.rows // (shards * self._group), -(-total // shards))
    count = max(each, 1) * shards
    chosen = np.minimum(np.arange(count), total).astype(np.int32)
    return chosen, min(count, total)


def free_places(
  done: np.ndarray, shards: int, samples: int, waiting: int, total: int
) -> tuple[np.ndarray, np.ndarray, int] | None:
  """Which prompts begin in which places.

  Args:
    done: [R] bool, places whose row has ended.
    shards: contiguous parts of the places.
    samples: G, places that a prompt takes, all in one shard.
    waiting: number of the first prompt that waits.
    total: P.

  Returns:
    (numbers of prompts [shards * n] int32, P for none; places within each
    shard [shards, n G] int32, R for none; the first prompt that waits then),
    n a power of two; or None where no shard has room.
  """
  free = [np.flatnonzero(part) for part in done.reshape(shards, -1)]
  counts, left = [], total - waiting
  for places in free:
    counts.append(min(len(places) // samples, left))
    left -= counts[-1]
  if max(counts) == 0:
    return None
  width = 1 << (max(counts) - 1).bit_length()
  chosen = np.full((shards, width), total, np.int32)
  index = np.full((shards, width * samples), len(done), np.int32)
  for shard, (count, places) in enumerate(zip(counts, free, strict=True)):
    chosen[shard, :count] = np.arange(waiting, waiting + count)
    index[shard, : count * samples] = places[: count * samples]
    waiting += count
  return chosen.reshape(-1), index, waiting


def unfinished_places(done: np.ndarray, shards: int) -> np.ndarray | None:
  """Half as many places, or a quarter and so on, that hold all who go on.

  Args:
    done: [R] bool, places whose row has ended.
    shards: contiguous parts of the places.

  Returns:
    [shards, r] int32, places within each shard; or None where they are too
    many for half of the places.
  """
  parts = done.reshape(shards, -1)
  most = int((~parts).sum(axis=1).max())
  width = parts.shape[1]
  while width // 2 >= most:
    width //= 2
  if width == parts.shape[1]:
    return None
  # Those that go on come first.
  return np.argsort(parts, axis=1, kind="stable")[:, :width].astype(np.int32)
