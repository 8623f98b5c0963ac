"""The cache of keys and values that decoding reads.

Every row writes the keys and values of its newest token at the same index, so
a write is one slice of the cache, and a mask says which entries a row may
attend to. The entries for generated tokens form a ring: a sequence that starts
later, in a slot where another one has ended, begins at the current index.

The G samples of a prompt may share its keys and values. Attention then reads
them once for the queries of the whole group.

The legend of axes is in `pure_jax.types`: M is the number of entries of a row,
the ring and, unless prompts are shared, the L entries of the prompt before it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pure_jax.models.activation_sharding import KEYS, LOCAL, ActivationSharding
from pure_jax.models.config import ModelConfig


@struct.dataclass
class Stored:
  """Keys or values of one layer.

  Attributes:
    data: [B, K, M, H], in the compute dtype, bfloat16 or int8.
    scale: [B, K, M] float32, factor of int8 numbers; None for other dtypes.
  """

  data: Array
  scale: Array | None


class KVSegment(NamedTuple):
  """Entries of a cache that lie in one array, as attention reads them.

  Attributes:
    keys: [P, K, M, H]; P may be B, or a divisor of it if rows share entries.
    values: [P, K, M, H].
    mask: [P, M] bool, True on entries that may be attended to.
  """

  keys: Stored
  values: Stored
  mask: Array


@struct.dataclass
class KVCache:
  """Keys and values of B rows.

  Attributes:
    keys: one [B, K, M, H] per layer, already rotated.
    values: one [B, K, M, H] per layer.
    mask: [B, M] bool, True on entries that the row may attend to.
    write_index: [] int32, ring_start..M-1, the entry that is written next.
    prompt_keys: one [P, K, L, H] per layer if prompts are shared, else ().
    prompt_values: one [P, K, L, H] per layer if prompts are shared, else ().
    prompt_mask: [P, L] bool if prompts are shared, else None.
    ring_start: first entry of the ring: 0 if prompts are shared, else L.
  """

  keys: tuple[Stored, ...]
  values: tuple[Stored, ...]
  mask: Array
  write_index: Array
  prompt_keys: tuple[Stored, ...]
  prompt_values: tuple[Stored, ...]
  prompt_mask: Array | None
  ring_start: int = struct.field(pytree_node=False)

  @property
  def ring_length(self) -> int:
    """Entries of the ring."""
    return self.mask.shape[1] - self.ring_start


def store(x: Array, dtype: str) -> Stored:
  """Converts keys or values to the dtype of the cache.

  Args:
    x: [B, K, M, H] float.
    dtype: "float32", "bfloat16" or "int8". An int8 vector of H numbers has
      the scale max |x| / 127; each number is off by at most half of it.

  Returns:
    The keys or values as the cache stores them.
  """
  if dtype != "int8":
    return Stored(x.astype(dtype), None)
  x = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x), axis=-1) / 127.0
  steps = x / jnp.where(scale > 0, scale, 1.0)[..., None]
  return Stored(jnp.round(steps).astype(jnp.int8), scale)


def begin_cache(
  config: ModelConfig,
  keys: tuple[Array, ...],
  values: tuple[Array, ...],
  mask: Array,
  group_size: int,
  ring_length: int,
  share_prompts: bool,
  act_sharding: ActivationSharding = LOCAL,
) -> KVCache:
  """Makes a cache that holds prompts and has room for generated tokens.

  Args:
    config: the architecture, with the dtype of the cache.
    keys: of the prompts, one rotated [P, K, L, H] per layer.
    values: of the prompts, one [P, K, L, H] per layer.
    mask: [P, L] bool, True on tokens of the prompts.
    group_size: G, rows of each prompt, contiguous.
    ring_length: entries for generated tokens, at least 1.
    share_prompts: True keeps one copy of a prompt for its G rows, False one
      for each row.
    act_sharding: sharding of the cache.

  Returns:
    The cache of P G rows.
  """
  dtype = config.cache_dtype or config.compute_dtype
  keys, values = (
    tuple(store(x, dtype) for x in layers) for layers in (keys, values)
  )
  P = mask.shape[0]
  B = P * group_size
  shape = (B, config.num_kv_heads, ring_length, config.head_dim)

  def empty_ring():
    empty = store(jnp.zeros(shape, config.compute_dtype), dtype)
    return tuple(_constrain(empty, act_sharding) for _ in keys)

  cache = KVCache(
    keys=empty_ring(),
    values=empty_ring(),
    mask=jnp.zeros((B, ring_length), bool),
    write_index=jnp.int32(0),
    prompt_keys=tuple(_constrain(x, act_sharding) for x in keys),
    prompt_values=tuple(_constrain(x, act_sharding) for x in values),
    prompt_mask=mask,
    ring_start=0,
  )
  return cache if share_prompts else with_own_prompts(cache, act_sharding)


def _constrain(stored, act_sharding):
  """Splits rows and heads over devices."""
  return jax.tree.map(
    lambda x: act_sharding.constrain(x, KEYS[: x.ndim]), stored
  )


def with_own_prompts(
  cache: KVCache, act_sharding: ActivationSharding = LOCAL
) -> KVCache:
  """Gives every row its own copy of its prompt, so that rows can move.

  Args:
    cache: with or without shared prompts.
    act_sharding: sharding of the cache.

  Returns:
    The cache without shared prompts: the L entries of the prompt lie before
    the ring.
  """
  if cache.prompt_mask is None:
    return cache
  B, (P, L) = cache.mask.shape[0], cache.prompt_mask.shape
  G = B // P

  def join(prompt, ring):
    joined = jax.tree.map(
      lambda x, y: jnp.concatenate([jnp.repeat(x, G, axis=0), y], axis=2),
      prompt,
      ring,
    )
    return _constrain(joined, act_sharding)

  mask = jnp.repeat(cache.prompt_mask, G, axis=0)
  return KVCache(
    keys=tuple(map(join, cache.prompt_keys, cache.keys)),
    values=tuple(map(join, cache.prompt_values, cache.values)),
    mask=jnp.concatenate([mask, cache.mask], axis=1),
    write_index=cache.write_index + L,
    prompt_keys=(),
    prompt_values=(),
    prompt_mask=None,
    ring_start=L,
  )


def grow_ring(
  cache: KVCache, ring_length: int, act_sharding: ActivationSharding = LOCAL
) -> KVCache:
  """Makes the ring longer.

  The oldest entry moves to the front of the ring, and new entries follow the
  newest one. A row's tokens stay in order, so none is overwritten before the
  longer ring has wrapped around.

  Args:
    cache: with or without shared prompts.
    ring_length: entries of the new ring, at least as many as now.
    act_sharding: sharding of the cache.

  Returns:
    The cache; the first new entry is written next.
  """
  start, old_length = cache.ring_start, cache.ring_length

  def grow(x, axis):
    prompt, ring = jnp.split(x, [start], axis=axis)
    ring = jnp.roll(ring, start - cache.write_index, axis=axis)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, ring_length - old_length)
    return jnp.concatenate([prompt, jnp.pad(ring, padding)], axis=axis)

  keys, values = _map_layers(lambda x: grow(x, 2), act_sharding, cache)
  return cache.replace(
    keys=keys,
    values=values,
    mask=grow(cache.mask, 1),
    write_index=jnp.int32(start + old_length),
  )


def _map_layers(function, act_sharding, *caches):
  """Applies a function to the arrays of every layer: (keys, values)."""

  def layer(*stored):
    return _constrain(jax.tree.map(function, *stored), act_sharding)

  keys = tuple(map(layer, *(cache.keys for cache in caches)))
  return keys, tuple(map(layer, *(cache.values for cache in caches)))


def take_rows(
  cache: KVCache, index: Array, act_sharding: ActivationSharding = LOCAL
) -> KVCache:
  """Selects rows of a cache, in any order.

  Args:
    cache: without shared prompts, rows in contiguous shards.
    index: [shards, r] int32, rows within each shard.
    act_sharding: sharding of the cache.

  Returns:
    The cache of shards * r rows.
  """
  keys, values = _map_layers(
    lambda x: take_by_shard(x, index), act_sharding, cache
  )
  return cache.replace(
    keys=keys, values=values, mask=take_by_shard(cache.mask, index)
  )


def put_rows(
  cache: KVCache,
  new: KVCache,
  index: Array,
  act_sharding: ActivationSharding = LOCAL,
) -> KVCache:
  """Replaces rows of a cache by new prompts.

  Args:
    cache: without shared prompts, rows in contiguous shards.
    new: cache of the new rows, which hold a prompt of L tokens and no others.
    index: [shards, r] int32, rows within each shard; an index beyond the
      shard drops the new row.
    act_sharding: sharding of the cache.

  Returns:
    The cache.
  """
  L = cache.ring_start

  def put_prompt(x, y):
    entries = (slice(None), slice(None), slice(0, L))
    return x.at[entries].set(put_by_shard(x[entries], y[entries], index))

  mask = jnp.pad(new.mask[:, :L], ((0, 0), (0, cache.ring_length)))
  keys, values = _map_layers(put_prompt, act_sharding, cache, new)
  return cache.replace(
    keys=keys, values=values, mask=put_by_shard(cache.mask, mask, index)
  )


def take_by_shard(x: Array, index: Array) -> Array:
  """Selects rows of every shard; no row moves to another device.

  Args:
    x: [B, ...], rows in contiguous shards.
    index: [shards, r] int32, rows within each shard.

  Returns:
    [shards * r, ...].
  """
  shards = x.reshape(index.shape[0], -1, *x.shape[1:])
  selected = jax.vmap(lambda shard, rows: shard[rows])(shards, index)
  return selected.reshape(-1, *x.shape[1:])


def put_by_shard(x: Array, new: Array, index: Array) -> Array:
  """Replaces rows of every shard.

  Args:
    x: [B, ...], rows in contiguous shards.
    new: [shards * r, ...].
    index: [shards, r] int32, rows within each shard; an index beyond the
      shard drops the new row.

  Returns:
    [B, ...].
  """
  shards = index.shape[0]

  def put(shard, new_rows, rows):
    return shard.at[rows].set(new_rows, mode="drop")

  replaced = jax.vmap(put)(
    x.reshape(shards, -1, *x.shape[1:]),
    new.reshape(shards, -1, *x.shape[1:]),
    index,
  )
  return replaced.reshape(x.shape)
