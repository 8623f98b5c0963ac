"""The cache of keys and values that decoding reads.

Every row writes the keys and values of its newest token into the same slot, so
that a write is one slice of the cache, and a mask says which slots a row may
read. The slots are a ring: a row that starts later, where another has ended,
begins at whatever slot is next.

A prompt's keys and values may be shared by its G samples. They are read once
for all of them then, in products with the queries of the whole group.

Letters: P prompts, B rows, B = P G; L prompt tokens, M slots of the ring, S
slots of a row; K key heads, H head dimension.
"""

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
    data: [B, K, S, H], in the compute dtype, bfloat16, or int8.
    scale: [B, K, S] float32, what int8 numbers are multiplied by; else None.
  """

  data: Array
  scale: Array | None


@struct.dataclass
class KVCache:
  """What decoding remembers of B rows.

  Attributes:
    keys: one per layer, of [B, K, S, H], already rotated.
    values: one per layer, of [B, K, S, H].
    mask: [B, S] bool, True on slots that the row may read.
    slot: [] int32, first..S-1, the slot that is written next.
    prompt_keys: one per layer, of [P, K, L, H], where prompts are shared;
      else ().
    prompt_values: likewise.
    prompt_mask: [P, L] bool where prompts are shared, else None.
    first: the ring's first slot: L where each row keeps its own prompt before
      it, 0 where prompts are shared.
  """

  keys: tuple[Stored, ...]
  values: tuple[Stored, ...]
  mask: Array
  slot: Array
  prompt_keys: tuple[Stored, ...]
  prompt_values: tuple[Stored, ...]
  prompt_mask: Array | None
  first: int = struct.field(pytree_node=False)

  @property
  def ring(self) -> int:
    """M, slots of the ring."""
    return self.mask.shape[1] - self.first


def store(x: Array, dtype: str) -> Stored:
  """Keys or values in the dtype in which they are kept.

  Args:
    x: [B, K, S, H] float.
    dtype: "float32", "bfloat16" or "int8". An int8 vector of H numbers has
      the scale max |x| / 127, and is off by at most half of it.

  Returns:
    What is kept.
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
  samples: int,
  slots: int,
  shared: bool,
  act_sharding: ActivationSharding = LOCAL,
) -> KVCache:
  """A cache that holds prompts and has room for their samples.

  Args:
    config: the architecture, with the dtype of the cache.
    keys: of the prompts, one [P, K, L, H] per layer, rotated.
    values: likewise.
    mask: [P, L] bool, True on tokens of the prompts.
    samples: G, rows of each prompt, contiguous.
    slots: M, of the ring, at least 1.
    shared: True keeps one copy of a prompt for its G rows, False one for each.
    act_sharding: of the cache.

  Returns:
    The cache of P G rows.
  """
  dtype = config.cache_dtype or config.compute_dtype
  keys, values = (
    tuple(store(x, dtype) for x in of_layers) for of_layers in (keys, values)
  )
  P = mask.shape[0]
  shape = (P * samples, config.num_kv_heads, slots, config.head_dim)

  def ring():
    empty = store(jnp.zeros(shape, config.compute_dtype), dtype)
    return tuple(_place(empty, act_sharding) for _ in keys)

  cache = KVCache(
    keys=ring(),
    values=ring(),
    mask=jnp.zeros((P * samples, slots), bool),
    slot=jnp.int32(0),
    prompt_keys=tuple(_place(x, act_sharding) for x in keys),
    prompt_values=tuple(_place(x, act_sharding) for x in values),
    prompt_mask=mask,
    first=0,
  )
  return cache if shared else with_own_prompts(cache, act_sharding)


def _repeat(kept, samples):
  """The same for each sample of a prompt."""
  return jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), kept)


def _place(kept, act_sharding):
  """Rows and heads where the layout wants them."""
  return Stored(
    act_sharding.constrain(kept.data, KEYS),
    None
    if kept.scale is None
    else act_sharding.constrain(kept.scale, KEYS[:-1]),
  )


def with_own_prompts(
  cache: KVCache, act_sharding: ActivationSharding = LOCAL
) -> KVCache:
  """A cache whose rows each have a copy of their prompt: rows that may move.

  Args:
    cache: of shared prompts, or already without.
    act_sharding: of the cache.

  Returns:
    The cache, its slots in front of the ring those of the prompt.
  """
  if cache.prompt_mask is None:
    return cache
  B, (P, L) = cache.mask.shape[0], cache.prompt_mask.shape
  samples = B // P

  def join(prompts, rows):
    return tuple(
      _place(
        jax.tree.map(
          lambda x, y: jnp.concatenate([x, y], axis=2),
          _repeat(prompt, samples),
          row,
        ),
        act_sharding,
      )
      for prompt, row in zip(prompts, rows, strict=True)
    )

  mask = jnp.repeat(cache.prompt_mask, samples, axis=0)
  return KVCache(
    keys=join(cache.prompt_keys, cache.keys),
    values=join(cache.prompt_values, cache.values),
    mask=jnp.concatenate([mask, cache.mask], axis=1),
    slot=cache.slot + L,
    prompt_keys=(),
    prompt_values=(),
    prompt_mask=None,
    first=L,
  )


def grow_ring(
  cache: KVCache, ring: int, act_sharding: ActivationSharding = LOCAL
) -> KVCache:
  """A cache with a longer ring.

  The oldest slot comes to the ring's front and the new ones after the newest:
  a row's tokens stay in order, so none is overwritten before the longer ring
  has gone round.

  Args:
    cache: any cache.
    ring: slots of the new ring, at least as many as now.
    act_sharding: of the cache.

  Returns:
    The cache; its next slot is the first of the new ones.
  """
  first, now = cache.first, cache.ring

  def grow(x, axis):
    start, ring_part = jnp.split(x, [first], axis=axis)
    ring_part = jnp.roll(ring_part, first - cache.slot, axis=axis)
    more = [(0, 0)] * x.ndim
    more[axis] = (0, ring - now)
    return jnp.concatenate([start, jnp.pad(ring_part, more)], axis=axis)

  def grow_all(of_layers):
    return tuple(
      _place(jax.tree.map(lambda x: grow(x, 2), kept), act_sharding)
      for kept in of_layers
    )

  return cache.replace(
    keys=grow_all(cache.keys),
    values=grow_all(cache.values),
    mask=grow(cache.mask, 1),
    slot=jnp.int32(first + now),
  )


def take_rows(
  cache: KVCache, index: Array, act_sharding: ActivationSharding = LOCAL
) -> KVCache:
  """Some rows of a cache, in a new order.

  Args:
    cache: in which every row has its own prompt, rows in contiguous shards.
    index: [shards, r] int32, rows within each shard.
    act_sharding: of the cache.

  Returns:
    The cache of shards * r rows.
  """

  def take(kept):
    return _place(
      jax.tree.map(lambda x: take_by_shard(x, index), kept), act_sharding
    )

  return cache.replace(
    keys=tuple(take(kept) for kept in cache.keys),
    values=tuple(take(kept) for kept in cache.values),
    mask=take_by_shard(cache.mask, index),
  )


def put_rows(
  cache: KVCache,
  new: KVCache,
  index: Array,
  act_sharding: ActivationSharding = LOCAL,
) -> KVCache:
  """A cache in which some rows have begun anew.

  Args:
    cache: in which every row has its own prompt, rows in contiguous shards.
    new: of rows that hold prompts of the same length and nothing else.
    index: [shards, r] int32, where they go within each shard; an index that
      is no row drops one.
    act_sharding: of the cache.

  Returns:
    The cache.
  """
  L = cache.first

  def put(kept, given):
    def put_prompt(x, y):
      prompts = y[:, :, :L]
      at = (slice(None), slice(None), slice(0, L))
      return x.at[at].set(put_by_shard(x[at], prompts, index))

    return _place(jax.tree.map(put_prompt, kept, given), act_sharding)

  mask = jnp.pad(new.mask[:, :L], ((0, 0), (0, cache.ring)))
  return cache.replace(
    keys=tuple(map(put, cache.keys, new.keys)),
    values=tuple(map(put, cache.values, new.values)),
    mask=put_by_shard(cache.mask, mask, index),
  )


def take_by_shard(x: Array, index: Array) -> Array:
  """Rows of every shard, which stay where they are.

  Args:
    x: [B, ...], rows in contiguous shards.
    index: [shards, r] int32, rows within each shard.

  Returns:
    [shards * r, ...].
  """
  parts = x.reshape(index.shape[0], -1, *x.shape[1:])
  found = jax.vmap(lambda part, at: part[at])(parts, index)
  return found.reshape(-1, *x.shape[1:])


def put_by_shard(x: Array, new: Array, index: Array) -> Array:
  """Replaces rows of every shard.

  Args:
    x: [B, ...], rows in contiguous shards.
    new: [shards * r, ...].
    index: [shards, r] int32, rows within each shard; an index that is no row
      drops one.

  Returns:
    [B, ...].
  """
  shards = index.shape[0]

  def put(part, rows, at):
    return part.at[at].set(rows, mode="drop")

  found = jax.vmap(put)(
    x.reshape(shards, -1, *x.shape[1:]),
    new.reshape(shards, -1, *x.shape[1:]),
    index,
  )
  return found.reshape(x.shape)
